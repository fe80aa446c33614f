"""etcd's KV on the client port: beside real etcd, through etcdctl, and answers of any size."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from kvnode.proto import rpc_pb2 as rpcpb
from tests.support.etcd import Etcd, find, why_missing
from tests.support.node import Node

MIB = 1 << 20
GROWTH_BYTES_MAX = 100 * MIB
SERVICE = "/etcdserverpb."
Answer = tuple[int, str, list[bytes]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A running node; its directory is verified at the end."""
    made = Node(tmp_path_factory.mktemp("node") / "data")
    made.start()
    yield made
    made.stop()
    made.fsck()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """A running etcd."""
    if find("etcd") is None:
        pytest.skip(why_missing())
    made = Etcd(tmp_path_factory.mktemp("etcd") / "data")
    made.start()
    yield made
    made.stop()


def channel(server: Node | Etcd) -> grpc.Channel:
    return grpc.insecure_channel(
        f"127.0.0.1:{server.port}",
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )


def call(made: grpc.Channel, method: str, body: bytes) -> Answer:
    """(status, text, messages) of a call of raw bytes."""
    kind = made.unary_stream if method == "KV/RangeStream" else made.unary_unary
    run = kind(SERVICE + method, request_serializer=None, response_deserializer=None)
    try:
        answer = run(body, timeout=30)
        return 0, "", list(answer) if method == "KV/RangeStream" else [answer]
    except grpc.RpcError as error:
        # Go's protobuf draws its space from two kinds, by the build.
        return error.code().value[0], error.details().replace("\xa0", " "), []


