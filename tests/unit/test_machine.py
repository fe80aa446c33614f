"""The state machine against the plain model: random logs, crashes, restarts, groupings, freeing."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode._core.store import Store
from kvnode.base.errors import ConfigError
from kvnode.env.lmdbstore import LmdbStore
from tests.oracle.requests import (
    Delete,
    Group,
    Put,
    PutBatch,
    Range,
    SessionOpen,
    Txn,
    decode_results,
)
from tests.support.fsck import check_state
from tests.support.statemachine import LogMaker, Pair, contents, encode_entry, regroup

SEEDS = range(12)


def new_store(kind: str, path: Path) -> Store:
    if kind == "memory":
        return MemStore()
    path.mkdir(parents=True, exist_ok=True)
    return LmdbStore(path, 1 << 30)


def run(pair: Pair, maker: LogMaker, calls: int) -> None:
    for _ in range(calls):
        pair.apply([maker.entry() for _ in range(maker.random.choice([1, 1, 2, 4]))])
        maker.saw(pair.machine)


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_is_the_models(kind: str, seed: int, tmp_path: Path) -> None:
    pair, maker = Pair(new_store(kind, tmp_path / "s")), LogMaker(seed)
    pair.apply([maker.opening()])
    for _ in range(10):
        run(pair, maker, 12)
        if maker.flip(0.5):
            pair.machine.free_some(maker.random.randint(1, 30))
        if maker.flip(0.3):
            pair.open()
            pair.compare_heads()
    assert pair.machine.revision > 80
    pair.free_all()
    check_state(pair.store, pair.model.mvcc, freed=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_reads_at_every_revision(seed: int) -> None:
    """Histories survive updates, deletes, compaction and every amount of freeing."""
    pair, maker = Pair(MemStore()), LogMaker(1000 + seed)
    pair.apply([maker.opening()])
    for _ in range(6):
        run(pair, maker, 10)
        pair.apply([[Group([PutBatch(tuple(Put(b"deep", b"%d" % i) for i in range(70)))])]])
        pair.machine.free_some(maker.random.randint(1, 200))
        revisions = range(max(1, pair.model.mvcc.compacted - 1), pair.model.mvcc.revision + 1)
        picked = maker.random.sample(revisions, min(25, len(revisions)))
        pair.apply([[Group([Range(b"\0", b"\0", revision=r) for r in picked])]])
        check_state(pair.store, pair.model.mvcc)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crash_loses_only_what_was_not_committed(seed: int) -> None:
    store = MemStore()
    pair, maker = Pair(store), LogMaker(2000 + seed)
    pair.apply([maker.opening()])
    saved = store.clone()
    for _ in range(8):
        run(pair, maker, 8)
        pair.machine.free_some(maker.random.randint(1, 50))
        if maker.flip(0.4):
            pair.crash(saved, maker.random)
            saved = pair.store.clone()
        elif maker.flip(0.5):
            saved = pair.store.clone()
    check_state(pair.store, pair.model.mvcc)


@pytest.mark.parametrize("seed", SEEDS)
def test_same_log_same_state(seed: int, tmp_path: Path) -> None:
    """Grouping, member, restarts, answers wanted or not, freeing: nothing of it matters."""
    maker = LogMaker(3000 + seed)
    pair = Pair(MemStore())
    pair.apply([maker.opening()])
    run(pair, maker, 80)
    pair.free_all()
    wanted = contents(pair.store)
    for number, store in enumerate([MemStore(), new_store("lmdb", tmp_path / "l"), MemStore()]):
        rng = random.Random(seed * 10 + number)
        machine = Machine(store, 1 + number, 1)
        for part in regroup(pair.entries, rng):
            machine.apply(part, answer=rng.random() < 0.5)
            if rng.random() < 0.3:
                machine.free_some(rng.randint(1, 60), rng.choice([None, rng.randint(1, 200)]))
            if rng.random() < 0.1:
                machine = Machine(store, 1 + number, 1)
        while machine.free_some(100):
            pass
        assert machine.state_hash == pair.machine.state_hash
        assert contents(store) == wanted


def test_the_hash_sees_every_change() -> None:
    def hash_of(groups: list[Group]) -> int:
        pair = Pair(MemStore())
        pair.apply([[Group([SessionOpen(7)], client=True)]])
        pair.apply([groups])
        return pair.machine.state_hash

    logs = [
        [],
        [Group([Put(b"a", b"1")])],
        [Group([Put(b"a", b"2")])],
        [Group([Put(b"b", b"1")])],
        [Group([Put(b"a", b"1"), Put(b"a", b"1")])],
        [Group([Txn(success=(Put(b"a", b"1"), Put(b"c", b"1")))])],
        [Group([Put(b"a", b"1"), Put(b"c", b"1")])],
        [Group([Put(b"a", b"1"), Delete(b"a")])],
        [Group([Put(b"a", b"1")], session=7, sequence=1, client=True)],
        [Group([Put(b"a", b"1")], session=7, sequence=2, client=True)],
        [Group([Put(b"a", b"1")], session=7, sequence=2, lowest=2, client=True)],
    ]
    assert len({hash_of(log) for log in logs}) == len(logs)


def test_gaps_and_falling_terms_assert_and_change_nothing() -> None:
    pair = Pair(MemStore())
    pair.apply([[Group([Put(b"a")])]], term=3)
    before = contents(pair.store)
    good = encode_entry(2, 3, [Group([Put(b"b")])])
    for bad in (
        encode_entry(1, 3, []),
        encode_entry(3, 3, []),
        encode_entry(2, 2, []),
        good + encode_entry(2, 3, []),
        good + encode_entry(4, 3, []),
        good[:-1],
        good + b"x",
    ):
        with pytest.raises(AssertionError):
            pair.machine.apply(bad)
    assert contents(pair.store) == before
    pair.apply([[Group([Put(b"b")])]], term=3)


def test_entries_of_other_types_only_move_the_index() -> None:
    machine = Machine(MemStore(), 1, 1)
    assert machine.apply(struct.pack("<QQII", 1, 1, 0, 0)) == []
    assert machine.apply(struct.pack("<QQII", 2, 1, 1, 3) + b"abc") == []
    assert (machine.applied_index, machine.applied_term, machine.revision) == (2, 1, 1)
    assert machine.state_hash == 0


def test_only_the_origin_member_answers() -> None:
    machine = Machine(MemStore(), 5, 9)
    groups = [
        Group([Put(b"a")], member=5, incarnation=2, slot=1),
        Group([Put(b"b")], member=6, incarnation=2, slot=2),
        Group([Put(b"c")], member=5, incarnation=3, slot=3),
        Group([Put(b"d")], member=5, incarnation=2, slot=4),
    ]
    got = {inc: decode_results(data) for inc, data in machine.apply(encode_entry(1, 7, groups))}
    assert {inc: [g.slot for g in results] for inc, results in got.items()} == {2: [1, 4], 3: [3]}
    # header: cluster 9, member 5, revision 2, term 7
    assert got[2][0].results == ((0, 1, bytes.fromhex("0a08080910051802 2007")),)
    assert machine.apply(encode_entry(2, 7, groups), answer=False) == []


def test_another_clusters_state_is_refused(tmp_path: Path) -> None:
    store = new_store("lmdb", tmp_path / "s")
    Machine(store, 1, 77)
    Machine(store, 2, 77)
    with pytest.raises(ConfigError, match="4d"):
        Machine(store, 1, 78)
