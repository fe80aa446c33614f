"""The revision index against its plain twin: long keys, iteration, history, freeing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode._core import revindex
from kvnode._core.memstore import MemStore
from kvnode._core.store import Store
from kvnode.base.errors import CorruptionError
from kvnode.env.lmdbstore import LmdbStore
from tests.oracle import revindex as oracle
from tests.support.mvcc_writer import HIST, KEYS, REVS, Writer

PREFIX = b"p" * 511


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemStore()
    else:
        lmdb = LmdbStore(tmp_path, 1 << 30)
        yield lmdb
        lmdb.close()


def same_trees(w: Writer) -> None:
    assert dict(w.txn.items(KEYS)) == oracle.tree_keys(w.history)


def some_keys(rng: random.Random, count: int) -> list[bytes]:
    """Long keys equal in their first 511 bytes, and short ones around and between them."""
    keys = {PREFIX + rng.randbytes(rng.randrange(1, 4096 - 511 + 1)) for _ in range(count)}
    keys |= {PREFIX + bytes([c]) * n for c in (0, 255) for n in (1, 2, 3585)}
    keys |= {PREFIX[:n] for n in (1, 2, 100, 509, 510, 511)}
    keys |= {PREFIX[:n] + bytes([c]) for n in (5, 508, 509, 510) for c in (0, ord("o"), 255)}
    keys |= {rng.randbytes(rng.randrange(1, 40)) for _ in range(100)}
    return sorted(keys)


def test_thousand_long_keys_keep_full_byte_order(store: Store) -> None:
    rng = random.Random(1)
    keys = some_keys(rng, 1000)
    w = Writer(store)
    for key in rng.sample(keys, len(keys)):
        w.write((key, b"v"))
    same_trees(w)
    assert max(len(k) for k, _ in w.txn.items(KEYS)) == 511
    for key in rng.sample(keys, 200):
        if rng.random() < 0.5:
            w.write((key, None))
        else:
            w.write((key, b"again"))
    same_trees(w)
    assert [k for k, _ in revindex.scan(w.txn, b"\0", b"\0")] == keys
    for key in keys:
        assert revindex.get(w.txn, key) == w.history.keys[key][-1].entry
        assert revindex.get(w.txn, key + b"\0") is None or key + b"\0" in w.history.keys
    for _ in range(300):
        start, end = rng.choice(keys), rng.choice(keys)
        start = rng.choice((start, start + b"\0", start[:-1] or b"\0", PREFIX[:510]))
        end = rng.choice((end, end + b"\0", b"\0", PREFIX + b"\x80"))
        got = revindex.scan(w.txn, start, end)
        assert [k for k, _ in got] == w.history.scan(start, end)
    assert got == [(k, w.history.keys[k][-1].entry) for k in w.history.scan(start, end)]
    w.close()


def test_bucket_disappears_with_its_last_key(store: Store) -> None:
    w = Writer(store)
    w.write((PREFIX + b"1", b"v"), (PREFIX + b"2", b"v"))
    last = w.write((PREFIX + b"1", None), (PREFIX + b"2", None))
    w.compact(last + 1)
    w.free(0, last + 1)
    assert list(w.txn.items(KEYS)) == []
    assert list(w.txn.items(REVS)) == []
    w.close()


def test_delete_of_nothing_leaves_no_trace(store: Store) -> None:
    w = Writer(store)
    w.write((b"a", b"1"))
    before = list(w.txn.items(KEYS))
    for key in (b"b", PREFIX, PREFIX + b"x"):
        assert revindex.write(w.txn, 9, 0, key, None) is None
    assert list(w.txn.items(KEYS)) == before
    w.write((b"a", None))
    before = list(w.txn.items(KEYS))
    assert revindex.write(w.txn, 9, 0, b"a", None) is None
    assert list(w.txn.items(KEYS)) == before
    w.close()


@pytest.mark.parametrize("key", [b"k", PREFIX + b"k"])
def test_read_at_the_oldest_of_ten_thousand_is_bounded(store: Store, key: bytes) -> None:
    w = Writer(store)
    revisions = [w.write((key, b"%d" % i)) for i in range(10_000)]
    assert len(list(w.txn.items(HIST))) == 10_000 // 64
    worst = 0
    for revision in [*revisions[:70], *revisions[5000:5070], *revisions[-70:]]:
        found, steps = revindex.at(w.txn, key, revision)
        assert found == (revision, 0)
        worst = max(worst, steps)
    assert worst <= 64 + 8 + 2
    assert revindex.at(w.txn, key, 1)[0] is None
    w.close()


def test_history_goes_on_across_deletes() -> None:
    w = Writer(MemStore())
    revisions = [w.write((b"k", None if i % 3 == 2 else b"v")) for i in range(1000)]
    for i, revision in enumerate(revisions):
        want = None if i % 3 == 2 else (revision, 0)
        assert revindex.at(w.txn, b"k", revision)[0] == want
    same_trees(w)
    w.close()


def test_colliding_hashes_are_told_apart() -> None:
    """A history entry of another key with the same hash64, in front of the right one."""
    w = Writer(MemStore())
    revisions = [w.write((b"k", b"v")) for _ in range(20)]
    other = w.write((b"other", b"v"))
    revisions += [w.write((b"k", b"v")) for _ in range(300)]
    name = oracle.hash64(b"k").to_bytes(8, "big") + other.to_bytes(8, "big") + bytes(4)
    w.txn.put(HIST, name, b"")
    found, steps = revindex.at(w.txn, b"k", revisions[0])
    assert found == (revisions[0], 0)
    assert revindex.at(w.txn, b"k", 1)[0] is None
    assert 64 < steps <= 64 + 8 + 3
    w.close()


def test_missing_record_is_corruption_only_above_the_floor() -> None:
    w = Writer(MemStore())
    revisions = [w.write((b"k", v)) for v in (b"1", None, b"2", b"3")]
    tomb, alive = revisions[1], revisions[2]
    w.txn.delete(REVS, tomb.to_bytes(8, "big") + bytes(8))
    assert revindex.at(w.txn, b"k", tomb, floor=tomb)[0] is None
    with pytest.raises(CorruptionError):
        revindex.at(w.txn, b"k", tomb, floor=tomb - 1)
    w.txn.delete(REVS, alive.to_bytes(8, "big") + bytes(8))
    with pytest.raises(CorruptionError):
        revindex.at(w.txn, b"k", alive, floor=tomb)
    w.close()


def test_chain_goes_on_across_a_tombstone_until_it_is_freed() -> None:
    for freed, (depth, prev) in ((False, (3, 3)), (True, (1, 0))):
        w = Writer(MemStore())
        w.write((b"k", b"1"), (b"x", b"1"))
        w.write((b"k", None))
        w.write((b"x", b"2"))
        w.compact(4)
        if freed:
            w.free(0, 4)
        w.write((b"k", b"2"))
        assert revindex.read(w.txn, 5)[1:3] == (depth, prev)
        assert revindex.get(w.txn, b"k")[2:4] == (5, 1)
        if not freed:
            assert revindex.at(w.txn, b"k", 2)[0] == (2, 0)  # a read that began before
            w.free(0, 4)
        assert revindex.at(w.txn, b"k", 4, floor=4)[0] is None
        same_trees(w)
        w.close()


def test_floor_makes_a_compacted_tombstone_no_entry() -> None:
    w = Writer(MemStore())
    w.write((b"k", b"1"))
    w.write((b"k", None))
    w.write((b"x", b"1"))
    revindex.write(w.txn, 5, 0, b"k", b"2", floor=4)
    assert revindex.read(w.txn, 5)[1:3] == (1, 0)
    w.close()


def test_tombstone_exactly_at_the_compact_revision_stays() -> None:
    w = Writer(MemStore())
    w.write((b"k", b"1"))
    tomb = w.write((b"k", None))
    w.compact(tomb)
    w.free(0, tomb)
    assert revindex.get(w.txn, b"k") == w.history.keys[b"k"][-1].entry
    assert [int.from_bytes(k[:8], "big") for k, _ in w.txn.items(REVS)] == [tomb]
    w.write((b"k", b"2"))
    w.compact(tomb + 1)
    w.free(tomb, tomb + 1)
    assert revindex.at(w.txn, b"k", tomb + 1, floor=tomb + 1)[0] == (tomb + 1, 0)
    assert len(list(w.txn.items(REVS))) == 1
    w.close()


KEY = st.sampled_from([b"a", b"b", b"a\0", b"\xff", PREFIX[:510], PREFIX, PREFIX + b"\0", b"m"])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    steps=st.lists(
        st.one_of(
            st.lists(st.tuples(KEY, st.sampled_from([b"", b"v", None])), min_size=1, max_size=4),
            st.integers(0, 3),
        ),
        max_size=60,
    )
)
def test_histories_at_every_revision(steps: list) -> None:
    """Writes and compactions, freed as they come; every visible revision read back."""
    w = Writer(MemStore())
    for step in steps:
        if isinstance(step, int):
            old, new = w.history.compacted, w.history.revision - step
            if new > old:
                w.compact(new)
                w.free(old, new)
        else:
            w.write(*{key: (key, value) for key, value in step}.values())
    h = w.history
    for key in (*h.keys, b"absent"):
        for revision in range(max(1, h.compacted), h.revision + 1):
            found, _ = revindex.at(w.txn, key, revision, floor=h.compacted)
            want = h.at(key, revision)
            assert found == (None if want is None else (want.main, want.sub))
    for key, versions in h.keys.items():
        last = versions[-1]
        assert revindex.get(w.txn, key) == (None if key in h.freed else last.entry)
    hist = {k for k, _ in w.txn.items(HIST)}
    assert len(hist) <= sum(v.depth == 0 for versions in h.keys.values() for v in versions)
    w.close()
