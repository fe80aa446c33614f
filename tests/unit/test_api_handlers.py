"""The handlers of kvnode.api over a node of values; tests/clients has them over the wire."""

from __future__ import annotations

import random

import pytest

from kvnode.api.attach import PYTHON_PATHS, attach
from kvnode.api.later import LATER
from kvnode.api.node import Done, Facts, HashOfKeys
from kvnode.api.service import RPCS
from kvnode.base.codes import Code, Grpc, Kind
from kvnode.base.config import complete
from kvnode.proto import POOL, health_pb2, reflection_pb2, reflection_v1alpha_pb2
from kvnode.proto import rpc_pb2 as rpcpb
from tests.support.calls import Router
from tests.support.randompb import damage, fill

M = "/etcdserverpb.Maintenance/"
HEADER = rpcpb.ResponseHeader(cluster_id=7, member_id=8, revision=9, raft_term=2)


class FakeNode:
    """A node whose answers are set by the test."""

    def __init__(self) -> None:
        self.config = complete({"name": "n1", "advertise-client-urls": ("http://10.0.0.1:2379",)})
        self.member_id, self.cluster_id = 8, 7
        self.founders = [(8, "n1", ["http://localhost:2380"]), (9, "n2", ["http://h:2380"])]
        self.proposed: list[tuple[int, bytes]] = []
        self.outcome: tuple[int, bytes] = (Code.OK, b"")
        self.ready = Code.OK
        self.barriers = 0
        self.found: tuple[int, HashOfKeys | None] = (Code.OK, None)
        self.hashed: list[tuple[int, bool]] = []
        self.seen = Facts(4096, 1024, 2 << 30, 8, 20, 19, 2)

    def header(self) -> rpcpb.ResponseHeader:
        header = rpcpb.ResponseHeader()
        header.CopyFrom(HEADER)
        return header

    def facts(self) -> Facts:
        return self.seen

    def propose(self, kind: int, body: bytes, done: Done) -> None:
        self.proposed.append((kind, body))
        done(*self.outcome)

    def barrier(self, done) -> None:
        self.barriers += 1
        done(self.ready)

    def defragment(self, done: Done) -> None:
        done(*self.outcome)

    def hash_keys(self, revision: int, whole: bool, done) -> None:
        self.hashed.append((revision, whole))
        done(*self.found)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def router(node: FakeNode) -> Router:
    made = Router()
    made.health = attach(made, node)  # type: ignore[attr-defined]
    return made


def test_every_rpc_that_is_not_hot_is_registered_once(router):
    assert set(router.handlers) == PYTHON_PATHS
    assert router.client_streams == {p for p in PYTHON_PATHS if RPCS[p].client_streams}


def test_status(node, router):
    assert router.call(M + "Status", rpcpb.StatusRequest()) == rpcpb.StatusResponse(
        header=HEADER, version="3.7.1", dbSize=4096, dbSizeInUse=1024, dbSizeQuota=2 << 30,
        leader=8, raftIndex=20, raftAppliedIndex=19, raftTerm=2, storageVersion="3.7.0",
        downgradeInfo=rpcpb.DowngradeInfo(),
    )  # fmt: skip


def test_status_without_a_leader_names_it_and_each_alarm(node, router):
    node.seen = Facts(1, 1, 1, 0, 1, 1, 1, ((1, 8), (2, 5), (9, 4)), ("the disk is old",))
    status = router.call(M + "Status", rpcpb.StatusRequest())
    assert list(status.errors) == [
        "etcdserver: no leader", "memberID:8  alarm:NOSPACE", "memberID:5  alarm:CORRUPT",
        "memberID:4  alarm:9", "the disk is old",
    ]  # fmt: skip


def test_alarm_goes_through_the_log(node, router):
    answer = rpcpb.AlarmResponse(header=HEADER)
    node.outcome = (Code.OK, answer.SerializeToString())
    request = rpcpb.AlarmRequest(action=rpcpb.AlarmRequest.ACTIVATE, memberID=3, alarm=1)
    assert router.call(M + "Alarm", request) == answer
    assert node.proposed == [(Kind.ALARM, request.SerializeToString())]


def test_a_refused_proposal_is_the_status_that_clients_know(node, router):
    node.outcome = (Code.NO_SPACE, b"")
    assert router.call(M + "Alarm", rpcpb.AlarmRequest()) == (
        Grpc.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded",
    )  # fmt: skip


