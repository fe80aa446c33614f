"""Messages as bytes: golden, there and back, and mutated."""

from __future__ import annotations

import struct
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft import Configuration, Entry, Message, Snapshot
from kvnode.raft.codec import decode_message, encode_message
from kvnode.raft.types import APPEND, HEARTBEAT, MESSAGE_NAMES, SNAPSHOT
from tests.fuzz import fuzz_raft_message

ONE, TWO = MemberID(1), MemberID(2)
number = st.integers(0, (1 << 64) - 1)
entry = st.builds(Entry, number, number, st.integers(0, 1), st.binary(max_size=40))
message = st.builds(
    Message,
    type=st.sampled_from(sorted(MESSAGE_NAMES)),
    to=st.integers(1, 9),
    sender=st.integers(1, 9),
    term=number,
    index=number,
    log_term=number,
    commit=number,
    entries=st.lists(entry, max_size=4).map(tuple),
    reject=st.booleans(),
    hint=number,
    context=number,
    commit_term=number,
    snapshot=st.none()
    | st.builds(Snapshot, number, number, st.just(Configuration((ONE,), learners=(TWO,))), number),
)


def test_golden_bytes() -> None:
    beat = Message(HEARTBEAT, TWO, ONE, Term(2), commit=Index(5), context=3)
    golden = bytes.fromhex("0103000000000000") + struct.pack("<9Q", 2, 1, 2, 0, 0, 5, 0, 3, 0)
    assert encode_message(beat) == golden
    append = Message(
        APPEND, TWO, ONE, Term(2), Index(6), Term(1), Index(5),
        (Entry(Index(7), Term(2), 0, b"ab"),),
    )
    golden = (
        bytes.fromhex("0101000001000000")
        + struct.pack("<9Q", 2, 1, 2, 6, 1, 5, 0, 0, 0)
        + struct.pack("<QQII", 7, 2, 0, 2)
        + b"ab"
    )
    assert encode_message(append) == golden


@given(message)
def test_there_and_back(value: Message) -> None:
    assert decode_message(encode_message(value)) == value


def test_mutated_bytes() -> None:
    random = Random(6)
    snapshot = Snapshot(Index(9), Term(2), Configuration((ONE, TWO)), Index(3))
    seeds = [
        encode_message(Message(SNAPSHOT, TWO, ONE, Term(2), snapshot=snapshot)),
        encode_message(
            Message(
                APPEND, TWO, ONE, Term(2), Index(6), Term(1), Index(5),
                (Entry(Index(7), Term(2), 0, b"ab"), Entry(Index(8), Term(2), 1, b"")),
            )
        ),
    ]
    for _ in range(6000):
        data = bytearray(random.choice(seeds))
        for _ in range(random.randrange(1, 4)):
            data[random.randrange(len(data))] = random.choice((0, 1, 2, 255, random.randrange(256)))
        if random.random() < 0.2:
            del data[random.randrange(len(data)) :]
        fuzz_raft_message.fuzz(bytes(data))
