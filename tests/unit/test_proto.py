"""The schema: etcd's paths, and a pool that does not meet another package's etcd messages."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from kvnode import proto
from kvnode.proto import (
    health_pb2,
    kvnodepb_pb2,
    reflection_pb2,
    reflection_v1alpha_pb2,
    rpc_pb2,
    v3election_pb2,
    v3lock_pb2,
)

SERVICES = {
    "etcdserverpb.KV": "Range RangeStream Put DeleteRange Txn Compact",
    "etcdserverpb.Watch": "Watch",
    "etcdserverpb.Lease": "LeaseGrant LeaseRevoke LeaseKeepAlive LeaseTimeToLive LeaseLeases",
    "etcdserverpb.Cluster": "MemberAdd MemberRemove MemberUpdate MemberList MemberPromote",
    "etcdserverpb.Maintenance": "Alarm Status Defragment Hash HashKV Snapshot MoveLeader Downgrade",
    "etcdserverpb.Auth": (
        "AuthEnable AuthDisable AuthStatus Authenticate UserAdd UserGet UserList UserDelete "
        "UserChangePassword UserGrantRole UserRevokeRole RoleAdd RoleGet RoleList RoleDelete "
        "RoleGrantPermission RoleRevokePermission"
    ),
    "v3lockpb.Lock": "Lock Unlock",
    "v3electionpb.Election": "Campaign Proclaim Leader Observe Resign",
    "grpc.health.v1.Health": "Check List Watch",
    "grpc.reflection.v1.ServerReflection": "ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection": "ServerReflectionInfo",
}
FILES = [
    rpc_pb2, v3lock_pb2, v3election_pb2, health_pb2, kvnodepb_pb2, reflection_pb2,
    reflection_v1alpha_pb2,
]  # fmt: skip


def test_services_and_methods():
    found = {
        service.full_name: " ".join(method.name for method in service.methods)
        for module in FILES
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    assert found == SERVICES


def test_another_packages_etcd_messages_fit_in_the_same_process():
    file = descriptor_pb2.FileDescriptorProto(name="other/rpc.proto", package="etcdserverpb")
    file.syntax = "proto3"
    file.message_type.add(name="PutRequest").field.add(name="key", number=1, type=12, label=1)
    added = descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    other = message_factory.GetMessageClass(added.message_types_by_name["PutRequest"])
    ours = rpc_pb2.PutRequest(key=b"k")
    assert other.FromString(ours.SerializeToString()).key == b"k"
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("etcdserverpb.TxnRequest")
    assert proto.POOL.FindMessageTypeByName("etcdserverpb.TxnRequest")


def test_values_of_enums_are_names_of_the_module():
    assert rpc_pb2.NOSPACE == rpc_pb2.AlarmType.Value("NOSPACE") == 1
    assert rpc_pb2.RangeRequest.DESCEND == 2
