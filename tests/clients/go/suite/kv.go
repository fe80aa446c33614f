package main

import (
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/clientv3util"
)

func init() {
	add("kv/put-get-delete", func(t *T) {
		put := must(t.Put(t, t.key("a"), "1"))
		t.true("no previous value unasked", put.PrevKv == nil)
		got := must(t.Get(t, t.key("a")))
		t.equal("count", got.Count, int64(1))
		kv := got.Kvs[0]
		t.equal("value", string(kv.Value), "1")
		t.equal("create, mod, version", []int64{kv.CreateRevision, kv.ModRevision, kv.Version},
			[]int64{put.Header.Revision, put.Header.Revision, 1})
		put = must(t.Put(t, t.key("a"), "2", clientv3.WithPrevKV()))
		t.equal("previous", string(put.PrevKv.Value), "1")
		gone := must(t.Delete(t, t.key("a"), clientv3.WithPrevKV()))
		t.equal("deleted", gone.Deleted, int64(1))
		t.equal("previous of the delete", string(gone.PrevKvs[0].Value), "2")
		t.equal("after", len(must(t.Get(t, t.key("a"))).Kvs), 0)
		t.equal("deleted twice", must(t.Delete(t, t.key("a"))).Deleted, int64(0))
	})
	add("kv/empty-key", func(t *T) {
		_, err := t.Put(t, "", "x")
		t.refused(err, rpctypes.ErrEmptyKey)
		_, err = t.Get(t, "")
		t.refused(err, rpctypes.ErrEmptyKey)
		_, err = t.Delete(t, "")
		t.refused(err, rpctypes.ErrEmptyKey)
	})
	add("kv/header", func(t *T) {
		first, second := must(t.Put(t, t.key("a"), "")), must(t.Put(t, t.key("a"), ""))
		t.equal("revisions", second.Header.Revision, first.Header.Revision+1)
		t.equal("cluster", second.Header.ClusterId, first.Header.ClusterId)
		t.true("member and term", second.Header.MemberId != 0 && second.Header.RaftTerm > 0)
		t.equal("member", must(t.MemberList(t)).Members[0].ID, second.Header.MemberId)
	})
	add("kv/ranges", ranges)
	add("kv/sorting", sorting)
	add("kv/bounds-of-revisions", revisionBounds)
	add("kv/first-and-last", firstAndLast)
	add("kv/old-revisions", func(t *T) {
		var revisions []int64
		for i := range 5 {
			revisions = append(revisions, must(t.Put(t, t.key("a"), fmt.Sprint(i))).Header.Revision)
		}
		for i, revision := range revisions {
			got := must(t.Get(t, t.key("a"), clientv3.WithRev(revision)))
			t.equal("value then", string(got.Kvs[0].Value), fmt.Sprint(i))
			t.equal("version then", got.Kvs[0].Version, int64(i+1))
		}
		_, err := t.Get(t, t.key("a"), clientv3.WithRev(revisions[4]+1000))
		t.refused(err, rpctypes.ErrFutureRev)
	})
	add("kv/ignore-value-and-lease", func(t *T) {
		lease := must(t.Grant(t, 60)).ID
		_, err := t.Put(t, t.key("none"), "", clientv3.WithIgnoreValue())
		t.refused(err, rpctypes.ErrKeyNotFound)
		must(t.Put(t, t.key("a"), "1", clientv3.WithLease(lease)))
		must(t.Put(t, t.key("a"), "2", clientv3.WithIgnoreLease()))
		got := must(t.Get(t, t.key("a"))).Kvs[0]
		t.equal("value and lease", []any{string(got.Value), got.Lease}, []any{"2", int64(lease)})
		must(t.Put(t, t.key("a"), "", clientv3.WithIgnoreValue()))
		got = must(t.Get(t, t.key("a"))).Kvs[0]
		t.equal("value and lease", []any{string(got.Value), got.Lease}, []any{"2", int64(0)})
		must(t.Revoke(t, lease))
		t.equal("the key stays", must(t.Get(t, t.key("a"))).Count, int64(1))
	})
	add("kv/serializable", func(t *T) {
		must(t.Put(t, t.key("a"), "1"))
		got := must(t.Get(t, t.key("a"), clientv3.WithSerializable()))
		t.equal("value", string(got.Kvs[0].Value), "1")
	})
	add("kv/large-value", func(t *T) {
		value := strings.Repeat("v", 1<<20)
		must(t.Put(t, t.key("a"), value))
		t.true("it comes back whole", string(must(t.Get(t, t.key("a"))).Kvs[0].Value) == value)
		_, err := t.Put(t, t.key("a"), strings.Repeat("v", 1600<<10))
		t.refused(err, rpctypes.ErrRequestTooLarge)
	})
	add("kv/stream", func(t *T) {
		for i := range 300 {
			must(t.Put(t, t.key(fmt.Sprintf("%03d", i)), strings.Repeat("x", 2000)))
		}
		whole := must(t.Get(t, t.prefix, clientv3.WithPrefix()))
		streamed := must(clientv3.GetStreamToGetResponse(
			must(t.GetStream(t, t.prefix, clientv3.WithPrefix()))))
		t.equal("count and more", []any{streamed.Count, streamed.More}, []any{whole.Count, whole.More})
		t.equal("keys", len(streamed.Kvs), 300)
		for i, kv := range streamed.Kvs {
			t.equal("key", kv.String(), whole.Kvs[i].String())
		}
	})
	add("kv/txn", txn)
	add("kv/txn-compares", compares)
	add("kv/txn-refused", func(t *T) {
		put := clientv3.OpPut(t.key("a"), "1")
		_, err := t.Txn(t).Then(put, put).Commit()
		t.refused(err, rpctypes.ErrDuplicateKey)
		var ops []clientv3.Op
		for i := range 129 {
			ops = append(ops, clientv3.OpPut(t.key(fmt.Sprint(i)), ""))
		}
		_, err = t.Txn(t).Then(ops...).Commit()
		t.refused(err, rpctypes.ErrTooManyOps)
	})
	add("kv/do", func(t *T) {
		must(t.Do(t, clientv3.OpPut(t.key("a"), "1")))
		must(t.Do(t, clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(t.key("b"), "2")}, nil)))
		got := must(t.Do(t, clientv3.OpGet(t.prefix, clientv3.WithPrefix())))
		t.equal("count", got.Get().Count, int64(2))
		gone := must(t.Do(t, clientv3.OpDelete(t.prefix, clientv3.WithPrefix())))
		t.equal("deleted", gone.Del().Deleted, int64(2))
	})
	add("kv/compact", func(t *T) {
		must(t.Put(t, t.key("a"), "1"))
		revision := must(t.Put(t, t.key("a"), "2")).Header.Revision
		must(t.Compact(t, revision))
		_, err := t.Get(t, t.key("a"), clientv3.WithRev(revision-1))
		t.refused(err, rpctypes.ErrCompacted)
		got := must(t.Get(t, t.key("a"), clientv3.WithRev(revision)))
		t.equal("value at the border", string(got.Kvs[0].Value), "2")
		_, err = t.Compact(t, revision)
		t.refused(err, rpctypes.ErrCompacted)
		_, err = t.Compact(t, revision+1000)
		t.refused(err, rpctypes.ErrFutureRev)
		revision = must(t.Put(t, t.key("a"), "3")).Header.Revision
		must(t.Compact(t, revision, clientv3.WithCompactPhysical()))
	})
}