def fill(made: grpc.Channel, keys: int, value_bytes: int) -> None:
    """Keys k0000000.. by transactions of 100 puts or about a mebibyte."""
    run = made.unary_unary(
        SERVICE + "KV/Txn", request_serializer=rpcpb.TxnRequest.SerializeToString,
        response_deserializer=rpcpb.TxnResponse.FromString,
    )
    step = max(1, min(100, MIB // (value_bytes + 50)))
    waiting = []
    for first in range(0, keys, step):
        puts = [
            rpcpb.RequestOp(
                request_put=rpcpb.PutRequest(
                    key=b"k%07d" % number, value=(b"%07d" % number) * (value_bytes // 7)
                )
            )
            for number in range(first, min(first + step, keys))
        ]
        waiting.append(run.future(rpcpb.TxnRequest(success=puts), timeout=60))
        if len(waiting) == 16:
            for one in waiting:
                one.result()
            waiting.clear()
    for one in waiting:
        one.result()


def nested(levels: int) -> bytes:
    txn = rpcpb.TxnRequest()
    for _ in range(levels):
        txn = rpcpb.TxnRequest(success=[rpcpb.RequestOp(request_txn=txn)])
    return txn.SerializeToString()


def put(**fields: object) -> bytes:
    return rpcpb.PutRequest(**fields).SerializeToString()


def asked(**fields: object) -> bytes:
    return rpcpb.RangeRequest(**{"key": b"k", **fields}).SerializeToString()


def txn(*ops: rpcpb.RequestOp) -> bytes:
    return rpcpb.TxnRequest(success=ops).SerializeToString()


P = rpcpb.RequestOp(request_put=rpcpb.PutRequest(key=b"k"))
D = rpcpb.RequestOp(request_delete_range=rpcpb.DeleteRangeRequest(key=b"a", range_end=b"z"))
REFUSED: list[tuple[str, bytes]] = [
    ("KV/Put", b""),
    ("KV/Put", put(key=b"none", ignore_value=True)),
    ("KV/Put", put(key=b"none", ignore_lease=True)),
    ("KV/Put", put(key=b"k", value=b"v", ignore_value=True)),
    ("KV/Put", put(key=b"k", lease=5, ignore_lease=True)),
    ("KV/Put", put(key=b"k", lease=12345)),
    ("KV/Put", put(key=b"k", value=bytes(1_572_864))),
    ("KV/Put", put(key=b"k", value=bytes(2_500_000))),
    ("KV/Put", b"\x0a\x05a"),
    ("KV/Put", b"\xff"),
    ("KV/Range", b""),
    ("KV/Range", b"\x07"),
    ("KV/Range", asked(revision=1_000_000)),
    ("KV/Range", b"\x0a\x01k\x28\x09"),
    ("KV/Range", b"\x0a\x01k\x30\x09"),
    ("KV/RangeStream", b""),
    ("KV/RangeStream", b"\x0a\x05a"),
    ("KV/RangeStream", asked(revision=1_000_000)),
    ("KV/RangeStream", b"\x0a\x01k\x28\x09"),
    ("KV/DeleteRange", b""),
    ("KV/DeleteRange", b"\x0a\x80"),
    ("KV/Txn", b"\x12\x00"),
    ("KV/Txn", b"\x12\x03\x12\x05a"),
    ("KV/Txn", txn(P, P)),
    ("KV/Txn", txn(P, D)),
    ("KV/Txn", txn(*[P] * 129)),
    ("KV/Txn", txn(rpcpb.RequestOp(request_range=rpcpb.RangeRequest(key=b"k", revision=10**6)))),
    ("KV/Txn", rpcpb.TxnRequest(compare=[rpcpb.Compare()]).SerializeToString()),
    ("KV/Compact", b"\x08\xc0\x84\x3d"),
    ("KV/Compact", b"\x08"),
    ("Lease/LeaseGrant", b"\x08"),
    ("Lease/LeaseGrant", b"\x08\xff\xff\xff\xff\xff\x01"),
    ("Lease/LeaseRevoke", b"\x08\x05"),
]


def test_refusals_are_etcd_s_to_the_letter(node: Node, etcd: Etcd) -> None:
    with channel(node) as here, channel(etcd) as there:
        for made in (here, there):
            assert call(made, "KV/Put", put(key=b"k", value=b"v"))[0] == 0
        for method, body in REFUSED:
            expected = call(there, method, body)
            assert expected[0] != 0, (method, body[:20])
            assert call(here, method, body) == expected, (method, body[:20])


def test_streams_are_cut_as_etcd_cuts_them(node: Node, etcd: Etcd) -> None:
    def shape(message: bytes) -> tuple[object, ...]:
        part = rpcpb.RangeStreamResponse.FromString(message).range_response
        return [kv.key for kv in part.kvs], part.HasField("header"), part.more, part.count

    with channel(node) as here, channel(etcd) as there:
        for made in (here, there):
            fill(made, 3000, 900)
        for more in ({}, {"limit": 700}, {"limit": 10}, {"keys_only": True}, {"count_only": True},
                     {"sort_order": 1}, {"serializable": True}, {"limit": 3000}):
            body = asked(range_end=b"l", **more)
            ours, theirs = (call(made, "KV/RangeStream", body) for made in (here, there))
            assert ours[0] == theirs[0] == 0
            assert [shape(m) for m in ours[2]] == [shape(m) for m in theirs[2]], more


def test_etcdctl(node: Node) -> None:
    program = find("etcdctl")
    if program is None:
        pytest.skip(why_missing())

    def run(*words: str, said: str = "") -> str:
        done = subprocess.run(
            [program, "--endpoints", f"127.0.0.1:{node.port}", *words],
            input=said, capture_output=True, text=True, timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("put", "ctl/a", "1") == "OK\n"
    assert run("get", "ctl/a") == "ctl/a\n1\n"
    assert run("txn", said='value("ctl/a") = "1"\n\nput ctl/b 2\n\n\n') == "SUCCESS\n\nOK\n"
    assert run("get", "--prefix", "ctl/", "--keys-only") == "ctl/a\n\nctl/b\n\n"
    revision = json.loads(run("get", "ctl/a", "-w", "json"))["header"]["revision"]
    assert run("del", "--prefix", "ctl/") == "2\n"
    assert run("get", "ctl/a", "--rev", str(revision)) == "ctl/a\n1\n"
    assert run("compact", str(revision + 1), "--physical") == f"compacted revision {revision + 1}\n"


def test_a_physical_compaction_answers_while_others_write(node: Node) -> None:
    with channel(node) as made:
        run = made.unary_unary(SERVICE + "KV/Put")
        writes = [run.future(put(key=b"p%d" % (n % 7), value=b"x" * 500)) for n in range(3000)]
        writes[1500].result()
        head = rpcpb.RangeResponse.FromString(call(made, "KV/Range", asked())[2][0]).header
        body = rpcpb.CompactionRequest(revision=head.revision, physical=True)
        assert call(made, "KV/Compact", body.SerializeToString())[0] == 0
        for write in writes:
            write.result()


# --- answers of any size --------------------------------------------------------------------------

SIZES = [
    pytest.param((2048, 32_000), id="64MiB"),
    pytest.param((1 << 20, 1022), id="1GiB", marks=pytest.mark.slow),
]


@pytest.fixture(params=SIZES)
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Node, int, int]]:
    """A node with many bytes in it: (node, keys, bytes of a value)."""
    keys, value_bytes = request.param
    made = Node(tmp_path / "data")
    made.start()
    with channel(made) as filler:
        fill(filler, keys, value_bytes)
    yield made, keys, value_bytes // 7 * 7
    made.stop()


def test_memory_of_a_large_answer(large: tuple[Node, int, int]) -> None:
    """Unary, sorted, and as a stream: no process holds the answer."""
    node, keys, value_bytes = large
    everything = asked(range_end=b"l")
    backwards = asked(range_end=b"l", sort_order=2)
    with channel(node) as made:
        cases: list[tuple[str, bytes, Callable[[int], bytes]]] = [
            ("KV/Range", everything, lambda number: b"k%07d" % number),
            ("KV/RangeStream", everything, lambda number: b"k%07d" % number),
            ("KV/Range", backwards, lambda number: b"k%07d" % (keys - 1 - number)),
        ]
        for method, body, key in cases:
            before = node.memory()
            kind = made.unary_stream if method == "KV/RangeStream" else made.unary_unary
            run = kind(SERVICE + method)
            with node.watch_memory() as peak:
                answer = run(body, timeout=300)
                messages = list(answer) if method == "KV/RangeStream" else [answer]
            assert peak.pss_anon - before.pss_anon <= GROWTH_BYTES_MAX
            assert sum(map(len, messages)) > keys * value_bytes
            seen = 0
            for message in messages:
                part = (
                    rpcpb.RangeStreamResponse.FromString(message).range_response
                    if method == "KV/RangeStream" else rpcpb.RangeResponse.FromString(message)
                )
                for kv in part.kvs:
                    assert kv.key == key(seen) and len(kv.value) == value_bytes
                    seen += 1
            assert seen == keys == part.count


def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    """It keeps no memory and holds nobody up; what it reads later is whole."""
    node = Node(tmp_path / "data")
    node.start()
    with channel(node) as slow, channel(node) as other:
        fill(other, 4096, 32_000)
        before = node.memory()
        stalled = [
            slow.unary_stream(SERVICE + "KV/RangeStream")(asked(range_end=b"l"), timeout=120)
            for _ in range(4)
        ]
        begun = [next(answer) for answer in stalled]
        for number in range(200):
            assert call(other, "KV/Put", put(key=b"k%07d" % number, value=b"new"))[0] == 0
        assert node.memory().pss_anon - before.pss_anon < GROWTH_BYTES_MAX
        for first, answer in zip(begun, stalled, strict=True):
            count = 0
            for message in [first, *answer]:
                part = rpcpb.RangeStreamResponse.FromString(message).range_response
                assert all(len(kv.value) > 30_000 for kv in part.kvs), "as when it began"
                count += len(part.kvs)
            assert count == 4096
    node.stop()
    node.fsck()
