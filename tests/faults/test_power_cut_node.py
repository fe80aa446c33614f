"""Power cuts under a whole node: what was answered is there at the next start, and nothing else.

One cut: a node with its data directory on a loop ext4 (cutdisk) serves writers and long readers
while the harness writes random pages of the map back early, the meta pages most of all; at a
random moment the disk loses what was not synced, every process is killed, the disk is mounted
again. Cuts differ in what went before (`KINDS`). After each the node is started and compared with
what it had answered (cut_load); now and then the log is replayed beside it, up to an index whose
state hash was read before the cut, and `kvnode verify` looks at everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode._core.machine import Machine
from kvnode._core.storetxn import TREE_META
from kvnode.base.codes import Kind
from kvnode.base.failpoint import FOLDER_VARIABLE, VARIABLE
from kvnode.client import Client
from kvnode.env.store import current_generation, folder_of, open_for_read, open_for_write
from kvnode.wire.frames import encode_entries
from tests.faults.cut_load import Checker, Reader, Writer, Wrong, preload
from tests.faults.cutdisk import CutDisk, available
from tests.support.node import Node
from tests.support.process import descendants
from tests.support.wal_entries import wal_entries

WRITERS = 3
SOON, LATE = "60ms", "60s"
KINDS = ("plain", "rolled back", "clean", "before", "during", "after", "opening", "defrag")
"""What happened since the last start when the power is cut:

