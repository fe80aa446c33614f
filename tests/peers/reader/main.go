// Command reader measures how long an etcd v3 server takes to hand out a whole key range: by one
// Range, by one RangeStream, or page by page. It walks the answers on the wire without building
// messages, so that decoding a million keys is not what is measured, and checks their number.
//
// It prints one JSON object: keys, bytes, seconds, first_seconds (to the first message), cpu_s.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

type result struct {
	Keys         int     `json:"keys"`
	Bytes        int64   `json:"bytes"`
	Seconds      float64 `json:"seconds"`
	FirstSeconds float64 `json:"first_seconds"`
	CPUs         float64 `json:"cpu_s"`
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "reader: %s: %v\n", what, err)
	os.Exit(1)
}

// raw is a message that stays as it came; its buffers are pooled, so free it.
type raw struct{ data mem.Buffer }

type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	out, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(out)}, err
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*raw)
	if !ok {
		return proto.Unmarshal(data.Materialize(), v.(proto.Message))
	}
	m.data = data.MaterializeToBuffer(mem.DefaultBufferPool())
	return nil
}

func field(p []byte) (tag, value uint64, rest []byte) {
	tag, n := binary.Uvarint(p)
	if n <= 0 {
		fail("answer", errors.New("bad tag"))
	}
	p = p[n:]
	value, n = binary.Uvarint(p)
	if n <= 0 || (tag&7 == 2 && value > uint64(len(p)-n)) || (tag&7 != 0 && tag&7 != 2) {
		fail("answer", errors.New("bad field"))
	}
	return tag, value, p[n:]
}

// page is what a RangeResponse says of itself.
type page struct {
	keys     int
	more     bool
	count    uint64
	revision int64
	last     []byte
}

func scan(p []byte) page {
	var out page
	var kv []byte
	for len(p) > 0 {
		tag, value, rest := field(p)
		if tag&7 == 2 {
			body := rest[:value]
			rest = rest[value:]
			switch tag >> 3 {
			case 1:
				for len(body) > 0 {
					t, v, r := field(body)
					if t>>3 == 3 {
						out.revision = int64(v)
					}
					if t&7 == 2 {
						r = r[v:]
					}
					body = r
				}
			case 2:
				out.keys++
				kv = body
			}
		} else if tag>>3 == 3 {
			out.more = value != 0
		} else if tag>>3 == 4 {
			out.count = value
		}
		p = rest
	}
	if kv != nil {
		tag, n, rest := field(kv)
		if tag != 10 {
			fail("answer", errors.New("a KeyValue without a key"))
		}
		out.last = append(out.last, rest[:n]...)
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

func main() {
	endpoint := flag.String("endpoints", "127.0.0.1:2379", "HOST:PORT")
	mode := flag.String("mode", "range", "range, stream or pages")
	first := flag.String("key", "0", "where the range begins")
	end := flag.String("end", "g", "where it ends")
	limit := flag.Int64("page", 10_000, "keys a page")
	want := flag.Int("want", 0, "keys that must come; 0: any number")
	flag.Parse()
	conn, err := grpc.NewClient("passthrough:///"+*endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(1<<26), grpc.WithInitialConnWindowSize(1<<26),
		grpc.WithReadBufferSize(1<<20),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(1<<31-1)))
	if err != nil {
		fail("dial", err)
	}
	ctx := context.Background()
	call := func(request *pb.RangeRequest) *raw {
		var answer raw
		if err := conn.Invoke(ctx, "/etcdserverpb.KV/Range", request, &answer); err != nil {
			fail("range", err)
		}
		return &answer
	}
	call(&pb.RangeRequest{Key: []byte("warm"), Limit: 1}).data.Free()

	var out result
	cpu0, start := cpu(), time.Now()
	take := func(answer *raw, inner bool) page {
		if out.FirstSeconds == 0 {
			out.FirstSeconds = time.Since(start).Seconds()
		}
		p := answer.data.ReadOnlyData()
		out.Bytes += int64(len(p))
		var got page
		if !inner {
			got = scan(p)
		}
		for inner && len(p) > 0 { // RangeStreamResponse { range_response = 1 }
			_, n, rest := field(p)
			part := scan(rest[:n])
			got.keys += part.keys
			p = rest[n:]
		}
		answer.data.Free()
		out.Keys += got.keys
		return got
	}
	request := &pb.RangeRequest{Key: []byte(*first), RangeEnd: []byte(*end)}
	switch *mode {
	case "range":
		take(call(request), false)
	case "pages":
		request.Limit = *limit
		for {
			got := take(call(request), false)
			if !got.more {
				break
			}
			request.Revision = got.revision
			request.Key = append(got.last, 0)
		}
	case "stream":
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true},
			"/etcdserverpb.KV/RangeStream")
		if err == nil {
			err = stream.SendMsg(request)
		}
		if err == nil {
			err = stream.CloseSend()
		}
		for err == nil {
			var answer raw
			if err = stream.RecvMsg(&answer); err == nil {
				take(&answer, true)
			}
		}
		if !errors.Is(err, io.EOF) {
			fail("stream", err)
		}
	default:
		fail("mode", errors.New(*mode))
	}
	out.Seconds, out.CPUs = time.Since(start).Seconds(), cpu()-cpu0
	if *want > 0 && out.Keys != *want {
		fail("keys", fmt.Errorf("%d came, %d should", out.Keys, *want))
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fail("print", err)
	}
}
