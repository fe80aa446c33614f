"""The native protocol's messages: golden bytes, round trips, and bytes of a stranger."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.base.codes import STATUS, Code, Kind
from kvnode.base.errors import DecodeError
from kvnode.proto import kvnodepb_pb2
from kvnode.wire import native
from kvnode.wire.native import Answer, Hello, HelloOk, Opcode, Request
from tests.fuzz.fuzz_native import fuzz

PUT_BODY = bytes.fromhex("0a016b120176")
ROOT = Path(__file__).resolve().parents[2]

GOLDEN = {
    "hello": (
        "4b564e31010000000000000000000000000000000000000000000000000000000801100122066b76746f6b3530"
        "01",
        native.encode_hello(Hello(1, 1, token="kvtok5", want_session=True)),
    ),
    "hello-ok": (
        "4b564e310200000000000000000000000000000000000000000000000000000008011205302e312e3018"
        "0720"
        "0828093080203880"
        "8060408080802048800150904e",
        native.encode_hello_ok(
            HelloOk(1, "0.1.0", 7, 8, 9, 4096, 1572864, 67108864, 128, 10000)
        ),
    ),
    "requests": (
        "4b564e310300000001000000000000000900000000000000010000000000000001000000060000000100000000"
        "00000001000000000000000a016b120176",
        native.encode_requests(9, 1, [Request(1, 1, 1, PUT_BODY)]),
    ),
    "answers": (
        "4b564e310400000001000000000000000000000000000000000000000000000001000000080000000000000000"
        "0000000a06080710081802",
        native.encode_answers([Answer(1, 0, 0, bytes.fromhex("0a06080710081802"))]),
    ),
    "ping": (
        "4b564e3105000000000000000000000000000000000000000000000000000000",
        native.encode_message(Opcode.PING),
    ),
    "pong": (
        "4b564e3106000000000000000000000000000000000000000000000000000000",
        native.encode_message(Opcode.PONG),
    ),
    "goodbye": (
        "4b564e3107000000000000000000000009000000000000000000000000000000",
        native.encode_message(Opcode.GOODBYE, session=9),
    ),
    "error": (
        "4b564e3108000000000000000000000000000000000000000000000000000000140000006e6f2048454c4c4f",
        native.encode_error(20, "no HELLO"),
    ),
    "credit": (
        "4b564e31090000000000000000000000000000000000000000000000000000000000000400000000",
        native.encode_credit(67108864),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    golden, encoded = GOLDEN[name]
    assert encoded.hex() == golden


@pytest.mark.parametrize("name", GOLDEN)
def test_the_specification_shows_the_golden_bytes(name: str) -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    blocks = [re.sub(r"\s", "", b) for b in re.findall(r"```hex\n(.*?)```", text, re.DOTALL)]
    assert GOLDEN[name][0] in blocks


def test_hello_is_protobuf() -> None:
    hello = Hello(1, 3, "kvnode-cli", "secret", 1 << 63, True)
    message = kvnodepb_pb2.Hello.FromString(native.encode_hello(hello)[native.HEADER_BYTES :])
    assert {f: getattr(message, f) for f in vars(hello)} == vars(hello)
    assert native.decode_hello(native.encode_message(
        Opcode.HELLO, message.SerializeToString())) == hello  # fmt: skip


def test_hello_ok_is_protobuf() -> None:
    hello = HelloOk(1, "0.1.0", 1 << 62, 2, 3, 4, 5, 6, 7, 8)
    message = kvnodepb_pb2.HelloOk.FromString(native.encode_hello_ok(hello)[32:])
    assert {f: getattr(message, f) for f in vars(hello)} == vars(hello)
    assert native.decode_hello_ok(native.encode_hello_ok(hello)) == hello


def test_unknown_hello_fields_are_skipped() -> None:
    extra = bytes.fromhex("a006017a03616263" "7d01000000" "790100000000000000")
    body = native.encode_hello(Hello(1, 1))[32:] + extra
    assert native.decode_hello(native.encode_message(Opcode.HELLO, body)) == Hello(1, 1)


def test_several_answers() -> None:
    answers = [Answer(7, 0, 1, b""), Answer(0xFFFFFFFF, 24, 0, b"detail"), Answer(1, 0, 0, b"x")]
    message = native.encode_answers(answers)
    header = native.decode_header(message)
    assert header == (Opcode.ANSWERS, 3, 0, 0)
    assert native.decode_answers(message, header.items) == answers


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.lists(
        st.builds(
            Request,
            st.integers(0, 2**32 - 1),
            st.integers(0, 255),
            st.integers(0, 2**64 - 1),
            st.binary(max_size=80),
        ),
        max_size=20,
    ),
)
def test_requests_round_trip(session: int, lowest: int, requests: list[Request]) -> None:
    message = native.encode_requests(session, lowest, requests)
    header = native.decode_header(message)
    assert header == (Opcode.REQUESTS, len(requests), session, lowest)
    assert list(native.decode_requests(message, header.items)) == requests


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 0x4C), (4, 0), (4, 10), (5, 1), (6, 1), (12, 1), (8, 2), (8, 0)]
)
def test_changed_header_is_refused(offset: int, value: int) -> None:
    message = bytearray(native.encode_answers([Answer(1, 0, 0, b"abc")]))
    message[offset] = value
    with pytest.raises(DecodeError):
        native.decode_answers(bytes(message), native.decode_header(bytes(message)).items)


@pytest.mark.parametrize("cut", range(1, 19))
def test_cut_answers_are_refused(cut: int) -> None:
    message = native.encode_answers([Answer(1, 0, 0, b"abc")])
    with pytest.raises(DecodeError):
        native.decode_answers(message[:-cut], 1)


def test_seeded_mutations() -> None:
    rng = random.Random(2382)
    seeds = [encoded for _, encoded in GOLDEN.values()]
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            match rng.randrange(3):
                case 0 if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
                case 1 if data:
                    del data[rng.randrange(len(data)) :]
                case _:
                    at = rng.randint(0, len(data))
                    data[at:at] = rng.randbytes(rng.randint(1, 8))
        fuzz(bytes(data))


def test_the_specification_lists_every_code_and_kind() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    for code in list(Code)[1:]:
        grpc, sentence = STATUS[code]
        assert f"| {code.value} | {code.name} | {grpc.name} | {sentence} |" in text
    for kind in Kind:
        # A gateway's own, by HELLO; consensus' own.
        if kind not in (Kind.SESSION_OPEN, Kind.LEASE_CHECKPOINT):
            assert f"| {kind.value} {kind.name} |" in text
