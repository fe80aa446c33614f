"""Exactly once, whatever dies: the pipeline against a store that applies batches in any order.

The toy node holds batches back, applies them out of order, answers late, and goes on applying those
of a dead client until its session is closed: what a kill can do, by seed and without a process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from kvnode._core.messages import decode as decode_request
from kvnode.base.codes import Kind
from kvnode.client.engine import Outcome, Pending
from kvnode.ingest.job import Base, Job, Lane, State, merge
from kvnode.ingest.records import Chunk, IngestError
from kvnode.ingest.run import Importer
from kvnode.proto import kvnodepb_pb2, rpc_pb2


class Died(BaseException):
    """The process is gone."""


class ToyNode:
    """A store with sessions; `waiting` are batches on their way, (session, pending, body)."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.revision = 1
        self.values: dict[bytes, tuple[bytes, int]] = {}
        self.versions: dict[bytes, int] = {}
        self.closed: set[int] = set()
        self.waiting: list[tuple[int, Pending, bytes]] = []

    def put(self, key: bytes, value: bytes) -> None:
        self.revision += 1
        self.values[key] = (value, self.revision)
        self.versions[key] = self.versions.get(key, 0) + 1

    def apply_some(self) -> None:
        """Any one of the waiting batches."""
        if self.waiting:
            session, pending, body = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            if session in self.closed:
                return
            _, puts = decode_request(Kind.PUT_BATCH, body)
            for put in puts:
                self.put(put["key"], put["value"])
            answer = kvnodepb_pb2.BatchResponse(last_revision=self.revision, applied=len(puts))
            pending.answer, pending.outcome = answer.SerializeToString(), Outcome.EXECUTED


class ToyClient:
    """What ingest uses of a Client. Dies after `life` calls."""

    def __init__(self, node: ToyNode, session: int, life: int) -> None:
        self.node = node
        self.session = session
        self.life = life

    def _live(self) -> None:
        self.life -= 1
        if self.life < 0:
            raise Died
        if self.node.rng.random() < 0.6:
            self.node.apply_some()

    def get(self, key: bytes) -> Any:
        self._live()
        held = self.node.values.get(key)
        if held is None:
            return None
        return type("KeyValue", (), {"value": held[0], "mod_revision": held[1]})

    def call(self, kind: int, body: bytes) -> bytes:
        assert kind == Kind.SESSION_CLOSE and body[0] == 8
        self._live()
        self.node.closed.add(_varint(body[1:]))
        return b""

    def range(self, key: bytes, prefix: bool) -> Any:
        assert prefix
        self._live()
        response = rpc_pb2.RangeResponse()
        for name, (value, _) in self.node.values.items():
            if name.startswith(key):
                response.kvs.add(key=name, value=value)
        return response

    def txn(self, compares: list[bytes], success: list[bytes]) -> Any:
        self._live()
        compare = rpc_pb2.Compare.FromString(compares[0])
        held = self.node.values.get(compare.key)
        if (held[1] if held else 0) != compare.mod_revision:
            return rpc_pb2.TxnResponse(succeeded=False)
        put = rpc_pb2.RequestOp.FromString(success[0]).request_put
        drop = rpc_pb2.RequestOp.FromString(success[1]).request_delete_range
        self.node.put(put.key, put.value)
        for name in [n for n in self.node.values if drop.key <= n < drop.range_end]:
            del self.node.values[name]
        if self.node.rng.random() < 0.2:
            raise Died  # executed, and nobody heard
        return rpc_pb2.TxnResponse(
            succeeded=True, header=rpc_pb2.ResponseHeader(revision=self.node.revision)
        )

    def submit(self, kind: int, body: bytes) -> Pending:
        assert kind == Kind.PUT_BATCH and self.session not in self.node.closed
        self._live()
        pending = Pending(kind, body)
        self.node.waiting.append((self.session, pending, body))
        return pending

    def flush(self) -> None:
        self._live()

    def poll(self, timeout: float) -> None:
        self._live()
        self.node.apply_some()


def _varint(data: bytes) -> int:
    return sum((byte & 127) << 7 * i for i, byte in enumerate(data))


class ToyReader:
    """`count` records in chunks of any size, some positions blank."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self.count = count
        self.rng = rng

    def chunks(self, skip_to: int) -> Iterator[Chunk]:
        at = 0
        while at < self.count:
            end = min(self.count, at + self.rng.randrange(1, 12))
            here = [i for i in range(at, end) if i % 7]
            keys = [b"k%d" % i for i in here]
            regular = len(here) == end - at
            yield Chunk("toy", at, end, keys, keys, at, None if regular else here,
                        None if regular else here)  # fmt: skip
            at = end


@pytest.mark.parametrize("seed", range(150))
def test_every_record_once(seed: int) -> None:
    rng = random.Random(seed)
    node = ToyNode(rng)
    count, deaths = 300, 0
    for session in range(1, 500):
        life = rng.randrange(2, 90) if deaths < 12 else 1 << 30
        client: Any = ToyClient(node, session, life)
        job = Job(client, "j", "c", lanes=rng.randrange(1, 7))
        try:
            state = job.begin(restart=False)
            if not state.done:
                Importer(client, job, ToyReader(count, rng), state, None,  # type: ignore[arg-type]
                         batch_records=rng.randrange(1, 10)).run()  # fmt: skip
            break
        except Died:
            deaths += 1
    records = {key: n for key, n in node.versions.items() if key.startswith(b"k")}
    assert records == {b"k%d" % i: 1 for i in range(count) if i % 7}
    client = ToyClient(node, 1000, 1 << 30)
    last = Job(client, "j", "c", 1).begin(restart=False)
    assert last.done and last.below == len(records) and last.low == count


def test_merge() -> None:
    base = Base(1, "c", 5, low=10, below=9, holes=[(20, 25, 5)])
    lanes = [Lane(30, 40, 10, 10, 9), Lane(10, 20, 8, 10, 9), Lane(50, 60, 10, 30, 27)]
    assert merge(base, lanes) == State(40, 37, [(50, 60, 10)])
    assert merge(base, []) == State(10, 9, [(20, 25, 5)])
    assert merge(base, [Lane(40, 41, 1, 40, 12)]) == State(41, 13)


def test_changed_source_is_refused() -> None:
    node = ToyNode(random.Random(1))
    Job(ToyClient(node, 1, 99), "a.b-1", "one", 4).begin(False)  # type: ignore[arg-type]
    with pytest.raises(IngestError, match="changed since it began"):
        Job(ToyClient(node, 2, 99), "a.b-1", "two", 4).begin(False)  # type: ignore[arg-type]
    again = Job(ToyClient(node, 3, 99), "a.b-1", "two", 4)  # type: ignore[arg-type]
    assert again.begin(restart=True) == State()


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a b", "x" * 101, "\u00e9"])
def test_job_names(name: str) -> None:
    with pytest.raises(IngestError):
        Job(None, name, "", 1)  # type: ignore[arg-type]