plain        many checkpoints
rolled back  none: the first interval after a roll-back
clean        a clean stop and a start, no checkpoint
before       the applier was killed before its first checkpoint, none since
during       it was killed when it had begun its first checkpoint
after        it was killed when its first checkpoint was done, before it told anybody
opening      it was killed before it had opened the map
defrag       a new generation is being built, or has just been switched to
"""


class Provoker(threading.Thread):
    """Writes random pages of the map in use back early."""

    def __init__(self, state: Path, seed: int) -> None:
        super().__init__(name="provoker", daemon=True)
        self.state = state
        self.rng = random.Random(seed)
        self.ending = threading.Event()

    def run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        rng = self.rng
        while not self.ending.is_set():
            try:
                path = folder_of(self.state, current_generation(self.state) or 0) / "data.mdb"
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                return
            try:
                for _ in range(50):
                    pages = max(os.fstat(fd).st_size // 4096, 2)
                    page = rng.randrange(2) if rng.random() < 0.3 else rng.randrange(pages)
                    size = 4096 * rng.choice((1, 1, 8, 64, 512))
                    libc.sync_file_range(fd, ctypes.c_int64(page * 4096), ctypes.c_int64(size), 7)
                    if self.ending.wait(0.001):
                        return
            except OSError:
                return
            finally:
                os.close(fd)


class Bench:
    """The disk, one node over it, its writers. `sync` False leaves the checkpoints' sync out."""

    def __init__(self, disk: CutDisk, folder: Path, keys: int, seed: int, sync: bool = True):
        self.disk = disk
        self.folder = folder
        self.rng = random.Random(seed)
        self.data = disk.path / "data"
        self.state = self.data / "member" / "state"
        flags = ("--wal-segment-bytes", "8MiB", "--checkpoint-interval", SOON)
        environment = {} if sync else {"KVNODE_TEST_NO_CHECKPOINT_SYNC": "1"}
        self.node = Node(self.data, *flags, env=environment)
        self.keys = keys
        self.writers = [
            Writer(n, WRITERS, keys, seed, self.node.endpoint) for n in range(WRITERS)
        ]
        self.checker = Checker(self.node.endpoint, self.writers, seed)
        self.background: list[Reader | Provoker] = []
        self.cuts: Counter[str] = Counter()
        self.hashes = self.served = 0
        self.resend = False

    # --- the node -------------------------------------------------------------------------------

    def start(self, interval: str = SOON, point: str = "") -> Path:
        """Starts the node; returns the mark that `point`, a failpoint, leaves when it fires."""
        marks = self.folder / f"marks-{sum(self.cuts.values())}-{self.rng.randrange(1 << 30)}"
        marks.mkdir()
        self.node.argv[-1] = interval
        self.node.env.update({VARIABLE: point, FOLDER_VARIABLE: str(marks)})
        try:
            self.node.start()
        except RuntimeError as error:
            raise Wrong(f"unopenable: {error}") from None
        return marks / point

    def start_and_kill_applier(self) -> None:
        """Starts the node; its first applier is killed at first sight, while it still imports."""
        killed = threading.Event()

        def watch() -> None:
            until = time.monotonic() + 20
            while time.monotonic() < until and not killed.is_set():
                process = self.node._process
                for pid in descendants(process.pid) if process is not None else []:
                    with contextlib.suppress(OSError):
                        if b"kvnode.procs.applier" in Path(f"/proc/{pid}/cmdline").read_bytes():
                            os.kill(pid, 9)
                            killed.set()
                time.sleep(0.001)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        self.start(LATE)
        watcher.join()
        assert killed.is_set(), "the applier was not seen"

    def check(self, full: bool) -> None:
        """Everything answered is there; then what is open is settled."""
        there = self.checker.check(full)
        for writer in self.writers:
            if self.resend:
                writer.settle(there)
            else:
                writer.resolve(there)

    def load(self) -> None:
        """Writers, a long reader and early write-back begin."""
        seed = self.rng.randrange(1 << 30)
        self.background = [Reader(self.node.endpoint, self.keys), Provoker(self.state, seed)]
        for writer in self.writers:
            writer.begin()
        for thread in self.background:
            thread.start()

    def unload(self, answered: bool = False) -> None:
        """All threads end; `answered`: when nothing is open any more."""
        for thread in self.background:
            thread.ending.set()
        for writer in self.writers:
            writer.finish() if answered else writer.halt()
        for thread in self.background:
            thread.join()
            self.served += getattr(thread, "served", 0)
        self.background = []

    def wait_answers(self, more: int) -> None:
        until = time.monotonic() + 60
        goal = self.acknowledged + more
        while self.acknowledged < goal:
            for writer in self.writers:
                if writer.error is not None:
                    raise writer.error
            if time.monotonic() > until:
                raise AssertionError("no answers:\n" + "\n".join(self.node.tail))
            time.sleep(0.002)

    @property
    def acknowledged(self) -> int:
        return sum(writer.model.acknowledged for writer in self.writers)

    # --- one cut --------------------------------------------------------------------------------

    def round(self, kind: str, full: bool, thorough: bool) -> None:
        """Start, check, load, what `kind` says, cut."""
        rng, mark = self.rng, Path()
        if kind == "opening":
            self.start_and_kill_applier()
        else:
            point = {"during": "applier:checkpoint:1", "after": "applier:checkpointed:1"}.get(kind)
            late = kind in ("rolled back", "before")
            mark = self.start(LATE if late else SOON, point or "")
        self.check(full)
        self.load()
        self.wait_answers(rng.choice((1, 20, 100)))
        if kind == "clean":
            self.unload(answered=True)
            self.node.stop()
            self.start(LATE)
            self.load()
            self.wait_answers(rng.choice((1, 20)))
        elif kind == "before":
            self.node.kill_process("applier")
            self.wait_answers(rng.choice((1, 20, 60)))
        elif kind in ("during", "after"):
            until = time.monotonic() + 20
            while not mark.exists() and time.monotonic() < until:
                time.sleep(0.002)
            assert mark.exists(), f"no {mark.name}:\n" + "\n".join(self.node.tail)
            self.wait_answers(rng.choice((1, 20, 60)))
        elif kind == "defrag":
            client = Client(self.node.endpoint, timeout=30, session=False)
            client.submit(Kind.DEFRAG, b"")
            client.flush()
            self.wait_answers(rng.choice((1, 60, 200)))
            client.close()
        time.sleep(rng.random() * 0.2)
        sample = self.sample() if thorough else None
        self.cut(kind)
        if sample is not None:
            self.replay(*sample)
            try:
                self.node.fsck()
            except AssertionError as error:
                raise Wrong(str(error)) from None

    def cut(self, kind: str) -> None:
        self.disk.cut()
        self.cuts[kind] += 1
        self.node.kill()
        self.unload()
        self.resend = self.rng.random() < 0.5
        if not self.resend:
            for writer in self.writers:
                writer.drop()
        self.disk.unmount()
        self.disk.mount()

    def sample(self) -> tuple[int, int]:
        """Applied index and state hash of the running node, from its map."""
        store, _ = open_for_read(self.state)
        with store.begin_read() as txn:
            (index,) = struct.unpack_from("<Q", txn.get(TREE_META, b"applied"))
            (digest,) = struct.unpack("<Q", txn.get(TREE_META, b"hash"))
        store.close()
        return index, digest

    def replay(self, index: int, digest: int) -> None:
        """Rolls the map back as a start does, applies the log up to `index`: the same hash?"""
        opened = open_for_write(self.state)
        try:
            identity = json.loads((self.data / "member" / "identity.json").read_text())
            ids = int(identity["member"], 16), int(identity["cluster"], 16)
            machine = Machine(opened.store, *ids)
            at = machine.applied_index
            if at > index:
                return
            for entries in wal_entries(self.data / "member" / "wal", at + 1, index):
                machine.apply(b"".join(encode_entries(entries)), False)
            if machine.state_hash != digest:
                raise Wrong(f"another state hash at index {index}")
            self.hashes += 1
        except IndexError as error:
            raise Wrong(f"lost: applied {index} before the cut: {error}") from None
        finally:
            opened.close()

    # --- all of it ------------------------------------------------------------------------------

    def preload(self) -> None:
        self.disk.mount()
        self.start(SOON)
        preload(self.node.endpoint, self.writers, self.keys)
        self.node.stop()

    def run(self, count: int, full_every: int, thorough_every: int) -> str:
        """`count` cuts; the figures as one line. Raises Wrong."""
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            try:
                self.round(kind, number % full_every == 0, (number + 1) % thorough_every == 0)
            except Wrong as wrong:
                raise Wrong(f"cut {number} ({kind}): {wrong}") from None
        self.start(SOON)
        self.check(True)
        self.resend = True
        self.node.stop()
        self.node.fsck()
        models = [writer.model for writer in self.writers]
        return (
            f"{sum(self.cuts.values())} power cuts over {self.keys} keys "
            f"({', '.join(f'{n} {kind}' for kind, n in self.cuts.items())}): acknowledged "
            f"{self.acknowledged}, lost 0, wrong 0, half 0, unopenable 0; unanswered "
            f"{sum(m.unknown for m in models)}, answered from the window "
            f"{sum(m.repeated for m in models)}, refused {sum(m.refused for m in models)}, state "
            f"hashes compared {self.hashes}, long reads {self.served}"
        )

    def close(self) -> None:
        self.node.kill()
        with contextlib.suppress(Exception):
            self.unload()
        for writer in self.writers:
            writer.drop()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[CutDisk]:
    if reason := available(tmp_path):
        print(f"skipped: {reason}")
        pytest.skip(reason)
    made = CutDisk(tmp_path / "cut", 6144)
    yield made
    made.close()


def cuts(
    disk: CutDisk, folder: Path, count: int, keys: int, seed: int, full_every: int, thorough: int
) -> str:
    bench = Bench(disk, folder, keys, seed)
    try:
        bench.preload()
        return bench.run(count, full_every, thorough)
    finally:
        bench.close()


@pytest.mark.timeout(120)
def test_three_cuts(disk: CutDisk, tmp_path: Path) -> None:
    print("\n" + cuts(disk, tmp_path, 3, 5_000, seed=1, full_every=1, thorough=3))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_hundred_cuts(disk: CutDisk, tmp_path: Path) -> None:
    print("\n" + cuts(disk, tmp_path, 104, 1_000_000, seed=100, full_every=13, thorough=8))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_checkpoint_without_sync_is_caught(disk: CutDisk, tmp_path: Path) -> None:
    """The same harness over a node whose checkpoints don't sync the map."""
    bench = Bench(disk, tmp_path, 5_000, seed=7, sync=False)
    try:
        bench.preload()
        with pytest.raises(Wrong) as caught:
            bench.run(15, 1, 2)
    finally:
        bench.close()
    print(f"\nwithout the sync: {caught.value}")
