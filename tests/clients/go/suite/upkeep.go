package main

import (
	"context"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
)

func init() {
	add("cluster/members", func(t *T) {
		members := must(t.MemberList(t)).Members
		t.equal("members", len(members), 1)
		t.true("a name and a client's address", members[0].Name != "" && len(members[0].ClientURLs) > 0)
		t.true("no learner", !members[0].IsLearner)
		must(t.MemberList(t, clientv3.WithSerializable()))
	})
	add("cluster/sync", func(t *T) {
		client := t.dial()
		defer client.Close()
		t.ok(client.Sync(t))
		t.true("endpoints", strings.HasSuffix(client.Endpoints()[0], t.endpoint))
		must(client.Put(t, t.key("a"), ""))
	})
	add("maintenance/status", func(t *T) {
		put := must(t.Put(t, t.key("a"), ""))
		status := must(t.Status(t, t.endpoint))
		t.equal("revision", status.Header.Revision, put.Header.Revision)
		t.equal("leader", status.Leader, status.Header.MemberId)
		t.true("version "+status.Version, strings.HasPrefix(status.Version, "3."))
		t.true("sizes", status.DbSize > 0 && status.DbSizeInUse > 0 && status.DbSizeInUse <= status.DbSize)
		t.true("raft", status.RaftIndex > 0 && status.RaftTerm > 0 && status.RaftAppliedIndex > 0)
		t.equal("learner, errors", []any{status.IsLearner, len(status.Errors)}, []any{false, 0})
	})
	add("maintenance/alarms", func(t *T) {
		t.equal("none", len(must(t.AlarmList(t)).Alarms), 0)
		t.equal("none to disarm", len(must(t.AlarmDisarm(t, &clientv3.AlarmMember{})).Alarms), 0)
	})
	add("maintenance/defragment", func(t *T) {
		must(t.Defragment(t, t.endpoint))
		must(t.Put(t, t.key("a"), ""))
	})
	add("maintenance/hash", func(t *T) {
		must(t.Put(t, t.key("a"), "1"))
		first := must(t.HashKV(t, t.endpoint, 0))
		again := must(t.HashKV(t, t.endpoint, first.HashRevision))
		t.equal("the same of the same revision", again.Hash, first.Hash)
		must(t.Put(t, t.key("a"), "2"))
		t.true("another of another", must(t.HashKV(t, t.endpoint, 0)).Hash != first.Hash)
	})
	add("client/required-leader", func(t *T) {
		must(t.Put(clientv3.WithRequireLeader(t), t.key("a"), ""))
	})
	add("client/deadline", func(t *T) {
		ctx, cancel := context.WithTimeout(t, time.Nanosecond)
		defer cancel()
		_, err := t.Get(ctx, t.key("a"))
		t.refused(err, context.DeadlineExceeded)
	})
	add("client/keep-alive-pings", func(t *T) {
		c := config(t.endpoint)
		c.DialKeepAliveTime, c.DialKeepAliveTimeout = 10*time.Second, time.Second
		c.PermitWithoutStream = true
		client := must(clientv3.New(c))
		defer client.Close()
		must(client.Put(t, t.key("a"), ""))
	})
	add("client/health", func(t *T) {
		health := grpc_health_v1.NewHealthClient(t.ActiveConnection())
		answer := must(health.Check(t, &grpc_health_v1.HealthCheckRequest{}))
		t.equal("status", answer.Status, grpc_health_v1.HealthCheckResponse_SERVING)
		_, err := health.Check(t, &grpc_health_v1.HealthCheckRequest{Service: "unknown"})
		t.code(err, codes.NotFound)
	})
	add("client/unknown-method", func(t *T) {
		err := t.ActiveConnection().Invoke(t, "/etcdserverpb.KV/Nothing",
			&grpc_health_v1.HealthCheckRequest{}, &grpc_health_v1.HealthCheckResponse{})
		t.code(err, codes.Unimplemented)
	})
	add("client/reflection", func(t *T) {
		stream := must(grpc_reflection_v1.NewServerReflectionClient(t.ActiveConnection()).ServerReflectionInfo(t))
		stream.Send(&grpc_reflection_v1.ServerReflectionRequest{
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
		answer, err := stream.Recv() // says why a Send failed, too
		if err != nil {              // etcd serves it only if asked to
			t.code(err, codes.Unimplemented)
			return
		}
		names := answer.GetListServicesResponse().String()
		t.true("services "+names, strings.Contains(names, "etcdserverpb.KV"))
	})
}
