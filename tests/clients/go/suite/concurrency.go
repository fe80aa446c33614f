package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func (t *T) session(options ...concurrency.SessionOption) *concurrency.Session {
	return must(concurrency.NewSession(t.Client, options...))
}

func init() {
	add("session/close", func(t *T) {
		session := t.session(concurrency.WithTTL(30))
		left := must(t.TimeToLive(t, session.Lease()))
		t.equal("ttl", left.GrantedTTL, int64(30))
		must(t.Put(t, t.key("a"), "", clientv3.WithLease(session.Lease())))
		t.ok(session.Close())
		take2(t, "done", session.Done())
		t.equal("its keys", must(t.Get(t, t.key("a"))).Count, int64(0))
	})
	add("session/orphan", func(t *T) {
		session := t.session(concurrency.WithTTL(2))
		session.Orphan()
		take2(t, "done", session.Done())
		t.until("its lease ends", func() bool {
			return must(t.TimeToLive(t, session.Lease())).TTL == -1
		})
	})
	add("session/lease-given", func(t *T) {
		lease := must(t.Grant(t, 60)).ID
		session := t.session(concurrency.WithLease(lease), concurrency.WithContext(t))
		t.equal("lease", session.Lease(), lease)
		must(t.Revoke(t, lease))
		take2(t, "done once the lease is gone", session.Done())
	})
	add("mutex/lock-unlock", func(t *T) {
		session := t.session()
		defer session.Close()
		mutex := concurrency.NewMutex(session, t.key("lock"))
		t.ok(mutex.Lock(t))
		t.true("header", mutex.Header().Revision > 0)
		done := must(t.Txn(t).If(mutex.IsOwner()).Then(clientv3.OpPut(t.key("a"), "")).Commit())
		t.true("owner", done.Succeeded)
		other := t.session()
		defer other.Close()
		t.refused(concurrency.NewMutex(other, t.key("lock")).TryLock(t), concurrency.ErrLocked)
		t.ok(mutex.Unlock(t))
		t.ok(concurrency.NewMutex(other, t.key("lock")).TryLock(t))
		t.refused(mutex.Unlock(t), concurrency.ErrLockReleased)
	})
	add("mutex/contended", contended)
	add("mutex/owner-dies", func(t *T) {
		session := t.session(concurrency.WithTTL(2))
		t.ok(concurrency.NewMutex(session, t.key("lock")).Lock(t))
		session.Orphan()
		other := t.session()
		defer other.Close()
		t.ok(concurrency.NewMutex(other, t.key("lock")).Lock(t))
	})
	add("mutex/wait-given-up", func(t *T) {
		session, other := t.session(), t.session()
		defer session.Close()
		defer other.Close()
		t.ok(concurrency.NewMutex(session, t.key("lock")).Lock(t))
		ctx, cancel := context.WithTimeout(t, 200*time.Millisecond)
		defer cancel()
		t.refused(concurrency.NewMutex(other, t.key("lock")).Lock(ctx), context.DeadlineExceeded)
		t.until("the waiter's key goes", func() bool {
			return must(t.Get(t, t.key("lock"), clientv3.WithPrefix())).Count == 1
		})
	})
	add("election/campaign", campaign)
	add("election/observe", observe)
	add("election/resume", func(t *T) {
		session := t.session()
		defer session.Close()
		first := concurrency.NewElection(session, t.key("e"))
		t.ok(first.Campaign(t, "one"))
		again := concurrency.ResumeElection(session, t.key("e"), first.Key(), first.Rev())
		t.ok(again.Proclaim(t, "two"))
		t.equal("leader", string(must(first.Leader(t)).Kvs[0].Value), "two")
		t.ok(again.Resign(t))
		_, err := first.Leader(t)
		t.refused(err, concurrency.ErrElectionNoLeader)
	})
	for name, isolation := range map[string]concurrency.Isolation{
		"serializable-snapshot": concurrency.SerializableSnapshot,
		"serializable":          concurrency.Serializable,
		"repeatable-reads":      concurrency.RepeatableReads,
	} {
		add("stm/"+name, func(t *T) { transfers(t, isolation) })
	}
	add("stm/read-committed", func(t *T) {
		before := "?"
		must(concurrency.NewSTM(t.Client, func(stm concurrency.STM) error {
			before = stm.Get(t.key("a"))
			stm.Put(t.key("a"), "1")
			return nil
		}, concurrency.WithIsolation(concurrency.ReadCommitted), concurrency.WithAbortContext(t)))
		t.equal("not there", before, "")
		t.equal("value", string(must(t.Get(t, t.key("a"))).Kvs[0].Value), "1")
	})
	add("stm/delete-and-revision", func(t *T) {
		put := must(t.Put(t, t.key("a"), "1"))
		revision := int64(0)
		must(concurrency.NewSTM(t.Client, func(stm concurrency.STM) error {
			revision = stm.Rev(t.key("a"))
			stm.Del(t.key("a"))
			stm.Put(t.key("b"), "2")
			return nil
		}, concurrency.WithPrefetch(t.key("a"), t.key("b"))))
		t.equal("revision", revision, put.Header.Revision)
		t.equal("keys", t.keysOf(must(t.Get(t, t.prefix, clientv3.WithPrefix()))), "b")
	})
	add("stm/aborted", func(t *T) {
		_, err := concurrency.NewSTM(t.Client, func(stm concurrency.STM) error {
			stm.Put(t.key("a"), "1")
			return context.Canceled
		})
		t.refused(err, context.Canceled)
		t.equal("nothing put", must(t.Get(t, t.key("a"))).Count, int64(0))
	})
}

