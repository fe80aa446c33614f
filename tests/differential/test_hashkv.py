"""HashKV beside real etcd: the same random history gives the same CRC at every revision."""

from __future__ import annotations

import random

import grpc
import pytest

from kvnode._core.hashkv import HashKeys
from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode._core.ranges import RangeReader
from kvnode.base.codes import STATUS, Code, Kind
from kvnode.proto import rpc_pb2 as pb
from tests.oracle.requests import Group, Poison
from tests.support.etcd import Etcd, find, why_missing
from tests.support.statemachine import encode_entry

KEYS = [b"a", b"b", b"c", b"p/1", b"p/2", b"p/3", b"\0", b"\xff", b"k" * 600]
ENDS = [b"", b"", b"", b"c", b"p0", b"\0"]


class Both:
    """A history in real etcd and in a machine of ours."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd
        self.store = MemStore()
        self.machine = Machine(self.store, 1, 1)
        self.connect()

    def connect(self) -> None:
        self.channel = grpc.insecure_channel(self.etcd.endpoint)

    def call(self, service: str, name: str, request, response):
        method = self.channel.unary_unary(
            f"/etcdserverpb.{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return method(request, timeout=20, wait_for_ready=True)

    def write(self, kind: Kind, name: str, request, response) -> None:
        self.call("KV", name, request, response)
        group = Group([Poison(kind, request.SerializeToString())])
        self.machine.apply(encode_entry(self.machine.applied_index + 1, 1, [group]))

    def compact(self, revision: int) -> None:
        request = pb.CompactionRequest(revision=revision, physical=True)
        self.write(Kind.COMPACT, "Compact", request, pb.CompactionResponse)

    def compare(self, revision: int) -> None:
        """Both answer alike. Without etcd's cached sum of a compaction: see `restart`."""
        reader = RangeReader(self.store)
        reader.refresh()
        made = HashKeys(reader, revision)
        while not made.done:
            made.step(50)
        try:
            theirs = self.call(
                "Maintenance", "HashKV", pb.HashKVRequest(revision=revision), pb.HashKVResponse
            )
        except grpc.RpcError as error:
            grpc_code, text = STATUS[Code(made.code)]
            assert (error.code().value[0], error.details()) == (grpc_code, text), revision
            return
        assert made.code == Code.OK, (revision, theirs)
        ours = (made.crc, made.revision, made.compact_revision, made.current_revision)
        assert ours == (
            theirs.hash, theirs.hash_revision, theirs.compact_revision, theirs.header.revision,
        ), revision  # fmt: skip


def operation(rng: random.Random) -> pb.RequestOp:
    if rng.random() < 0.6:
        put = pb.PutRequest(key=rng.choice(KEYS), value=rng.randbytes(rng.choice([0, 1, 30])))
        return pb.RequestOp(request_put=put)
    return pb.RequestOp(
        request_delete_range=pb.DeleteRangeRequest(key=rng.choice(KEYS), range_end=rng.choice(ENDS))
    )


def step(both: Both, rng: random.Random) -> None:
    kind = rng.random()
    one = operation(rng)
    if kind < 0.25:
        # Distinct keys: etcd refuses a transaction that writes one twice.
        puts = [pb.PutRequest(key=key, value=b"t") for key in rng.sample(KEYS, 3)]
        txn = pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts])
        both.write(Kind.TXN, "Txn", txn, pb.TxnResponse)
    elif kind < 0.3:
        everything = pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")
        both.write(Kind.DELETE_RANGE, "DeleteRange", everything, pb.DeleteRangeResponse)
    elif one.HasField("request_put"):
        both.write(Kind.PUT, "Put", one.request_put, pb.PutResponse)
    else:
        both.write(
            Kind.DELETE_RANGE, "DeleteRange", one.request_delete_range, pb.DeleteRangeResponse
        )


@pytest.fixture
def etcd(tmp_path):
    if find("etcd") is None:
        pytest.skip(why_missing())
    with Etcd(tmp_path / "etcd") as server:
        yield server


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_history(etcd, seed):
    rng = random.Random(seed)
    both = Both(etcd)
    both.compare(0)
    compacted: set[int] = set()
    for turn in range(300):
        step(both, rng)
        machine = both.machine
        if turn % 40 == 39:
            revision = rng.randint(max(1, machine.compact_revision + 1), machine.revision)
            both.compact(revision)
            compacted.add(revision)
            if rng.random() < 0.5:
                while machine.free_some(100):
                    pass
        if turn % 10 == 0:
            low = max(1, machine.compact_revision - 1)
            for revision in {0, machine.revision + 1, *(rng.randint(low, machine.revision)
                             for _ in range(4))} - compacted:  # fmt: skip
                both.compare(revision)
    assert len(compacted) == 7


def test_everything_deleted_and_compacted_at_a_tombstone(etcd):
    both = Both(etcd)
    for key in (b"a", b"b", b"a"):
        both.write(Kind.PUT, "Put", pb.PutRequest(key=key, value=b"1"), pb.PutResponse)
    both.compact(3)
    gone = pb.DeleteRangeRequest(key=b"a", range_end=b"c")
    both.write(Kind.DELETE_RANGE, "DeleteRange", gone, pb.DeleteRangeResponse)
    both.compare(0)
    both.compare(4)
    both.compact(5)
    both.write(Kind.PUT, "Put", pb.PutRequest(key=b"c", lease=0), pb.PutResponse)
    both.compare(0)
    # At the compact revision itself: a started etcd has no sum of the compaction in memory.
    both.channel.close()
    etcd.stop()
    etcd.start()
    both.connect()
    both.compare(5)
    both.compare(4)
