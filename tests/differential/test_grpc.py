"""kvnode against real etcd over gRPC: KV, Watch and Lease in one history, every field compared.

KVNODE_SEED=N repeats one run. See grpc_history.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential import runner
from tests.differential.grpc_history import Call, GrpcGenerator, GrpcTarget
from tests.differential.runner import Answer, Report, Start, Target
from tests.support.etcd import Etcd, find, why_missing
from tests.support.node import Node

REQUESTS = 1500
SLOW_REQUESTS = 3000
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def _peers() -> None:
    if find("etcd") is None:
        pytest.skip(why_missing())


def etcd_start(folder: Path) -> Start:
    """Starts a fresh etcd a call; no fsync, whose durability nobody tests here."""
    numbers = iter(range(1 << 30))

    @contextlib.contextmanager
    def start() -> Iterator[Target]:
        server = Etcd(folder / f"etcd-{next(numbers)}", "--unsafe-no-fsync")
        with server, contextlib.closing(GrpcTarget(server.endpoint)) as target:
            yield target

    return start


def node_start(folder: Path) -> Start:
    """Starts a fresh node a call; each ends with an offline check of its directory."""
    numbers = iter(range(1 << 30))

    @contextlib.contextmanager
    def start() -> Iterator[Target]:
        node = Node(folder / f"node-{next(numbers)}")
        with node, contextlib.closing(GrpcTarget(f"127.0.0.1:{node.port}")) as target:
            yield target
        node.fsck()

    return start


def check(seed: int, requests: int, reference: Start, subject: Start) -> Report:
    """A run that must agree; fails with seed and a short sequence."""
    seed = int(os.environ.get("KVNODE_SEED", seed))
    generator = GrpcGenerator(seed)

    def steps() -> Iterator[runner.Step]:
        sent = 0
        while sent < requests:
            step = generator.step()
            sent += len(step)
            yield step

    with reference() as left, subject() as right:
        report = runner.compare(steps(), left, right, generator.heard)
    if report.mismatch:
        pytest.fail(runner.explain(seed, report, reference, subject), pytrace=False)
    kinds: dict[str, int] = {}
    for step in report.steps:
        for op in step:
            kinds[op.kind.name] = kinds.get(op.kind.name, 0) + 1
    print(f"seed {seed}: {report.requests} requests over gRPC equal: {kinds}")
    return report


@pytest.mark.parametrize("seed", [61, 62])
def test_kvnode_answers_as_etcd_over_grpc(tmp_path: Path, seed: int) -> None:
    report = check(seed, REQUESTS, etcd_start(tmp_path), node_start(tmp_path))
    names = {op.kind.name for step in report.steps for op in step}
    assert names >= {"WATCH", "CANCEL", "EVENTS", "RANGE_STREAM", "LEASES", "KEEP_ALIVE"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 208))
def test_kvnode_answers_as_etcd_over_grpc_long(tmp_path: Path, seed: int) -> None:
    check(seed, SLOW_REQUESTS, etcd_start(tmp_path), node_start(tmp_path))


class Liar:
    """A target that changes one event of what a watch was told."""

    def __init__(self, target: Target) -> None:
        self.target, self.lied = target, False

    def send(self, step: runner.Step) -> list[Answer]:
        answers = self.target.send(step)
        for op, answer in zip(step, answers, strict=True):
            told = isinstance(op.kind, Call) and op.kind.name == "EVENTS" and answer.response
            if told and told.events and not self.lied:
                told.events[-1].kv.version += 1
                self.lied = True
        return answers


def test_a_planted_wrong_event_is_found(tmp_path: Path) -> None:
    generator = GrpcGenerator(5)
    with etcd_start(tmp_path)() as reference, etcd_start(tmp_path / "second")() as honest:
        liar = Liar(honest)
        steps = (generator.step() for _ in range(150))
        report = runner.compare(steps, reference, liar, generator.heard)
    assert liar.lied
    assert report.mismatch is not None and "events" in str(report.mismatch)
