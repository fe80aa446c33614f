"""The revision index as a dict of lists: the slow twin of _core/revindex.pyx.

`History` also is the multi-version store that tests/oracle/ranges.py answers from.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

STRIDE = 64


@dataclass(frozen=True)
class Version:
    """One version of a key; value None is a tombstone."""

    main: int
    sub: int
    value: bytes | None
    create: int
    version: int
    lease: int
    depth: int
    prev: tuple[int, int]

    @property
    def entry(self) -> tuple[int, int, int, int, int, bool, int]:
        """As revindex.get gives it."""
        return (
            self.main,
            self.sub,
            self.create,
            self.version,
            self.lease,
            self.value is None,
            self.depth,
        )


@dataclass
class History:
    """Every version of every key, oldest first; `freed`: keys whose last tombstone was freed."""

    keys: dict[bytes, list[Version]] = field(default_factory=dict)
    freed: set[bytes] = field(default_factory=set)
    revision: int = 1
    compacted: int = 0

    def write(
        self, main: int, sub: int, key: bytes, value: bytes | None, lease: int = 0
    ) -> Version | None:
        """Puts or deletes (None); a delete of nothing is None."""
        versions = self.keys.setdefault(key, [])
        old = versions[-1] if versions and key not in self.freed else None
        live = old is not None and old.value is not None
        if value is None and not live:
            if not versions:
                del self.keys[key]
            return None
        new = Version(
            main,
            sub,
            value,
            create=0 if value is None else old.create if live and old else main,
            version=0 if value is None else old.version + 1 if live and old else 1,
            lease=0 if value is None else lease,
            depth=(old.depth + 1) % STRIDE if old else 1,
            prev=(old.main, old.sub) if old else (0, 0),
        )
        versions.append(new)
        self.freed.discard(key)
        self.revision = main
        return new

    def free(self, compacted: int) -> None:
        """What freeing up to `compacted` does that can be told from outside."""
        for key, versions in self.keys.items():
            if versions[-1].value is None and versions[-1].main < compacted:
                self.freed.add(key)

    def at(self, key: bytes, revision: int) -> Version | None:
        """The live version visible at `revision`."""
        seen = [v for v in self.keys.get(key, []) if v.main <= revision]
        return seen[-1] if seen and seen[-1].value is not None else None

    def scan(self, start: bytes, end: bytes) -> list[bytes]:
        """Keys of the range in byte order, deleted ones included."""
        if not end:
            return [start] if start in self.keys else []
        return sorted(k for k in self.keys if k >= start and (end == b"\0" or k < end))


def meta(v: Version) -> bytes:
    """The 40 bytes in TREE_KEYS."""
    flags = 1 if v.value is None else 0
    return struct.pack("<QQQQIBBH", v.main, v.create, v.version, v.lease, v.sub, flags, v.depth, 0)


def tree_keys(history: History) -> dict[bytes, bytes]:
    """What TREE_KEYS holds for the history: short keys as themselves, long ones in buckets."""
    out: dict[bytes, bytes] = {}
    for key in sorted(set(history.keys) - history.freed):
        name = key if len(key) <= 510 else key[:510] + b"\0"
        out[name] = out.get(name, b"") + meta(history.keys[key][-1])
    return out


def hash64(key: bytes) -> int:
    mask = (1 << 64) - 1
    h = 0xCBF29CE484222325
    for c in key:
        h = (h ^ c) * 0x100000001B3 & mask
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & mask
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & mask
    return h ^ h >> 33
