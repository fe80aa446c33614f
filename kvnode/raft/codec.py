"""Bytes of a message between members, version 1.

Caller: the peers' transport, which adds what it checks itself (cluster, sender's identity) and
carries a snapshot's bytes on another path. Decoding raises DecodeError only and copies each entry's
data once; unknown versions, flags and types are refused.

```
 0 u8  version = 1        1 u8  type (`types`)      2 u8  flags: bit0 reject, bit1 snapshot
 3 u8  zero               4 u32 entries (count)
 8 u64 to                16 u64 sender             24 u64 term
32 u64 index             40 u64 log_term           48 u64 commit
56 u64 hint              64 u64 context            72 u64 commit_term
80 entries: { u64 index, u64 term, u32 type, u32 length } + data
.. with bit1: { u64 index, u64 term, u64 configuration_index, u64 length } + configuration
```
A heartbeat of term 2 from 1 to 2, commit 5, round 3: 01 03 00 00 00000000, then as u64
2, 1, 2, 0, 0, 5, 0, 3, 0.
"""

from __future__ import annotations

import struct
from typing import Final

from kvnode.base.errors import DecodeError
from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft.configuration import decode_configuration, encode_configuration
from kvnode.raft.types import (
    ENTRY_CONFIGURATION,
    MESSAGE_NAMES,
    NO_MEMBER,
    Entry,
    Message,
    Snapshot,
)

_VERSION: Final = 1
_REJECT: Final = 1
_SNAPSHOT: Final = 2
_HEAD: Final = struct.Struct("<BBBBI9Q")
_ENTRY: Final = struct.Struct("<QQII")
_SNAPSHOT_HEAD: Final = struct.Struct("<QQQQ")


def encode_message(message: Message) -> bytes:
    """Bytes of one message; see the module's table."""
    snapshot = message.snapshot
    flags = (_REJECT if message.reject else 0) | (_SNAPSHOT if snapshot is not None else 0)
    parts = [
        _HEAD.pack(
            _VERSION, message.type, flags, 0, len(message.entries),
            message.to, message.sender, message.term, message.index, message.log_term,
            message.commit, message.hint, message.context, message.commit_term,
        )
    ]
    for index, term, kind, data in message.entries:
        parts.append(_ENTRY.pack(index, term, kind, len(data)))
        parts.append(data)
    if snapshot is not None:
        configuration = encode_configuration(snapshot.configuration)
        parts.append(
            _SNAPSHOT_HEAD.pack(
                snapshot.index, snapshot.term, snapshot.configuration_index, len(configuration)
            )
        )
        parts.append(configuration)
    return b"".join(parts)


def decode_message(data: bytes | memoryview) -> Message:
    """Inverse of `encode_message`; raises DecodeError only."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise DecodeError("message: shorter than its head")
    version, kind, flags, zero, count, *numbers = _HEAD.unpack_from(view)
    if version != _VERSION or zero or flags & ~(_REJECT | _SNAPSHOT):
        raise DecodeError(f"message: unknown version {version} or flags {flags}")
    if kind not in MESSAGE_NAMES:
        raise DecodeError(f"message: unknown type {kind}")
    to, sender, term, index, log_term, commit, hint, context, commit_term = numbers
    if NO_MEMBER in (to, sender):
        raise DecodeError("message: from or to nobody")
    entries, offset = _decode_entries(view, count)
    snapshot = None
    if flags & _SNAPSHOT:
        snapshot, offset = _decode_snapshot(view, offset)
    if offset != len(view):
        raise DecodeError("message: bytes behind its end")
    return Message(
        kind, MemberID(to), MemberID(sender), Term(term), Index(index), Term(log_term),
        Index(commit), entries, bool(flags & _REJECT), Index(hint), context, Term(commit_term),
        snapshot,
    )


def _decode_entries(view: memoryview, count: int) -> tuple[tuple[Entry, ...], int]:
    offset, end = _HEAD.size, len(view)
    entries = []
    for _ in range(count):
        if end - offset < _ENTRY.size:
            raise DecodeError("message: an entry is cut off")
        index, term, kind, length = _ENTRY.unpack_from(view, offset)
        offset += _ENTRY.size
        if length > end - offset or kind > ENTRY_CONFIGURATION:
            raise DecodeError("message: an entry is cut off or of an unknown type")
        entries.append(Entry(Index(index), Term(term), kind, bytes(view[offset : offset + length])))
        offset += length
    return tuple(entries), offset


def _decode_snapshot(view: memoryview, offset: int) -> tuple[Snapshot, int]:
    if len(view) - offset < _SNAPSHOT_HEAD.size:
        raise DecodeError("message: the snapshot is cut off")
    index, term, configuration_index, length = _SNAPSHOT_HEAD.unpack_from(view, offset)
    offset += _SNAPSHOT_HEAD.size
    if length > len(view) - offset:
        raise DecodeError("message: the snapshot is cut off")
    configuration = decode_configuration(bytes(view[offset : offset + length]))
    snapshot = Snapshot(Index(index), Term(term), configuration, Index(configuration_index))
    return snapshot, offset + length
