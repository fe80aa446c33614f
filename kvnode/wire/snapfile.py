"""The file of a snapshot: a map as LMDB wrote it, then this tail that says what it is.

Role: layout only. Callers: env/outgoing writes it, env/incoming checks it.

The map stands first, so that a received file is a map as it is, once the tail is cut off.

     0  char[8] "KVNSNAP1"
     8  u32  version = 1
    12  u32  crc32c of the map
    16  u64  applied index
    24  u64  applied term
    32  u64  cluster id
    40  u64  id of the file, random: two copies at one index have different bytes
    48  u64  bytes of the map
    56  u32  zero
    60  u32  crc32c of the 60 bytes before

Worked example, a map of 4096 zero bytes, index 5, term 2, cluster 1, file 3:
`4b564e534e415031 01000000 8941f998`, the five numbers, `00000000 1de0d549`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvnode._core.crc32c import crc32c
from kvnode.base.errors import DecodeError

MAGIC = b"KVNSNAP1"
VERSION = 1
_TAIL = struct.Struct("<8sIIQQQQQI")
TAIL_BYTES = _TAIL.size + 4


class FileName(NamedTuple):
    """Which snapshot file: `file` tells copies at one index apart; `size` is with its tail."""

    index: int  # type: ignore[assignment]
    term: int
    file: int
    size: int

    @property
    def generation(self) -> str:
        """The name that the log's snapshot record and the receiver's folder have."""
        return generation_name(self.index, self.term)


class Tail(NamedTuple):
    """What the tail says."""

    map_crc: int
    index: int  # type: ignore[assignment]
    term: int
    cluster: int
    file: int
    map_bytes: int

    def encode(self) -> bytes:
        """The tail's bytes."""
        body = _TAIL.pack(MAGIC, VERSION, *self, 0)
        return body + crc32c(body).to_bytes(4, "little")


def generation_name(index: int, term: int) -> str:
    """What the state at `index` is called, on every member the same."""
    return f"{index}-{term}"


def decode_tail(data: bytes) -> Tail:
    """Reads a tail; DecodeError if it is damaged or none."""
    if len(data) != TAIL_BYTES or data[:8] != MAGIC:
        raise DecodeError("not the tail of a snapshot file")
    if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise DecodeError("the tail of a snapshot file is damaged (CRC)")
    _, version, *fields, zero = _TAIL.unpack_from(data)
    if version != VERSION or zero:
        raise DecodeError(f"snapshot file version {version}, this program knows {VERSION}")
    return Tail(*fields)
