// Resume watches a prefix and writes under it while the server's processes are killed, and holds
// both against the history that the server itself keeps.
//
//	resume ENDPOINT WRITERS
//
// It reads commands, a line each: `wait N` returns after N more acknowledged writes and says how long
// the longest of them took; `check` waits until everything written so far is acknowledged or given up
// and seen by every watch, compares, and prints figures; `end` does so and ends. A writer
// puts one value after another, each in its own key: `/w/WRITER/NUMBER`, in a transaction that
// refuses a key that is there already. So an answer lost on its way and sent again shows: a doubled
// write would have a second version.
//
// Held: each watch sees every revision of the history once, in ascending order, with its key and
// value; every acknowledged write is in the history at the revision that its answer said; nothing
// is in the history that nobody wrote, and nothing twice.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	prefix      = "/w/"
	callSeconds = 10 * time.Second
	waitSeconds = 60 * time.Second
	pause       = 10 * time.Millisecond
)

type event struct {
	revision   int64
	key, value string
	deleted    bool
}

// watcher gathers what one watch was told.
type watcher struct {
	sync.Mutex
	name   string
	events []event
	last   int64
	ended  error
}

func (w *watcher) run(channel clientv3.WatchChan) {
	for answer := range channel {
		w.Lock()
		if err := answer.Err(); err != nil {
			w.ended = err
		}
		for _, e := range answer.Events {
			w.events = append(w.events, event{
				e.Kv.ModRevision, string(e.Kv.Key), string(e.Kv.Value), e.Type == clientv3.EventTypeDelete})
			w.last = e.Kv.ModRevision
		}
		if answer.IsProgressNotify() {
			w.last = max(w.last, answer.Header.Revision)
		}
		w.Unlock()
	}
	w.Lock()
	defer w.Unlock()
	if w.ended == nil {
		w.ended = fmt.Errorf("its channel was closed")
	}
}

func (w *watcher) seen() int64 {
	w.Lock()
	defer w.Unlock()
	return w.last
}

// writer puts one value after another until it is told to rest.
type writer struct {
	client   *clientv3.Client
	name     int
	turn     *sync.RWMutex // held shared around a write: a check takes it whole
	stop     *atomic.Bool
	tried    map[string]string // key to value, of every write begun
	answered map[string]int64  // key to revision, of every write acknowledged
	unsure   int
	done     chan<- time.Duration // of each acknowledged write, if somebody waits for it
}

func (w *writer) run() {
	for number := 0; !w.stop.Load(); number++ {
		w.turn.RLock()
		key := fmt.Sprintf("%s%d/%08d", prefix, w.name, number)
		value := fmt.Sprintf("%d of %d", number, w.name)
		w.tried[key] = value
		begun := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), callSeconds)
		done, err := w.client.Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "=", 0)).
			Then(clientv3.OpPut(key, value)).
			Else(clientv3.OpPut(key, "again: "+value)).Commit()
		cancel()
		if err != nil {
			w.unsure++
		} else if !done.Succeeded {
			fail("%s was there before it was written", key)
		} else {
			w.answered[key] = done.Header.Revision
			select {
			case w.done <- time.Since(begun):
			default:
			}
		}
		w.turn.RUnlock()
	}
}

func fail(format string, a ...any) {
	fmt.Printf("FAIL "+format+"\n", a...)
	os.Exit(1)
}

type run struct {
	client   *clientv3.Client
	turn     sync.RWMutex
	writers  []*writer
	watchers []*watcher
	checked  int // events of each watch that were compared
	from     int64
	done     chan time.Duration
}

// settle is the revision of the store once nothing is under way.
func (r *run) settle() int64 {
	for deadline := time.Now().Add(waitSeconds); ; {
		ctx, cancel := context.WithTimeout(context.Background(), callSeconds)
		got, err := r.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		cancel()
		if err == nil {
			return got.Header.Revision
		}
		if time.Now().After(deadline) {
			fail("no answer in %v: %v", waitSeconds, err)
		}
		time.Sleep(pause)
	}
}

// history is what the server says of everything since the last check: a fresh watch of the past.
func (r *run) history(last int64) []event {
	if last < r.from {
		return nil
	}
	for deadline := time.Now().Add(waitSeconds); time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(context.Background(), callSeconds)
		w := &watcher{name: "history"}
		go w.run(r.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(r.from)))
		for w.seen() < last && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if w.seen() >= last {
			w.Lock()
			defer w.Unlock()
			return w.events
		}
	}
	fail("the history up to revision %d can't be read", last)
	return nil
}

