"""A crash while a generation is being built or just in use: the log reaches back far enough.

Checkpoints come quickly and segments are small, so the log is cut all the time: it must be kept
from the new generation's checkpoint on, until that generation has a newer one. Each crash is one of
the applier alone (the map in use is kept as it is), or of the whole node (the map that CURRENT
names is rolled back to its checkpoint, and the log is applied from there).
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from kvnode.base.codes import Kind
from kvnode.base.failpoint import FOLDER_VARIABLE, VARIABLE
from kvnode.client import Client
from tests.faults.cut_load import Checker, Writer, preload
from tests.support.node import Node
from tests.support.wal_entries import wal_entries

POINTS = (
    "defrag-copy:1", "defrag-copied:1", "defrag-caught:1", "defrag-caught:3", "defrag-switch:1",
    "defrag-switched:1",
)  # fmt: skip
AFTER = "switched, then a while"
NODE_TOO = ",supervisor:death:1"
WRITERS = 2


def wait_until(what: str, condition, node: Node, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}:\n" + "\n".join(node.tail)
        time.sleep(0.002)


class Crashes:
    """One data directory, hurt again and again."""

    def __init__(self, folder: Path, keys: int, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.node = Node(
            folder / "data", "--checkpoint-interval", "40ms", "--wal-segment-bytes", "2MiB"
        )
        self.wal = folder / "data" / "member" / "wal"
        self.writers = [
            Writer(n, WRITERS, keys, seed, self.node.endpoint) for n in range(WRITERS)
        ]
        self.checker = Checker(self.node.endpoint, self.writers, seed)
        self.node.start()
        preload(self.node.endpoint, self.writers, keys)
        self.node.stop()
        self.firsts: list[int] = []

    @property
    def acknowledged(self) -> int:
        return sum(writer.model.acknowledged for writer in self.writers)

    def wait_answers(self, more: int) -> None:
        goal = self.acknowledged + more
        wait_until("answers", lambda: self.acknowledged >= goal or self.failed(), self.node)
        for writer in self.writers:
            if writer.error is not None:
                raise writer.error

    def failed(self) -> bool:
        return any(writer.error is not None for writer in self.writers)

    def crash(self, point: str, whole: bool) -> None:
        """Load, a defragmentation, the crash at `point`, load again if the node lives, a start."""
        node, marks = self.node, self.folder / f"marks-{len(self.firsts)}"
        marks.mkdir()
        name = "" if point == AFTER else f"applier:{point}"
        armed = name + NODE_TOO if whole and name else name
        node.env.update({VARIABLE: armed, FOLDER_VARIABLE: str(marks)})
        node.start()
        for writer in self.writers:
            writer.begin()
        self.wait_answers(20)
        with Client(node.endpoint, timeout=30, session=False) as client:
            asked = client.submit(Kind.DEFRAG, b"")
            client.flush()
            if name:
                wait_until(name, (marks / name).exists, node)
            else:
                client.wait(asked)
                self.wait_answers(self.rng.choice((1, 10, 100)))
                node.kill()
        if not whole:
            self.wait_answers(60)
        for writer in self.writers:
            writer.halt()
        node.kill()
        self.firsts.append(next(wal_entries(self.wal))[0][0])
        node.env[VARIABLE] = ""
        node.start()
        there = self.checker.check(True)
        for writer in self.writers:
            writer.settle(there)
        with Client(node.endpoint, timeout=30, session=False) as client:
            client.defragment()     # its catching up compares the state hashes
        node.stop()
        node.fsck()

    def close(self) -> None:
        self.node.kill()
        for writer in self.writers:
            writer.ending.set()
            writer.drop()


def crash_all(folder: Path, keys: int, cases: list[tuple[str, bool]], seed: int) -> None:
    bench = Crashes(folder, keys, seed)
    try:
        for point, whole in cases:
            bench.crash(point, whole)
    finally:
        bench.close()
    assert len(set(bench.firsts)) > len(cases) // 2, "the log was hardly ever cut"
    print(
        f"\n{len(cases)} crashes around a new generation: acknowledged {bench.acknowledged}, lost "
        f"0, wrong 0; the log began at {', '.join(map(str, bench.firsts))}"
    )


@pytest.mark.timeout(120)
def test_two_crashes(tmp_path: Path) -> None:
    crash_all(tmp_path, 30_000, [("defrag-caught:1", True), ("defrag-switched:1", True)], seed=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_point(tmp_path: Path) -> None:
    cases = [(point, whole) for point in POINTS for whole in (False, True)]
    crash_all(tmp_path, 300_000, [*cases, (AFTER, True), (AFTER, True)], seed=4)
