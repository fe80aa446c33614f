// Command fanout measures how long an etcd v3 server takes to bring every event of one writer to
// every watcher of one prefix: from the first put until the last watcher has counted its last event.
//
// The watchers are -watchers watches on -conns connections, one stream a connection, as clientv3
// multiplexes them. They count events on the wire without building messages, so that the client is
// not what is measured. The writer is one connection with -inflight puts on their way.
//
// It prints one JSON object: puts, watchers, events, seconds, writer_seconds, responses, cpu_s.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

type result struct {
	Puts          int     `json:"puts"`
	Watchers      int     `json:"watchers"`
	Events        int64   `json:"events"`
	Seconds       float64 `json:"seconds"`
	WriterSeconds float64 `json:"writer_seconds"`
	Responses     int64   `json:"responses"`
	CPUs          float64 `json:"cpu_s"`
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "fanout: %s: %v\n", what, err)
	os.Exit(1)
}

// raw is a message that stays bytes.
type raw struct{ data []byte }

// codec marshals protobuf messages and leaves a *raw as it came.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	out, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(out)}, err
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*raw); ok {
		m.data = data.Materialize()
		return nil
	}
	return proto.Unmarshal(data.Materialize(), v.(proto.Message))
}

var _ encoding.CodecV2 = codec{}

// scan counts the events of a WatchResponse and tells whether it says that a watch was created or
// cancelled.
func scan(p []byte) (watch int64, events int64, created, canceled bool) {
	for len(p) > 0 {
		tag, n := binary.Uvarint(p)
		if n <= 0 {
			fail("response", fmt.Errorf("bad tag"))
		}
		p = p[n:]
		value, n := binary.Uvarint(p)
		if n <= 0 {
			fail("response", fmt.Errorf("bad value"))
		}
		p = p[n:]
		switch tag & 7 {
		case 0:
			switch tag >> 3 {
			case 2:
				watch = int64(value)
			case 3:
				created = value != 0
			case 4:
				canceled = value != 0
			}
		case 2:
			if value > uint64(len(p)) {
				fail("response", fmt.Errorf("cut short"))
			}
			if tag>>3 == 11 {
				events++
			}
			p = p[value:]
		default:
			fail("response", fmt.Errorf("wire type %d", tag&7))
		}
	}
	return watch, events, created, canceled
}

func dial(endpoint string) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///"+endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		fail("dial", err)
	}
	return conn
}

// watch opens one stream with `count` watches, reports when all are created, and counts until each
// has had `want` events.
func watch(endpoint, prefix string, count int, want int64, created, done *sync.WaitGroup,
	events, responses *atomic.Int64) {
	stream, err := dial(endpoint).NewStream(context.Background(),
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/etcdserverpb.Watch/Watch")
	if err != nil {
		fail("watch", err)
	}
	end := append([]byte(prefix[:len(prefix)-1]), prefix[len(prefix)-1]+1)
	for range count {
		request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
			CreateRequest: &pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: end}}}
		if err := stream.SendMsg(request); err != nil {
			fail("create", err)
		}
	}
	seen, open, left := map[int64]int64{}, count, count
	var message raw
	for left > 0 {
		if err := stream.RecvMsg(&message); err != nil {
			fail("receive", err)
		}
		id, n, isCreated, isCanceled := scan(message.data)
		if isCanceled {
			fail("watch", fmt.Errorf("watch %d was cancelled", id))
		}
		if isCreated {
			if open--; open == 0 {
				created.Done()
			}
		}
		responses.Add(1)
		events.Add(n)
		if seen[id] += n; n > 0 && seen[id] >= want {
			if seen[id] > want {
				fail("watch", fmt.Errorf("watch %d got %d events of %d", id, seen[id], want))
			}
			left--
		}
	}
	done.Done()
}

func cpu() float64 {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		fail("getrusage", err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano()).Seconds()
}

func main() {
	endpoint := flag.String("endpoints", "127.0.0.1:2379", "HOST:PORT")
	watchers := flag.Int("watchers", 100, "watches on the prefix")
	conns := flag.Int("conns", 10, "connections, one stream each")
	puts := flag.Int("puts", 2000, "puts of the writer")
	inflight := flag.Int("inflight", 100, "puts of the writer on their way")
	size := flag.Int("value", 64, "bytes of a value")
	prefix := flag.String("prefix", "fanout/", "the prefix")
	flag.Parse()

	var created, done sync.WaitGroup
	var events, responses atomic.Int64
	for i := range *conns {
		count := *watchers / *conns
		if i < *watchers%*conns {
			count++
		}
		if count == 0 {
			continue
		}
		created.Add(1)
		done.Add(1)
		go watch(*endpoint, *prefix, count, int64(*puts), &created, &done, &events, &responses)
	}
	created.Wait()
	writer := pb.NewKVClient(dial(strings.TrimSpace(*endpoint)))
	value := []byte(strings.Repeat("v", *size))
	if _, err := writer.Range(context.Background(), &pb.RangeRequest{Key: []byte("x")}); err != nil {
		fail("read", err)
	}
	responses.Store(0)
	var next atomic.Int64
	var writers sync.WaitGroup
	cpu0, start := cpu(), time.Now()
	for range *inflight {
		writers.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(*puts) {
					return
				}
				key := fmt.Appendf(nil, "%s%08d", *prefix, n)
				if _, err := writer.Put(context.Background(),
					&pb.PutRequest{Key: key, Value: value}); err != nil {
					fail("put", err)
				}
			}
		})
	}
	writers.Wait()
	wrote := time.Since(start).Seconds()
	done.Wait()
	out := result{*puts, *watchers, events.Load(), time.Since(start).Seconds(), wrote,
		responses.Load(), cpu() - cpu0}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fail("print", err)
	}
}