// keysOf are the names of an answer's keys without the case's prefix.
func (t *T) keysOf(got *clientv3.GetResponse) string {
	var names []string
	for _, kv := range got.Kvs {
		names = append(names, strings.TrimPrefix(string(kv.Key), t.prefix))
	}
	return strings.Join(names, " ")
}

func ranges(t *T) {
	for _, name := range []string{"a", "a/1", "a/2", "b", "c"} {
		must(t.Put(t, t.key(name), "of "+name))
	}
	get := func(from string, options ...clientv3.OpOption) *clientv3.GetResponse {
		return must(t.Get(t, t.key(from), options...))
	}
	t.equal("prefix", t.keysOf(get("a", clientv3.WithPrefix())), "a a/1 a/2")
	t.equal("range", t.keysOf(get("a/1", clientv3.WithRange(t.key("c")))), "a/1 a/2 b")
	t.equal("inverted", t.keysOf(get("c", clientv3.WithRange(t.key("a")))), "")
	t.true("from key", strings.HasPrefix(t.keysOf(get("b", clientv3.WithFromKey())), "b c"))
	limited := get("", clientv3.WithPrefix(), clientv3.WithLimit(2))
	t.equal("limit", []any{t.keysOf(limited), limited.More, limited.Count}, []any{"a a/1", true, int64(5)})
	limited = get("", clientv3.WithPrefix(), clientv3.WithLimit(5))
	t.equal("limit not reached", limited.More, false)
	counted := get("", clientv3.WithPrefix(), clientv3.WithCountOnly())
	t.equal("count only", []any{len(counted.Kvs), counted.Count}, []any{0, int64(5)})
	for _, kv := range get("", clientv3.WithPrefix(), clientv3.WithKeysOnly()).Kvs {
		t.equal("keys only", len(kv.Value), 0)
	}
	t.equal("deleted", must(t.Delete(t, t.key("a/"), clientv3.WithPrefix())).Deleted, int64(2))
	t.equal("left", t.keysOf(get("", clientv3.WithPrefix())), "a b c")
}

