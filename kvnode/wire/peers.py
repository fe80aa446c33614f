"""Frames between the members of a cluster, on the peer port.

Role: names and layouts. Callers: env/peernet moves them, procs/ makes and reads the payloads.
Each frame is one ZeroMQ message of two parts: this header, and the payload.

    0  char[4] "KVP1"
    4  u8   version = 1
    5  u8   kind
    6  u16  zero
    8  u64  cluster id
   16  u64  sender's member id (0: it is not a member yet, and asks)
   24  u64  member id that is meant (0: whoever listens there)
   32  u64  sender's incarnation

Payloads:

    MESSAGE      a message of Raft (raft/codec)
    REFUSED      text: why the header was not taken
    ASK_CLUSTER  empty
    CLUSTER      the members (wire/members)
    CHUNK        u64 index, u64 term, u64 id and u64 size of the file (wire/snapfile), u64 offset,
                 u32 crc of the bytes, bytes; no bytes: asks what is there
    CHUNK_ACK    u64 index, u64 term, u64 id of the file, u64 bytes that are there in order,
                 u8 state (ChunkState)
    LEASE_ASK    u64 number, u64 kind of frame (wire/frames: KEEP_ALIVE and the like), its payload
    LEASE_ANSWER u64 number of the question, u64 kind of frame, its payload

Worked example, kind 4 from nobody to nobody in cluster 1: `4b565031 01 04 0000`, 1, 0, 0 and the
incarnation as little-endian u64.
"""

from __future__ import annotations

import struct
from enum import IntEnum, unique
from typing import NamedTuple

from kvnode.base.errors import DecodeError

MAGIC = b"KVP1"
VERSION = 1
_HEADER = struct.Struct("<4sBBHQQQQ")
HEADER_BYTES = _HEADER.size
_CHUNK = struct.Struct("<QQQQQI")
_ACK = struct.Struct("<QQQQB")


@unique
class PeerFrame(IntEnum):
    """Kinds of frames between members."""

    MESSAGE = 1
    REFUSED = 2
    ASK_CLUSTER = 3
    CLUSTER = 4
    CHUNK = 5
    CHUNK_ACK = 6
    LEASE_ASK = 7
    LEASE_ANSWER = 8


class ChunkState(IntEnum):
    """What became of a snapshot's bytes at their receiver."""

    WANTED = 0      # go on at `have`
    COMPLETE = 1    # all here, checked and durable
    UNWANTED = 2    # not (or no longer) asked for


class Header(NamedTuple):
    """Who says what to whom."""

    kind: int
    cluster: int
    sender: int
    target: int
    incarnation: int

    def encode(self) -> bytes:
        """The first part of a frame."""
        return _HEADER.pack(MAGIC, VERSION, self.kind, 0, *self[1:])


class Chunk(NamedTuple):
    """A piece of a snapshot's file."""

    index: int  # type: ignore[assignment]
    term: int
    file: int
    size: int
    offset: int
    crc: int
    data: bytes

    def encode(self) -> bytes:
        """The payload of a CHUNK."""
        return _CHUNK.pack(*self[:6]) + self.data


class ChunkAck(NamedTuple):
    """How much of a snapshot's file is here."""

    index: int  # type: ignore[assignment]
    term: int
    file: int
    have: int
    state: ChunkState

    def encode(self) -> bytes:
        """The payload of a CHUNK_ACK."""
        return _ACK.pack(*self)


def decode_header(data: bytes) -> Header:
    """Reads a header; DecodeError when it is none of this version."""
    if len(data) != HEADER_BYTES or data[:4] != MAGIC:
        raise DecodeError("not a frame of a kvnode member")
    _, version, kind, zero, *ids = _HEADER.unpack(data)
    if version != VERSION or zero:
        raise DecodeError(f"peer protocol version {version}, this member speaks {VERSION}")
    return Header(kind, *ids)


def decode_chunk(data: bytes) -> Chunk:
    """Reads a CHUNK's payload; its checksum is the receiver's to compare."""
    if len(data) < _CHUNK.size:
        raise DecodeError("CHUNK is cut short")
    index, term, file, size, offset, crc = _CHUNK.unpack_from(data)
    if offset + len(data) - _CHUNK.size > size:
        raise DecodeError("CHUNK goes beyond its file")
    return Chunk(index, term, file, size, offset, crc, data[_CHUNK.size :])


def decode_ack(data: bytes) -> ChunkAck:
    """Reads a CHUNK_ACK's payload."""
    if len(data) != _ACK.size:
        raise DecodeError("CHUNK_ACK has a wrong length")
    index, term, file, have, state = _ACK.unpack(data)
    try:
        return ChunkAck(index, term, file, have, ChunkState(state))
    except ValueError:
        raise DecodeError(f"CHUNK_ACK has an unknown state {state}") from None
