"""Writes the same history into a store and into the oracle; used by the tests of the read side."""

from __future__ import annotations

import struct

from kvnode._core import revindex
from kvnode._core.crc32c import crc32c
from kvnode._core.store import Store
from kvnode._core.storetxn import WriteTxn
from tests.oracle.revindex import History

META, REVS, KEYS, HIST = range(4)
LEASES, LEASE_KEYS = 5, 6


class Writer:
    """One main revision a `write`, as the state machine gives them out."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.history = History()
        self.txn: WriteTxn = store.begin_write()
        self.attached: dict[bytes, bytes] = {}

    def write(self, *ops: tuple[bytes, bytes | None] | tuple[bytes, bytes | None, int]) -> int:
        """Puts (key, value[, lease]) and deletes (key, None) in one revision; returns it."""
        main, sub = self.history.revision + 1, 0
        for key, value, *lease in ops:
            ttl = lease[0] if lease else 0
            crc = revindex.write(self.txn, main, sub, key, value, ttl)
            version = self.history.write(main, sub, key, value, ttl)
            assert (crc is None) == (version is None)
            self.attach(key, main, sub, ttl)
            sub += crc is not None
        return self.history.revision

    def attach(self, key: bytes, main: int, sub: int, lease: int) -> None:
        """Keeps the lease trees as the state machine does; leases come into being when named."""
        entry = self.attached.pop(key, None)
        if entry is not None:
            self.txn.delete(LEASE_KEYS, entry)
        if lease:
            name = struct.pack(">q", lease)
            value = struct.pack("<B3xqq", 1, 60, 0)
            self.txn.put(LEASES, name, struct.pack("<I", crc32c(name + value)) + value)
            self.attached[key] = name + struct.pack(">QI", main, sub)
            self.txn.put(LEASE_KEYS, self.attached[key], b"")

    def compact(self, revision: int) -> None:
        self.history.compacted = revision

    def free(self, start: int, compacted: int) -> None:
        """Frees what a compaction at `compacted` allows; `start`: the compaction before."""
        todo = [
            struct.unpack(">QII", key)
            for key, _ in self.txn.items(REVS, struct.pack(">Q", start))
            if int.from_bytes(key[:8], "big") <= compacted
        ]
        for main, sub, chunk in todo:
            if chunk == 0:
                revindex.free(self.txn, main, sub, compacted)
        self.history.free(compacted)

    def commit(self, freed: int = 0) -> None:
        """Makes it visible to readers, with the heads that they look for."""
        h = self.history
        self.txn.put(META, b"rev", struct.pack("<Q", h.revision))
        self.txn.put(META, b"compact", struct.pack("<QQQQ", h.compacted, 0, 0, freed))
        self.txn.put(META, b"applied", struct.pack("<QQ", h.revision * 10, 7))
        self.txn.commit()
        self.txn = self.store.begin_write()

    def close(self) -> None:
        self.txn.abort()
