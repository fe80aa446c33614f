"""HashKV against its slow twin: random histories, compactions, freeing between slices."""

from __future__ import annotations

import struct

import pytest

from kvnode._core.hashkv import HashKeys
from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode._core.ranges import RangeReader
from kvnode._core.revindex import read
from kvnode._core.store import Store
from kvnode._core.storetxn import TREE_LEASES, TREE_META, TREE_REVS
from kvnode.base.codes import Code
from kvnode.proto import kv_pb2
from tests.oracle.hashkv import Written, crc32c, hash_kv, living
from tests.oracle.requests import Compact, Delete, Group, Put
from tests.support.statemachine import LogMaker, Pair, encode_entry

CHUNK = 65_536
TOMBSTONE = 1


def written(store: Store, beyond: tuple[int, int]) -> list[Written]:
    """The records behind `beyond`."""
    out: list[Written] = []
    with store.begin_read() as txn:
        for place, _ in txn.items(TREE_REVS, struct.pack(">QII", *beyond, 0)):
            main, sub, chunk = struct.unpack(">QII", place)
            if (main, sub) <= beyond or chunk:
                continue
            found = read(txn, main, sub)
            assert found is not None
            flags, message = found[0], found[4]
            key = kv_pb2.KeyValue.FromString(message).key
            out.append(Written(main, sub, key, bool(flags & TOMBSTONE), message))
    return out


class History:
    """Everything that a machine ever wrote, though freeing took it away since."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.records: list[Written] = []

    def read(self) -> None:
        last = self.records[-1] if self.records else None
        self.records += written(self.store, (last.main, last.sub) if last else (0, 0))


def run(store: Store, revision: int = 0, *, work: int = 1 << 40, whole: bool = False) -> HashKeys:
    reader = RangeReader(store)
    reader.refresh()
    made = HashKeys(reader, revision, whole)
    while not made.done:
        reader.refresh()
        made.step(work)
    return made


def apply(machine: Machine, *requests) -> None:
    for request in requests:
        entry = encode_entry(machine.applied_index + 1, 1, [Group([request])])
        machine.apply(entry)


def new() -> tuple[MemStore, Machine]:
    store = MemStore()
    return store, Machine(store, 1, 1)


def test_of_an_empty_store_as_etcd_has_it():
    store, _ = new()
    made = run(store)
    assert (made.code, made.crc) == (Code.OK, 1084519789)
    assert (made.revision, made.compact_revision, made.current_revision) == (1, -1, 1)
    assert run(store, -5).crc == 1084519789


def test_the_worked_example():
    store, machine = new()
    apply(machine, Put(b"a", b"1"))
    data = b"key" + bytes.fromhex("0000000000000002 5f 0000000000000000 0a0161100218022001 2a0131")
    assert run(store).crc == crc32c(data)


def test_refusals_are_etcds():
    store, machine = new()
    apply(machine, Put(b"a"), Put(b"a"), Put(b"a"), Compact(3))
    assert run(store, 2).code == Code.COMPACTED
    assert run(store, 3).code == Code.OK
    assert run(store, 5).code == Code.FUTURE_REV
    assert run(store).compact_revision == 3


@pytest.mark.parametrize("seed", range(6))
def test_random_histories(seed):
    maker = LogMaker(seed)
    pair = Pair(MemStore())
    history = History(pair.store)
    pair.apply([maker.opening()])
    compared = 0
    for turn in range(150):
        pair.apply([maker.entry()])
        maker.saw(pair.machine)
        history.read()
        if turn % 3:
            continue
        compacted = pair.machine.compact_revision
        work = maker.random.choice([1, 20, 1 << 40])
        revisions = {0, max(compacted, 1), pair.machine.revision, maker.random.randint(
            max(compacted, 1), pair.machine.revision)}  # fmt: skip
        for revision in sorted(revisions):
            made = run(pair.store, revision, work=work)
            at = revision or pair.machine.revision
            assert (made.code, made.revision) == (Code.OK, at)
            assert made.crc == hash_kv(history.records, at, made.compact_revision)
            compared += 1
        if maker.random.random() < 0.5:
            pair.machine.free_some(maker.random.choice([3, 1000]))
    assert compared > 100


def test_nothing_lives_at_the_revision():
    """etcd keeps everything that a compaction left, when no key lives at the revision asked for."""
    store, machine = new()
    apply(machine, Put(b"a"), Put(b"b"), Put(b"a"), Compact(4), Delete(b"\0", b"\0"))
    history = History(store)
    history.read()
    assert not living(history.records, machine.revision)
    assert run(store).crc == hash_kv(history.records, machine.revision, 4)
    assert run(store).crc != crc32c(b"key")
    apply(machine, Put(b"c"))
    history.read()
    assert run(store, work=1).crc == hash_kv(history.records, machine.revision, 4)


def test_compaction_between_slices_changes_nothing_as_long_as_freeing_waits():
    store, machine = new()
    apply(machine, *[Put(b"k%d" % (i % 7), b"v%d" % i) for i in range(60)], Compact(20))
    expected = run(store).crc
    reader = RangeReader(store)
    reader.refresh()
    made = HashKeys(reader)
    assert made.lowest == 20
    made.step(30)
    apply(machine, Compact(61), Put(b"k1"))
    while machine.free_some(10, made.lowest):
        pass
    while not made.done:
        reader.refresh()
        made.step(30)
    assert (made.code, made.crc, made.current_revision) == (Code.OK, expected, 61)


def test_freeing_that_does_not_wait_ends_it():
    store, machine = new()
    apply(machine, *[Put(b"k%d" % (i % 7)) for i in range(60)])
    reader = RangeReader(store)
    reader.refresh()
    made = HashKeys(reader)
    assert made.lowest == 1
    made.step(30)
    assert not made.done
    apply(machine, Compact(61))
    while machine.free_some(1000):
        pass
    reader.refresh()
    assert made.step(1 << 40)
    assert made.code == Code.COMPACTED


def test_whole_depends_on_every_tree_but_not_on_freeing():
    store, machine = new()
    apply(machine, *[Put(b"k%d" % (i % 3)) for i in range(20)], Compact(15))
    before = run(store, whole=True)
    assert before.code == Code.OK
    assert before.crc != run(store).crc
    while machine.free_some(1000):
        pass
    assert run(store, whole=True, work=1).crc == before.crc
    with store.begin_write() as txn:
        txn.put(TREE_LEASES, b"\0" * 8, b"x")
        txn.commit()
    assert run(store, whole=True).crc != before.crc


def test_a_flipped_bit_is_damage_and_no_sum():
    store, machine = new()
    apply(machine, Put(b"a", b"1"))
    with store.begin_write() as txn:
        (place, value), *_ = txn.items(TREE_REVS)
        txn.put(TREE_REVS, place, value[:-1] + b"2")
        txn.commit()
    assert run(store).code == Code.CORRUPT
    with store.begin_read() as txn:
        assert txn.get(TREE_META, b"rev")


@pytest.mark.parametrize("size", [CHUNK - 40, CHUNK, 3 * CHUNK])
def test_chunked_records(size):
    store, machine = new()
    apply(machine, Put(b"a", b"x" * size), Put(b"b"))
    history = History(store)
    history.read()
    assert len(history.records) == 2
    assert run(store).crc == hash_kv(history.records, 3, -1)
