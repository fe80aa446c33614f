"""How many puts a second does the apply loop make, and what does each stage cost?

The state machine alone, over LMDB without sync: no log, no process border, no client. Entries are
encoded before the clock starts. Prints puts/s by CPU time and by wall clock.

    python -m bench.core_apply [--keys N] [--batch N] [--value BYTES] [--shape SHAPE]... [--dir DIR]

Shapes: sequential, random, again (the same random keys a second time), single (one put a group,
--batch groups an entry), txn (transactions of one compare and one put), free (compaction of all).
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Iterator

from kvnode._core.machine import Machine
from kvnode.base.codes import Kind
from kvnode.env.lmdbstore import LmdbStore
from tests.oracle.requests import Compare, Group, Put, PutBatch, SessionOpen, Txn, encode_batch

SHAPES = ("sequential", "random", "again", "single", "txn")
SEED = 1


def chunks(items: list[bytes], size: int) -> Iterator[list[bytes]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def groups_of(shape: str, keys: list[bytes], value: bytes, sequence: int) -> list[Group]:
    """The groups of one entry."""
    if shape == "single":
        return [
            Group([Put(key, value)], session=7, sequence=sequence + i, lowest=sequence, slot=i)
            for i, key in enumerate(keys)
        ]
    if shape == "txn":
        requests = [
            Txn((Compare(key, 3, 0, value=value),), (Put(key, value),), ()) for key in keys
        ]
        return [Group([r], session=7, sequence=sequence + i, lowest=sequence)
                for i, r in enumerate(requests)]
    batch = PutBatch(tuple(Put(key, value) for key in keys), Kind.PUT_BATCH)
    return [Group([batch], session=7, sequence=sequence, lowest=sequence)]


def encode(index: int, groups: list[Group]) -> bytes:
    data = encode_batch(groups)
    return struct.pack("<QQII", index, 1, 0, len(data)) + data


def run(machine: Machine, store: LmdbStore, shape: str, keys: list[bytes], args: object) -> None:
    value = b"v" * args.value  # type: ignore[attr-defined]
    rng = random.Random(SEED)
    order = keys if shape == "sequential" else rng.sample(keys, len(keys))
    index = machine.applied_index + 1
    entries = []
    for part in chunks(order, args.batch):  # type: ignore[attr-defined]
        entries.append(encode(index, groups_of(shape, part, value, index * 100_000)))
        index += 1
    cpu, wall = time.process_time(), time.perf_counter()
    for entry in entries:
        machine.apply(entry)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(
        f"{shape:12} {len(order) / cpu:12,.0f} puts/s CPU {len(order) / wall:12,.0f} puts/s wall"
        f" {cpu / len(order) * 1e6:8.2f} us/put  rev {machine.revision}"
    )


def free(machine: Machine) -> None:
    """Compacts at the head and frees in slices, as the applier does."""
    from tests.oracle.requests import Compact

    machine.apply(encode(machine.applied_index + 1, [Group([Compact(machine.revision)])]))
    records, slices, longest = machine.revision, 0, 0.0
    start = time.perf_counter()
    more = True
    while more:
        one = time.perf_counter()
        more = machine.free_some(500)
        longest = max(longest, time.perf_counter() - one)
        slices += 1
    spent = time.perf_counter() - start
    print(
        f"free         {records / spent:12,.0f} records/s looked at, {slices} slices of 500,"
        f" longest {longest * 1e3:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--value", type=int, default=256)
    parser.add_argument("--shape", action="append", choices=[*SHAPES, "free"])
    parser.add_argument("--dir")
    args = parser.parse_args()
    keys = [b"key/%028d" % i for i in range(args.keys)]
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        for shape in args.shape or [*SHAPES, "free"]:
            if shape in ("sequential", "random"):  # each begins with an empty store
                os.mkdir(f"{folder}/{shape}")
                store = LmdbStore(f"{folder}/{shape}", 64 << 30)
                machine = Machine(store, 1, 1)
                machine.apply(encode(1, [Group([SessionOpen(7, True)])]))
            if shape == "free":
                free(machine)
            else:
                run(machine, store, shape, keys, args)
    print(f"python {sys.version.split()[0]}, seed {SEED}, {args.keys} keys of 32 bytes")


if __name__ == "__main__":
    main()
