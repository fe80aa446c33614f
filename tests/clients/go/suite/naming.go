package main

import (
	"context"
	"fmt"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func init() {
	add("naming/endpoints", func(t *T) {
		manager := must(endpoints.NewManager(t.Client, t.prefix+"service"))
		watch := must(manager.NewWatchChannel(t))
		lease := must(t.Grant(t, 60)).ID
		one := endpoints.Endpoint{Addr: "127.0.0.1:1", Metadata: "one"}
		t.ok(manager.AddEndpoint(t, t.prefix+"service/1", one, clientv3.WithLease(lease)))
		added := take(t, "added", watch)
		t.equal("added", []any{added[0].Op, added[0].Endpoint.Addr}, []any{endpoints.Add, one.Addr})
		t.ok(manager.Update(t, []*endpoints.UpdateWithOpts{
			endpoints.NewAddUpdateOpts(t.prefix+"service/2", endpoints.Endpoint{Addr: "127.0.0.1:2"}),
			endpoints.NewAddUpdateOpts(t.prefix+"service/3", endpoints.Endpoint{Addr: "127.0.0.1:3"}),
		}))
		t.equal("both in one answer", len(take(t, "added", watch)), 2)
		list := must(manager.List(t))
		t.equal("list", []any{len(list), list[t.prefix+"service/1"].Metadata}, []any{3, "one"})
		t.ok(manager.DeleteEndpoint(t, t.prefix+"service/2"))
		t.equal("deleted", take(t, "deleted", watch)[0].Op, endpoints.Delete)
		must(t.Revoke(t, lease))
		t.equal("its lease ended", take(t, "deleted", watch)[0].Key, t.prefix+"service/1")
		t.equal("left", len(must(manager.List(t))), 1)
	})
	add("naming/resolver", resolved)
}

// serve is a gRPC server on loopback whose health service knows one name, its own.
func (t *T) serve(name string) (string, func()) {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	server, status := grpc.NewServer(), health.NewServer()
	status.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(server, status)
	go server.Serve(listener)
	return listener.Addr().String(), server.Stop
}

// resolved: a gRPC client finds a service by its name, and its second address once the first went.
func resolved(t *T) {
	service := "service-of-" + fmt.Sprint(must(t.Get(t, "a")).Header.Revision)
	manager := must(endpoints.NewManager(t.Client, service))
	first, stop := t.serve("first")
	defer stop()
	second, stopToo := t.serve("second")
	defer stopToo()
	t.ok(manager.AddEndpoint(t, service+"/first", endpoints.Endpoint{Addr: first}))
	connection := must(grpc.NewClient("etcd:///"+service, grpc.WithResolvers(must(resolver.NewBuilder(t.Client))),
		grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer connection.Close()
	client := grpc_health_v1.NewHealthClient(connection)
	ask := func(name string) bool {
		_, err := client.Check(context.Context(t), &grpc_health_v1.HealthCheckRequest{Service: name})
		return err == nil
	}
	t.until("the first answers", func() bool { return ask("first") })
	t.ok(manager.Update(t, []*endpoints.UpdateWithOpts{
		endpoints.NewDeleteUpdateOpts(service + "/first"),
		endpoints.NewAddUpdateOpts(service+"/second", endpoints.Endpoint{Addr: second}),
	}))
	t.until("the second answers", func() bool { return ask("second") })
}
