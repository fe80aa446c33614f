"""The slow, obvious twin of _core/logrec: records by struct, replay by lists."""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct("<4IHBBIQQQ")
MAGIC = 0x4C4B
_TABLE = []
for _i in range(256):
    _c = _i
    for _ in range(8):
        _c = _c >> 1 ^ (0x82F63B78 if _c & 1 else 0)
    _TABLE.append(_c)


def crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for b in data:
        crc = _TABLE[(crc ^ b) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def segment_seed(number: int, salt: int) -> int:
    return crc32c(struct.pack("<QI", number, salt))


@dataclass
class Record:
    kind: int
    index: int
    term: int
    data: bytes
    entry_type: int = 0
    durable_offset: int = 0


def encode(record: Record, seed: int, prev_crc: int) -> tuple[bytes, int]:
    """(the record's bytes, its header_crc)."""
    body = record.data + bytes(-len(record.data) % 8)
    raw = HEADER.pack(
        0, prev_crc, crc32c(body), len(record.data), MAGIC, record.kind, record.entry_type, 0,
        record.index, record.term, record.durable_offset,
    )  # fmt: skip
    crc = crc32c(raw[4:], seed)
    return struct.pack("<I", crc) + raw[4:] + body, crc


def decode(data: bytes, seed: int, prev_crc: int) -> tuple[list[Record], int]:
    """(records up to the first that is not good or is a mark, the offset of that)."""
    out, at = [], 0
    while at + HEADER.size <= len(data):
        crc, prev, data_crc, length, magic, kind, etype, _, index, term, durable = (
            HEADER.unpack_from(data, at)
        )
        size = HEADER.size + (length + 7) // 8 * 8
        body = data[at + HEADER.size : at + size]
        good = (
            magic == MAGIC
            and crc == crc32c(data[at + 4 : at + HEADER.size], seed)
            and prev == prev_crc
            and len(body) == size - HEADER.size
            and crc32c(body) == data_crc
        )
        if not good or kind == 6:
            break
        out.append(Record(kind, index, term, body[:length], etype, durable))
        prev_crc = crc
        at += size
    return out, at


class ListLog:
    """A log's entries as a plain list: append with Raft's replacement, cut, snapshot."""

    def __init__(self) -> None:
        self.before = 0
        self.entries: list[tuple[int, int, int, bytes]] = []

    @property
    def last(self) -> int:
        return self.before + len(self.entries)

    def append(self, entries: list[tuple[int, int, int, bytes]]) -> None:
        if entries:
            del self.entries[entries[0][0] - self.before - 1 :]
            self.entries += entries

    def get(self, lo: int, hi: int) -> list[tuple[int, int, int, bytes]]:
        return self.entries[lo - self.before - 1 : hi - self.before - 1]

    def snapshot(self, index: int, keep: bool) -> None:
        self.entries = self.entries[index - self.before :] if keep else []
        self.before = index
