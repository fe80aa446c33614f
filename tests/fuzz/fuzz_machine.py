"""Any bytes as an entry of the log, or as a request's body: the state machine takes them alike.

Two machines over two stores, one answering and one not, get the same entries; whatever the bytes
are, both must end with the same hash, and a fault is a refusal, never an exception. The first byte
chooses what the rest is. Run by tests/unit with seeded mutations, or under atheris:
`python -m tests.fuzz.fuzz_machine CORPUS`.
"""

from __future__ import annotations

import struct
import sys

from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode.base.codes import Code, Kind
from tests.oracle.requests import Group, Poison, Put, PutBatch, SessionOpen, decode_results
from tests.support.statemachine import encode_entry

END = 0xE0D
KINDS = [*Kind, 0, 99, 255]
STORED = (Code.OK, Code.NO_SPACE, Code.CORRUPT)  # the entry may have raised an alarm
OPENING = [
    Group([SessionOpen(7)], client=True),
    Group([PutBatch(tuple(Put(bytes([c]), b"v") for c in b"abcxyz"))]),
]


def entries_of(data: bytes) -> bytes:
    opening = encode_entry(1, 1, OPENING)
    if data[0] & 1:
        whole = struct.pack("<QQII", 2, 1, 0, len(data) - 1) + data[1:]
    else:
        kind = KINDS[data[0] >> 1 & 0x1F if data[0] >> 1 < len(KINDS) else 0]
        poison = Group([Poison(int(kind), data[1:]), Put(b"after")], 7, 1, client=True)
        whole = encode_entry(2, 1, [poison, poison])
    return opening + whole + encode_entry(3, 1, [Group([Put(b"end")], incarnation=END)])


def fuzz(data: bytes) -> None:
    if not data:
        return
    entries = entries_of(data)
    first, second = Machine(MemStore(), 1, 1), Machine(MemStore(), 2, 1)
    results = first.apply(entries)
    second.apply(entries, answer=False)
    assert first.state_hash == second.state_hash
    assert first.revision == second.revision
    answers = {incarnation: decode_results(data) for incarnation, data in results}
    assert answers[END][-1].results[0][0] in STORED
    if not data[0] & 1:
        executed, repeated = answers[1][-2:]
        assert (executed.state, repeated.state) == (0, 1)
        assert executed.results[1][0] in STORED
        assert repeated.results[0][0] in (executed.results[0][0], Code.APPLIED)


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