func sorting(t *T) {
	for i, name := range []string{"b", "c", "a", "b"} {
		must(t.Put(t, t.key(name), fmt.Sprint(9-i)))
	}
	for _, c := range []struct {
		target   clientv3.SortTarget
		up, down string
	}{
		{clientv3.SortByKey, "a b c", "c b a"},
		{clientv3.SortByVersion, "a c b", "b a c"},
		{clientv3.SortByCreateRevision, "b c a", "a c b"},
		{clientv3.SortByModRevision, "c a b", "b a c"},
		{clientv3.SortByValue, "b a c", "c a b"},
	} {
		up := must(t.Get(t, t.prefix, clientv3.WithPrefix(), clientv3.WithSort(c.target, clientv3.SortAscend)))
		down := must(t.Get(t, t.prefix, clientv3.WithPrefix(), clientv3.WithSort(c.target, clientv3.SortDescend)))
		if c.target != clientv3.SortByVersion { // ties have no promised order
			t.equal(fmt.Sprint("up by ", c.target), t.keysOf(up), c.up)
			t.equal(fmt.Sprint("down by ", c.target), t.keysOf(down), c.down)
		}
		top := must(t.Get(t, t.prefix, clientv3.WithPrefix(), clientv3.WithLimit(1),
			clientv3.WithSort(c.target, clientv3.SortDescend)))
		t.equal(fmt.Sprint("top by ", c.target), t.keysOf(top), c.down[:1])
	}
}

func revisionBounds(t *T) {
	var r []int64
	for _, name := range []string{"a", "b", "c", "a"} {
		r = append(r, must(t.Put(t, t.key(name), "")).Header.Revision)
	}
	get := func(option clientv3.OpOption) string {
		return t.keysOf(must(t.Get(t, t.prefix, clientv3.WithPrefix(), option)))
	}
	t.equal("min mod", get(clientv3.WithMinModRev(r[2])), "a c")
	t.equal("max mod", get(clientv3.WithMaxModRev(r[2])), "b c")
	t.equal("min create", get(clientv3.WithMinCreateRev(r[1])), "b c")
	t.equal("max create", get(clientv3.WithMaxCreateRev(r[1])), "a b")
}

func firstAndLast(t *T) {
	for _, name := range []string{"b", "c", "a", "b"} {
		must(t.Put(t, t.key(name), ""))
	}
	for _, c := range []struct {
		name    string
		options []clientv3.OpOption
		key     string
	}{
		{"first create", clientv3.WithFirstCreate(), "b"}, {"last create", clientv3.WithLastCreate(), "a"},
		{"first key", clientv3.WithFirstKey(), "a"}, {"last key", clientv3.WithLastKey(), "c"},
		{"first rev", clientv3.WithFirstRev(), "c"}, {"last rev", clientv3.WithLastRev(), "b"},
	} {
		t.equal(c.name, t.keysOf(must(t.Get(t, t.prefix, c.options...))), c.key)
	}
}

