package main

import (
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

func init() {
	add("namespace/kv", func(t *T) {
		kv := namespace.NewKV(t.KV, t.prefix)
		must(kv.Put(t, "a", "1"))
		must(kv.Put(t, "b", "2"))
		t.equal("outside", t.keysOf(must(t.Get(t, t.prefix, clientv3.WithPrefix()))), "a b")
		inside := must(kv.Get(t, "a"))
		t.equal("inside", string(inside.Kvs[0].Key), "a")
		t.equal("from key stays inside", must(kv.Get(t, "b", clientv3.WithFromKey())).Count, int64(1))
		t.equal("everything", must(kv.Get(t, "", clientv3.WithPrefix())).Count, int64(2))
		done := must(kv.Txn(t).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).
			Then(clientv3.OpGet("b"), clientv3.OpDelete("a", clientv3.WithPrevKV())).Commit())
		t.true("compared inside", done.Succeeded)
		t.equal("got", string(done.Responses[0].GetResponseRange().Kvs[0].Key), "b")
		t.equal("previous", string(done.Responses[1].GetResponseDeleteRange().PrevKvs[0].Key), "a")
		t.equal("deleted", must(kv.Delete(t, "", clientv3.WithFromKey())).Deleted, int64(1))
		t.equal("nothing left", must(t.Get(t, t.prefix, clientv3.WithPrefix())).Count, int64(0))
	})
	add("namespace/watch", func(t *T) {
		client := t.dial()
		defer client.Close()
		watcher := namespace.NewWatcher(client.Watcher, t.prefix)
		channel := watcher.Watch(t, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		take(t, "created", channel)
		must(t.Put(t, t.key("a"), "1"))
		t.equal("key", string(take(t, "event", channel).Events[0].Kv.Key), "a")
		t.ok(watcher.Close())
	})
	add("namespace/lease", func(t *T) {
		lease := namespace.NewLease(t.Lease, t.prefix)
		id := must(lease.Grant(t, 60)).ID
		must(namespace.NewKV(t.KV, t.prefix).Put(t, "a", "", clientv3.WithLease(id)))
		must(t.Put(t, "/elsewhere", "", clientv3.WithLease(id)))
		keys := must(lease.TimeToLive(t, id, clientv3.WithAttachedKeys())).Keys
		t.equal("keys inside", fmt.Sprintf("%s", keys), "[a]")
		must(lease.Revoke(t, id))
	})
	add("ordering/kv", func(t *T) {
		violated := errors.New("violated")
		kv := ordering.NewKV(t.KV, func(clientv3.Op, clientv3.OpResponse, int64) error { return violated })
		for i := range 50 {
			must(kv.Put(t, t.key("a"), fmt.Sprint(i)))
			got := must(kv.Get(t, t.key("a"), clientv3.WithSerializable()))
			t.equal("a member's own reads never go back", string(got.Kvs[0].Value), fmt.Sprint(i))
			must(kv.Txn(t).Then(clientv3.OpGet(t.key("a"))).Commit())
		}
		must(ordering.NewKV(t.KV, ordering.NewOrderViolationSwitchEndpointClosure(t.Client)).Get(t, t.key("a")))
	})
	add("mirror/base-and-updates", mirrored)
	add("leasing/reads-and-writes", leased)
	add("leasing/transactions", leasedTransactions)
	add("leasing/two-owners", twoOwners)
	add("kubernetes/storage", storage)
}

// mirrored: 2,500 keys in three pages, then what changes after them.
func mirrored(t *T) {
	for i := range 25 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, clientv3.OpPut(t.key(fmt.Sprintf("%02d%02d", i, j)), "x"))
		}
		must(t.Txn(t).Then(ops...).Commit())
	}
	syncer := mirror.NewSyncer(t.Client, t.prefix, 0)
	base, errs := syncer.SyncBase(t)
	must(t.Put(t, t.key("0000"), "changed meanwhile"))
	seen := map[string]string{}
	for page := range base {
		for _, kv := range page.Kvs {
			seen[string(kv.Key)] = string(kv.Value)
		}
	}
	t.ok(<-errs)
	t.equal("keys", len(seen), 2500)
	updates := syncer.SyncUpdates(t)
	must(t.Delete(t, t.key("0001")))
	must(t.Put(t, t.key("0002"), "y"))
	// The base is of the revision before the change, so the change is an update.
	t.equal("the base", seen[t.key("0000")], "x")
	t.equal("updates", t.events(updates, 3), "put 0000=changed meanwhile, delete 0001, put 0002=y")
}

