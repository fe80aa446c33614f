"""Checkpoints: what makes a map that is never synced on commit recoverable.

Role: at a commit border T the writer pins T (LMDB then reuses no page that T reaches), keeps T's
meta page, and a thread syncs the map while commits go on; then the page is written beside the
map, durably, and only then the previous pin is dropped. A start overwrites both meta slots with
the saved page and is exactly at T (env.store).
Caller: the applier's loop, in the thread that writes. Inputs: an LmdbStore, commits. Outputs: the
file `checkpoint` in the generation's folder, `index` (the log is cut only below it).

Invariants
 1. From open to close there is a pin at the saved T, or at an older saved one: between two
    checkpoints there are two pins.
 2. The file names T only after every page that T reaches is durable.
 3. One checkpoint runs at a time. A failed one is fatal: the store is latched, poll() raises. Only
    a full disk where the file would go is not: the old checkpoint and its pin stay, it is tried
    again (`no_room`).
 4. What is dirty and not covered by a running checkpoint stays below about one budget
    (must_wait()), so the map's growth is bounded by the disk's speed, not by the load.

Absent on purpose: reading of records. `applied` is what TREE_META holds in the pinned snapshot.

File `checkpoint`, little-endian, version 1 (P = the map's page size):

    0  8 bytes  "KVNCKPT1"
    8  u32      version = 1
    12 u32      P
    16 u64      T, LMDB's transaction number
    24 u64      applied index at T
    32 u64      applied term at T
    40 u64      zero
    48 P bytes  the meta page that T wrote, verbatim
    48+P u32    crc32c of all before

Example, first 48 bytes, P = 4096, T = 7, applied 300 in term 2:

    4b564e434b505431 01000000 00100000 0700000000000000
    2c01000000000000 0200000000000000 0000000000000000
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from kvnode._core.crc32c import crc32c
from kvnode._core.storetxn import TREE_META
from kvnode.base.errors import CorruptionError, DiskError
from kvnode.base.limits import CHECKPOINT_DIRTY_BYTES, CHECKPOINT_SECONDS, MIB
from kvnode.env.lmdbstore import LmdbStore, Pin

FILE = "checkpoint"
MAGIC = b"KVNCKPT1"
VERSION = 1
HEAD = struct.Struct("<8sIIQQQQ")
APPLIED = struct.Struct("<QQ")
# Small pieces: the log's fsync waits behind what is being written. Against 8 MiB, p99 of puts at
# 1,000/s went from 2.6-3.3 to 1.1-1.8 ms.
KICK_BYTES = MIB // 4
RELEASE_BYTES = 32 * MIB

# LMDB 0.9's meta page: a page head (number, pad, flags ...) and the meta record behind it.
PAGE_NUMBER = struct.Struct("<Q")
META_MAGIC = struct.Struct("<II")
META_MAGIC_OFFSET = 16
META_LAST_PAGE_OFFSET = 136
META_TXN_OFFSET = 144
LMDB_MAGIC = 0xBEEFC0DE


@dataclass(frozen=True)
class Checkpoint:
    """A durable state of the map: `page` is the meta page of transaction `txn`."""

    txn: int
    index: int
    term: int
    page: bytes

    def encode(self) -> bytes:
        head = HEAD.pack(MAGIC, VERSION, len(self.page), self.txn, self.index, self.term, 0)
        body = head + self.page
        return body + crc32c(body).to_bytes(4, "little")

    @staticmethod
    def decode(data: bytes, path: str = "") -> Checkpoint:
        """Raises CorruptionError for anything but a whole file of this version."""
        if len(data) < HEAD.size + 4:
            raise CorruptionError("checkpoint file is too short", path, len(data))
        magic, version, page_bytes, txn, index, term, zero = HEAD.unpack_from(data)
        if magic != MAGIC:
            raise CorruptionError("not a checkpoint file", path)
        if version != VERSION:
            raise CorruptionError(
                f"checkpoint version {version} is newer than this program knows ({VERSION}): "
                "start the newer kvnode",
                path,
                8,
            )
        if zero or len(data) != HEAD.size + page_bytes + 4:
            raise CorruptionError("checkpoint file has the wrong length or head", path, len(data))
        if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise CorruptionError("checkpoint file is damaged (CRC)", path)
        found = Checkpoint(txn, index, term, data[HEAD.size : -4])
        found.check(path)
        return found

    def check(self, path: str = "") -> None:
        """The page is LMDB's meta page of transaction `txn`."""
        magic, version = META_MAGIC.unpack_from(self.page, META_MAGIC_OFFSET)
        (txn,) = PAGE_NUMBER.unpack_from(self.page, META_TXN_OFFSET)
        if (magic, version) != (LMDB_MAGIC, 1) or txn != self.txn:
            raise CorruptionError("checkpoint holds no meta page of its transaction", path)

    @property
    def map_bytes_min(self) -> int:
        """How long the data file must be."""
        (last,) = PAGE_NUMBER.unpack_from(self.page, META_LAST_PAGE_OFFSET)
        return (last + 1) * len(self.page)

    def page_for_slot(self, slot: int) -> bytes:
        """The page with the page number of meta slot 0 or 1."""
        return PAGE_NUMBER.pack(slot) + self.page[PAGE_NUMBER.size :]


