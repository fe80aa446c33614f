// Command keeper keeps many leases alive on an etcd v3 server, and says whether any was lost.
//
// It grants -leases leases of -ttl seconds over -conns connections and, from each one's grant until
// -seconds after the last, sends a keep-alive for it -per-ttl times in a TTL, over one stream a
// connection. A lease is lost when a keep-alive is answered with TTL 0, and late when its answers are further
// apart than its TTL. At the end the server is asked how many leases it has.
//
// It prints one JSON object: leases, granted_seconds, seconds, sent, answered, lost, late,
// answers_per_second, p50_ms, p99_ms, max_ms, left (what LeaseLeases counts), cpu_s.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"sync"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

type result struct {
	Leases  int     `json:"leases"`
	Granted float64 `json:"granted_seconds"`
	Seconds float64 `json:"seconds"`
	Sent    int     `json:"sent"`
	Answers int     `json:"answered"`
	Lost    int     `json:"lost"`
	Late    int     `json:"late"`
	Rate    float64 `json:"answers_per_second"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Max     float64 `json:"max_ms"`
	Left    int     `json:"left"`
	CPUs    float64 `json:"cpu_s"`
}

// lease is one lease and its times.
type lease struct {
	id           int64
	asked, heard time.Time
}

// share is what one connection keeps.
type share struct {
	mu             sync.Mutex
	leases         []*lease
	index          map[int64]*lease
	sent, answered int
	lost, late     int
	delays         []float64
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "keeper: %s: %v\n", what, err)
	os.Exit(1)
}

func dial(endpoint string) *grpc.ClientConn {
	conn, err := grpc.NewClient("passthrough:///"+endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		fail("dial", err)
	}
	return conn
}

func (s *share) grant(conn *grpc.ClientConn, count int, ttl int64) {
	client := pb.NewLeaseClient(conn)
	var wait sync.WaitGroup
	work := make(chan struct{})
	for range 50 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for range work {
				made, err := client.LeaseGrant(context.Background(), &pb.LeaseGrantRequest{TTL: ttl})
				if err != nil {
					fail("grant", err)
				}
				now := time.Now()
				one := &lease{made.ID, now, now}
				s.mu.Lock()
				s.leases = append(s.leases, one)
				s.index[one.id] = one
				s.mu.Unlock()
			}
		}()
	}
	for range count {
		work <- struct{}{}
	}
	close(work)
	wait.Wait()
}

// due returns the leases whose next keep-alive is due, and takes it as sent.
func (s *share) due(period time.Duration) []*lease {
	now := time.Now()
	var out []*lease
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.leases {
		if now.Sub(one.asked) >= period {
			one.asked = now
			out = append(out, one)
		}
	}
	return out
}

// keep keeps all leases of the share alive until it is told to stop, and hears what is owed then.
func (s *share) keep(conn *grpc.ClientConn, ttl, period time.Duration, stop <-chan struct{}) {
	stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(context.Background())
	if err != nil {
		fail("stream", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			kept, err := stream.Recv()
			if err != nil {
				return
			}
			now := time.Now()
			s.mu.Lock()
			one := s.index[kept.ID]
			s.answered++
			if kept.TTL <= 0 {
				s.lost++
			}
			if now.Sub(one.heard) > ttl {
				s.late++
			}
			one.heard = now
			if s.answered%16 == 0 {
				s.delays = append(s.delays, now.Sub(one.asked).Seconds()*1000)
			}
			s.mu.Unlock()
		}
	}()
	tick := time.NewTicker(period / 100)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-stop:
			running = false
		case <-tick.C:
		}
		for _, one := range s.due(period) {
			if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: one.id}); err != nil {
				fail("send", err)
			}
			s.sent++
		}
	}
	if err := stream.CloseSend(); err != nil {
		fail("close", err)
	}
	<-done
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
	leases := flag.Int("leases", 100000, "leases")
	conns := flag.Int("conns", 20, "connections, one stream each")
	ttl := flag.Int("ttl", 10, "seconds of a lease")
	perTTL := flag.Int("per-ttl", 3, "keep-alives of a lease in its TTL")
	seconds := flag.Int("seconds", 30, "how long")
	flag.Parse()

	shares := make([]share, *conns)
	links := make([]*grpc.ClientConn, *conns)
	var granting, keeping sync.WaitGroup
	stop := make(chan struct{})
	began := time.Now()
	length := time.Duration(*ttl) * time.Second
	for i := range shares {
		links[i] = dial(*endpoint)
		shares[i].index = map[int64]*lease{}
		count := *leases / *conns
		if i < *leases%*conns {
			count++
		}
		granting.Add(1)
		keeping.Add(1)
		go func() {
			defer granting.Done()
			shares[i].grant(links[i], count, int64(*ttl))
		}()
		go func() {
			defer keeping.Done()
			shares[i].keep(links[i], length, length/time.Duration(*perTTL), stop)
		}()
	}
	granting.Wait()
	out := result{Leases: *leases, Granted: time.Since(began).Seconds()}
	before := 0
	for i := range shares {
		shares[i].mu.Lock()
		before += shares[i].answered
		shares[i].delays = nil
		shares[i].mu.Unlock()
	}
	began = time.Now()
	time.Sleep(time.Duration(*seconds) * time.Second)
	close(stop)
	keeping.Wait()
	out.Seconds = time.Since(began).Seconds()
	left, err := pb.NewLeaseClient(links[0]).LeaseLeases(context.Background(), &pb.LeaseLeasesRequest{})
	if err != nil {
		fail("list", err)
	}
	out.Left = len(left.Leases)
	var delays []float64
	for i := range shares {
		out.Sent += shares[i].sent
		out.Answers += shares[i].answered
		out.Lost += shares[i].lost
		out.Late += shares[i].late
		delays = append(delays, shares[i].delays...)
	}
	sort.Float64s(delays)
	if n := len(delays); n > 0 {
		out.P50, out.P99, out.Max = delays[n/2], delays[n*99/100], delays[n-1]
	}
	out.Rate = float64(out.Answers-before) / out.Seconds
	out.CPUs = cpu()
	text, err := json.Marshal(out)
	if err != nil {
		fail("result", err)
	}
	fmt.Println(string(text))
}
