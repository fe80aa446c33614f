// Command feeder puts a file of keys into an etcd v3 server the way a careful Go program would:
// clientv3, one transaction of -batch puts a request, -clients goroutines over -conns connections.
//
// The file is what bench/gen.py writes: records { u32 LE key length, u32 LE value length, key,
// value } and nothing else. It is read and cut into records before the clock starts; building the
// requests is part of the time, as it is for every user of clientv3.
//
// With -rate > 0 it sends that many requests a second in all, evenly spaced, and times each one
// from the moment it was due, so that a stall of the server shows in the latencies of all the
// requests that should have been sent during it.
//
// It prints one JSON object: keys, requests, seconds, keys_per_s, cpu_s, p50_us, p99_us, max_us.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

type record struct{ key, value string }

type result struct {
	Keys     int     `json:"keys"`
	Requests int     `json:"requests"`
	Seconds  float64 `json:"seconds"`
	KeysPerS float64 `json:"keys_per_s"`
	CPUs     float64 `json:"cpu_s"`
	P50us    int64   `json:"p50_us"`
	P99us    int64   `json:"p99_us"`
	P999us   int64   `json:"p999_us"`
	MaxUs    int64   `json:"max_us"`
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "feeder: %s: %v\n", what, err)
	os.Exit(1)
}

// load cuts the file into records; the strings are copies, so the file's bytes can go.
func load(path string, skip, limit int) []record {
	raw, err := os.ReadFile(path)
	if err != nil {
		fail("read", err)
	}
	var out []record
	for at, n := 0, 0; at < len(raw); n++ {
		if at+8 > len(raw) {
			fail("cut", fmt.Errorf("record %d ends early", n))
		}
		klen := int(binary.LittleEndian.Uint32(raw[at:]))
		vlen := int(binary.LittleEndian.Uint32(raw[at+4:]))
		at += 8
		if klen+vlen > len(raw)-at {
			fail("cut", fmt.Errorf("record %d is longer than the file", n))
		}
		if n >= skip {
			out = append(out, record{string(raw[at : at+klen]), string(raw[at+klen : at+klen+vlen])})
		}
		at += klen + vlen
		if limit > 0 && len(out) == limit {
			break
		}
	}
	return out
}

func cpu() float64 {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		fail("getrusage", err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano()).Seconds()
}

func send(cli *clientv3.Client, part []record) error {
	ctx := context.Background()
	if len(part) == 1 {
		_, err := cli.Put(ctx, part[0].key, part[0].value)
		return err
	}
	ops := make([]clientv3.Op, len(part))
	for i, r := range part {
		ops[i] = clientv3.OpPut(r.key, r.value)
	}
	_, err := cli.Txn(ctx).Then(ops...).Commit()
	return err
}

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "comma-separated HOST:PORT")
	path := flag.String("file", "", "records to put")
	batch := flag.Int("batch", 100, "puts a transaction; 1 sends plain puts")
	clients := flag.Int("clients", 50, "goroutines, each with one request in flight")
	conns := flag.Int("conns", 0, "connections; 0: one per client, at most 50")
	skip := flag.Int("skip", 0, "records to leave out at the beginning")
	limit := flag.Int("limit", 0, "records to send; 0: all")
	rate := flag.Float64("rate", 0, "requests a second, evenly spaced; 0: as fast as it goes")
	seconds := flag.Float64("seconds", 0, "go round the file for so long; 0: once")
	flag.Parse()

	records := load(*path, *skip, *limit)
	if len(records) < *batch {
		fail("file", fmt.Errorf("%d records are less than one batch", len(records)))
	}
	if *conns == 0 {
		*conns = min(*clients, 50)
	}
	pool := make([]*clientv3.Client, *conns)
	for i := range pool {
		cli, err := clientv3.New(clientv3.Config{
			Endpoints:   strings.Split(*endpoints, ","),
			DialTimeout: 10 * time.Second,
		})
		if err != nil {
			fail("connect", err)
		}
		defer cli.Close()
		if _, err = cli.Get(context.Background(), "feeder"); err != nil {
			fail("first read", err)
		}
		pool[i] = cli
	}

	batches := (len(records) + *batch - 1) / *batch
	total := int64(batches)
	if *seconds > 0 {
		total = 1 << 62
	}
	var next, keys atomic.Int64
	latencies := make([][]int64, *clients)
	var wg sync.WaitGroup
	cpu0, start := cpu(), time.Now()
	deadline := start.Add(time.Duration(*seconds * float64(time.Second)))
	for c := range *clients {
		wg.Go(func() {
			cli := pool[c%len(pool)]
			for {
				n := next.Add(1) - 1
				if n >= total {
					return
				}
				due := time.Now()
				if *rate > 0 {
					due = start.Add(time.Duration(float64(n) / *rate * float64(time.Second)))
					time.Sleep(time.Until(due))
				}
				if *seconds > 0 && due.After(deadline) {
					return
				}
				at := int(n%int64(batches)) * *batch
				part := records[at:min(at+*batch, len(records))]
				if err := send(cli, part); err != nil {
					fail("request", err)
				}
				latencies[c] = append(latencies[c], time.Since(due).Microseconds())
				keys.Add(int64(len(part)))
			}
		})
	}
	wg.Wait()
	took, used := time.Since(start).Seconds(), cpu()-cpu0

	var all []int64
	for _, part := range latencies {
		all = append(all, part...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(q float64) int64 { return all[min(int(q*float64(len(all))), len(all)-1)] }
	out := result{int(keys.Load()), len(all), took, float64(keys.Load()) / took, used,
		at(0.5), at(0.99), at(0.999), all[len(all)-1]}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fail("print", err)
	}
}
