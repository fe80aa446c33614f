"""Framing of log records: golden bytes, the twin, the table of entries, random bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode._core import logrec
from kvnode._core.logrec import Encoder, EntryTable, Scanner, find_proof, segment_seed
from kvnode.base.errors import CorruptionError
from kvnode.wal.state import LogState, Segment, encode_head, encode_snapshot
from tests.fuzz.fuzz_logrec import fuzz
from tests.oracle import logrec as oracle

SEGMENT = Segment(3, 8, 0xABCD, "", -1, 0)
STATE = LogState(0x11, 0x22, 7, 2, 9, b"conf", 4, 5, 6, "gen")

GOLDEN = {
    "segment_head": (
        1,
        8,
        6,
        encode_head(SEGMENT, STATE, 640, 65536),
        (
            "726e837700000000b165c6136f0000004b4c01000000000008000000000000000600000000000000"
            "00000000000000000300000000000000110000000000000022000000000000000700000000000000"
            "02000000000000000900000000000000050000000000000006000000000000000400000000000000"
            "80020000000000000000010000000000cdab0000010000000400000003000000636f6e6667656e00"
        ),
    ),
    "hard_state": (
        3,
        9,
        7,
        (2).to_bytes(8, "little"),
        (
            "c2b776b200000000c448501e080000004b4c03000000000009000000000000000700000000000000"
            "00000000000000000200000000000000"
        ),
    ),
    "configuration": (
        4,
        4,
        0,
        b"conf",
        (
            "16fe1e2a00000000892e596a040000004b4c04000000000004000000000000000000000000000000"
            "0000000000000000636f6e6600000000"
        ),
    ),
    "snapshot": (
        5,
        12,
        6,
        encode_snapshot(12, b"conf", 4, "gen"),
        (
            "cbf2086c00000000ce27aa091f0000004b4c0500000000000c000000000000000600000000000000"
            "00000000000000000c0000000000000004000000000000000400000003000000636f6e6667656e00"
        ),
    ),
}
GOLDEN_ENTRY = (
    "9978a59e04030201a618bc7b050000004b4c02010000000001000000000000000500000000000000"
    "580000000000000076616c7565000000edb7efde9978a59e00000000000000004b4c060000000000"
    "000000000000000000000000000000009800000000000000"
)


def one(kind: int, index: int, term: int, data: bytes) -> tuple[bytes, bytes]:
    """(the record, the mark that take() puts behind it)."""
    encoder = Encoder()
    encoder.begin(0, 0, 0, 0)
    encoder.record(kind, index, term, data)
    raw = bytes(encoder.take())
    return raw[:-48], raw[-48:]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    kind, index, term, data, golden = GOLDEN[name]
    raw, _ = one(kind, index, term, data)
    assert raw.hex() == golden
    assert oracle.encode(oracle.Record(kind, index, term, data), 0, 0)[0] == raw


def test_golden_entry_and_mark() -> None:
    encoder, table = Encoder(), EntryTable()
    encoder.begin(segment_seed(1, 2), 0x01020304, 96, 88)
    assert encoder.entries([(1, 5, 1, b"value")], 0, table, 1, 4096, False) == 1
    raw = bytes(encoder.take())
    assert raw.hex() == GOLDEN_ENTRY
    record = oracle.Record(2, 1, 5, b"value", 1, 88)
    entry, crc = oracle.encode(record, oracle.segment_seed(1, 2), 0x01020304)
    mark, _ = oracle.encode(oracle.Record(6, 0, 0, b"", 0, 152), oracle.segment_seed(1, 2), crc)
    assert raw == entry + mark
    assert table.locate(1) == (1, 96, 5, 1)


RECORDS = st.lists(
    st.tuples(st.sampled_from([2, 4]), st.binary(max_size=40), st.integers(0, 255)), max_size=12
)


@given(RECORDS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_encoder_and_scanner_equal_the_twin(records, salt, prev) -> None:
    seed = segment_seed(9, salt)
    assert seed == oracle.segment_seed(9, salt)
    encoder, table = Encoder(), EntryTable()
    encoder.begin(seed, prev, 0, 0)
    want, crc, index = b"", prev, 0
    for kind, data, entry_type in records:
        if kind == 2:
            index += 1
            encoder.entries([(index, 3, entry_type, data)], 0, table, 9, 1 << 20, False)
            record = oracle.Record(2, index, 3, data, entry_type)
        else:
            encoder.record(kind, index, 3, data)
            record = oracle.Record(kind, index, 3, data)
        raw, crc = oracle.encode(record, seed, crc)
        want += raw
    got = bytes(encoder.take())
    assert got[:-48] == want
    found = EntryTable()
    scanner = Scanner(got, seed, prev, found, 9)
    others = []
    while kind := scanner.next():
        others.append((kind, scanner.record_data()))
    assert scanner.reason == logrec.CLOSED and scanner.offset == len(want)
    assert others == [(k, d) for k, d, _ in records if k != 2]
    assert [found.locate(i) for i in range(1, index + 1)] == [
        table.locate(i) for i in range(1, index + 1)
    ]
    read = logrec.read_entries(got, 0, seed, found, 1, index + 1, "") if index else []
    assert [(d, t) for _, _, t, d in read] == [(d, t) for k, d, t in records if k == 2]
    assert [(r.kind, r.data) for r in oracle.decode(got, seed, prev)[0]] == [
        (k, d) for k, d, _ in records
    ]


def test_bytes_of_a_former_life_are_no_records() -> None:
    """A recycled segment, or a stored value that is a copy of a record, never parses."""
    raw, mark = one(3, 1, 1, bytes(8))
    for seed in (segment_seed(1, 1), segment_seed(1, 2), segment_seed(2, 1)):
        assert Scanner(raw, seed, None, EntryTable(), 1).next() == 0
        assert find_proof(raw + mark, 0, seed) == (-1, 0, 0)
    assert find_proof(raw + mark, 0, 0) == (56, 56, 104)


def test_every_flip_of_a_record_is_seen() -> None:
    encoder, table = Encoder(), EntryTable()
    encoder.begin(7, 0, 0, 0)
    encoder.entries([(1, 1, 0, b"abcdefghijk"), (2, 1, 0, b"x")], 0, table, 1, 4096, False)
    raw = bytearray(encoder.take())
    for at in range(len(raw) - 48):
        for bit in (1, 128):
            raw[at] ^= bit
            scanner = Scanner(bytes(raw), 7, 0, EntryTable(), 1)
            assert scanner.next() == 0
            assert scanner.offset == (0 if at < 64 else 64)
            with pytest.raises(CorruptionError):
                logrec.read_entries(bytes(raw), 0, 7, table, 1, 3, "")
            raw[at] ^= bit


def test_replacement_gap_floor_and_committed() -> None:
    table = EntryTable(5, 2, 4)
    assert table.term(4) == 2 and table.last == 4 and table.term(3) is None
    for i in range(5, 305):
        assert table.add(i, 3, 1, i * 8, 1)
    assert not table.add(306, 3, 1, 0, 1)
    assert not table.add(4, 3, 1, 0, 1)
    assert table.add(100, 9, 2, 8, 1)
    assert table.last == 100 and table.term(100) == 9 and table.term(101) is None
    assert table.first_in(2) == 100 and table.first_in(3) == 101
    table.cut_below(50)
    assert table.first == 50 and table.term(49) == 3 and table.locate(49) is None
    table.restart(60, 3, 100)
    assert (table.first, table.last, table.floor) == (61, 100, 60)
    table.restart(200, 8, 200)
    assert (table.first, table.last, table.term(200)) == (201, 200, 8)

    encoder = Encoder()
    encoder.begin(0, 0, 0, 0)
    encoder.entries([(1, 1, 0, b""), (2, 1, 0, b"")], 0, EntryTable(), 1, 4096, False)
    encoder.record(logrec.HARD_STATE, 2, 1, bytes(8))
    encoder.entries([(2, 2, 0, b"")], 0, EntryTable(2), 1, 4096, False)
    scanner = Scanner(bytes(encoder.take()), 0, 0, EntryTable(), 1)
    assert scanner.next() == 0
    assert "committed" in logrec.REASONS[scanner.reason]
    assert scanner.reason not in logrec.TORN_REASONS


def test_table_moves_down_when_cut() -> None:
    table = EntryTable()
    for i in range(1, 20_000):
        assert table.add(i, i, i // 100, i * 64, i)
        if i % 7 == 0 and i > 500:
            table.cut_below(i - 400)
    for i in range(table.first, table.last + 1):
        assert table.locate(i) == (i // 100, i * 64, i, 0)


def test_random_bytes() -> None:
    rng = random.Random(4)
    for size in [*range(1, 200), *(rng.randrange(4000) for _ in range(150))]:
        fuzz(rng.randbytes(size))


def test_mutated_records() -> None:
    rng = random.Random(5)
    encoder = Encoder()
    encoder.begin(segment_seed(1, 0), 0, 0, 0)
    encoder.record(1, 1, 0, encode_head(SEGMENT, STATE, 0, 4096))
    encoder.entries([(i, 1, 0, b"z" * i) for i in range(1, 9)], 0, EntryTable(), 1, 9999, False)
    encoder.record(5, 8, 1, encode_snapshot(8, b"c", 1, "g"))
    raw = bytes(encoder.take())
    for sealed in (b"\x00", b"\xff"):
        for _ in range(400):
            out = bytearray(raw)
            for _ in range(rng.randrange(4)):
                out[rng.randrange(len(out))] = rng.randrange(256)
            fuzz(sealed + bytes(out[: rng.randrange(len(out))]))
