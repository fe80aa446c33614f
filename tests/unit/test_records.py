"""Storage records against their plain twin, damage, and the fuzz target's seeded mutations."""

from __future__ import annotations

import random
import struct

import pytest

from kvnode._core import records, revindex
from kvnode._core.memstore import MemStore
from kvnode._core.storetxn import WriteTxn
from kvnode.base.errors import CorruptionError
from tests.fuzz import fuzz_records
from tests.oracle import records as oracle

REVS = 1
SIZES = [0, 1, 127, 128, 300, 65400, 65500, 65510, 65520, 65536, 65537, 131072, 131100, 400_000]


def noise(n: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(n)


def entries(txn: WriteTxn) -> list[tuple[bytes, bytes]]:
    return list(txn.items(REVS))


def test_the_documented_example() -> None:
    with MemStore().begin_write() as txn:
        revindex.write(txn, 2, 0, b"a", b"1")
        ((key, value),) = entries(txn)
        assert key == bytes.fromhex("0000000000000002 00000000 00000000")
        assert value == bytes.fromhex(
            "dbac7711 01 00 01 00 0000000000000000 00000000 0c0000000a0161 1002 1802 2001 2a0131"
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key_size", [1, 510, 4096])
def test_bytes_are_the_twins(size: int, key_size: int) -> None:
    key, value = noise(key_size, 2), noise(size)
    with MemStore().begin_write() as txn:
        crc = revindex.write(txn, 9, 0, key, value, lease=1 << 40)
        kv = oracle.key_value(key, 9, 9, 1, value, 1 << 40)
        want, want_crc = oracle.encode(oracle.Record(9, 0, 0, 1, (0, 0), kv))
        assert entries(txn) == want
        assert crc == want_crc
        assert oracle.decode(want).kv == kv
        flags = oracle.CHUNKED if len(want) > 1 else 0
        assert revindex.read(txn, 9) == (flags, 1, 0, 0, kv)
        assert revindex.read(txn, 10) is None


def test_chunk_border_is_exact() -> None:
    """A message of exactly 64 KiB is one entry, one byte more is two."""
    front = len(oracle.key_value(b"k", 9, 9, 1, b"x" * 65000)) - 65000
    for extra, chunks in ((0, 1), (1, 2)):
        with MemStore().begin_write() as txn:
            revindex.write(txn, 9, 0, b"k", b"x" * (65536 - front + extra))
            assert len(entries(txn)) == chunks


def test_tombstone_has_key_and_mod_revision() -> None:
    with MemStore().begin_write() as txn:
        revindex.write(txn, 2, 0, b"k", b"v")
        revindex.write(txn, 3, 4, b"k", None)
        assert revindex.read(txn, 3, 4) == (1, 2, 2, 0, oracle.key_value(b"k", mod=3))


def test_free_removes_every_chunk() -> None:
    with MemStore().begin_write() as txn:
        revindex.write(txn, 2, 0, b"k", noise(300_000))
        revindex.write(txn, 3, 0, b"k", b"small")
        assert len(entries(txn)) == 6
        revindex.free(txn, 3, 0, 3)
        assert [struct.unpack(">QII", k)[0] for k, _ in entries(txn)] == [3]


def test_any_changed_byte_is_found() -> None:
    with MemStore().begin_write() as txn:
        revindex.write(txn, 2, 0, b"key", b"some value", lease=5)
        ((key, value),) = entries(txn)
        for at in range(len(value)):
            for bit in range(8):
                bad = bytearray(value)
                bad[at] ^= 1 << bit
                txn.put(REVS, key, bytes(bad))
                with pytest.raises(CorruptionError):
                    revindex.read(txn, 2)
        for n in range(len(value)):
            txn.put(REVS, key, value[:n])
            with pytest.raises(CorruptionError):
                revindex.read(txn, 2)


def test_damaged_exchanged_and_missing_chunks_are_found() -> None:
    with MemStore().begin_write() as txn:
        revindex.write(txn, 2, 0, b"k", noise(200_000, 3))
        revindex.write(txn, 3, 0, b"l", noise(200_000, 4))
        good = dict(entries(txn))
        first, other = (struct.pack(">QII", main, 0, 1) for main in (2, 3))
        last = struct.pack(">QII", 2, 0, 3)
        for name, bad in (
            (first, good[other]),  # another record's chunk, whole in itself
            (first, good[first][:-1] + b"\0"),
            (first, good[first][:-1]),
            (last, good[last] + b"\0"),
            (last, None),
        ):
            if bad is None:
                txn.delete(REVS, name)
            else:
                txn.put(REVS, name, bad)
            with pytest.raises(CorruptionError):
                revindex.read(txn, 2)
            txn.put(REVS, name, good[name])
        assert revindex.read(txn, 2) is not None


def with_crc(body: bytes) -> bytes:
    from kvnode._core.crc32c import crc32c

    return struct.pack("<I", crc32c(body)) + body


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"flags": 4},
        {"flags": 2},  # chunked, yet short
        {"depth": 64},
        {"zero": 1},
        {"prev": (9, 0)},  # its own revision: a walk would not end
        {"prev": (10, 0)},
        {"size": 7},
    ],
)
def test_right_crc_wrong_shape_is_corrupt(change: dict) -> None:
    kv = oracle.key_value(b"k", 9, 9, 1, b"v")
    fields = {"version": 1, "flags": 0, "depth": 1, "zero": 0, "prev": (0, 0), "size": len(kv)}
    for change_now, fails in (({}, False), (change, True)):
        f = {**fields, **change_now}
        body = struct.pack(
            "<BBBBQII", f["version"], f["flags"], f["depth"], f["zero"], *f["prev"], f["size"]
        )
        if fails:
            with pytest.raises(CorruptionError):
                records.decode(with_crc(body + kv), 9)
        else:
            assert records.decode(with_crc(body + kv), 9) == (0, 1, 0, 0, len(kv), kv)


def test_fuzz_target_over_seeded_mutations() -> None:
    fuzz_records.run(seed=20, rounds=3000)