// wait waits for acknowledged writes, beginning now.
func (r *run) wait(count int) {
	for len(r.done) > 0 {
		<-r.done
	}
	longest := time.Duration(0)
	for range count {
		select {
		case took := <-r.done:
			longest = max(longest, took)
		case <-time.After(waitSeconds):
			fail("no write was acknowledged in %v", waitSeconds)
		}
	}
	fmt.Printf("ok longest %d ms\n", longest.Milliseconds())
}

func (r *run) check() {
	r.turn.Lock()
	defer r.turn.Unlock()
	// One more write, so that the last revision is an event of every watch.
	mark := fmt.Sprintf("%smark/%d", prefix, r.checked)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), callSeconds)
		_, err := r.client.Put(ctx, mark, "mark")
		cancel()
		if err == nil {
			break
		}
		time.Sleep(pause)
	}
	last := r.settle()
	history := r.history(last)
	for _, w := range r.watchers {
		deadline := time.Now().Add(waitSeconds)
		for w.seen() < last {
			if time.Now().After(deadline) {
				fail("watch %s: at revision %d for %v, the store is at %d (ended: %v)",
					w.name, w.seen(), waitSeconds, last, w.ended)
			}
			time.Sleep(time.Millisecond)
		}
		r.compare(w, history)
	}
	r.hold(history)
	r.checked += len(history)
	r.from = last + 1
}

// compare holds one watch against the history since the last check.
func (r *run) compare(w *watcher, history []event) {
	w.Lock()
	defer w.Unlock()
	if w.ended != nil {
		fail("watch %s: %v", w.name, w.ended)
	}
	for i, e := range w.events {
		if i >= len(history) || e != history[i] {
			expected := "nothing"
			if i < len(history) {
				expected = fmt.Sprint(history[i])
			}
			fail("watch %s: event %d of this round is %v, the history has %s (a gap or a repeat)",
				w.name, i, e, expected)
		}
	}
	if len(w.events) != len(history) {
		fail("watch %s: %d events, the history has %d", w.name, len(w.events), len(history))
	}
	w.events = nil
}

// hold compares the history since the last check with what the writers know.
func (r *run) hold(history []event) {
	found := map[string]int64{}
	last := int64(0)
	for _, e := range history {
		if e.revision <= last {
			fail("the history goes from revision %d to %d", last, e.revision)
		}
		last = e.revision
		if _, twice := found[e.key]; twice && e.value != "mark" {
			fail("%s was written twice", e.key)
		}
		found[e.key] = e.revision
		if e.value == "mark" {
			continue
		}
		known := false
		for _, w := range r.writers {
			if value, tried := w.tried[e.key]; tried {
				known = true
				if value != e.value || e.deleted {
					fail("%s is %q, %q was written", e.key, e.value, value)
				}
			}
		}
		if !known {
			fail("%s was never written", e.key)
		}
	}
	for _, w := range r.writers {
		for key, revision := range w.answered {
			if found[key] != revision {
				fail("%s was acknowledged at revision %d, the history has it at %d", key, revision, found[key])
			}
		}
		clear(w.answered)
		// What was given up may still come, until its call's time is over: it stays known.
		for key := range w.tried {
			if _, there := found[key]; there {
				delete(w.tried, key)
			}
		}
	}
}

func dial(endpoint string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		BackoffWaitBetween: 20 * time.Millisecond,
	})
	if err != nil {
		fail("connect: %v", err)
	}
	return client
}

func main() {
	endpoint := os.Args[1]
	count, _ := strconv.Atoi(os.Args[2])
	r := &run{client: dial(endpoint), done: make(chan time.Duration, 64)}
	r.from = r.settle() + 1
	for name, options := range map[string][]clientv3.OpOption{
		"plain":     {},
		"progress":  {clientv3.WithProgressNotify()},
		"fragments": {clientv3.WithFragment(), clientv3.WithPrevKV()},
	} {
		client := dial(endpoint)
		for _, way := range []string{"one", "two"} {
			w := &watcher{name: name + " " + way}
			r.watchers = append(r.watchers, w)
			options := append([]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(r.from)}, options...)
			go w.run(client.Watch(context.Background(), prefix, options...))
		}
	}
	var stop atomic.Bool
	for i := range count {
		w := &writer{client: dial(endpoint), name: i, turn: &r.turn, stop: &stop, done: r.done,
			tried: map[string]string{}, answered: map[string]int64{}}
		r.writers = append(r.writers, w)
		go w.run()
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		count := 0
		if n, _ := fmt.Sscanf(lines.Text(), "wait %d", &count); n == 1 {
			r.wait(count)
			continue
		}
		r.check()
		unsure := 0
		for _, w := range r.writers {
			unsure += w.unsure
		}
		fmt.Printf("ok revision %d events %d unsure %d\n", r.from-1, r.checked*len(r.watchers), unsure)
		if lines.Text() == "end" {
			return
		}
	}
}