func (t *T) leasing() (clientv3.KV, func()) {
	kv, closes, err := leasing.NewKV(t.Client, t.key("leases/"))
	t.ok(err)
	return kv, closes
}

// A cached answer of a deleted key keeps its count, by the client: the pairs are looked at.
func leased(t *T) {
	kv, closes := t.leasing()
	defer closes()
	must(t.Put(t, t.key("a"), "1"))
	t.equal("first", string(must(kv.Get(t, t.key("a"))).Kvs[0].Value), "1")
	t.equal("its lease key", must(t.Get(t, t.key("leases/"), clientv3.WithPrefix())).Count, int64(1))
	t.equal("cached", string(must(kv.Get(t, t.key("a"))).Kvs[0].Value), "1")
	put := must(kv.Put(t, t.key("a"), "2", clientv3.WithPrevKV()))
	t.equal("previous", string(put.PrevKv.Value), "1")
	t.equal("after its own put", string(must(kv.Get(t, t.key("a"))).Kvs[0].Value), "2")
	t.equal("in the store", string(must(t.Get(t, t.key("a"))).Kvs[0].Value), "2")
	t.equal("missing", must(kv.Get(t, t.key("none"))).Count, int64(0))
	must(kv.Put(t, t.key("none"), "now"))
	t.equal("no more", must(kv.Get(t, t.key("none"))).Count, int64(1))
	t.equal("a prefix", must(kv.Get(t, t.key("a"), clientv3.WithPrefix())).Count, int64(1))
	t.equal("deleted", must(kv.Delete(t, t.key("a"))).Deleted, int64(1))
	t.equal("gone", len(must(kv.Get(t, t.key("a"))).Kvs), 0)
	must(kv.Put(t, t.key("p1"), ""))
	must(kv.Get(t, t.key("p1")))
	t.equal("deleted", must(kv.Delete(t, t.key("p"), clientv3.WithPrefix())).Deleted, int64(1))
	t.equal("gone", len(must(kv.Get(t, t.key("p1"))).Kvs), 0)
	must(kv.Do(t, clientv3.OpPut(t.key("a"), "3")))
	t.equal("by Do", string(must(kv.Do(t, clientv3.OpGet(t.key("a")))).Get().Kvs[0].Value), "3")
}

func leasedTransactions(t *T) {
	kv, closes := t.leasing()
	defer closes()
	must(kv.Put(t, t.key("a"), "1"))
	must(kv.Get(t, t.key("a")))
	done := must(kv.Txn(t).If(clientv3.Compare(clientv3.Value(t.key("a")), "=", "1")).
		Then(clientv3.OpPut(t.key("a"), "2"), clientv3.OpGet(t.key("b"))).Commit())
	t.true("compared with the cache", done.Succeeded)
	t.equal("after", string(must(kv.Get(t, t.key("a"))).Kvs[0].Value), "2")
	done = must(kv.Txn(t).If(clientv3.Compare(clientv3.Version(t.key("a")), "=", 1)).
		Else(clientv3.OpGet(t.key("a"))).Commit())
	t.true("the other branch", !done.Succeeded)
	t.equal("read", string(done.Responses[0].GetResponseRange().Kvs[0].Value), "2")
	done = must(kv.Txn(t).Then(clientv3.OpDelete(t.prefix+"a", clientv3.WithPrefix())).Commit())
	t.equal("deleted", done.Responses[0].GetResponseDeleteRange().Deleted, int64(1))
	t.equal("gone", len(must(kv.Get(t, t.key("a"))).Kvs), 0)
	_, err := kv.Txn(t).Then(clientv3.OpPut(t.key("c"), "", clientv3.WithLease(none))).Commit()
	t.refused(err, rpctypes.ErrLeaseNotFound)
}

