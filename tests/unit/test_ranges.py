"""Range against the plain twin: every option, both stores, whole and in slices."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode._core import ranges, revindex
from kvnode._core.memstore import MemStore
from kvnode.base.codes import Code, Kind
from kvnode.base.errors import CorruptionError
from kvnode.env.lmdbstore import LmdbStore
from kvnode.proto import rpc_pb2
from tests.oracle import ranges as oracle
from tests.oracle.ranges import KV, Answer, Request
from tests.support.mvcc_writer import KEYS, REVS, Writer

LONG = b"p" * 511


def body_of(r: Request) -> bytes:
    return rpc_pb2.RangeRequest(**vars(r)).SerializeToString()


def answer_of(code: int, response: bytes) -> Answer:
    if code:
        assert response == b""
        return Answer(Code(code))
    m = rpc_pb2.RangeResponse.FromString(response)
    kvs = [
        KV(kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.value, kv.lease)
        for kv in m.kvs
    ]
    return Answer(Code.OK, kvs, m.more, m.count)


def in_txn(w: Writer, r: Request) -> Answer:
    """As the state machine runs it, on the open write transaction."""
    h = w.history
    return answer_of(*ranges.execute(w.txn, body_of(r), h.revision, h.compacted, h.compacted))


def in_slices(w: Writer, reader: ranges.RangeReader, r: Request, work: int) -> Answer:
    """On the reader, with a write and a new snapshot after each slice."""
    long = ranges.LongRange(reader, body_of(r))
    parts = []
    while not long.step(work, 64):
        parts.append(long.take())
        disturb(w)
        w.commit(freed=w.history.compacted)
        reader.refresh()
    parts.append(long.take())
    return answer_of(long.code, b"".join(parts))


def disturb(w: Writer) -> None:
    rng = random.Random(w.history.revision)
    live = [k for k in w.history.keys if w.history.at(k, w.history.revision)]
    w.write((b"new%d" % w.history.revision, b"n"))
    if live:
        w.write((rng.choice(live), rng.choice((b"changed", None))))


KEY = st.one_of(
    st.sampled_from([b"a", b"b", b"a\0", b"a\xff", b"\xff", b"\xff\xff", LONG[:510], LONG]),
    st.binary(min_size=1, max_size=2),
    st.integers(0, 40).map(lambda i: b"k%02d" % i),
    st.integers(0, 3).map(lambda i: LONG + b"%d" % i),
)
VALUE = st.sampled_from(
    [b"", b"x", b"x\0", b"0123456789abcdef", b"0123456789abcdefA", b"0123456789abcdefB"]
)
OP = st.tuples(KEY, st.one_of(VALUE, VALUE, st.none()), st.sampled_from([0, 0, 7]))
HISTORY = st.lists(st.one_of(st.lists(OP, min_size=1, max_size=12), st.integers(0, 6)), max_size=25)
NUMBER = st.sampled_from([0, 0, 0, -1, 1, 2, 3, 5, 8, 13, 20])
REQUEST = st.builds(
    Request,
    key=st.one_of(KEY, st.just(b"\0"), st.just(b"k")),
    range_end=st.one_of(st.just(b""), st.just(b"\0"), st.just(b"\0"), KEY, st.just(b"l")),
    limit=st.sampled_from([0, 0, 1, 2, 3, 10, -1, 2**63 - 1]),
    revision=NUMBER,
    sort_order=st.integers(0, 2),
    sort_target=st.integers(0, 4),
    keys_only=st.booleans(),
    count_only=st.sampled_from([False, False, False, True]),
    min_mod_revision=NUMBER,
    max_mod_revision=NUMBER,
    min_create_revision=NUMBER,
    max_create_revision=NUMBER,
)


def play(w: Writer, steps: list) -> None:
    for step in steps:
        if isinstance(step, int):
            old, new = w.history.compacted, w.history.revision - step
            if new > old:
                w.compact(new)
                if step % 2:
                    w.free(old, new)
        else:
            w.write(*{op[0]: op for op in step}.values())


@settings(max_examples=600, deadline=None, derandomize=True)
@given(steps=HISTORY, requests=st.lists(REQUEST, min_size=1, max_size=12))
def test_every_option_against_the_twin(steps: list, requests: list[Request]) -> None:
    store = MemStore()
    w = Writer(store)
    play(w, steps)
    for r in requests:
        assert in_txn(w, r) == oracle.execute(w.history, r), r
    w.commit(freed=w.history.compacted)
    reader = ranges.RangeReader(store)
    reader.refresh()
    for r in requests:
        want = oracle.execute(w.history, r)
        assert answer_of(*reader.serve(Kind.RANGE, body_of(r))) == want
    reader.close()
    w.close()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps=HISTORY, request=REQUEST, work=st.integers(1, 12))
def test_slices_answer_as_the_whole(steps: list, request: Request, work: int) -> None:
    """Keys written, created and deleted between slices don't show in the answer."""
    store = MemStore()
    w = Writer(store)
    play(w, steps)
    w.commit(freed=w.history.compacted)
    reader = ranges.RangeReader(store)
    reader.refresh()
    want = oracle.execute(w.history, request)
    assert in_slices(w, reader, request, work) == want
    reader.close()
    w.close()