def test_an_alarm_action_that_ends_etcd_is_refused(node, router):
    status, text = router.call(M + "Alarm", rpcpb.AlarmRequest(action=7))
    assert (status, text) == (Grpc.INVALID_ARGUMENT, "kvnode: unknown alarm action")
    assert not node.proposed


def test_defragment_has_no_header(node, router):
    assert router.call(M + "Defragment", b"") == rpcpb.DefragmentResponse()
    node.outcome = (Code.UNAVAILABLE, b"one is under way")
    assert router.call(M + "Defragment", b"")[0] == Grpc.UNAVAILABLE
    assert router.call(M + "Defragment", b"")[1].endswith("one is under way")


def test_hash_kv(node, router):
    node.found = (Code.OK, HashOfKeys(0xDEADBEEF, 5, -1, 9))
    assert router.call(M + "HashKV", rpcpb.HashKVRequest(revision=5)) == rpcpb.HashKVResponse(
        header=HEADER, hash=0xDEADBEEF, compact_revision=-1, hash_revision=5
    )
    assert router.call(M + "Hash", b"") == rpcpb.HashResponse(header=HEADER, hash=0xDEADBEEF)
    assert node.hashed == [(5, False), (0, True)]
    node.found = (Code.FUTURE_REV, None)
    assert router.call(M + "HashKV", rpcpb.HashKVRequest(revision=50)) == (
        Grpc.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision",
    )  # fmt: skip


def test_member_list(node, router):
    path = "/etcdserverpb.Cluster/MemberList"
    expected = rpcpb.MemberListResponse(
        header=rpcpb.ResponseHeader(cluster_id=7, member_id=8, raft_term=2),
        members=[
            rpcpb.Member(
                ID=8, name="n1", peerURLs=["http://localhost:2380"],
                clientURLs=["http://10.0.0.1:2379"],
            ),
            rpcpb.Member(ID=9, name="n2", peerURLs=["http://h:2380"]),
        ],
    )  # fmt: skip
    assert router.call(path, rpcpb.MemberListRequest()) == expected
    assert node.barriers == 0
    assert router.call(path, rpcpb.MemberListRequest(linearizable=True)) == expected
    assert node.barriers == 1
    node.ready = Code.NO_LEADER
    assert router.call(path, rpcpb.MemberListRequest(linearizable=True)) == (
        Grpc.UNAVAILABLE, "etcdserver: no leader",
    )  # fmt: skip


def test_what_does_not_decode_ends_its_call(router):
    assert router.call(M + "HashKV", b"\xff\xff")[0] == Grpc.INTERNAL


def test_a_handler_that_fails_ends_its_call(node, router, caplog):
    node.facts = lambda: 1 // 0
    assert router.call(M + "Status", b"")[0] == Grpc.INTERNAL
    assert "ZeroDivisionError" in caplog.text


def test_an_answer_after_the_client_went_is_dropped(node, router):
    waiting = []
    node.defragment = waiting.append
    call = router.open(M + "Defragment")
    call.on_message(b"")
    call.on_gone()
    waiting[0](Code.OK, b"")
    assert (call.sent, call.status) == ([], None)


@pytest.mark.parametrize("path", sorted(LATER))
def test_what_comes_later_says_so(router, path):
    status, text = router.call(path, b"")
    assert status == Grpc.UNIMPLEMENTED
    assert text == f"kvnode: this version does not serve {LATER[path]} yet"


def test_auth_is_off_and_says_it_as_etcd(router):
    auth = "/etcdserverpb.Auth/"
    assert router.call(auth + "AuthStatus", b"") == rpcpb.AuthStatusResponse(
        header=HEADER, authRevision=1
    )
    assert router.call(auth + "AuthDisable", b"") == rpcpb.AuthDisableResponse(header=HEADER)
    assert router.call(auth + "Authenticate", rpcpb.AuthenticateRequest(name="a")) == (
        Grpc.FAILED_PRECONDITION, "etcdserver: authentication is not enabled",
    )  # fmt: skip


# --- health ---------------------------------------------------------------------------------------

H = "/grpc.health.v1.Health/"
Health = health_pb2.HealthCheckResponse


def test_health_of_the_whole_and_of_others(router):
    assert router.call(H + "Check", b"").status == Health.SERVING
    request = health_pb2.HealthCheckRequest(service="x")
    assert router.call(H + "Check", request) == (Grpc.NOT_FOUND, "unknown service")
    listed = router.call(H + "List", b"")
    assert {name: one.status for name, one in listed.statuses.items()} == {"": Health.SERVING}


