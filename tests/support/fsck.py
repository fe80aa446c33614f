"""What must hold in a store after any sequence of operations, checked from the model's history.

`check_state` re-reads every tree: records against the model, index entries against records,
history marks against records, the scrubber's own checks, and that nothing is stored that no
revision can see any more.
"""

from __future__ import annotations

import struct

from kvnode._core.store import Store
from kvnode._core.storecheck import Checker
from kvnode._core.storetxn import (
    TREE_HIST,
    TREE_KEYS,
    TREE_LEASE_KEYS,
    TREE_LEASES,
    TREE_REVS,
)
from tests.oracle.mvcc import Mvcc, Version
from tests.oracle.records import Record, decode
from tests.oracle.requests import MASK64, KeyValue

TOMBSTONE = 1


def read_records(store: Store) -> dict[tuple[int, int], Record]:
    """Every record, its chunks put together, its checksums and lengths verified."""
    parts: dict[tuple[int, int], list[tuple[bytes, bytes]]] = {}
    with store.begin_read() as txn:
        for key, value in txn.items(TREE_REVS):
            main, sub, _chunk = struct.unpack(">QII", key)
            parts.setdefault((main, sub), []).append((key, value))
    return {place: decode(entries) for place, entries in parts.items()}


def visible(versions: list[Version], compacted: int) -> list[Version]:
    """The versions of one key that a compaction at `compacted` keeps."""
    newer = [v for v in versions if v.main > compacted]
    older = [v for v in versions if v.main <= compacted]
    if older and (older[-1].kv is not None or older[-1].main == compacted):
        return [older[-1], *newer]
    return newer


def check_state(store: Store, model: Mvcc, *, freed: bool = False) -> None:
    """`freed`: freeing is complete, so nothing invisible may be left."""
    records = read_records(store)
    kept: dict[tuple[int, int], tuple[bytes, Version]] = {}
    everything: dict[tuple[int, int], tuple[bytes, Version]] = {}
    for key, versions in model.keys.items():
        everything |= {(v.main, v.sub): (key, v) for v in versions}
        kept |= {(v.main, v.sub): (key, v) for v in visible(versions, model.compacted)}
    assert kept.keys() <= records.keys(), "a visible record is gone"
    assert records.keys() <= everything.keys(), "a record that was never written"
    if freed:
        assert kept.keys() == records.keys(), "freeing left something"
    for place, record in records.items():
        key, version = everything[place]
        wanted = version.kv or KeyValue(key, mod=version.main)
        assert record.kv == wanted.encode()
        assert record.flags == (TOMBSTONE if version.kv is None else 0)
    check_index(store, records)
    check_leases(store, model)
    checker = Checker(store)
    for slice_ in (
        checker.records(b"", 1 << 40),
        checker.keys(b"", 1 << 40),
        checker.history(b"", 1 << 40),
        checker.leases(b"", 1 << 40),
        checker.attached(b"", 1 << 40),
    ):
        assert slice_.findings == [] and slice_.after is None


def check_index(store: Store, records: dict[tuple[int, int], Record]) -> None:
    with store.begin_read() as txn:
        entries = {}
        for name, value in txn.items(TREE_KEYS):
            for at in range(0, len(value), 40):
                main, _c, _v, _l, sub, flags, depth, _z = struct.unpack_from("<QQQQIBBH", value, at)
                key = record_key(records[main, sub].kv)
                assert key == name if len(name) <= 510 else key.startswith(name[:510])
                assert flags == records[main, sub].flags
                assert depth == records[main, sub].depth
                entries[key] = (main, sub)
        marks = [struct.unpack(">QQI", key)[1:] for key, _ in txn.items(TREE_HIST)]
    latest: dict[bytes, tuple[int, int]] = {}
    for place in sorted(records):
        latest[record_key(records[place].kv)] = place
    assert entries == latest, "the index doesn't name the latest records"
    deep = sorted(place for place, record in records.items() if record.depth == 0)
    assert sorted(marks) == deep, "history marks and records disagree"


def check_leases(store: Store, model: Mvcc) -> None:
    with store.begin_read() as txn:
        leases = {}
        for name, value in txn.items(TREE_LEASES):
            _crc, _version, ttl, remaining = struct.unpack("<IB3xqq", value)
            leases[struct.unpack(">q", name)[0]] = (ttl, remaining)
        attached = [struct.unpack(">qQI", key) for key, _ in txn.items(TREE_LEASE_KEYS)]
    assert leases == {i: (lease.ttl, lease.remaining) for i, lease in model.leases.items()}
    heads = [versions[-1] for versions in model.keys.values() if versions[-1].kv is not None]
    wanted = sorted((v.kv.lease & MASK64, v.main, v.sub) for v in heads if v.kv.lease)
    assert [(lease & MASK64, main, sub) for lease, main, sub in attached] == wanted


def record_key(message: bytes) -> bytes:
    """The key field, which stands first."""
    size, at, shift = 0, 1, 0
    while True:
        size |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 0x80:
            return bytes(message[at : at + size])