@pytest.mark.parametrize("target", range(5))
@pytest.mark.parametrize("order", range(3))
def test_ties_of_many_keys(target: int, order: int) -> None:
    """More keys than an insertion sort takes, few distinct values, limit and none."""
    rng = random.Random(target * 3 + order)
    w = Writer(MemStore())
    values = (b"", b"s", b"s\0", b"s" * 15, b"s" * 16, b"s" * 17, b"s" * 21, b"s" * 15 + b"\0")
    for _ in range(40):
        w.write(*((b"key%03d" % i, rng.choice(values)) for i in rng.sample(range(600), 20)))
    for limit in (0, 7, 100):
        for keys_only in (False, True):
            for lowest in (0, 20):
                r = Request(b"k", b"l", limit, 0, order, target, keys_only, False, lowest)
                assert in_txn(w, r) == oracle.execute(w.history, r)
    w.close()


def test_on_lmdb_with_big_values(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 1 << 30)
    rng = random.Random(4)
    w = Writer(store)
    for i in range(60):
        w.write(
            *(
                (b"k%03d" % j, rng.randbytes(rng.choice((10, 300, 70_000))))
                for j in range(i, i + 3)
            ),
            (LONG + b"%d" % (i % 20), rng.randbytes(10)),
        )
    w.commit()
    reader = ranges.RangeReader(store)
    reader.refresh()
    for target in range(5):
        for revision in (0, 20):
            for keys_only in (False, True):
                r = Request(b"k", b"\0", 15, revision, 2, target, keys_only)
                want = oracle.execute(w.history, r)
                assert answer_of(*reader.serve(Kind.RANGE, body_of(r))) == want
                assert in_txn(w, r) == want
    for r in (Request(b"\0", b"\0"), Request(b"k", b"\0", 9, 30, 1, oracle.VALUE)):
        want = oracle.execute(w.history, r)
        assert in_slices(w, reader, r, 40) == want
    reader.close()
    w.close()
    store.close()


def test_header_and_heads() -> None:
    store = MemStore()
    reader = ranges.RangeReader(store)
    reader.refresh()
    assert (reader.revision, reader.compact_revision, reader.applied_index) == (1, 0, 0)
    w = Writer(store)
    for i in range(4):
        w.write((b"k", b"%d" % i))
    w.compact(3)
    w.commit(freed=2)
    code, response = reader.serve(Kind.RANGE, body_of(Request(b"k")), 11, 22, 33)
    header = rpc_pb2.RangeResponse.FromString(response).header
    assert (code, header.revision) == (0, 1)
    reader.refresh()
    assert (reader.revision, reader.compact_revision, reader.freed_revision) == (5, 3, 2)
    assert (reader.applied_index, reader.applied_term) == (50, 7)
    code, response = reader.serve(Kind.RANGE, body_of(Request(b"k", revision=4)), 11, 22, 33)
    header = rpc_pb2.RangeResponse.FromString(response).header
    assert (header.cluster_id, header.member_id, header.revision, header.raft_term) == (
        11,
        22,
        5,
        33,
    )
    for revision, want in ((2, Code.COMPACTED), (6, Code.FUTURE_REV), (3, Code.OK)):
        assert reader.serve(Kind.RANGE, body_of(Request(b"k", revision=revision)))[0] == want
    assert reader.serve(Kind.RANGE, body_of(Request(b"")))[0] == Code.EMPTY_KEY
    assert reader.serve(Kind.RANGE, b"\xff\xff")[0] == Code.MALFORMED
    assert reader.serve(Kind.PUT, b"")[0] == Code.UNKNOWN_KIND
    reader.close()
    assert reader.serve(Kind.RANGE, body_of(Request(b"k")))[0] == Code.UNAVAILABLE
    w.close()


def test_serve_hands_on_what_is_longer_than_a_slice() -> None:
    store = MemStore()
    w = Writer(store)
    for i in range(500):
        w.write((b"k%03d" % i, b"v"))
    w.commit()
    reader = ranges.RangeReader(store, slice_work=200, slice_bytes=1 << 18)
    reader.refresh()
    for r, code in (
        (Request(b"k000", b"k010"), Code.OK),
        (Request(b"k000", b"k010", sort_target=oracle.VERSION), Code.OK),
        (Request(b"k", b"l"), reader.LONG),
        (Request(b"k", b"l", count_only=True), reader.LONG),
    ):
        got = reader.serve(Kind.RANGE, body_of(r))
        assert got[0] == code
        if code == reader.LONG:
            assert got[1] == b""
            long = ranges.LongRange(reader, body_of(r))
            turns = 1
            while not long.step(200, 1 << 18):
                turns += 1
            assert turns > 2
            assert answer_of(0, long.take()) == oracle.execute(w.history, r)
        else:
            assert answer_of(*got) == oracle.execute(w.history, r)
    reader.close()
    w.close()


