package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// events takes this many events off a channel, as words: `put a=1`, `delete a`.
func (t *T) events(channel clientv3.WatchChan, count int) string {
	var words []string
	for len(words) < count {
		answer := take(t, fmt.Sprintf("event %d of %d", len(words), count), channel)
		t.ok(answer.Err())
		for _, event := range answer.Events {
			name := strings.TrimPrefix(string(event.Kv.Key), t.prefix)
			if event.Type == clientv3.EventTypePut {
				words = append(words, fmt.Sprintf("put %s=%s", name, event.Kv.Value))
			} else {
				words = append(words, "delete "+name)
			}
		}
	}
	return strings.Join(words, ", ")
}

// watching opens a watch and waits until the server says that it is there.
func (t *T) watching(key string, options ...clientv3.OpOption) clientv3.WatchChan {
	channel := t.Watch(t, key, append(options, clientv3.WithCreatedNotify())...)
	t.true("created", take(t, "created", channel).Created)
	return channel
}

func init() {
	add("watch/key", func(t *T) {
		channel := t.watching(t.key("a"))
		must(t.Put(t, t.key("a"), "1"))
		must(t.Put(t, t.key("ab"), "other"))
		must(t.Put(t, t.key("a"), "2"))
		must(t.Delete(t, t.key("a")))
		t.equal("events", t.events(channel, 3), "put a=1, put a=2, delete a")
	})
	add("watch/ranges", func(t *T) {
		prefix := t.watching(t.key("a"), clientv3.WithPrefix())
		span := t.watching(t.key("a"), clientv3.WithRange(t.key("b")))
		from := t.watching(t.key("b"), clientv3.WithFromKey())
		for _, name := range []string{"a", "a1", "b", "c"} {
			must(t.Put(t, t.key(name), ""))
		}
		t.equal("prefix", t.events(prefix, 2), "put a=, put a1=")
		t.equal("range", t.events(span, 2), "put a=, put a1=")
		t.equal("from key", t.events(from, 2), "put b=, put c=")
	})
	add("watch/from-a-revision", func(t *T) {
		first := must(t.Put(t, t.key("a"), "1")).Header.Revision
		must(t.Put(t, t.key("a"), "2"))
		must(t.Delete(t, t.key("a")))
		channel := t.Watch(t, t.key("a"), clientv3.WithRev(first))
		t.equal("history", t.events(channel, 3), "put a=1, put a=2, delete a")
		must(t.Put(t, t.key("a"), "3"))
		t.equal("and on", t.events(channel, 1), "put a=3")
	})
	add("watch/from-the-future", func(t *T) {
		now := must(t.Put(t, t.key("a"), "1")).Header.Revision
		channel := t.watching(t.key("a"), clientv3.WithRev(now+3))
		for i := range 4 {
			must(t.Put(t, t.key("a"), fmt.Sprint(i)))
		}
		t.equal("events", t.events(channel, 2), "put a=2, put a=3")
	})
	add("watch/previous", func(t *T) {
		must(t.Put(t, t.key("a"), "1"))
		channel := t.watching(t.key("a"), clientv3.WithPrevKV())
		must(t.Put(t, t.key("a"), "2"))
		must(t.Delete(t, t.key("a")))
		var before []string
		for len(before) < 2 {
			for _, event := range take(t, "event", channel).Events {
				before = append(before, string(event.PrevKv.Value))
			}
		}
		t.equal("previous values", before, []string{"1", "2"})
	})
	add("watch/kinds", func(t *T) {
		channel := t.watching(t.key("a"))
		must(t.Put(t, t.key("a"), "1"))
		must(t.Put(t, t.key("a"), "2"))
		var kinds []string
		for len(kinds) < 2 {
			for _, event := range take(t, "event", channel).Events {
				kinds = append(kinds, fmt.Sprint(event.IsCreate(), event.IsModify()))
			}
		}
		t.equal("create, modify", kinds, []string{"true false", "false true"})
	})
	add("watch/filters", func(t *T) {
		puts := t.watching(t.key("a"), clientv3.WithFilterDelete())
		deletes := t.watching(t.key("a"), clientv3.WithFilterPut())
		for range 2 {
			must(t.Put(t, t.key("a"), "1"))
			must(t.Delete(t, t.key("a")))
		}
		t.equal("puts", t.events(puts, 2), "put a=1, put a=1")
		t.equal("deletes", t.events(deletes, 2), "delete a, delete a")
	})
	add("watch/a-transaction-is-one-answer", func(t *T) {
		channel := t.watching(t.prefix, clientv3.WithPrefix())
		var ops []clientv3.Op
		for i := range 100 {
			ops = append(ops, clientv3.OpPut(t.key(fmt.Sprintf("%02d", i)), ""))
		}
		done := must(t.Txn(t).Then(ops...).Commit())
		answer := take(t, "answer", channel)
		t.equal("events in it", len(answer.Events), 100)
		for _, event := range answer.Events {
			t.equal("revision", event.Kv.ModRevision, done.Header.Revision)
		}
	})
	add("watch/fragments", fragments)
	add("watch/compacted", func(t *T) {
		first := must(t.Put(t, t.key("a"), "1")).Header.Revision
		last := must(t.Put(t, t.key("a"), "2")).Header.Revision
		must(t.Compact(t, last))
		channel := t.Watch(t, t.key("a"), clientv3.WithRev(first))
		answer := take(t, "answer", channel)
		t.true("cancelled", answer.Canceled)
		t.equal("the compact revision", answer.CompactRevision, last)
		t.refused(answer.Err(), rpctypes.ErrCompacted)
		_, open := <-channel
		t.true("closed", !open)
		t.equal("from there on", t.events(t.Watch(t, t.key("a"), clientv3.WithRev(last)), 1), "put a=2")
	})
	add("watch/cancel", func(t *T) {
		ctx, cancel := context.WithCancel(t)
		channel := t.Watch(ctx, t.key("a"), clientv3.WithCreatedNotify())
		take(t, "created", channel)
		other := t.watching(t.key("a"))
		cancel()
		for range channel {
		}
		must(t.Put(t, t.key("a"), "1"))
		t.equal("another watch of the stream goes on", t.events(other, 1), "put a=1")
	})
	add("watch/progress-request", func(t *T) {
		channel := t.watching(t.key("a"))
		revision := must(t.Put(t, t.key("b"), "")).Header.Revision
		t.until("progress at the revision", func() bool {
			t.ok(t.RequestProgress(t))
			answer := take(t, "progress", channel)
			t.true("it is one", answer.IsProgressNotify())
			return answer.Header.Revision >= revision
		})
	})
	add("watch/many-of-one-stream", func(t *T) {
		var channels []clientv3.WatchChan
		for i := range 200 {
			channels = append(channels, t.Watch(t, t.key(fmt.Sprint(i%50)), clientv3.WithCreatedNotify()))
		}
		for _, channel := range channels {
			take(t, "created", channel)
		}
		for i := range 50 {
			must(t.Put(t, t.key(fmt.Sprint(i)), "x"))
		}
		for i, channel := range channels {
			t.equal("events", t.events(channel, 1), fmt.Sprintf("put %d=x", i%50))
		}
	})
	add("watch/streams-by-metadata", func(t *T) {
		other := clientv3.WithRequireLeader(t)
		channel := t.Watch(other, t.key("a"), clientv3.WithCreatedNotify())
		take(t, "created", channel)
		must(t.Put(t, t.key("a"), "1"))
		t.equal("events", t.events(channel, 1), "put a=1")
	})
	add("watch/order-under-load", orderUnderLoad)
	add("watch/closed-client", func(t *T) {
		client := t.dial()
		channel := client.Watch(t, t.key("a"), clientv3.WithCreatedNotify())
		take(t, "created", channel)
		t.ok(client.Watcher.Close())
		for range channel {
		}
		t.ok(client.Close())
	})
}

