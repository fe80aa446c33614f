"""kvnode against real etcd: the same random requests, every field of every answer.

KVNODE_SEED=N repeats one run. The harness itself is proven first: etcd beside etcd agrees, and
every kind of wrong answer planted into one of them is found at its very request.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvnode.proto import rpc_pb2 as pb
from tests.differential import runner
from tests.differential.generator import TXN_OPS_MAX, Generator, Step
from tests.differential.oracle import OracleTarget
from tests.differential.runner import Answer, EtcdTarget, KvnodeTarget, Report, Start, Target
from tests.support.etcd import Etcd, find, why_missing
from tests.support.node import Node

SEEDS = (1, 2, 3)
REQUESTS = 1000
SLOW_SEEDS = tuple(range(100, 108))
SLOW_REQUESTS = 2600
# The files of many short-lived servers: no fsync for the reference, whose durability nobody tests.
FLAGS = ("--unsafe-no-fsync", "--log-level", "info")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def _peers() -> None:
    if find("etcd") is None:
        pytest.skip(why_missing())


def etcd_start(tmp_path: Path) -> Start:
    """Starts a fresh etcd a call."""
    numbers = iter(range(1 << 30))

    @contextlib.contextmanager
    def start() -> Iterator[Target]:
        server = Etcd(tmp_path / f"etcd-{next(numbers)}", *FLAGS)
        with server, contextlib.closing(EtcdTarget(server.endpoint)) as target:
            yield target

    return start


def node_start(tmp_path: Path) -> Start:
    """Starts a fresh node a call; each ends with an offline check of its directory."""
    numbers = iter(range(1 << 30))

    @contextlib.contextmanager
    def start() -> Iterator[Target]:
        node = Node(tmp_path / f"node-{next(numbers)}")
        with node, contextlib.closing(KvnodeTarget(node.endpoint)) as target:
            yield target
        node.fsck()

    return start


def check(seed: int, requests: int, reference: Start, subject: Start) -> Report:
    """A run that must agree; fails with seed and a short sequence."""
    seed = int(os.environ.get("KVNODE_SEED", seed))
    report = runner.run(seed, requests, reference, subject)
    if report.mismatch:
        pytest.fail(runner.explain(seed, report, reference, subject), pytrace=False)
    print(f"seed {seed}: {report.requests} requests equal; refusals:",
          {text: n for text, n in sorted(report.texts.items()) if text})
    return report


def test_etcd_agrees_with_etcd(tmp_path: Path) -> None:
    start = etcd_start(tmp_path)
    report = check(7, 700, start, etcd_start(tmp_path / "second"))
    # A generator that only meets errors, or never meets them, tests nothing.
    assert report.texts[""] > report.requests * 0.6
    assert len(report.texts) > 8


@pytest.mark.parametrize("seed", [21, 22])
def test_the_oracle_answers_as_etcd(tmp_path: Path, seed: int) -> None:
    @contextlib.contextmanager
    def model() -> Iterator[Target]:
        yield OracleTarget(TXN_OPS_MAX)

    start = etcd_start(tmp_path)
    seed = int(os.environ.get("KVNODE_SEED", seed))
    generator = Generator(seed, server_limits=False)
    with start() as reference, model() as subject:
        steps = (generator.step() for _ in range(300))
        report = runner.compare(steps, reference, subject, generator.heard)
    if report.mismatch:
        pytest.fail(runner.explain(seed, report, start, model), pytrace=False)
    assert report.requests > 800


@pytest.mark.parametrize("seed", SEEDS)
def test_kvnode_answers_as_etcd(tmp_path: Path, seed: int) -> None:
    check(seed, REQUESTS, etcd_start(tmp_path), node_start(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW_SEEDS)
def test_kvnode_answers_as_etcd_long(tmp_path: Path, seed: int) -> None:
    check(seed, SLOW_REQUESTS, etcd_start(tmp_path), node_start(tmp_path))


# --- the harness catches wrong answers -----------------------------------------------------------


def _count(answer: Answer) -> bool:
    found = isinstance(answer.response, pb.RangeResponse) and answer.response.count > 2
    if found:
        answer.response.count -= 1
    return found


def _order(answer: Answer) -> bool:
    if not isinstance(answer.response, pb.RangeResponse) or len(answer.response.kvs) < 2:
        return False
    rows = [pb.RangeResponse.FromString(answer.response.SerializeToString()).kvs[i] for i in (0, 1)]
    answer.response.kvs[0].CopyFrom(rows[1])
    answer.response.kvs[1].CopyFrom(rows[0])
    return True


def _version(answer: Answer) -> bool:
    found = isinstance(answer.response, pb.RangeResponse) and bool(answer.response.kvs)
    if found:
        answer.response.kvs[0].version += 1
    return found


def _more(answer: Answer) -> bool:
    found = isinstance(answer.response, pb.RangeResponse) and answer.response.more
    if found:
        answer.response.more = False
    return found


def _prev(answer: Answer) -> bool:
    found = isinstance(answer.response, pb.PutResponse) and answer.response.HasField("prev_kv")
    if found:
        answer.response.ClearField("prev_kv")
    return found


def _revision(answer: Answer) -> bool:
    found = isinstance(answer.response, pb.DeleteRangeResponse)
    if found:
        answer.response.header.revision += 1
    return found


def _nested(answer: Answer) -> bool:
    if not isinstance(answer.response, pb.TxnResponse):
        return False
    for op in answer.response.responses:
        if op.HasField("response_txn") and op.response_txn.responses:
            op.response_txn.succeeded = not op.response_txn.succeeded
            return True
    return False


def _attached(answer: Answer) -> bool:
    if isinstance(answer.response, pb.LeaseTimeToLiveResponse) and answer.response.keys:
        del answer.response.keys[0]
        return True
    return False


class Liar:
    """A target that changes its first answer that `lie` is able to change."""

    def __init__(self, target: Target, lie: Callable[[Answer], bool]) -> None:
        self.target, self.lie = target, lie
        self.lied_at: tuple[int, int] | None = None
        self._steps = 0

    def send(self, step: Step) -> list[Answer]:
        answers = self.target.send(step)
        for number, answer in enumerate(answers):
            if self.lied_at is None and self.lie(answer):
                self.lied_at = self._steps, number
        self._steps += 1
        return answers


@pytest.mark.parametrize(
    "lie", [_count, _order, _version, _more, _prev, _revision, _nested, _attached]
)
def test_a_planted_wrong_answer_is_found(tmp_path: Path, lie: Callable[[Answer], bool]) -> None:
    generator = Generator(11)
    with etcd_start(tmp_path)() as reference, etcd_start(tmp_path / "second")() as honest:
        liar = Liar(honest, lie)
        steps = (generator.step() for _ in range(400))
        report = runner.compare(steps, reference, liar, generator.heard)
    assert liar.lied_at is not None, "the sequence has no answer to change"
    assert report.mismatch is not None
    assert (report.mismatch.step_index, report.mismatch.op_index) == liar.lied_at


def test_a_wrong_status_or_text_is_found() -> None:
    refused = Answer(11, "etcdserver: mvcc: required revision has been compacted", None)
    for other in (refused._replace(grpc=3), refused._replace(text="compacted")):
        assert runner.comparable(refused) != runner.comparable(other)


def test_a_failing_sequence_is_shortened(tmp_path: Path) -> None:
    @contextlib.contextmanager
    def lying() -> Iterator[Target]:
        with etcd_start(tmp_path / "second")() as honest:
            yield Liar(honest, _prev)

    start = etcd_start(tmp_path)
    report = runner.run(5, 150, start, lying)
    assert report.mismatch is not None
    short = runner.shorten(report.steps, start, lying, seconds_max=12)
    assert len(short) < sum(len(step) for step in report.steps)
    assert len(short) <= 6
