"""HashKV over a whole history in plain Python: the slow twin of `_core/hashkv`.

It knows every record that was ever written, so it depends on no index and on no freeing.
"""

from __future__ import annotations

from typing import NamedTuple


class Written(NamedTuple):
    """One record: a KeyValue message, or for a delete the key alone."""

    main: int
    sub: int
    key: bytes
    tombstone: bool
    message: bytes


_TABLE = []
for _byte in range(256):
    _value = _byte
    for _ in range(8):
        _value = _value >> 1 ^ (0x82F63B78 if _value & 1 else 0)
    _TABLE.append(_value)


def crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def living(history: list[Written], at: int) -> set[tuple[int, int]]:
    """Places of what each key has at revision `at`."""
    last = {w.key: w for w in history if w.main <= at}
    return {(w.main, w.sub) for w in last.values() if not w.tombstone}


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def hash_kv(history: list[Written], revision: int, compacted: int) -> int:
    """The CRC at `revision` of a store that was last compacted at `compacted` (-1: never)."""
    keep = living(history, revision) or living(history, compacted)
    crc = crc32c(b"key")
    for w in history:
        if w.main > revision:
            continue
        if w.main <= compacted and (w.tombstone or (w.main, w.sub) not in keep):
            continue
        place = w.main.to_bytes(8, "big") + b"_" + w.sub.to_bytes(8, "big")
        message = b"\x0a" + varint(len(w.key)) + w.key if w.tombstone else w.message
        crc = crc32c(place + b"t" * w.tombstone + message, crc)
    return crc
