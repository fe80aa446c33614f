"""The envelope against golden bytes and against the plain twin."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvnode._core
from kvnode._core import envelope
from kvnode.base.codes import Code, Kind
from kvnode.base.errors import DecodeError
from tests.fuzz import fuzz_envelope
from tests.oracle import envelope as oracle

GROUP = {
    "flags": 1, "user": 0, "session": 7, "sequence": 1, "lowest": 1, "member": 9,
    "incarnation": 3, "slot": 5, "auth_revision": 0, "requests": [(Kind.PUT, b"\x0a\x01a")],
}  # fmt: skip
GOLDEN = bytes.fromhex(
    "01000000 01000000"
    "01010000 01000000 0b000000 00000000 0700000000000000 0100000000000000"
    "0100000000000000 0900000000000000 0300000000000000 05000000 00000000"
    "0000000000000000 0000000000000000"
    "01000000 03000000 0a0161"
)
RESULTS = [
    {"slot": 5, "incarnation": 3, "state": 0, "code": 0, "results": [(0, 1, b"\x0a\x00")]},
    {"slot": 6, "incarnation": 3, "state": 1, "code": 0, "results": [(26, 4, b""), (0, 2, b"xyz")]},
    {"slot": 7, "incarnation": 3, "state": 2, "code": 25, "count": 300},
]
GOLDEN_RESULTS = bytes.fromhex(
    "05000000 01000000 0300000000000000 0a000000 00 00 0000  00 01 0000 02000000 0a00"
    "06000000 02000000 0300000000000000 13000000 01 00 0000  1a 04 0000 00000000"
    "00 02 0000 03000000 78797a"
    "07000000 2c010000 0300000000000000 00000000 02 19 0000"
)

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
BODIES = st.binary(max_size=40)
GROUPS = st.lists(
    st.fixed_dictionaries(
        {
            "flags": st.integers(0, 1),
            "user": U32,
            "session": U64,
            "sequence": U64,
            "lowest": U64,
            "member": U64,
            "incarnation": U64,
            "slot": U32,
            "auth_revision": U64,
            "requests": st.lists(st.tuples(st.integers(0, 255), BODIES), max_size=4),
        }
    ),
    max_size=4,
)
BYTE = st.integers(0, 255)


def test_golden_batch():
    assert envelope.build_batch([GROUP]) == GOLDEN
    assert oracle.build_batch([GROUP]) == GOLDEN
    assert envelope.parse_batch(GOLDEN) == [GROUP]


def test_the_preamble_shows_the_golden_batch():
    text = Path(kvnode._core.__file__).with_name("envelope.pyx").read_text()
    example = text.split("slot 5):")[1].split("Invariants")[0]
    assert bytes.fromhex(re.sub(r"\s", "", example)) == GOLDEN


def test_golden_results():
    assert envelope.build_results(RESULTS) == GOLDEN_RESULTS
    assert oracle.build_results(RESULTS) == GOLDEN_RESULTS
    assert envelope.parse_results(GOLDEN_RESULTS) == RESULTS


@settings(max_examples=100, deadline=None, derandomize=True)
@given(GROUPS)
def test_batches_as_the_twin(groups: list[dict[str, Any]]):
    data = envelope.build_batch(groups)
    assert data == oracle.build_batch(groups)
    assert envelope.parse_batch(data) == groups == oracle.parse_batch(data)
    assert envelope.check_batch(data) == (len(groups), sum(len(g["requests"]) for g in groups))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(GROUPS, min_size=1, max_size=4))
def test_merge_is_concatenation_of_groups(parts: list[list[dict[str, Any]]]):
    merged = envelope.merge([envelope.build_batch(part) for part in parts])
    assert merged == envelope.build_batch([group for part in parts for group in part])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(GROUPS)
def test_columns_point_at_every_request(groups: list[dict[str, Any]]):
    data = envelope.build_batch(groups)
    rows, requests = envelope.columns(data)
    assert [row["session"] for row in rows] == [g["session"] for g in groups]
    assert [row["flags"] for row in rows] == [g["flags"] for g in groups]
    at = 8
    for row, group in zip(rows, groups, strict=True):
        assert row["offset"] == at
        at += row["bytes"]
        own = requests[row["first"] : row["first"] + row["count"]]
        found = [(q["kind"], data[q["offset"] : q["offset"] + q["length"]]) for q in own]
        assert found == group["requests"]
        for name in ("slot", "sequence"):
            assert row[name] == group[name]
    assert at == len(data)


def test_columns_of_nothing():
    rows, requests = envelope.columns(envelope.build_batch([]))
    assert len(rows) == len(requests) == 0


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, 2, "version"),
        (1, 1, "malformed"),
        (3, 1, "malformed"),
        (4, 0, "malformed"),
        (4, 2, "malformed"),
        (8, 0, "version"),
        (8, 2, "version"),
        (9, 2, "flags"),
        (9, 0x81, "flags"),
        (10, 1, "malformed"),
        (12, 0, "malformed"),
        (12, 2, "malformed"),
        (16, 10, "malformed"),
        (16, 12, "malformed"),
        (68, 1, "malformed"),
        (80, 1, "malformed"),
        (87, 1, "malformed"),
        (89, 1, "flags"),
        (90, 1, "malformed"),
        (92, 2, "malformed"),
        (95, 0xFF, "malformed"),
    ],
)
def test_one_wrong_byte_is_refused(at: int, value: int, text: str):
    data = bytearray(GOLDEN)
    data[at] = value
    for parse in (envelope.parse_batch, envelope.check_batch, envelope.columns):
        with pytest.raises(DecodeError, match=text):
            parse(bytes(data))
    with pytest.raises(DecodeError):
        oracle.parse_batch(bytes(data))


def test_every_truncation_is_refused():
    for size in range(len(GOLDEN)):
        with pytest.raises(DecodeError):
            envelope.parse_batch(GOLDEN[:size])
    borders = {0, 34, 77, 101}
    for size in range(len(GOLDEN_RESULTS)):
        if size in borders:
            envelope.parse_results(GOLDEN_RESULTS[:size])
            continue
        with pytest.raises(DecodeError):
            envelope.parse_results(GOLDEN_RESULTS[:size])
    for data in (GOLDEN + b"\0", GOLDEN_RESULTS + b"\0"):
        with pytest.raises(DecodeError):
            (envelope.parse_batch if data[0] == 1 else envelope.parse_results)(data)


def test_a_count_without_requests_allocates_nothing():
    """4 billion announced groups or requests in a few bytes."""
    with pytest.raises(DecodeError):
        envelope.columns(bytes.fromhex("01000000 ffffffff"))
    data = bytearray(GOLDEN)
    data[12:16] = b"\xff\xff\xff\xff"
    with pytest.raises(DecodeError):
        envelope.columns(bytes(data))


def test_merge_refuses_a_part_without_head():
    with pytest.raises(DecodeError):
        envelope.merge([GOLDEN, b"\x01\0\0"])
    with pytest.raises(TypeError):
        envelope.merge([GOLDEN, "text"])
    assert envelope.merge([GOLDEN]) is GOLDEN


def test_refused_group_needs_a_code_and_no_results():
    data = bytearray(GOLDEN_RESULTS[77:])
    data[21] = Code.OK
    with pytest.raises(DecodeError):
        envelope.parse_results(bytes(data))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), BYTE)
def test_random_bytes(data: bytes, which: int):
    fuzz_envelope.fuzz(bytes([which]) + data)


def test_fuzz():
    rng = random.Random(5)
    group = oracle.build_batch([GROUP, GROUP | {"requests": [(2, b""), (3, b"x" * 300)]}, GROUP])
    seeds = [b"\0" + GOLDEN, b"\0" + group, b"\1" + GOLDEN_RESULTS]
    for _ in range(4000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(1, len(data))
            if rng.random() < 0.7:
                data[at] = rng.choice([0, 1, 2, data[at] ^ 1 << rng.randrange(8)])
            else:
                data[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        fuzz_envelope.fuzz(bytes(data))
