"""What the watch hub costs, without sockets: a store in memory, streams that throw away.

Answers: events a second fanned out to watchers of one prefix (one put a turn, as when nobody
waits; and batches), the cost of an event that one of 100,000 single-key watchers wants, of one
that nobody wants, of a pass that brings 10,000 watchers from as many revisions to the head, and
of making a watcher. Prints machine, commit, seed; median of rounds.

    .venv/bin/python -m bench.core_watch [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import struct
import subprocess
import time
from collections.abc import Callable

from kvnode._core import revindex
from kvnode._core.localcalls import LocalCalls
from kvnode._core.memstore import MemStore
from kvnode._core.ranges import RangeReader
from kvnode._core.watchcalls import Watches
from kvnode._core.watchhub import WatchHub
from kvnode.proto import rpc_pb2

SEED = 30
META = 0


class Bench:
    """A hub of its own over a store of its own."""

    def __init__(self) -> None:
        self.store = MemStore()
        self.revision = 1
        self.calls = LocalCalls(1 << 40, discard=True)
        self.hub = WatchHub(self.calls, seed=SEED)
        self.watches = Watches(self.hub, inbox_max=1 << 30)
        self.reader = RangeReader(self.store)

    def put(self, keys: list[bytes], size: int = 64) -> None:
        """One revision a key, in one transaction."""
        with self.store.begin_write() as txn:
            revindex.write_all(txn, self.revision + 1, keys, b"v" * size)
            self.revision += len(keys)
            txn.put(META, b"rev", struct.pack("<Q", self.revision))
            txn.commit()

    def settle(self) -> None:
        while self.watches.turn(self.reader, 0):
            self.reader.close()
        self.reader.close()

    def watch(self, handle: int, key: bytes, end: bytes = b"", start: int = 0) -> None:
        create = rpc_pb2.WatchCreateRequest(key=key, range_end=end, start_revision=start)
        request = rpc_pb2.WatchRequest(create_request=create)
        self.calls.message(handle, request.SerializeToString())

    def many(self, streams: int, each: int) -> None:
        """Watchers of one prefix."""
        for _ in range(streams):
            handle = self.calls.open(self.watches)
            for _ in range(each):
                self.watch(handle, b"p/", b"p0")
        self.settle()


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def row(name: str, value: float, unit: str) -> None:
    print(f"| {name:<66} | {value:14,.2f} {unit}")


def fan_out(rounds: int, streams: int, each: int, batch: int, turns: int) -> float:
    """Events a second at watchers."""
    bench = Bench()
    bench.many(streams, each)
    keys = [b"p/%06d" % i for i in range(batch)]
    spent = []
    for _ in range(rounds):
        total = 0.0
        for _ in range(turns):
            bench.put(keys)
            total += seconds(bench.settle)
        spent.append(streams * each * batch * turns / total)
    assert bench.hub.events_sent == streams * each * batch * turns * rounds
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, commit {commit.stdout.strip()}, "
          f"seed {SEED}, median of {rounds} rounds")
    for streams, each in ((1, 100), (1, 1000), (1000, 1)):
        for batch, turns in ((1, 200), (50, 20)):
            name = f"{streams} x {each} watchers of a prefix, {batch} puts a turn"
            row(name, fan_out(rounds, streams, each, batch, turns) / 1e6, "M events/s")

    bench = Bench()
    rng = random.Random(SEED)
    names = [b"key/%08d" % i for i in range(100_000)]
    handle = bench.calls.open(bench.watches)
    for name in names:
        bench.watch(handle, name)
    row("making one of 100,000 single-key watchers", seconds(bench.settle) / 1e5 * 1e6, "us")
    hits, misses = [], []
    for _ in range(rounds):
        bench.put(rng.sample(names, 2000))
        hits.append(seconds(bench.settle) / 2000)
        bench.put([b"else/%d" % i for i in range(2000)])
        misses.append(seconds(bench.settle) / 2000)
    assert bench.hub.events_sent == 2000 * rounds
    row("an event for one of them", statistics.median(hits) * 1e6, "us")
    row("an event for none", statistics.median(misses) * 1e6, "us")

    bench = Bench()
    bench.put([b"p/%06d" % i for i in range(10_000)])
    handle = bench.calls.open(bench.watches)
    for i in range(10_000):
        bench.watch(handle, b"q", start=2 + i)
    row("10,000 watchers resumed at as many revisions, one pass", seconds(bench.settle) * 1e3, "ms")
    assert 10_000 <= bench.hub.events_read < 40_000 and bench.hub.slow == 0


if __name__ == "__main__":
    main()
