"""MemStore and LmdbStore against the oracle: one sequence of operations, equal answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode._core import storetxn
from kvnode._core.memstore import MemStore
from kvnode._core.storetxn import TREE_COUNT, TREE_KEYS, TREE_META, TREE_REVS, StoreError
from kvnode.env.lmdbstore import LmdbStore
from tests.oracle.store import OracleStore, OracleTxn

MAP_BYTES = 64 << 20
KINDS = ["memory", "lmdb"]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path) -> Iterator[MemStore | LmdbStore]:
    if request.param == "memory":
        yield MemStore()
        return
    opened = LmdbStore(tmp_path, MAP_BYTES)
    yield opened
    opened.close()


keys = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from([b"a", b"b", b"a\x00", b"\xff" * 511, b"a" * 510, b"a" * 510 + b"\x00"]),
)
values = st.one_of(
    st.binary(max_size=8),
    st.integers(0, 255).map(lambda b: bytes([b]) * 40),
    st.sampled_from([b"x" * 2000, b"y" * 70_000]),
)
trees = st.sampled_from([TREE_META, TREE_KEYS])
operation = st.one_of(
    st.tuples(st.just("put"), trees, keys, values),
    st.tuples(st.just("put"), trees, keys, values),
    st.tuples(st.just("upsert"), trees, keys, values),
    st.tuples(st.just("append"), st.just(TREE_REVS), st.integers(1, 300), values),
    st.tuples(st.just("delete"), trees, keys),
    st.tuples(st.just("get"), trees, keys),
    st.tuples(st.just("walk"), trees, keys, st.lists(st.booleans(), max_size=6)),
)
transaction = st.tuples(st.lists(operation, max_size=30), st.sampled_from("ccccad"))


def walk(txn, tree: int, key: bytes, steps: list[bool]) -> list[tuple[bytes, bytes] | None]:
    """Seeks and then steps forward (True) or back, until an end is met."""
    cursor = txn.cursor(tree)
    seen = [cursor.seek(key)]
    for forward in steps:
        if seen[-1] is None:
            break
        seen.append(cursor.next() if forward else cursor.prev())
    if seen[-1] is None:
        assert cursor.next() is None and cursor.prev() is None
    cursor.close()
    return seen


def oracle_walk(txn: OracleTxn, tree: int, key: bytes, steps: list[bool]):
    seen = [txn.seek(tree, key)]
    for forward in steps:
        if seen[-1] is None:
            break
        at = seen[-1][0]
        seen.append(txn.after(tree, at) if forward else txn.before(tree, at))
    return seen


def perform(op: tuple, txn, oracle: OracleTxn) -> None:
    match op:
        case "put", tree, key, val:
            txn.put(tree, key, val)
            oracle.put(tree, key, val)
        case "upsert", tree, key, val:
            old = txn.put_new(tree, key, val)
            assert old == oracle.put_new(tree, key, val)
            if old is not None:
                changed = bytes(255 - b for b in old)
                txn.put_over(tree, key, changed)
                oracle.put_over(tree, key, changed)
        case "append", tree, step, val:
            last = max(oracle.trees[tree], default=bytes(8))
            key = (int.from_bytes(last, "big") + step).to_bytes(8, "big")
            txn.append(tree, key, val)
            oracle.append(tree, key, val)
        case "delete", tree, key:
            assert txn.delete(tree, key) == oracle.delete(tree, key)
        case "get", tree, key:
            assert txn.get(tree, key) == oracle.get(tree, key)
        case "walk", tree, key, steps:
            assert walk(txn, tree, key, steps) == oracle_walk(oracle, tree, key, steps)
        case _:
            raise AssertionError(op)


def assert_equal(txn, oracle: OracleTxn) -> None:
    for tree in range(TREE_COUNT):
        assert list(txn.items(tree)) == oracle.items(tree)
        assert txn.entries(tree) == oracle.entries(tree)
        last = txn.cursor(tree)
        assert last.prev() == (oracle.items(tree) or [None])[-1]
        last.close()


def run(store, script: list[tuple[list[tuple], str]]) -> None:
    oracle = OracleStore(TREE_COUNT)
    snapshot, expected = store.begin_read(), oracle.begin_read()
    for operations, ending in script:
        txn, twin = store.begin_write(), oracle.begin_write()
        for op in operations:
            perform(op, txn, twin)
        assert_equal(txn, twin)
        if ending == "c":
            txn.commit()
            twin.commit()
        elif ending == "a":
            txn.abort()
        del txn
        assert_equal(snapshot, expected)
        with store.begin_read() as now:
            assert_equal(now, oracle.begin_read())
        if len(operations) % 3 == 0:
            snapshot.end()
            snapshot, expected = store.begin_read(), oracle.begin_read()
    snapshot.end()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(script=st.lists(transaction, min_size=1, max_size=8))
def test_equals_the_oracle(kind: str, script: list[tuple[list[tuple], str]]) -> None:
    if kind == "memory":
        run(MemStore(), script)
        return
    with tempfile.TemporaryDirectory() as folder:
        opened = LmdbStore(folder, MAP_BYTES)
        run(opened, script)
        opened.close()


def test_append_out_of_order_fails_the_transaction(store) -> None:
    with store.begin_write() as txn:
        txn.append(TREE_REVS, b"b", b"1")
        with pytest.raises(StoreError, match="does not sort last"):
            txn.append(TREE_REVS, b"b", b"2")
        with pytest.raises(StoreError, match="does not sort last"):
            txn.append(TREE_REVS, b"a", b"2")


def test_put_over_needs_a_find(store) -> None:
    with store.begin_write() as txn, pytest.raises(StoreError, match="without a put_new"):
        txn.put_over(TREE_KEYS, b"k", b"v")


@pytest.mark.parametrize("key", [b"", b"k" * 512])
def test_key_lengths(store, key: bytes) -> None:
    with store.begin_write() as txn, pytest.raises(StoreError, match="key is empty or longer"):
        txn.put(TREE_KEYS, key, b"v")
    with store.begin_read() as txn:
        assert txn.get(TREE_KEYS, key) is None


def test_fresh_cursor_starts_at_the_ends(store) -> None:
    with store.begin_write() as txn:
        for key in (b"a", b"b", b"c"):
            txn.put(TREE_KEYS, key, b"v")
        txn.commit()
    with store.begin_read() as txn:
        assert txn.cursor(TREE_KEYS).next() == (b"a", b"v")
        assert txn.cursor(TREE_KEYS).prev() == (b"c", b"v")
        assert txn.cursor(TREE_KEYS).last() == (b"c", b"v")
        assert txn.cursor(TREE_KEYS).seek(b"bb") == (b"c", b"v")
        assert txn.cursor(TREE_KEYS).seek(b"d") is None


def test_used_bytes_grow_and_shrink(store) -> None:
    def used() -> int:
        with store.begin_read() as txn:
            return txn.used_bytes()

    empty = used()
    with store.begin_write() as txn:
        for i in range(1000):
            txn.put(TREE_KEYS, b"%04d" % i, b"x" * 100)
        txn.commit()
    full = used()
    assert full > empty + 100_000
    with store.begin_write() as txn:
        for i in range(1000):
            txn.delete(TREE_KEYS, b"%04d" % i)
        txn.commit()
    assert used() < full / 4


def test_ended_transactions_and_closed_cursors_raise(store) -> None:
    txn = store.begin_read()
    cursor = txn.cursor(TREE_KEYS)
    txn.end()
    txn.end()
    with pytest.raises(storetxn.StoreError, match="ended"):
        txn.get(TREE_KEYS, b"k")
    with pytest.raises(storetxn.StoreError, match="ended"):
        cursor.next()
    cursor.close()
