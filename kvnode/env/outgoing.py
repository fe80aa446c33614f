"""Snapshots for other members: a compact copy of the map in use, as one file with its tail.

Role: `SnapshotCopy` makes one beside the loop that goes on writing; `OutgoingFile` reads one.
Callers: procs/copies (applier) makes them, procs/feeding (consensus) sends and removes them.

    state/outgoing/
      making/                            a copy under way
      <index>-<term>-<file>.snap         wire/snapfile; `file` in hex

Invariants
 1. A `.snap` file has its name only when it is whole. It need not be durable: a start removes all.
 2. The copy pins pages only while it is made, never for as long as a member reads it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

from kvnode._core.crc32c import crc32c
from kvnode._core.storetxn import TREE_META
from kvnode.base.errors import DiskError
from kvnode.base.limits import MIB
from kvnode.env.checkpoint import APPLIED
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.mapcopy import MapCopy
from kvnode.env.store import DATA, map_bytes
from kvnode.wire.snapfile import TAIL_BYTES, FileName, Tail

FOLDER = "outgoing"
MAKING = "making"
SUFFIX = ".snap"
READ_BYTES = MIB // 2
SPACE_RESERVE_BYTES = 64 * MIB


class CopyError(DiskError):
    """A snapshot could not be made; the map in use is untouched."""


def clear(root: Path) -> None:
    """At a start: nobody reads them any more."""
    shutil.rmtree(root / FOLDER, ignore_errors=True)


def path_of(root: Path, name: FileName) -> Path:
    return root / FOLDER / f"{name.index}-{name.term}-{name.file:016x}{SUFFIX}"


class SnapshotCopy:
    """One copy of `store`, made in a thread; at most `rate` bytes a second (0: no bound)."""

    def __init__(self, store: LmdbStore, root: Path, cluster: int, file: int, rate: int) -> None:
        self.root = root
        self.cluster = cluster
        self.file = file
        self.folder = root / FOLDER / MAKING
        self._store = store
        self._rate = rate
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = threading.Event()
        self._done = threading.Event()
        self._copying: MapCopy | None = None
        self._made: FileName | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="snapshot", daemon=True)

    def start(self) -> None:
        """Begins. Errors: CopyError when the disk has no room for it."""
        with self._store.begin_read() as txn:
            needed = txn.used_bytes()
        room = os.statvfs(self.root)
        free = room.f_bavail * room.f_frsize
        if free < needed + SPACE_RESERVE_BYTES:
            raise CopyError(
                f"{self.root}: a snapshot for a member that is behind needs {needed} bytes, "
                f"{free} are free: make room"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True)
        self._thread.start()

    def fileno(self) -> int:
        """Becomes readable when it ended: call poll()."""
        return self._event

    def poll(self) -> FileName | None:
        """The finished file, None while it is being made. Errors: CopyError."""
        if not self._done.is_set():
            return None
        self._thread.join()
        if self._error is not None:
            raise CopyError(f"no snapshot could be made: {self._error}")
        return self._made

    def close(self) -> None:
        """Ends a copy under way; what is finished stays. Blocking: some 20 ms."""
        self._stop.set()
        if self._copying is not None:
            self._copying.stop()
        if self._thread.is_alive():
            self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    # --- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._made = self._make()
        except Exception as error:
            self._error = error
        self._done.set()
        os.eventfd_write(self._event, 1)

    def _make(self) -> FileName:
        path = self.folder / DATA
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        out = os.open(path, flags, 0o600)
        try:
            self._copying = MapCopy(self._store, out, self._rate)
            if self._stop.is_set() or not self._copying.run():
                raise CopyError("stopped")
            # LMDB pins the copied state itself: which one it was is in the copy.
            index, term = self._applied()
            size = os.fstat(out).st_size
            tail = Tail(self._crc(out, size), index, term, self.cluster, self.file, size)
            os.pwrite(out, tail.encode(), size)
        finally:
            os.close(out)
        name = FileName(index, term, self.file, size + TAIL_BYTES)
        os.rename(path, path_of(self.root, name))
        shutil.rmtree(self.folder, ignore_errors=True)
        return name

    def _applied(self) -> tuple[int, int]:
        copy = LmdbStore(self.folder, map_bytes(0), readonly=True, create=False)
        try:
            with copy.begin_read() as txn:
                index, term = APPLIED.unpack(txn.get(TREE_META, b"applied") or bytes(APPLIED.size))
        finally:
            copy.close()
        return index, term

    def _crc(self, out: int, size: int) -> int:
        crc = at = 0
        while at < size:
            if self._stop.is_set():
                raise CopyError("stopped")
            data = os.pread(out, READ_BYTES, at)
            if not data:
                raise CopyError("the copy is cut short")
            crc = crc32c(data, crc)
            at += len(data)
        return crc


class OutgoingFile:
    """A finished file, open for reading."""

    def __init__(self, root: Path, name: FileName) -> None:
        self.name = name
        self.path = path_of(root, name)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file; those behind them are read ahead. Blocking: the page cache."""
        os.posix_fadvise(self._fd, offset + size, 4 * size, os.POSIX_FADV_WILLNEED)
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise DiskError(f"{self.path} is cut short at {offset + len(data)}")
        return data

    def remove(self) -> None:
        """Closed and deleted."""
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
