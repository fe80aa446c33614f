"""Power cuts under the map: every start finds exactly the state of its checkpoint.

One round: start the writer (rolls back), compare what it opened with the model, let it write with
early write-back of random and meta pages, cut the power. Rounds differ in what went before: a
clean stop, a writer that died and was restarted, a cut before the first checkpoint.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cut_writer import Model
from tests.faults.cutdisk import CutDisk, available

ROOT = Path(__file__).resolve().parents[2]
SEED = 20


class Wrong(Exception):
    """The store opened at a state that is not the model's, or did not open."""


class Bench:
    """A disk, the model, and one writer at a time."""

    def __init__(
        self,
        disk: CutDisk,
        seed: int,
        sync: bool = True,
        hold: bool = True,
        writemap: bool = False,
    ) -> None:
        self.disk = disk
        self.rng = random.Random(seed)
        self.model = Model(seed)
        self.seed = seed
        self.flags = [str(int(flag)) for flag in (sync, hold, writemap)]
        self.saved = 0
        self.writer: subprocess.Popen[str] | None = None

    def start(self, mode: str = "node_start", stop: int = 0) -> None:
        """Starts a writer; checks what it opened against the model."""
        state = str(self.disk.path / "state")
        words = ["-m", "tests.faults.cut_writer", state, str(self.seed), mode, *self.flags]
        self.writer = subprocess.Popen(
            [sys.executable, *words, str(stop)], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        line = self.line()
        if not line.startswith("open "):
            writer, self.writer = self.writer, None
            _, err = writer.communicate()
            raise Wrong(f"did not open ({writer.returncode}): {err[-300:]}")
        _, index, digest = line.split()
        if int(index) < self.saved:
            raise Wrong(f"opened at {index}, but {self.saved} was durable")
        if int(index) < self.model.index:
            raise Wrong(f"opened at {index}, but was at {self.model.index} before")
        self.saved = int(index)
        self.model.forward(int(index))
        if self.model.digest() != digest:
            raise Wrong(f"another content at index {index}")

    def line(self) -> str:
        assert self.writer is not None and self.writer.stdout is not None
        line = self.writer.stdout.readline()
        if line.startswith("saved "):
            self.saved = int(line.split()[1])
        return line

    def lines(self, count: int) -> None:
        for _ in range(count):
            if not self.line():
                return

    def cut(self) -> None:
        self.disk.cut()
        self.kill()
        self.disk.unmount()
        self.disk.mount()

    def kill(self) -> None:
        """Kills the writer and reads what it had said."""
        if self.writer is None:
            return
        self.writer.kill()
        while self.line():
            pass
        self.writer.communicate()
        self.writer = None

    def drain(self) -> int:
        """Lets a writer that ends by itself end."""
        assert self.writer is not None
        while self.line():
            pass
        _, err = self.writer.communicate()
        code = self.writer.returncode
        self.writer = None
        assert code in (0, 9), err
        return code

    def round(self, kind: str) -> None:
        """Writes from the state before, in one of four ways, and cuts."""
        rng = self.rng
        if kind == "clean":
            self.start(stop=rng.randint(1, 40))
            self.drain()
            self.start()
        elif kind == "restart":
            self.start(stop=-rng.randint(1, 60))
            self.drain()
            before = self.saved
            self.start("process_restart")
            assert self.saved >= before
        else:
            self.start()
        if kind != "early":
            self.lines(rng.randint(3, 60))
        time.sleep(rng.random() * 0.02)
        self.cut()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[CutDisk]:
    reason = available(tmp_path)
    if reason:
        pytest.skip(reason)
    made = CutDisk(tmp_path / "cut", 256)
    made.mount()
    yield made
    made.close()


def rounds(bench: Bench, count: int) -> int:
    """Cuts the power `count` times; returns the transactions that were durable."""
    kinds = ["plain", "clean", "plain", "restart", "early"]
    try:
        for number in range(count):
            bench.round(kinds[number % len(kinds)])
        bench.start()
    finally:
        bench.kill()
    return bench.saved


def caught(bench: Bench, count: int) -> int:
    """The number of the cut after which a broken writer was found out; 0: it never was."""
    for number in range(1, count + 1):
        try:
            rounds(bench, 1)
        except Wrong as wrong:
            print(f"caught at cut {number}: {wrong}")
            return number
    return 0


@pytest.mark.parametrize("writemap", [False, True])
def test_a_few_cuts(disk: CutDisk, writemap: bool) -> None:
    assert rounds(Bench(disk, SEED, writemap=writemap), 5) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("writemap", [False, True])
def test_forty_cuts(disk: CutDisk, writemap: bool) -> None:
    saved = rounds(Bench(disk, SEED + 1, writemap=writemap), 40)
    print(f"40 power cuts, {saved} durable transactions, lost 0, wrong 0, unopenable 0")
    assert saved > 400


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("writemap", [False, True])
@pytest.mark.parametrize("left_out", ["sync", "hold"])
def test_the_harness_catches_a_missing_step(
    disk: CutDisk, left_out: str, writemap: bool
) -> None:
    assert caught(Bench(disk, SEED + 2, writemap=writemap, **{left_out: False}), 15) > 0
