// Suite uses every API of etcd's Go client, and of the packages beside it, on one member.
//
//	suite ENDPOINT [-only PATTERN]
//
// A line a case: `ok NAME SECONDS`, `FAIL NAME: why`; the last line counts them. A case has its own
// prefix of keys, so that cases share one server and one client without meeting.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const caseSeconds = 30 * time.Second

// T is what a case works with.
type T struct {
	context.Context
	*clientv3.Client
	prefix   string
	endpoint string
}

// failure is what a case panics with to end.
type failure struct{ text string }

type testCase struct {
	name string
	run  func(*T)
}

var cases []testCase

// add makes a case known; the files' init functions call it.
func add(name string, run func(*T)) { cases = append(cases, testCase{name, run}) }

// key is a key of this case's own.
func (t *T) key(name string) string { return t.prefix + name }

// fail ends the case.
func (t *T) fail(format string, a ...any) { panic(failure{fmt.Sprintf(format, a...)}) }

// equal ends the case unless both are deeply equal.
func (t *T) equal(what string, found, expected any) {
	if !reflect.DeepEqual(found, expected) {
		t.fail("%s: %v, expected %v", what, found, expected)
	}
}

// true ends the case unless what is true.
func (t *T) true(what string, holds bool) {
	if !holds {
		t.fail("not so: %s", what)
	}
}

// ok ends the case on an error.
func (t *T) ok(err error) {
	if err != nil {
		t.fail("error: %v", err)
	}
}

// refused ends the case unless err is this very error, by its text and, if it has one, its code.
func (t *T) refused(err, expected error) {
	if err == nil || !(errors.Is(err, expected) || err.Error() == expected.Error()) {
		t.fail("error %v, expected %v", err, expected)
	}
}

// code ends the case unless err has this status.
func (t *T) code(err error, code codes.Code) {
	if status.Code(err) != code {
		t.fail("error %v, expected the status %v", err, code)
	}
}

// must passes an answer on, or ends the case.
func must[A any](answer A, err error) A {
	if err != nil {
		panic(failure{fmt.Sprintf("error: %v", err)})
	}
	return answer
}

// until asks again until it holds; a bound is the case's own.
func (t *T) until(what string, holds func() bool) {
	for !holds() {
		select {
		case <-t.Done():
			t.fail("in vain: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// take receives one value of a channel.
func take[A any](t *T, what string, channel <-chan A) A {
	select {
	case value, open := <-channel:
		if !open {
			t.fail("%s: closed", what)
		}
		return value
	case <-t.Done():
		t.fail("%s: nothing came", what)
	}
	panic("unreachable")
}

// dial is a second client.
func (t *T) dial() *clientv3.Client {
	return must(clientv3.New(config(t.endpoint)))
}

func config(endpoint string) clientv3.Config {
	return clientv3.Config{
		Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
	}
}

func (c testCase) try(client *clientv3.Client, endpoint string) (why string) {
	ctx, cancel := context.WithTimeout(context.Background(), caseSeconds)
	defer cancel()
	defer func() {
		if caught := recover(); caught != nil {
			if failed, is := caught.(failure); is {
				why = failed.text
			} else {
				why = fmt.Sprintf("panic: %v\n%s", caught, debug.Stack())
			}
		}
	}()
	// Of an earlier run on the same server.
	must(client.Delete(ctx, "/"+c.name+"/", clientv3.WithPrefix()))
	c.run(&T{ctx, client, "/" + c.name + "/", endpoint})
	return ""
}

func main() {
	only := flag.String("only", "", "the cases whose names this pattern finds")
	flag.Parse()
	pattern := regexp.MustCompile(*only)
	endpoint := flag.Arg(0)
	client, err := clientv3.New(config(endpoint))
	if err != nil {
		fmt.Println("FAIL connect:", err)
		os.Exit(2)
	}
	count, failed := 0, 0
	for _, c := range cases {
		if !pattern.MatchString(c.name) {
			continue
		}
		begun := time.Now()
		why := c.try(client, endpoint)
		count++
		if why != "" {
			failed++
			fmt.Printf("FAIL %s: %s\n", c.name, strings.ReplaceAll(why, "\n", "\n\t"))
		} else {
			fmt.Printf("ok %s %.3f\n", c.name, time.Since(begun).Seconds())
		}
	}
	client.Close()
	fmt.Printf("cases %d failed %d\n", count, failed)
	if failed > 0 {
		os.Exit(1)
	}
}
