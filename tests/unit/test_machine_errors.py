"""What the state machine does with damage, a store that fails, and bytes that make no sense."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode._core.storetxn import TREE_KEYS, TREE_META, TREE_REVS, TREE_SESSIONS
from kvnode.base.codes import Kind
from kvnode.base.errors import CorruptionError, DiskError
from kvnode.env.lmdbstore import LmdbStore
from tests.fuzz.fuzz_machine import fuzz
from tests.oracle.requests import Compare, Delete, Group, Put, PutBatch, SessionOpen, Txn
from tests.support.fsck import check_state
from tests.support.statemachine import LogMaker, Pair, contents, encode_entry


def seeds() -> list[bytes]:
    """Bodies and entries that are good, to be broken."""
    maker = LogMaker(5, big=False)
    out = []
    for i in range(len(Kind)):
        for _ in range(4):
            request = maker.request()
            number = list(Kind).index(Kind(request.kind)) if request.kind in list(Kind) else i
            out.append(bytes([number << 1]) + request.encode())
        out.append(bytes([i << 1]) + maker.txn().encode())
    for _ in range(20):
        out.append(b"\x01" + encode_entry(2, 1, maker.entry())[24:])
    return out


def mutate(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out)) if out else 0
        kind = rng.random()
        if kind < 0.5 and out:
            out[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind < 0.7:
            del out[at:]
        elif kind < 0.85:
            out[at:at] = rng.randbytes(rng.randint(1, 9))
        else:
            out[at:at] = out[at : at + rng.randint(1, 30)]
    return bytes(out)


def test_poison_is_refused_alike() -> None:
    rng = random.Random(1)
    good = seeds()
    for data in good:
        fuzz(data)
    for _ in range(3000):
        fuzz(mutate(rng, rng.choice(good)))
    for _ in range(500):
        fuzz(rng.randbytes(rng.randint(1, 200)))


@pytest.mark.slow
def test_poison_at_length() -> None:
    rng = random.Random(2)
    good = seeds()
    for _ in range(100_000):
        fuzz(mutate(rng, rng.choice(good)))


def damaged(pair: Pair, tree: int, key: bytes, value: bytes) -> Machine:
    with pair.store.begin_write() as txn:
        txn.put(tree, key, value)
        txn.commit()
    return pair.open()


def value_of(pair: Pair, tree: int, key: bytes) -> bytes:
    with pair.store.begin_read() as txn:
        value = txn.get(tree, key)
    assert value is not None
    return value


@pytest.mark.parametrize(
    "request_",
    [
        Put(b"a", prev_kv=True),
        Put(b"a", ignore_value=True),
        Delete(b"a", prev_kv=True),
        Delete(b"a", b"b", prev_kv=True),
        Txn((Compare(b"a", 3, 0, value=b"1"),)),
    ],
)
def test_a_damaged_record_stops_everything(request_: Put) -> None:
    pair = Pair(MemStore())
    pair.apply([[Group([Put(b"a", b"1")])]])
    with pair.store.begin_read() as txn:
        ((key, value),) = list(txn.items(TREE_REVS))
    machine = damaged(pair, TREE_REVS, key, value[:-1] + b"2")
    before = contents(pair.store)
    entry = encode_entry(2, 1, [Group([Put(b"z"), request_, Put(b"y")])])
    with pytest.raises(CorruptionError, match="entry 2"):
        machine.apply(entry)
    # nothing half applied, and no more from this machine
    assert contents(pair.store) == before
    with pytest.raises(DiskError, match="stopped"):
        machine.apply(entry)
    with pytest.raises(DiskError, match="stopped"):
        machine.free_some(1)


@pytest.mark.parametrize("name", [b"applied", b"rev", b"hash", b"compact", b"alarms", b"cluster"])
def test_a_damaged_head_is_not_opened(name: bytes) -> None:
    pair = Pair(MemStore())
    pair.apply([[Group([Put(b"a", b"1")])]])
    with pytest.raises(CorruptionError):
        damaged(pair, TREE_META, name, b"123")


def test_a_damaged_session_is_not_opened() -> None:
    pair = Pair(MemStore())
    pair.apply([[Group([SessionOpen(7)], client=True)]])
    pair.apply([[Group([Put(b"a")], 7, 1, client=True)]])
    key = (7).to_bytes(8, "big")
    value = value_of(pair, TREE_SESSIONS, key)
    for bad in (value[:-1], value + b"\0", b"\2" + value[1:], value[:32] + b"\2" + value[33:], b""):
        with pytest.raises(CorruptionError):
            damaged(pair, TREE_SESSIONS, key, bad)
    damaged(pair, TREE_SESSIONS, key, value)


def test_a_damaged_index_entry_stops() -> None:
    pair = Pair(MemStore())
    pair.apply([[Group([Put(b"a", b"1")])]])
    machine = damaged(pair, TREE_KEYS, b"a", b"short")
    with pytest.raises(CorruptionError):
        machine.apply(encode_entry(2, 1, [Group([Put(b"a")])]))


def test_a_full_map_leaves_the_last_commit_and_goes_on_when_grown(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 1 << 20)
    pair = Pair(store)
    batch = PutBatch(tuple(Put(b"%d" % i, b"v" * 1000) for i in range(50)))
    with pytest.raises(DiskError):
        for _ in range(100):
            pair.apply([[Group([batch])]])
    # the model ran ahead by the entry that failed: it is applied again after growing
    assert store.map_full
    index = pair.open().applied_index
    assert index == pair.model.applied - 1
    check_less = contents(store)
    store.grow(64 << 20)
    assert contents(store) == check_less
    pair.machine.apply(encode_entry(*pair.entries[-1]))
    pair.compare_heads()
    check_state(store, pair.model.mvcc)
