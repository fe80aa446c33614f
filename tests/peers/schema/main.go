// Prints a serialized google.protobuf.FileDescriptorSet of etcd's own schema, and of gRPC's
// services that etcd's port is expected to have: what kvnode's .proto files are compared with.
package main

import (
	"log"
	"os"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/health/grpc_health_v1"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	messages := []proto.Message{
		&authpb.User{}, &mvccpb.KeyValue{}, &etcdserverpb.RangeRequest{}, &v3lockpb.LockRequest{},
		&v3electionpb.CampaignRequest{}, &grpc_health_v1.HealthCheckRequest{},
		&reflection.ServerReflectionRequest{}, &alpha.ServerReflectionRequest{},
	}
	set := &descriptorpb.FileDescriptorSet{}
	for _, message := range messages {
		var file protoreflect.FileDescriptor = message.ProtoReflect().Descriptor().ParentFile()
		one := protodesc.ToFileDescriptorProto(file)
		// Options are other people's schemas: HTTP paths, versions of fields.
		one.Options = nil
		set.File = append(set.File, one)
	}
	data, err := proto.Marshal(set)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.Write(data); err != nil {
		log.Fatal(err)
	}
}
