"""The table of RPCs against what etcd's clients call."""

from __future__ import annotations

from kvnode.api.service import RPCS, SERVICES
from kvnode.proto import reflection_v1alpha_pb2, rpc_pb2

STREAMS = {
    "/etcdserverpb.KV/RangeStream": "server_stream",
    "/etcdserverpb.Watch/Watch": "bidi_stream",
    "/etcdserverpb.Lease/LeaseKeepAlive": "bidi_stream",
    "/etcdserverpb.Maintenance/Snapshot": "server_stream",
    "/v3electionpb.Election/Observe": "server_stream",
    "/grpc.health.v1.Health/Watch": "server_stream",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "bidi_stream",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "bidi_stream",
}


def test_every_method_of_every_service_stands_once():
    assert {service: len(rpcs) for service, rpcs in SERVICES.items()} == {
        "etcdserverpb.KV": 6,
        "etcdserverpb.Watch": 1,
        "etcdserverpb.Lease": 5,
        "etcdserverpb.Cluster": 5,
        "etcdserverpb.Maintenance": 8,
        "etcdserverpb.Auth": 17,
        "v3lockpb.Lock": 2,
        "v3electionpb.Election": 5,
        "grpc.health.v1.Health": 3,
        "grpc.reflection.v1.ServerReflection": 1,
        "grpc.reflection.v1alpha.ServerReflection": 1,
    }
    assert len(RPCS) == sum(map(len, SERVICES.values()))


def test_who_streams():
    assert {path: rpc.grpc_type for path, rpc in RPCS.items() if rpc.grpc_type != "unary"} == (
        STREAMS
    )


def test_messages_are_the_schemas_own_classes():
    rpc = RPCS["/etcdserverpb.KV/Txn"]
    assert (rpc.request, rpc.response) == (rpc_pb2.TxnRequest, rpc_pb2.TxnResponse)
    info = RPCS["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
    assert info.request is reflection_v1alpha_pb2.ServerReflectionRequest