// take2 waits until a channel is closed.
func take2[A any](t *T, what string, channel <-chan A) {
	select {
	case <-channel:
	case <-t.Done():
		t.fail("%s: in vain", what)
	}
}

// contended: eight holders in turn, never two at once.
func contended(t *T) {
	var group sync.WaitGroup
	inside, most, turns := 0, 0, 0
	errors := make(chan error, 8)
	var guard sync.Mutex
	for range 8 {
		group.Go(func() {
			session, err := concurrency.NewSession(t.Client)
			if err != nil {
				errors <- err
				return
			}
			defer session.Close()
			locker := concurrency.NewMutex(session, t.key("lock"))
			for range 5 {
				if err := locker.Lock(t); err != nil {
					errors <- err
					return
				}
				guard.Lock()
				inside++
				most, turns = max(most, inside), turns+1
				guard.Unlock()
				guard.Lock()
				inside--
				guard.Unlock()
				if err := locker.Unlock(t); err != nil {
					errors <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(errors)
	for err := range errors {
		t.ok(err)
	}
	t.equal("most at once, turns", []int{most, turns}, []int{1, 40})
	session := t.session()
	defer session.Close()
	locker := concurrency.NewLocker(session, t.key("lock"))
	locker.Lock()
	locker.Unlock()
}

// campaign: the second candidate leads once the first resigns.
func campaign(t *T) {
	one, two := t.session(), t.session()
	defer one.Close()
	defer two.Close()
	first, second := concurrency.NewElection(one, t.key("e")), concurrency.NewElection(two, t.key("e"))
	_, err := first.Leader(t)
	t.refused(err, concurrency.ErrElectionNoLeader)
	t.ok(first.Campaign(t, "one"))
	won := make(chan error, 1)
	go func() { won <- second.Campaign(t, "two") }()
	t.until("the second waits", func() bool {
		return must(t.Get(t, t.key("e"), clientv3.WithPrefix())).Count == 2
	})
	t.equal("leader", string(must(second.Leader(t)).Kvs[0].Value), "one")
	t.ok(first.Proclaim(t, "still one"))
	t.equal("leader", string(must(second.Leader(t)).Kvs[0].Value), "still one")
	t.ok(first.Resign(t))
	t.ok(take(t, "the second wins", won))
	t.equal("leader", string(must(first.Leader(t)).Kvs[0].Value), "two")
	t.true("header", second.Header().Revision > 0)
	t.refused(first.Proclaim(t, "gone"), concurrency.ErrElectionNotLeader)
}

// observe: each leader is seen, the last value of one and the next leader.
func observe(t *T) {
	watcher := t.session()
	defer watcher.Close()
	ctx, cancel := context.WithCancel(t)
	seen := concurrency.NewElection(watcher, t.key("e")).Observe(ctx)
	for turn := range 3 {
		session := t.session()
		election := concurrency.NewElection(session, t.key("e"))
		t.ok(election.Campaign(t, fmt.Sprint(turn)))
		t.equal("seen", string(take(t, "a leader", seen).Kvs[0].Value), fmt.Sprint(turn))
		t.ok(election.Proclaim(t, fmt.Sprint(turn, "b")))
		t.equal("seen", string(take(t, "a leader", seen).Kvs[0].Value), fmt.Sprint(turn, "b"))
		t.ok(session.Close())
	}
	cancel()
	for range seen {
	}
}

// transfers: money moves between accounts, none is made or lost.
func transfers(t *T, isolation concurrency.Isolation) {
	const accounts, money = 4, 100
	for i := range accounts {
		must(t.Put(t, t.key(fmt.Sprint(i)), fmt.Sprint(money)))
	}
	var group sync.WaitGroup
	errors := make(chan error, 100)
	for mover := range 5 {
		group.Go(func() {
			for i := range 10 {
				from, to := t.key(fmt.Sprint((mover+i)%accounts)), t.key(fmt.Sprint((mover+i+1)%accounts))
				_, err := concurrency.NewSTM(t.Client, func(stm concurrency.STM) error {
					a, _ := strconv.Atoi(stm.Get(from))
					b, _ := strconv.Atoi(stm.Get(to))
					stm.Put(from, fmt.Sprint(a-1))
					stm.Put(to, fmt.Sprint(b+1))
					return nil
				}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(t))
				if err != nil {
					errors <- err
				}
			}
		})
	}
	group.Wait()
	close(errors)
	for err := range errors {
		t.ok(err)
	}
	sum := 0
	for _, kv := range must(t.Get(t, t.prefix, clientv3.WithPrefix())).Kvs {
		value, _ := strconv.Atoi(string(kv.Value))
		sum += value
	}
	t.equal("money", sum, accounts*money)
}