func txn(t *T) {
	put := clientv3.OpPut
	done := must(t.Txn(t).If(clientv3util.KeyMissing(t.key("a"))).
		Then(put(t.key("a"), "1"), clientv3.OpGet(t.key("a")), put(t.key("b"), "2")).
		Else(put(t.key("a"), "wrong")).Commit())
	t.true("the first branch", done.Succeeded && len(done.Responses) == 3)
	t.equal("the get sees the put before it", string(done.Responses[1].GetResponseRange().Kvs[0].Value), "1")
	got := must(t.Get(t, t.prefix, clientv3.WithPrefix()))
	t.equal("one revision", got.Kvs[0].ModRevision, got.Kvs[1].ModRevision)
	done = must(t.Txn(t).If(clientv3util.KeyMissing(t.key("a"))).Then(put(t.key("a"), "wrong")).
		Else(clientv3.OpDelete(t.key("b"), clientv3.WithPrevKV())).Commit())
	t.true("the other branch", !done.Succeeded)
	t.equal("what it deleted", string(done.Responses[0].GetResponseDeleteRange().PrevKvs[0].Value), "2")
	inner := clientv3.OpTxn([]clientv3.Cmp{clientv3util.KeyExists(t.key("a"))},
		[]clientv3.Op{put(t.key("c"), "3")}, []clientv3.Op{put(t.key("d"), "4")})
	nested := must(t.Txn(t).Then(inner).Commit())
	t.true("the nested one", nested.Responses[0].GetResponseTxn().Succeeded)
	t.equal("keys", t.keysOf(must(t.Get(t, t.prefix, clientv3.WithPrefix()))), "a c")
}

func compares(t *T) {
	lease := must(t.Grant(t, 60)).ID
	must(t.Put(t, t.key("a"), "1"))
	put := must(t.Put(t, t.key("a"), "m", clientv3.WithLease(lease)))
	must(t.Put(t, t.key("b"), "m"))
	mod := put.Header.Revision
	key := t.key("a")
	for number, c := range []struct {
		compare clientv3.Cmp
		holds   bool
	}{
		{clientv3.Compare(clientv3.Value(key), "=", "m"), true},
		{clientv3.Compare(clientv3.Value(key), "!=", "m"), false},
		{clientv3.Compare(clientv3.Value(key), "<", "n"), true},
		{clientv3.Compare(clientv3.Value(key), ">", "n"), false},
		{clientv3.Compare(clientv3.Version(key), "=", 2), true},
		{clientv3.Compare(clientv3.Version(key), ">", 2), false},
		{clientv3.Compare(clientv3.CreateRevision(key), "=", mod-1), true},
		{clientv3.Compare(clientv3.CreateRevision(key), "<", mod-1), false},
		{clientv3.Compare(clientv3.ModRevision(key), "=", mod), true},
		{clientv3.Compare(clientv3.ModRevision(key), "!=", mod), false},
		{clientv3.Compare(clientv3.LeaseValue(key), "=", lease), true},
		{clientv3.Compare(clientv3.LeaseValue(key), "=", 0), false},
		{clientv3.Compare(clientv3.Value(t.prefix).WithPrefix(), "=", "m"), true},
		{clientv3.Compare(clientv3.Version(t.prefix).WithPrefix(), "=", 2), false},
		{clientv3.Compare(clientv3.Value(key).WithRange(t.key("b")), "=", "m"), true},
		{clientv3.Compare(clientv3.Value(t.key("none")), "=", ""), false},
		{clientv3.Compare(clientv3.Version(t.key("none")), "=", 0), true},
	} {
		done := must(t.Txn(t).If(c.compare).Commit())
		t.equal(fmt.Sprintf("compare %d (%v)", number, c.compare), done.Succeeded, c.holds)
	}
}