// fragments: a transaction too large for one message comes in pieces, and whole without the option.
func fragments(t *T) {
	value := strings.Repeat("v", 700<<10)
	whole, pieces := t.watching(t.prefix, clientv3.WithPrefix()), t.watching(
		t.prefix, clientv3.WithPrefix(), clientv3.WithFragment())
	for i := range 3 {
		must(t.Put(t, t.key(fmt.Sprint(i)), value))
	}
	for _, channel := range []clientv3.WatchChan{whole, pieces} {
		seen := 0
		for seen < 3 {
			for _, event := range take(t, "event", channel).Events {
				t.equal("key", string(event.Kv.Key), t.key(fmt.Sprint(seen)))
				t.equal("bytes", len(event.Kv.Value), len(value))
				seen++
			}
		}
	}
	gone := must(t.Delete(t, t.prefix, clientv3.WithPrefix()))
	t.equal("deleted", gone.Deleted, int64(3))
	history := t.Watch(t, t.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(),
		clientv3.WithFragment(), clientv3.WithRev(gone.Header.Revision))
	t.equal("deletes with what was there", t.events(history, 3), "delete 0, delete 1, delete 2")
}

// orderUnderLoad: five writers, one watch: every revision once, in order, equal to what was put.
func orderUnderLoad(t *T) {
	const writers, each = 5, 200
	channel := t.watching(t.prefix, clientv3.WithPrefix())
	type written struct {
		revision int64
		value    string
	}
	acknowledged := make(chan written, writers*each)
	for writer := range writers {
		go func() {
			for i := range each {
				value := fmt.Sprintf("%d-%d", writer, i)
				put, err := t.Put(t, t.key(fmt.Sprint(writer)), value)
				if err != nil {
					return
				}
				acknowledged <- written{put.Header.Revision, value}
			}
		}()
	}
	expected := map[int64]string{}
	for range writers * each {
		put := take(t, "an acknowledgement", acknowledged)
		expected[put.revision] = put.value
	}
	last, seen := int64(0), 0
	for seen < writers*each {
		for _, event := range take(t, "event", channel).Events {
			t.true("ascending", event.Kv.ModRevision > last)
			last = event.Kv.ModRevision
			t.equal("value", string(event.Kv.Value), expected[last])
			seen++
		}
	}
	select {
	case answer := <-channel:
		t.fail("one answer too many: %v", answer)
	case <-time.After(100 * time.Millisecond):
	}
}
