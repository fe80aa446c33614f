"""What one step of the read side costs: index, records, Range, on LMDB in a temporary folder.

Answers: how many nanoseconds are a warm read of one key, a key of a long Range, a key counted,
an upsert of the index, a put with its record. Prints machine, commit, seed; median of rounds.

    .venv/bin/python bench/core_index.py [--keys 1000000] [--rounds 7] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kvnode._core import revindex
from kvnode._core.ranges import LongRange, RangeReader
from kvnode.base.codes import Kind
from kvnode.env.lmdbstore import LmdbStore
from kvnode.proto import rpc_pb2

SEED = 20
BATCH = 1000
META = 0


def median_ns(work: Callable[[], object], units: int, rounds: int) -> float:
    """Nanoseconds of one of the `units` that work() does, median of rounds, one warm-up."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - begin) / units)
    return statistics.median(times)


def row(name: str, ns: float, note: str = "") -> None:
    print(f"| {name:<52} | {ns:9.0f} | {note}")


def fill(store: LmdbStore, names: list[bytes]) -> tuple[float, float]:
    """Puts every name in transactions of BATCH; nanoseconds a put, and one of a second pass."""
    spent = []
    main = 2
    for _ in range(2):
        begin = time.perf_counter_ns()
        for at in range(0, len(names), BATCH):
            part = names[at : at + BATCH]
            with store.begin_write() as txn:
                revindex.write_all(txn, main, part, b"v" * 256)
                main += len(part)
                txn.put(META, b"rev", struct.pack("<Q", main - 1))
                txn.commit()
        spent.append((time.perf_counter_ns() - begin) / len(names))
    return spent[0], spent[1]


def request(**fields: object) -> bytes:
    return rpc_pb2.RangeRequest(**fields).SerializeToString()


def read_rows(store: LmdbStore, names: list[bytes], rounds: int, rng: random.Random) -> None:
    reader = RangeReader(store)
    reader.refresh()
    ordered = sorted(names)
    one = [request(key=names[0])] * 10_000
    spread = [request(key=k) for k in rng.choices(names, k=20_000)]

    def served(bodies: list[bytes]) -> Callable[[], object]:
        return lambda: reader.serve_all(Kind.RANGE, bodies)

    row("single key, always the same (warm)", median_ns(served(one), len(one), rounds))
    row("single key, random of all", median_ns(served(spread), len(spread), rounds))
    row("snapshot (refresh)", median_ns(reader.refresh, 1, rounds * 20))
    span = {"key": ordered[1000], "range_end": ordered[2000]}
    for name, more in (
        ("a key of a 1,000-key Range", {}),
        ("a key of a 1,000-key Range, keys_only", {"keys_only": True}),
        ("a key of a 1,000-key Range, sorted by version", {"sort_target": 1, "sort_order": 1}),
        ("a key of a 1,000-key Range, at an old revision", {"revision": len(names) + 1}),
        ("a key counted", {"count_only": True}),
    ):
        body = request(**span, **more)
        row(name, median_ns(served([body] * 10), 10_000, rounds))
    whole = request(key=b"\0", range_end=b"\0", count_only=True)
    row("a key counted, all keys", median_ns(served([whole]), len(names), 3))
    slices: list[float] = []
    long = LongRange(reader, request(key=b"\0", range_end=b"\0"))
    while not long.done:
        begin = time.perf_counter_ns()
        long.step(10_000, 1 << 18)
        slices.append(time.perf_counter_ns() - begin)
        long.take()
    slices.sort()
    row(
        "a slice of a Range over all (10,000 units, 256 KiB)",
        statistics.median(slices),
        f"p99 {slices[len(slices) * 99 // 100] / 1e6:.2f} ms, worst {slices[-1] / 1e6:.2f} ms",
    )
    reader.close()


def upsert_rows(store: LmdbStore, names: list[bytes], rounds: int, rng: random.Random) -> None:
    main = 1 << 40

    def upsert(part: list[bytes]) -> None:
        nonlocal main
        with store.begin_write() as txn:
            revindex.write_all(txn, main, part, b"", index_only=True)
            main += len(part)
            txn.abort()

    known = rng.sample(names, BATCH * 10)
    fresh = [rng.randbytes(32) for _ in range(BATCH * 10)]
    row(
        "index_upsert, random known key, 10,000 a txn",
        median_ns(lambda: upsert(known), len(known), rounds),
    )
    row(
        "index_upsert, random new key, 10,000 a txn",
        median_ns(lambda: upsert(fresh), len(fresh), rounds),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {platform.release()};", end=" ")
    print(
        f"commit {commit}; seed {SEED}; {args.keys} random keys of 32 B, values 256 B, 2 versions"
    )
    rng = random.Random(SEED)
    names = [rng.randbytes(32) for _ in range(args.keys)]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store = LmdbStore(folder, 64 << 30)
        new, again = fill(store, names)
        print(f"| {'step':<52} | {'ns':>9} |")
        row("put with record, random new key, 1,000 a txn", new)
        row("put with record, random known key, 1,000 a txn", again)
        read_rows(store, names, args.rounds, rng)
        upsert_rows(store, names, args.rounds, rng)
        store.close()


if __name__ == "__main__":
    main()
