"""What is in force in the log besides entries, and the bodies of the records that carry it.

Segment head (record kind 1; header: index = next entry's index, term = term of the one before):

     0 u64 number             the segment's number, from 1
     8 u64 cluster_id
    16 u64 member_id
    24 u64 term               hard state in force
    32 u64 vote
    40 u64 commit
    48 u64 snapshot_index     0: none
    56 u64 snapshot_term
    64 u64 configuration_index
    72 u64 previous_end       where the records of the segment before end (0: there was none)
    80 u64 segment_bytes      size the segment was made with
    88 u32 salt               as in the file's name
    92 u32 version = 1
    96 u32 configuration_bytes
   100 u32 generation_bytes
   104 configuration, generation (UTF-8)

Snapshot (kind 5; header: index = S, term = S's term):

     0 u64 last               the log's last index after this record; above S: entries are kept
     8 u64 configuration_index
    16 u32 configuration_bytes
    20 u32 generation_bytes
    24 configuration, generation

Configuration (kind 4; header: index = the entry that made it): the bytes as given.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

from kvnode._core.logrec import segment_seed
from kvnode.base.errors import DecodeError

VERSION = 1
HEAD = struct.Struct("<11Q4I")
SNAPSHOT = struct.Struct("<2Q2I")
NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})\.wal")
SUFFIX = ".wal"


@dataclass(frozen=True, slots=True)
class LogState:
    """Term, vote, commit, configuration and snapshot in force, and whose log it is."""

    cluster_id: int
    member_id: int
    term: int = 0
    vote: int = 0
    commit: int = 0
    configuration: bytes = b""
    configuration_index: int = 0
    snapshot_index: int = 0
    snapshot_term: int = 0
    generation: str = ""


@dataclass(slots=True)
class Segment:
    """One file of the log. `head_ticket` is the writer's ticket that made its head durable."""

    number: int
    first: int
    salt: int
    path: str
    handle: int
    seed: int
    head_ticket: int | None = 0


@dataclass(frozen=True, slots=True)
class Head:
    """A decoded segment head; `next_index` and `last_term` come from the record's header."""

    number: int
    salt: int
    segment_bytes: int
    previous_end: int
    previous_crc: int
    next_index: int
    last_term: int
    state: LogState


def segment_name(number: int, first: int, salt: int) -> str:
    return f"{number:016x}-{first:016x}-{salt:08x}{SUFFIX}"


def parse_name(folder: str, name: str) -> Segment | None:
    """The segment that a file name speaks of (not opened), or None for any other file."""
    m = NAME.fullmatch(name)
    if m is None:
        return None
    number, first, salt = (int(g, 16) for g in m.groups())
    return Segment(number, first, salt, f"{folder}/{name}", -1, segment_seed(number, salt))


def encode_head(segment: Segment, state: LogState, previous_end: int, segment_bytes: int) -> bytes:
    generation = state.generation.encode()
    fixed = HEAD.pack(
        segment.number,
        state.cluster_id,
        state.member_id,
        state.term,
        state.vote,
        state.commit,
        state.snapshot_index,
        state.snapshot_term,
        state.configuration_index,
        previous_end,
        segment_bytes,
        segment.salt,
        VERSION,
        len(state.configuration),
        len(generation),
    )
    return fixed + state.configuration + generation


def decode_head(data: bytes, next_index: int, last_term: int, previous_crc: int) -> Head:
    if len(data) < HEAD.size:
        raise DecodeError("segment head is too short")
    (number, cluster, member, term, vote, commit, s_index, s_term, c_index, end, size, salt,
     version, c_len, g_len) = HEAD.unpack_from(data)  # fmt: skip
    if version != VERSION:
        raise DecodeError(
            f"segment head of version {version}, this kvnode reads {VERSION}: use the newer kvnode"
        )
    configuration, generation = _two(data[HEAD.size :], c_len, g_len)
    state = LogState(
        cluster, member, term, vote, commit, configuration, c_index, s_index, s_term, generation
    )
    return Head(number, salt, size, end, previous_crc, next_index, last_term, state)


def encode_snapshot(
    last: int, configuration: bytes, configuration_index: int, generation: str
) -> bytes:
    name = generation.encode()
    fixed = SNAPSHOT.pack(last, configuration_index, len(configuration), len(name))
    return fixed + configuration + name


def decode_snapshot(data: bytes, index: int, term: int, state: LogState) -> tuple[LogState, int]:
    """(the state after the record, the log's last index after it)."""
    if len(data) < SNAPSHOT.size:
        raise DecodeError("snapshot record is too short")
    last, c_index, c_len, g_len = SNAPSHOT.unpack_from(data)
    configuration, generation = _two(data[SNAPSHOT.size :], c_len, g_len)
    return with_snapshot(state, index, term, configuration, c_index, generation), last


def with_snapshot(
    state: LogState, index: int, term: int, configuration: bytes, c_index: int, generation: str
) -> LogState:
    """The state once a snapshot stands for all up to `index`: it is committed."""
    return replace(
        state,
        commit=max(state.commit, index),
        configuration=configuration,
        configuration_index=c_index,
        snapshot_index=index,
        snapshot_term=term,
        generation=generation,
    )


def _two(data: bytes, first_bytes: int, second_bytes: int) -> tuple[bytes, str]:
    if len(data) != first_bytes + second_bytes:
        raise DecodeError("record's parts do not fill it")
    try:
        return data[:first_bytes], data[first_bytes:].decode()
    except UnicodeDecodeError as e:
        raise DecodeError("generation is not UTF-8") from e
