"""Storage records as plain Python: the slow twin of _core/records.pyx."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvnode._core.crc32c import crc32c

CHUNK = 65536
TOMBSTONE, CHUNKED = 1, 2


def varint(n: int) -> bytes:
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out) + bytes([n])


def key_value(
    key: bytes, create: int = 0, mod: int = 0, version: int = 0, value: bytes = b"", lease: int = 0
) -> bytes:
    """The KeyValue message as Go marshals it: field order, zero fields left out."""
    out = b"\x0a" + varint(len(key)) + key
    for tag, number in ((b"\x10", create), (b"\x18", mod), (b"\x20", version)):
        if number:
            out += tag + varint(number)
    if value:
        out += b"\x2a" + varint(len(value)) + value
    if lease:
        out += b"\x30" + varint(lease)
    return out


@dataclass(frozen=True)
class Record:
    main: int
    sub: int
    flags: int
    depth: int
    prev: tuple[int, int]
    kv: bytes


def encode(r: Record) -> tuple[list[tuple[bytes, bytes]], int]:
    """The entries of TREE_REVS, and the crc over all of them."""
    parts = [r.kv[i : i + CHUNK] for i in range(0, len(r.kv), CHUNK)]
    flags = r.flags | (CHUNKED if len(parts) > 1 else 0)
    head = struct.pack("<BBBBQII", 1, flags, r.depth, 0, *r.prev, len(r.kv))
    crc = crc32c(head + parts[0])
    out = [(struct.pack(">QII", r.main, r.sub, 0), struct.pack("<I", crc) + head + parts[0])]
    for number, part in enumerate(parts[1:], 1):
        crc = crc32c(part, crc)
        key = struct.pack(">QII", r.main, r.sub, number)
        out.append((key, struct.pack("<I", crc) + part))
    return out, crc


def decode(entries: list[tuple[bytes, bytes]]) -> Record:
    """The inverse of encode; ValueError for anything that encode would not have written."""
    (key, value), *rest = entries
    main, sub, _ = struct.unpack(">QII", key)
    flags, depth, prev_main, prev_sub = struct.unpack_from("<5xBBxQI", value)
    kv = value[24:] + b"".join(v[4:] for _, v in rest)
    record = Record(main, sub, flags & ~CHUNKED, depth, (prev_main, prev_sub), kv)
    if encode(record)[0] != entries:
        raise ValueError("not a record")
    return record