def test_health_watch_tells_changes_until_the_client_goes(router):
    call, other = router.open(H + "Watch"), router.open(H + "Watch")
    call.on_message(b"")
    other.on_message(health_pb2.HealthCheckRequest(service="x").SerializeToString())
    router.health.set(False)
    router.health.set(False)
    router.health.set(True)
    call.on_gone()
    router.health.set(False)
    assert [Health.FromString(m).status for m in call.sent] == [
        Health.SERVING, Health.NOT_SERVING, Health.SERVING,
    ]  # fmt: skip
    assert [Health.FromString(m).status for m in other.sent] == [Health.SERVICE_UNKNOWN]
    assert router.call(H + "Check", b"").status == Health.NOT_SERVING


def test_health_watchers_hear_of_the_end(router):
    call = router.open(H + "Watch")
    call.on_message(b"")
    router.health.drain()
    assert Health.FromString(call.sent[-1]).status == Health.NOT_SERVING
    assert (call.status, call.text) == (Grpc.UNAVAILABLE, "etcdserver: server stopped")


# --- reflection -----------------------------------------------------------------------------------


class Reflection:
    """One reflection stream."""

    def __init__(self, router: Router, version: str) -> None:
        self.module = {"v1": reflection_pb2, "v1alpha": reflection_v1alpha_pb2}[version]
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        self.call = router.open(path)

    def ask(self, **what):
        request = self.module.ServerReflectionRequest(host="h", **what)
        self.call.on_message(request.SerializeToString())
        response = self.module.ServerReflectionResponse.FromString(self.call.sent[-1])
        assert (response.valid_host, response.original_request) == ("h", request)
        return response


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(router, version):
    stream = Reflection(router, version)
    names = [s.name for s in stream.ask(list_services="*").list_services_response.service]
    assert names == sorted({rpc.service for rpc in RPCS.values()})
    kv = POOL.FindFileByName("kvnode/proto/rpc.proto").serialized_pb
    for symbol in ("etcdserverpb.KV", "etcdserverpb.KV.Range", "etcdserverpb.PutRequest.key"):
        found = stream.ask(file_containing_symbol=symbol).file_descriptor_response
        assert found.file_descriptor_proto[0] == kv
    by_name = stream.ask(file_by_filename="kvnode/proto/kv.proto").file_descriptor_response
    assert len(by_name.file_descriptor_proto) == 1
    none = stream.ask(all_extension_numbers_of_type="etcdserverpb.PutRequest")
    assert none.all_extension_numbers_response.base_type_name == "etcdserverpb.PutRequest"
    assert not none.all_extension_numbers_response.extension_number
    stream.call.on_half_close()
    assert stream.call.status == Grpc.OK


def test_reflection_sends_an_import_once(router):
    stream = Reflection(router, "v1")
    first = stream.ask(file_containing_symbol="v3lockpb.Lock").file_descriptor_response
    again = stream.ask(file_containing_symbol="v3lockpb.Lock").file_descriptor_response
    assert len(first.file_descriptor_proto) > 1
    assert list(again.file_descriptor_proto) == [first.file_descriptor_proto[0]]


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ({"file_containing_symbol": "no.Such"}, Grpc.NOT_FOUND),
        ({"file_by_filename": "no.proto"}, Grpc.NOT_FOUND),
        ({"all_extension_numbers_of_type": "no.Such"}, Grpc.NOT_FOUND),
        ({"file_containing_extension": {"containing_type": "a", "extension_number": 1}},
         Grpc.NOT_FOUND),
        ({}, Grpc.INVALID_ARGUMENT),
    ],
)  # fmt: skip
def test_reflection_of_what_is_not_there(router, what, code):
    assert Reflection(router, "v1").ask(**what).error_response.error_code == code


# --- any bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(PYTHON_PATHS))
def test_any_bytes_end_in_a_status(node, router, path, caplog):
    """Random messages and damage: an answer or a status, never a handler's mistake."""
    rng = random.Random(path)
    node.found = (Code.OK, HashOfKeys(1, 2, 3, 4))
    for _ in range(60):
        message = RPCS[path].request()
        fill(rng, message)
        data = message.SerializeToString()
        if rng.random() < 0.7:
            data = damage(rng, data) if rng.random() < 0.7 else rng.randbytes(rng.randrange(40))
        call = router.open(path)
        if call.status is None:
            call.on_message(data)
        if RPCS[path].client_streams:
            call.on_half_close()
        call.on_gone()
        assert call.status is not None or RPCS[path].server_streams
        for sent in call.sent:
            RPCS[path].response.FromString(sent)
    assert not caplog.records
