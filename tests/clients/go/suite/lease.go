package main

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const none = clientv3.LeaseID(0x7ffffffffffffff)

func init() {
	add("lease/grant-and-revoke", func(t *T) {
		lease := must(t.Grant(t, 60))
		t.true("an id", lease.ID > 0)
		t.equal("ttl", lease.TTL, int64(60))
		for i := range 3 {
			must(t.Put(t, t.key(fmt.Sprint(i)), "", clientv3.WithLease(lease.ID)))
		}
		before := must(t.Get(t, t.prefix, clientv3.WithPrefix()))
		t.equal("lease of a key", before.Kvs[0].Lease, int64(lease.ID))
		must(t.Revoke(t, lease.ID))
		after := must(t.Get(t, t.prefix, clientv3.WithPrefix()))
		t.equal("keys", after.Count, int64(0))
		t.equal("revisions", after.Header.Revision, before.Header.Revision+1)
		_, err := t.Revoke(t, lease.ID)
		t.refused(err, rpctypes.ErrLeaseNotFound)
	})
	add("lease/unknown", func(t *T) {
		_, err := t.Put(t, t.key("a"), "", clientv3.WithLease(none))
		t.refused(err, rpctypes.ErrLeaseNotFound)
		_, err = t.Txn(t).Then(clientv3.OpPut(t.key("a"), "", clientv3.WithLease(none))).Commit()
		t.refused(err, rpctypes.ErrLeaseNotFound)
		_, err = t.KeepAliveOnce(t, none)
		t.refused(err, rpctypes.ErrLeaseNotFound)
		t.equal("ttl", must(t.TimeToLive(t, none)).TTL, int64(-1))
	})
	add("lease/too-long", func(t *T) {
		_, err := t.Grant(t, 9_000_000_001)
		t.refused(err, rpctypes.ErrLeaseTTLTooLarge)
	})
	add("lease/time-to-live", func(t *T) {
		lease := must(t.Grant(t, 60)).ID
		must(t.Put(t, t.key("b"), "", clientv3.WithLease(lease)))
		must(t.Put(t, t.key("a"), "", clientv3.WithLease(lease)))
		left := must(t.TimeToLive(t, lease))
		t.true("ttl", left.TTL > 50 && left.TTL <= 60 && left.GrantedTTL == 60)
		t.equal("keys unasked", len(left.Keys), 0)
		left = must(t.TimeToLive(t, lease, clientv3.WithAttachedKeys()))
		t.equal("keys", len(left.Keys), 2)
		must(t.Put(t, t.key("b"), ""))
		left = must(t.TimeToLive(t, lease, clientv3.WithAttachedKeys()))
		t.equal("keys", string(left.Keys[0]), t.key("a"))
		must(t.Revoke(t, lease))
	})
	add("lease/list", func(t *T) {
		mine := map[clientv3.LeaseID]bool{}
		for range 10 {
			mine[must(t.Grant(t, 60)).ID] = true
		}
		found := 0
		for _, lease := range must(t.Leases(t)).Leases {
			if mine[lease.ID] {
				found++
			}
		}
		t.equal("found", found, 10)
		for id := range mine {
			must(t.Revoke(t, id))
		}
	})
	add("lease/moves-with-the-key", func(t *T) {
		first, second := must(t.Grant(t, 60)).ID, must(t.Grant(t, 60)).ID
		must(t.Put(t, t.key("a"), "1", clientv3.WithLease(first)))
		must(t.Put(t, t.key("a"), "2", clientv3.WithLease(second)))
		must(t.Revoke(t, first))
		t.equal("it stays", must(t.Get(t, t.key("a"))).Count, int64(1))
		must(t.Revoke(t, second))
		t.equal("it goes", must(t.Get(t, t.key("a"))).Count, int64(0))
	})
	add("lease/keep-alive", func(t *T) {
		lease := must(t.Grant(t, 2)).ID
		must(t.Put(t, t.key("a"), "", clientv3.WithLease(lease)))
		ctx, cancel := context.WithCancel(t)
		alive := must(t.KeepAlive(ctx, lease))
		for begun := time.Now(); time.Since(begun) < 5*time.Second; {
			t.true("ttl", take(t, "an answer", alive).TTL == 2)
		}
		t.equal("the key", must(t.Get(t, t.key("a"))).Count, int64(1))
		cancel()
		t.until("it expires", func() bool { return must(t.Get(t, t.key("a"))).Count == 0 })
		t.equal("ttl", must(t.TimeToLive(t, lease)).TTL, int64(-1))
	})
	add("lease/keep-alive-once", func(t *T) {
		lease := must(t.Grant(t, 60)).ID
		t.equal("ttl", must(t.KeepAliveOnce(t, lease)).TTL, int64(60))
		must(t.Revoke(t, lease))
		_, err := t.KeepAliveOnce(t, lease)
		t.refused(err, rpctypes.ErrLeaseNotFound)
	})
	add("lease/keep-alive-ends-with-it", func(t *T) {
		lease := must(t.Grant(t, 3)).ID
		alive := must(t.KeepAlive(t, lease))
		take(t, "an answer", alive)
		must(t.Revoke(t, lease))
		for range alive {
		}
	})
	add("lease/expiry-is-one-revision", func(t *T) {
		lease := must(t.Grant(t, 1))
		t.true("at least the least", lease.TTL >= 1)
		for _, name := range []string{"c", "a", "b"} {
			must(t.Put(t, t.key(name), "", clientv3.WithLease(lease.ID)))
		}
		channel := t.Watch(t, t.prefix, clientv3.WithPrefix())
		answer := take(t, "the deletes", channel)
		names := ""
		for _, event := range answer.Events {
			t.equal("revision", event.Kv.ModRevision, answer.Header.Revision)
			names += string(event.Kv.Key[len(t.prefix):])
		}
		t.equal("in the order of keys", names, "abc")
	})
	add("lease/own-id", func(t *T) {
		client := t.dial()
		defer client.Close()
		lease := must(t.Grant(t, 60)).ID
		t.true("a second lease has another id", must(client.Grant(t, 60)).ID != lease)
	})
	add("lease/many", func(t *T) {
		var ids []clientv3.LeaseID
		for i := range 300 {
			lease := must(t.Grant(t, 60)).ID
			must(t.Put(t, t.key(fmt.Sprint(i)), "", clientv3.WithLease(lease)))
			ids = append(ids, lease)
		}
		for _, id := range ids {
			must(t.KeepAliveOnce(t, id))
		}
		for _, id := range ids {
			must(t.Revoke(t, id))
		}
		t.equal("keys", must(t.Get(t, t.prefix, clientv3.WithPrefix())).Count, int64(0))
	})
}
