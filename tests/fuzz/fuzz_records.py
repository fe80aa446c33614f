"""Records and index entries under arbitrary bytes: a valid value or CorruptionError, no more.

`fuzz(data)` is the target; run with atheris where it is installed, and by tests/unit/test_records
over seeded mutations of real records.
"""

from __future__ import annotations

import random
import struct
from contextlib import suppress

from kvnode._core import ranges, records, revindex
from kvnode._core.crc32c import crc32c
from kvnode._core.memstore import MemStore
from kvnode.base.errors import CorruptionError

REVS, KEYS = 1, 2
LONG = b"k" * 600


def fuzz(data: bytes) -> None:
    """First byte: what the rest is put in place of; with a CRC made right in the upper half."""
    if not data:
        return
    what, body = data[0], data[1:]
    if what & 0x80 and len(body) > 4:
        body = struct.pack("<I", crc32c(body[4:])) + body[4:]
    with suppress(CorruptionError):
        records.decode(body, 9)
    with MemStore().begin_write() as txn:
        revindex.write(txn, 2, 0, b"a", b"x" * 70_000)
        revindex.write(txn, 3, 0, LONG, b"y")
        revindex.write(txn, 4, 0, b"a", b"z")
        target = what & 7
        if target < 3:
            txn.put(REVS, struct.pack(">QII", 2 + target, 0, 0), body)
        elif target == 3:
            txn.put(REVS, struct.pack(">QII", 2, 0, 1), body)
        elif target == 4:
            txn.put(KEYS, b"a", body)
        else:
            txn.put(KEYS, LONG[:510] + b"\0", body)
        for work in (
            lambda: revindex.get(txn, LONG),
            lambda: revindex.at(txn, b"a", 2),
            lambda: revindex.scan(txn, b"a", b"\0"),
            lambda: revindex.read(txn, 2),
            lambda: ranges.execute(txn, b"\x0a\x01a\x12\x01\x00", 4),
            lambda: ranges.execute(txn, b"\x0a\x01a\x20\x02", 4),
            lambda: ranges.execute(txn, b"\x0a\x01a\x12\x01\x00\x20\x03\x40\x01", 4),
            lambda: ranges.execute(txn, b"\x0a\x01a\x12\x01\x00\x28\x02\x30\x04", 4),
            lambda: revindex.write(txn, 5, 0, LONG + b"2", b"q"),
            lambda: revindex.write(txn, 6, 0, b"a", b"q"),
            lambda: revindex.free(txn, 4, 0, 4),
        ):
            with suppress(CorruptionError):
                work()


def run(seed: int, rounds: int) -> None:
    """Seeded mutations of what really stands there."""
    rng = random.Random(seed)
    with MemStore().begin_write() as txn:
        revindex.write(txn, 2, 0, b"a", b"x" * 70_000)
        revindex.write(txn, 3, 0, LONG, b"y", lease=3)
        revindex.write(txn, 4, 0, b"a", b"z")
        seeds = [v for _, v in txn.items(REVS)] + [v for _, v in txn.items(KEYS)]
    for _ in range(rounds):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((0, 1, 1, 2, 8))):
            at = rng.randrange(min(len(data), 64))
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        if rng.random() < 0.1:
            data += rng.randbytes(rng.randrange(100))
        fuzz(bytes([rng.choice((0, 0x80)) | rng.randrange(6)]) + bytes(data))


if __name__ == "__main__":
    import sys

    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