def fsync_dir(path: Path) -> None:
    """Durability: names in the folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class NoRoomError(DiskError):
    """The disk is full; the file is what it was before."""


def write_durably(path: Path, data: bytes) -> None:
    """Replaces a file whole: a reader after a crash sees the old bytes or the new ones.

    Raises NoRoomError while nothing is changed yet; any other error is not to be retried.
    """
    tmp = path.with_name(path.name + ".tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(tmp, flags, 0o600)
        try:
            written = 0
            while written < len(data):
                written += os.write(fd, data[written:])
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(tmp, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoomError(f"{tmp}: {error.strerror}: make room on this disk") from None
        raise
    fsync_dir(path.parent)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint; None when there is no file."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return Checkpoint.decode(data, str(path))


def take(store: LmdbStore, pin: Pin) -> Checkpoint:
    """The pinned state as a checkpoint. Call right after pin(), in the writer's thread."""
    index, term = APPLIED.unpack(pin.get(TREE_META, b"applied") or bytes(APPLIED.size))
    found = Checkpoint(pin.txn_id, index, term, store.meta_page(pin.txn_id))
    found.check(store.path)
    return found


class Checkpointer:
    """Takes checkpoints of one open store. All methods belong to the writer's thread.

    `pin` and `saved`: the pin at the durable checkpoint that the store was opened at.
    `seconds`, `dirty_bytes`: one begins at the first commit after either is reached.
    `sync`, `hold`: False only in tests that must be seen to fail: a checkpoint whose map is not
    synced, an interval without its pin.
    """

    def __init__(
        self,
        store: LmdbStore,
        folder: Path,
        pin: Pin,
        saved: Checkpoint,
        seconds: float = CHECKPOINT_SECONDS,
        dirty_bytes: int = CHECKPOINT_DIRTY_BYTES,
        sync: bool = True,
        hold: bool = True,
    ) -> None:
        self.store = store
        self.folder = folder
        self.saved = saved
        self.seconds = seconds
        self.dirty_bytes = dirty_bytes
        self.taken = 0
        self.no_room = False
        self.last_seconds = 0.0
        self._sync = sync
        self._hold = hold
        self._pins = [pin]
        self._running: Checkpoint | None = None
        self._outcome: Exception | None = None
        self._dirty_at_begin = self._dirty_at_kick = store.dirtied_bytes
        self._dirty_at_release = store.dirtied_bytes
        self._began = time.monotonic()
        self._dirty = False
        self._kicked = False
        self._done = threading.Event()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._jobs: SimpleQueue[Checkpoint | bool | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()
        if not hold:
            pin.close()

    @property
    def index(self) -> int:
        """Applied index of the last durable checkpoint."""
        return self.saved.index

    @property
    def running(self) -> bool:
        return self._running is not None

    def fileno(self) -> int:
        """Becomes readable when a checkpoint ended: call poll()."""
        return self._event

    def committed(self, index: int = 0, size: int = 0) -> None:
        """After each commit: begins a checkpoint when one is due, write-back before that."""
        del index, size
        self._dirty = True
        if self._running is not None:
            return
        dirtied = self.store.dirtied_bytes
        if self.due():
            self.begin()
        elif dirtied - self._dirty_at_kick >= KICK_BYTES and not self._kicked:
            self._dirty_at_kick = dirtied
            self._kicked = True
            self._jobs.put(True)

    def due(self) -> bool:
        """Whether a checkpoint should begin now."""
        if self._running is not None or not self._dirty:
            return False
        if time.monotonic() - self._began >= self.seconds:
            return True
        return self.store.dirtied_bytes - self._dirty_at_begin >= self.dirty_bytes

    def must_wait(self) -> bool:
        """Dirtying outran the disk: apply nothing more until the running checkpoint ended."""
        if self._running is None:
            return False
        return self.store.dirtied_bytes - self._dirty_at_begin >= self.dirty_bytes

    def begin(self) -> None:
        """Starts a checkpoint of the last committed state; not while one is running."""
        assert self._running is None, "a checkpoint is running"
        pin = self.store.pin()
        self._running = take(self.store, pin)
        if self._hold:
            self._pins.append(pin)
        else:
            pin.close()
        self._began = time.monotonic()
        self._dirty_at_begin = self._dirty_at_kick = self.store.dirtied_bytes
        self._dirty = False
        self._done.clear()
        self._jobs.put(self._running)

    def poll(self) -> bool:
        """Takes in an ended checkpoint (True), or begins one that is due.

        Raises DiskError when a checkpoint failed: nothing may be applied any more.
        """
        if self._running is None:
            if self.due():
                self.begin()
            return False
        if not self._done.is_set():
            return False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        if isinstance(self._outcome, NoRoomError):
            self._give_up()
            return False
        if self._outcome is not None:
            raise DiskError(f"checkpoint of {self.folder} failed: {self._outcome}")
        self.no_room = False
        self.saved, self._running = self._running, None
        self.taken += 1
        self.last_seconds = time.monotonic() - self._began
        while len(self._pins) > 1:
            self._pins.pop(0).close()
        if not self._dirty:
            self._burst_over()
        return True

    def _burst_over(self) -> None:
        """Nothing came since the checkpoint began: what a large load has mapped is let go."""
        dirtied = self.store.dirtied_bytes
        if dirtied - self._dirty_at_release >= RELEASE_BYTES:
            self._dirty_at_release = dirtied
            self._jobs.put(False)

    def _give_up(self) -> None:
        """The disk had no room for the file: all is as before this checkpoint."""
        self._outcome = self._running = None
        self._dirty = self.no_room = True
        while len(self._pins) > 1:
            self._pins.pop().close()

    def let_go(self) -> None:
        """Between bursts: the pages that reading has mapped are let go, in the thread."""
        if self._running is None and not self._dirty:
            self._jobs.put(False)

    def wait(self) -> None:
        """Blocking: until no checkpoint is running."""
        while self._running is not None:
            self._done.wait()
            self.poll()

    def checkpoint_now(self) -> Checkpoint:
        """Blocking: a checkpoint of the last committed state."""
        self.wait()
        if self.store.info()["last_txn"] != self.saved.txn:
            self.begin()
            self.wait()
            if self.no_room:
                raise NoRoomError(f"{self.folder}: the disk is full, no checkpoint was taken")
        return self.saved

    def close(self) -> None:
        """Ends the thread (after what it is doing) and drops the pins; does not close the store."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        for pin in self._pins:
            pin.close()
        self._pins.clear()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    # --- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, bool):
                if job:
                    self._kicked = False
                    self.store.start_writeback()
                else:
                    self.store.release()
                continue
            try:
                self._persist(job)
            except Exception as error:
                self._outcome = error
                if not isinstance(error, NoRoomError):
                    self.store.latch(f"checkpoint failed: {error}")
            self._done.set()
            os.eventfd_write(self._event, 1)

    def _persist(self, job: Checkpoint) -> None:
        if self._sync:
            self.store.sync()
        write_durably(self.folder / FILE, job.encode())