def test_slices_end_when_freeing_passed_their_revision() -> None:
    store = MemStore()
    w = Writer(store)
    for i in range(100):
        w.write((b"k%03d" % i, b"v"))
    w.commit()
    reader = ranges.RangeReader(store)
    reader.refresh()
    long = ranges.LongRange(reader, body_of(Request(b"k", b"l")))
    assert not long.step(50, 0)
    w.write((b"k050", None))
    w.compact(w.history.revision)
    w.commit(freed=long.revision)  # logical compaction alone doesn't matter
    reader.refresh()
    assert not long.step(50, 0)
    w.write((b"k051", None))
    w.commit(freed=long.revision + 1)
    reader.refresh()
    assert long.step(50, 0)
    assert (long.code, long.take()) == (Code.COMPACTED, b"")
    reader.close()
    w.close()


def test_slices_see_what_was_deleted_compacted_and_put_again() -> None:
    """Freeing has not come by yet, so the read at the old revision must not have a hole."""
    store = MemStore()
    w = Writer(store)
    for i in range(100):
        w.write((b"k%03d" % i, b"old"))
    w.commit()
    reader = ranges.RangeReader(store)
    reader.refresh()
    r = Request(b"k", b"l")
    want = oracle.execute(w.history, r)
    long = ranges.LongRange(reader, body_of(r))
    assert not long.step(50, 0)
    w.write((b"k090", None))
    w.write((b"k091", b"other"))
    w.compact(w.history.revision)
    w.write((b"k090", b"again"))
    w.commit(freed=long.revision)
    reader.refresh()
    assert long.step(0, 0)
    assert answer_of(long.code, long.take()) == want
    reader.close()
    w.close()


def test_sorted_range_is_bounded_in_memory() -> None:
    store = MemStore()
    w = Writer(store)
    for i in range(2000):
        w.write((b"k%04d" % i, b"v"))
    w.commit()
    reader = ranges.RangeReader(store)
    reader.refresh()
    body = body_of(Request(b"k", b"l", sort_target=oracle.MOD))
    with pytest.raises(MemoryError):
        ranges.LongRange(reader, body, items_bytes_max=50_000).step(0, 0)
    assert ranges.LongRange(reader, body, items_bytes_max=500_000).step(0, 0)
    reader.close()
    w.close()


def test_an_index_entry_of_another_key_is_no_answer() -> None:
    store = MemStore()
    w = Writer(store)
    w.write((b"a", b"1"))
    w.write((b"b", b"2"))
    w.txn.put(KEYS, b"a", w.txn.get(KEYS, b"b") or b"")
    for r in (Request(b"a"), Request(b"a", b"\0")):
        with pytest.raises(CorruptionError):
            in_txn(w, r)
    w.close()


def test_damage_is_a_code_and_never_part_of_an_answer() -> None:
    store = MemStore()
    w = Writer(store)
    for i in range(3):
        w.write((b"k%d" % i, b"v"))
    name = (3).to_bytes(8, "big") + bytes(8)
    value = bytearray(w.txn.get(REVS, name) or b"")
    value[-1] ^= 1
    w.txn.put(REVS, name, bytes(value))
    w.commit()
    reader = ranges.RangeReader(store)
    reader.refresh()
    for r in (Request(b"k", b"l"), Request(b"k1"), Request(b"k", b"l", sort_order=2)):
        assert reader.serve(Kind.RANGE, body_of(r)) == (Code.CORRUPT, b"")
    assert reader.serve(Kind.RANGE, body_of(Request(b"k0")))[0] == Code.OK
    reader.close()
    w.close()


def test_reads_inside_a_transaction_see_its_writes() -> None:
    w = Writer(MemStore())
    w.write((b"a", b"old"))
    revindex.write(w.txn, 3, 0, b"a", b"new")
    revindex.write(w.txn, 3, 1, b"b", b"new")
    got = answer_of(*ranges.execute(w.txn, body_of(Request(b"a", b"\0")), 3))
    assert [(kv.key, kv.value, kv.mod) for kv in got.kvs] == [(b"a", b"new", 3), (b"b", b"new", 3)]
    got = answer_of(*ranges.execute(w.txn, body_of(Request(b"a", b"\0", revision=2)), 3))
    assert [(kv.key, kv.value) for kv in got.kvs] == [(b"a", b"old")]
    w.close()
