"""Frames between the processes of one node.

Role: names and layouts of what gateway, consensus and applier say to each other over `env/link`.
Callers: procs/. The link keeps a frame's border and kind; here is what the payloads hold.

Payloads:

    HELLO         u8 role, u8[3] zero, u32 pid, u64 incarnation, u64 applied index, u64 applied term
    PROPOSE       a batch (`_core/envelope`)
    READ_BARRIER  u64 id
    BARRIER_OK    u64 id, u64 index
    ENTRIES       entries, each u64 index, u64 term, u32 type, u32 length, data
    BORDER        u64 index, u64 term: everything up to index is committed and durable here
    COMMITTED     BORDER, then ENTRIES, the last of which is the border's
    LONE          ENTRIES of one entry, while it is written: the BORDER of just that entry is next
    RESULTS       result groups (`_core/envelope`)
    HEAD          u64 applied index, u64 revision, u64 compact revision, u64 generation
    APPLIED       u64 applied index, u64 used bytes, u64 checkpointed index, u64 state hash,
                  u64 flags (bit 0: this member's NOSPACE alarm stands)
    DEFRAG        u64 id            gateway to applier
    DEFRAGGED     u64 id, u32 code, text
    FETCH         u64 first index, u64 last index: applier to consensus, for a new generation
    FETCHED       entries from the first on, as many as fit one frame
    REFUSED       u64 code, then the batch that was not proposed
    LEASES        applier to consensus, before the results: u64 applied index, u64 leases there
                  (only in the first of a link), rows of what was done to leases (`_core/leases`)
    KEEP_ALIVE    u64 token, then u64 ids: gateway to consensus; so are the next two questions
    KEPT          u64 token, u64 index, then the granted TTL of each, i64; 0: gone, or about to go
    LEASE_TIMES   u64 token, then u64 ids
    LEASE_TIMES_OK  u64 token, u64 index, then i64 remaining and i64 granted of each; -1, 0: gone
    LEASE_IDS     u64 token
    LEASE_IDS_OK  u64 token, u64 index, then u64 ids, the first to end first. The index of all
                  three: what was applied when it was answered holds at least that
    LEADER        u64 member id (0: none known), u64 term: consensus to gateways, first behind its
                  HELLO, then at each change: what is open is proposed again
    SNAPSHOT_MAKE  u64 id of the file: consensus to applier, a copy for a member that is behind
    SNAPSHOT_MADE  u64 id of the file, u64 index (0: none was made), u64 term, u64 size, text: why
    INSTALL       u64 index, u64 term: consensus to applier, the log begins behind this received
                  snapshot
    INSTALLED     u64 index, u64 term: it is the map in use; to consensus, and to gateways, which
                  propose again what is open

Absent on purpose: object serialization of any kind. Every payload is fixed integers and bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, unique
from typing import NamedTuple

from kvnode.base.errors import DecodeError


@unique
class Frame(IntEnum):
    """Kinds of frames."""

    HELLO = 1
    PROPOSE = 2
    READ_BARRIER = 3
    BARRIER_OK = 4
    ENTRIES = 5
    BORDER = 6
    RESULTS = 7
    HEAD = 8
    APPLIED = 9
    DEFRAG = 10
    DEFRAGGED = 11
    REFUSED = 13
    FETCH = 14
    FETCHED = 15
    COMMITTED = 16
    LEASES = 17
    KEEP_ALIVE = 18
    KEPT = 19
    LEASE_TIMES = 20
    LEASE_TIMES_OK = 21
    LEASE_IDS = 22
    LEASE_IDS_OK = 23
    LEADER = 24
    SNAPSHOT_MAKE = 25
    SNAPSHOT_MADE = 26
    INSTALL = 27
    INSTALLED = 28
    LONE = 29


class Role(IntEnum):
    """Who is at the other end."""

    GATEWAY = 1
    CONSENSUS = 2
    APPLIER = 3


PAIR = struct.Struct("<QQ")
QUAD = struct.Struct("<QQQQ")
FIVE = struct.Struct("<QQQQQ")
NOSPACE_STANDS = 1
ONE = struct.Struct("<Q")
ENTRY = struct.Struct("<QQII")
_HELLO = struct.Struct("<B3xIQQQ")


class Hello(NamedTuple):
    """The first frame in both directions."""

    role: Role
    pid: int
    incarnation: int
    applied_index: int = 0
    applied_term: int = 0

    def encode(self) -> bytes:
        """The payload of a HELLO frame."""
        return _HELLO.pack(
            self.role, self.pid, self.incarnation, self.applied_index, self.applied_term
        )


def decode_hello(payload: bytes) -> Hello:
    """Reads a HELLO payload; DecodeError if it is not one."""
    if len(payload) != _HELLO.size:
        raise DecodeError("HELLO has a wrong length")
    role, pid, incarnation, index, term = _HELLO.unpack(payload)
    return Hello(Role(role), pid, incarnation, index, term)


def encode_entries(entries: Sequence[tuple[int, int, int, bytes]]) -> list[bytes]:
    """(index, term, type, data) of each entry, as buffers to be sent one after another."""
    parts: list[bytes] = []
    for index, term, kind, data in entries:
        parts.append(ENTRY.pack(index, term, kind, len(data)))
        parts.append(data)
    return parts


def split_entries(payload: bytes, at: int = 0) -> list[tuple[int, int, memoryview]]:
    """(index, term, the entry as it stands with its head) of each entry from offset `at` on."""
    out = []
    view = memoryview(payload)
    end = len(payload)
    while at < end:
        if end - at < ENTRY.size:
            raise DecodeError("ENTRIES ends inside an entry's head")
        index, term, _, size = ENTRY.unpack_from(view, at)
        stop = at + ENTRY.size + size
        if stop > end:
            raise DecodeError("ENTRIES ends inside an entry's data")
        out.append((index, term, view[at:stop]))
        at = stop
    return out