// twoOwners: a key's owner gives it up for another's write; counting stays exact.
func twoOwners(t *T) {
	var group sync.WaitGroup
	errs := make(chan error, 100)
	for range 2 {
		client := t.dial()
		defer client.Close()
		kv, closes, err := leasing.NewKV(client, t.key("leases/"), concurrency.WithTTL(10))
		t.ok(err)
		defer closes()
		group.Go(func() {
			for range 20 {
				for {
					got, err := kv.Get(t, t.key("count"))
					if err != nil {
						errs <- err
						return
					}
					count, version := 0, int64(0)
					if len(got.Kvs) > 0 {
						fmt.Sscan(string(got.Kvs[0].Value), &count)
						version = got.Kvs[0].ModRevision
					}
					done, err := kv.Txn(t).If(clientv3.Compare(clientv3.ModRevision(t.key("count")), "=", version)).
						Then(clientv3.OpPut(t.key("count"), fmt.Sprint(count+1))).Commit()
					if err != nil {
						errs <- err
						return
					}
					if done.Succeeded {
						break
					}
				}
			}
		})
	}
	group.Wait()
	close(errs)
	for err := range errs {
		t.ok(err)
	}
	t.equal("count", string(must(t.Get(t, t.key("count"))).Kvs[0].Value), "40")
}

// storage: the client that Kubernetes' API server uses.
func storage(t *T) {
	client := must(kubernetes.New(config(t.endpoint)))
	defer client.Close()
	k := client.Kubernetes
	for i := range 5 {
		put := must(k.OptimisticPut(t, t.key(fmt.Sprint(i)), []byte("1"), 0, kubernetes.PutOptions{}))
		t.true("created", put.Succeeded)
	}
	put := must(k.OptimisticPut(t, t.key("0"), []byte("2"), 0, kubernetes.PutOptions{GetOnFailure: true}))
	t.true("not created twice", !put.Succeeded && string(put.KV.Value) == "1")
	got := must(k.Get(t, t.key("0"), kubernetes.GetOptions{}))
	put = must(k.OptimisticPut(t, t.key("0"), []byte("2"), got.KV.ModRevision, kubernetes.PutOptions{}))
	t.true("changed", put.Succeeded && put.Revision > got.Revision)
	then := must(k.Get(t, t.key("0"), kubernetes.GetOptions{Revision: got.Revision}))
	t.equal("as it was", string(then.KV.Value), "1")
	t.equal("count", must(k.Count(t, t.prefix, kubernetes.CountOptions{})), int64(5))
	page := must(k.List(t, t.prefix, kubernetes.ListOptions{Limit: 3}))
	t.equal("page", []any{len(page.Kvs), page.Count}, []any{3, int64(5)})
	page = must(k.List(t, t.prefix, kubernetes.ListOptions{
		Limit: 3, Revision: page.Revision, Continue: string(page.Kvs[2].Key) + "\x00"}))
	t.equal("next page", []any{len(page.Kvs), page.Count}, []any{2, int64(2)})
	gone := must(k.OptimisticDelete(t, t.key("0"), got.KV.ModRevision, kubernetes.DeleteOptions{GetOnFailure: true}))
	t.true("it changed meanwhile", !gone.Succeeded && string(gone.KV.Value) == "2")
	gone = must(k.OptimisticDelete(t, t.key("0"), put.Revision, kubernetes.DeleteOptions{}))
	t.true("deleted", gone.Succeeded)
}
