"""Freeing in slices: complete, linear, resumable anywhere, never below what is being read."""

from __future__ import annotations

import random
import struct

import pytest

from kvnode._core.memstore import MemStore
from kvnode._core.ranges import RangeReader
from kvnode._core.storetxn import TREE_HIST, TREE_REVS
from kvnode.base.codes import Code, Kind
from tests.oracle.requests import Compact, Delete, Group, Put, PutBatch, Range
from tests.support.fsck import check_state, read_records
from tests.support.statemachine import KEYS, Pair


def put_many(pair: Pair, *items: Put) -> None:
    pair.apply([[Group([PutBatch(items)])]])


def compact(pair: Pair, revision: int) -> None:
    pair.apply([[Group([Compact(revision)])]])


def read(reader: RangeReader, request: Range) -> tuple[int, bytes]:
    reader.refresh()
    return reader.serve(Kind.RANGE, request.encode())


def test_one_key_of_many_versions_is_freed_linearly() -> None:
    pair = Pair(MemStore())
    for start in range(0, 20_000, 2_000):
        put_many(pair, *(Put(b"k", b"%d" % i) for i in range(start, start + 2_000)))
    compact(pair, 20_001)
    slices = 1
    while pair.machine.free_some(1_000):
        slices += 1
    assert slices <= 21
    with pair.store.begin_read() as txn:
        assert txn.entries(TREE_REVS) == 1
        assert txn.entries(TREE_HIST) <= 1
    check_state(pair.store, pair.model.mvcc, freed=True)


@pytest.mark.parametrize("budget", [1, 2, 3, 10])
def test_resumes_at_every_record(budget: int) -> None:
    """A restart after each slice; tombstones at the limit; compactions between slices."""
    rng = random.Random(budget)
    pair = Pair(MemStore())
    for _ in range(60):
        keys = rng.sample(KEYS, 3)
        pair.apply([[Group([PutBatch(tuple(Put(k, b"v") for k in keys), Kind.PUT_BATCH_ONE)])]])
        pair.apply([[Group([Delete(rng.choice(KEYS), rng.choice([b"", b"c", b"\0"]))])]])
        if rng.random() < 0.3:
            low, high = max(1, pair.model.mvcc.compacted), pair.model.mvcc.revision
            compact(pair, rng.randint(low, high))
        for _ in range(rng.randint(0, 12)):
            pair.machine.free_some(budget)
            pair.open()
        pair.compare_heads()
        check_state(pair.store, pair.model.mvcc)
    while pair.machine.free_some(budget):
        pair.open()
    check_state(pair.store, pair.model.mvcc, freed=True)


def test_a_tombstone_stays_while_it_is_exactly_at_the_compaction() -> None:
    pair = Pair(MemStore())
    pair.apply([[Group([Put(b"a"), Delete(b"a"), Put(b"b"), Put(b"b")])]])
    compact(pair, 3)
    pair.free_all()
    assert list(read_records(pair.store)) == [(3, 0), (4, 0), (5, 0)]
    pair.open()
    compact(pair, 4)
    pair.free_all()
    assert list(read_records(pair.store)) == [(4, 0), (5, 0)]
    check_state(pair.store, pair.model.mvcc, freed=True)


def test_nothing_that_is_read_goes() -> None:
    """A reader below a compaction keeps every answer, also of keys deleted and put again since."""
    pair = Pair(MemStore())
    rng = random.Random(3)
    for i in range(200):
        key = b"k%d" % rng.randint(0, 9)
        pair.apply([[Group([Delete(key) if rng.random() < 0.4 else Put(key, b"%d" % i)])]])
    reading = 60
    reader = RangeReader(pair.store)
    wanted = read(reader, Range(b"k", b"l", revision=reading))
    assert wanted[0] == Code.OK and len(wanted[1]) > 50
    compacted = pair.machine.revision
    compact(pair, compacted)
    for i in range(100):
        key = b"k%d" % rng.randint(0, 9)
        pair.apply([[Group([Delete(key) if rng.random() < 0.4 else Put(key, b"%d" % i)])]])
        pair.machine.free_some(5, reading)
        with pair.store.begin_read() as txn:
            code, body = execute_at(txn, reading)
        assert code == Code.OK
        assert body == strip_header(wanted[1])
    while pair.machine.free_some(100, reading):
        pass
    assert pair.machine.freed_revision == reading
    pair.free_all()
    assert pair.machine.freed_revision == compacted
    check_state(pair.store, pair.model.mvcc, freed=True)
    reader.close()


def strip_header(body: bytes) -> bytes:
    assert body[0] == 0x0A
    return body[2 + body[1] :]


def execute_at(txn: object, revision: int) -> tuple[int, bytes]:
    """A Range begun before the compaction, as a gateway's slices go on with it."""
    from kvnode._core import ranges

    request = Range(b"k", b"l", revision=revision).encode()
    code, body = ranges.execute(txn, request, 1 << 40, 0, revision)  # type: ignore[arg-type]
    return code, body


def test_freeing_changes_no_hash_and_no_answer() -> None:
    pair = Pair(MemStore())
    put_many(pair, *(Put(b"k%d" % (i % 7), b"%d" % i) for i in range(300)))
    compact(pair, 250)
    state = pair.machine.state_hash
    pair.free_all(3)
    assert pair.machine.state_hash == state
    # compares with the model, which frees nothing
    pair.apply([[Group([Range(b"k", b"l", revision=r) for r in range(249, 302)])]])


def test_freeing_reaches_chunked_values_and_long_keys() -> None:
    pair = Pair(MemStore())
    for i in range(6):
        put_many(pair, *(Put(key, bytes([i]) * 200_000) for key in KEYS[-6:]))
    pair.apply([[Group([Delete(KEYS[-1]), Delete(KEYS[-3])])]])
    compact(pair, pair.machine.revision)
    pair.free_all(2)
    check_state(pair.store, pair.model.mvcc, freed=True)
    with pair.store.begin_read() as txn:
        assert txn.get(0, b"compact") == struct.pack("<QQQQ", 39, 39, 1 << 63, 39)


def test_a_fresh_store_has_nothing_to_free() -> None:
    pair = Pair(MemStore())
    assert not pair.machine.free_some(10)
    compact(pair, 0)
    assert not pair.machine.free_some(10)
    compact(pair, 1)
    pair.free_all()
    assert not pair.machine.free_some(10)
