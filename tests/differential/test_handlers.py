"""Maintenance, Cluster, Auth and Health over gRPC: kvnode and real etcd answer alike.

Left out of the comparison are ids, sizes, indexes and terms, which are each server's own; what
they have to be is checked apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kvnode.api.later import LATER
from kvnode.api.service import RPCS, SERVICES
from kvnode.proto import health_pb2, kv_pb2
from kvnode.proto import rpc_pb2 as pb
from tests.support.etcd import Etcd, find, why_missing
from tests.support.node import Node

M, C = "/etcdserverpb.Maintenance/", "/etcdserverpb.Cluster/"
A, H = "/etcdserverpb.Auth/", "/grpc.health.v1.Health/"
SECONDS = 20
OWN_FIELDS = {"cluster_id", "member_id", "raft_term", "ID", "peerURLs", "clientURLs", "name",
              "dbSize", "dbSizeInUse", "leader", "raftIndex", "raftTerm", "raftAppliedIndex",
              "dbSizeQuota"}  # fmt: skip


class Server:
    """One of the two, by its endpoint."""

    def __init__(self, endpoint: str) -> None:
        self.channel = grpc.insecure_channel(endpoint)

    def call(self, path: str, request: Any = b"") -> Any:
        """The response, or (status, text)."""
        rpc = RPCS[path]
        data = request if isinstance(request, bytes) else request.SerializeToString()
        make = self.channel.unary_stream if rpc.server_streams else self.channel.unary_unary
        method = make(path, response_deserializer=rpc.response.FromString)
        try:
            answer = method(data, timeout=SECONDS, wait_for_ready=True)
            return next(answer) if rpc.server_streams else answer
        except grpc.RpcError as error:
            return error.code().value[0], error.details()

    def put(self, key: bytes, value: bytes) -> None:
        self.call("/etcdserverpb.KV/Put", pb.PutRequest(key=key, value=value))


def blank(message: Any) -> Any:
    """Without what is each server's own: set fields of it become 1."""
    if not isinstance(message, Message):
        return message
    for field, value in message.ListFields():
        if field.name in OWN_FIELDS:
            message.ClearField(field.name)
            if field.is_repeated:
                getattr(message, field.name).append("set")
            else:
                setattr(message, field.name, "set" if isinstance(value, str) else 1)
        elif field.type == field.TYPE_MESSAGE and not field.message_type.GetOptions().map_entry:
            for one in value if field.is_repeated else [value]:
                blank(one)
    return message


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """(kvnode, etcd), both fresh."""
    if find("etcd") is None:
        pytest.skip(why_missing())
    folder: Path = tmp_path_factory.mktemp("handlers")
    with Etcd(folder / "etcd") as etcd, Node(folder / "kvnode") as node:
        assert isinstance(etcd, Etcd) and isinstance(node, Node)
        yield Server(f"127.0.0.1:{node.port}"), Server(etcd.endpoint)


def alarm(action: int, kind: int = 0) -> pb.AlarmRequest:
    return pb.AlarmRequest(action=action, memberID=7, alarm=kind)  # type: ignore[arg-type]


# One after another on the same two servers.
CALLS: list[tuple[str, Any]] = [
    (M + "Status", b""),
    (M + "HashKV", pb.HashKVRequest()),
    (M + "HashKV", pb.HashKVRequest(revision=-5)),
    (M + "HashKV", pb.HashKVRequest(revision=1)),
    (M + "HashKV", pb.HashKVRequest(revision=2)),
    (M + "Alarm", alarm(0)),
    (M + "Alarm", alarm(1, 0)),
    (M + "Alarm", alarm(1, 1)),
    (M + "Alarm", alarm(1, 1)),
    (M + "Alarm", alarm(0)),
    (M + "Alarm", alarm(0, 2)),
    (M + "Status", b""),
    (M + "Alarm", alarm(2, 2)),
    (M + "Alarm", alarm(2, 1)),
    (M + "Alarm", alarm(2, 1)),
    (M + "Alarm", alarm(1, 9)),
    (M + "Status", b""),
    (M + "Alarm", alarm(2, 9)),
    (M + "Defragment", b""),
    (C + "MemberList", b""),
    (C + "MemberList", pb.MemberListRequest(linearizable=True)),
    (A + "AuthStatus", b""),
    (A + "Authenticate", pb.AuthenticateRequest(name="root", password="x")),
    (A + "AuthDisable", b""),
    (H + "Check", b""),
    (H + "Check", health_pb2.HealthCheckRequest(service="etcdserverpb.KV")),
    (H + "List", b""),
    (H + "Watch", b""),
    (H + "Watch", health_pb2.HealthCheckRequest(service="x")),
]


def test_answers_are_etcds(pair: tuple[Server, Server]) -> None:
    for path, request in CALLS:
        ours, theirs = [blank(server.call(path, request)) for server in pair]
        assert ours == theirs, (path, request)


def test_garbage_ends_with_etcds_status(pair: tuple[Server, Server]) -> None:
    for path in (M + "HashKV", M + "Alarm", C + "MemberList", H + "Check"):
        ours, theirs = [server.call(path, b"\xff\xff\xff") for server in pair]
        assert ours[0] == theirs[0] == grpc.StatusCode.INTERNAL.value[0]


def test_hash_kv_of_an_equal_history(pair: tuple[Server, Server]) -> None:
    for server in pair:
        for number in range(40):
            server.put(b"k%d" % (number % 9), b"v%d" % number)
        server.call("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest(key=b"k3"))
        server.call("/etcdserverpb.KV/Compact", pb.CompactionRequest(revision=20, physical=True))
    for revision in (0, 19, 21, 30, 42, 43, 1000):
        ours, theirs = [
            blank(server.call(M + "HashKV", pb.HashKVRequest(revision=revision))) for server in pair
        ]
        assert ours == theirs, revision


def test_status_is_true(pair: tuple[Server, Server]) -> None:
    ours = pair[0]
    before = ours.call(M + "Status")
    assert before.header.member_id == before.leader == ours.call(C + "MemberList").members[0].ID
    for number in range(200):
        ours.put(b"big%d" % number, b"x" * 4096)
    after = ours.call(M + "Status")
    assert after.raftIndex == after.raftAppliedIndex > before.raftIndex
    assert after.header.revision == before.header.revision + 200
    assert after.dbSizeInUse >= before.dbSizeInUse + 200 * 4096
    assert after.dbSize >= after.dbSizeInUse
    assert (after.dbSizeQuota, after.raftTerm) == (2 << 30, after.header.raft_term)
    assert not after.isLearner and not after.errors


def test_what_this_version_does_not_serve_says_so(pair: tuple[Server, Server]) -> None:
    for path, what in LATER.items():
        status, text = pair[0].call(path)
        assert status == grpc.StatusCode.UNIMPLEMENTED.value[0]
        assert what in text


def test_watching_the_health_hears_of_the_end(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{node.port}")
    watch = channel.unary_stream(
        H + "Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )(b"")
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    node.stop()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError):
        next(watch)


def test_reflection_by_the_client_of_grpc(pair: tuple[Server, Server]) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    database = ProtoReflectionDescriptorDatabase(pair[0].channel)
    assert sorted(database.get_services()) == sorted(SERVICES)
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("etcdserverpb.KV")
    assert [m.name for m in service.methods] == [r.name for r in SERVICES["etcdserverpb.KV"]]
    found = pool.FindMessageTypeByName("mvccpb.KeyValue")
    assert [f.name for f in found.fields] == [f.name for f in kv_pb2.KeyValue.DESCRIPTOR.fields]
