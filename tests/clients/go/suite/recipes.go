package main

import (
	"fmt"
	"sync"

	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

func init() {
	add("recipes/barrier", func(t *T) {
		barrier := recipe.NewBarrier(t.Client, t.key("b"))
		t.ok(barrier.Hold())
		passed := make(chan error, 4)
		for range 4 {
			go func() { passed <- recipe.NewBarrier(t.Client, t.key("b")).Wait() }()
		}
		t.ok(barrier.Release())
		for range 4 {
			t.ok(take(t, "a waiter", passed))
		}
	})
	add("recipes/double-barrier", func(t *T) {
		const count = 4
		var group sync.WaitGroup
		errs := make(chan error, 2*count)
		for range count {
			session := t.session()
			defer session.Close()
			group.Go(func() {
				barrier := recipe.NewDoubleBarrier(session, t.key("b"), count)
				errs <- barrier.Enter()
				errs <- barrier.Leave()
			})
		}
		group.Wait()
		for range 2 * count {
			t.ok(<-errs)
		}
	})
	add("recipes/queue", func(t *T) {
		queue := recipe.NewQueue(t.Client, t.key("q"))
		got := make(chan string, 20)
		for range 2 {
			go func() {
				for range 10 {
					value, err := recipe.NewQueue(t.Client, t.key("q")).Dequeue()
					if err != nil {
						value = err.Error()
					}
					got <- value
				}
			}()
		}
		seen := map[string]bool{}
		for i := range 20 {
			t.ok(queue.Enqueue(fmt.Sprint(i)))
		}
		for range 20 {
			seen[take(t, "a value", got)] = true
		}
		for i := range 20 {
			t.true("each once", seen[fmt.Sprint(i)])
		}
	})
	add("recipes/priority-queue", func(t *T) {
		queue := recipe.NewPriorityQueue(t.Client, t.key("q"))
		for _, priority := range []uint16{5, 1, 9, 3} {
			t.ok(queue.Enqueue(fmt.Sprint(priority), priority))
		}
		for _, expected := range []string{"1", "3", "5", "9"} {
			t.equal("next", must(queue.Dequeue()), expected)
		}
	})
	add("recipes/read-write-mutex", func(t *T) {
		var readers []*recipe.RWMutex
		for range 3 {
			session := t.session()
			defer session.Close()
			mutex := recipe.NewRWMutex(session, t.key("m"))
			t.ok(mutex.RLock())
			readers = append(readers, mutex)
		}
		session := t.session()
		defer session.Close()
		writer := recipe.NewRWMutex(session, t.key("m"))
		locked := make(chan error, 1)
		go func() { locked <- writer.Lock() }()
		for _, reader := range readers {
			select {
			case <-locked:
				t.fail("a writer beside readers")
			default:
			}
			t.ok(reader.RUnlock())
		}
		t.ok(take(t, "the writer", locked))
		t.ok(writer.Unlock())
	})
}
