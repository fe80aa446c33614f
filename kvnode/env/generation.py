"""Generations: a new map built beside the one in use, then switched to.

Role: defragmentation, an installed snapshot and a restore are one operation: build, make durable
with a checkpoint of its own, let the log catch up, rename CURRENT, delete the old folder.
Caller: the applier's loop, in the thread that writes. Inputs: the Opened in use. Outputs: the same
Opened, moved to the new generation.

    builder = GenerationBuilder(opened)         # next free number; nothing is written yet
    builder.copy()                              # or builder.create() and fill builder.store
    ... until builder.poll(): go on writing to opened.store
    apply the log from builder.index + 1 to builder.store (builder.checkpointer.committed() after
    each commit), until it is where opened.store is
    retired = builder.switch()                  # opened.store is the new map now; tell gateways
    ... until retired.poll(): the old map's last reader has closed

`install` makes a received snapshot (env/incoming) a generation and switches to it at once.

Keep the log from min(opened.checkpointer.index, builder.keep_from) while a builder lives (after a
crash behind the switch the new map opens at its checkpoint, not where it was applied to); abandon()
it before the writer stops.

Invariants
 1. Until switch() no start uses the new folder; an interrupted build is removed by the next start.
 2. CURRENT is renamed only when the new folder has a durable checkpoint, and the new map has
    been applied at least as far as the old one.
 3. The copy reads one snapshot that LMDB opens when the copy starts; its applied index is in it.
 4. The old folder is deleted only when nobody holds its use.lock.

The copy is written by threads that need no GIL, at a bounded rate, and written back in pieces
(env/mapcopy): a sync of a whole new map at once would stall the log's fsync behind it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kvnode.base.errors import CorruptionError, DiskError
from kvnode.base.failpoint import hit
from kvnode.base.limits import MIB
from kvnode.env.checkpoint import Checkpointer, fsync_dir, read_checkpoint, take
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.mapcopy import MapCopy
from kvnode.env.store import (
    CHECKPOINT_FILE,
    DATA,
    INCOMING,
    RECEIVED,
    USE_LOCK,
    FileLock,
    InUseError,
    Opened,
    create_generation,
    folder_of,
    generations,
    open_map,
    remove_durably,
    remove_generation,
    seal,
    set_current,
)

FREE_BYTES = 16 * MIB
FREE_PAUSE_SECONDS = 0.01
SPACE_RESERVE_BYTES = 64 * MIB


class BuildError(DiskError):
    """A generation could not be built; the one in use is untouched."""


class GenerationBuilder:
    """One build. `bytes_per_second` bounds the copy's rate (0: unbounded)."""

    def __init__(self, opened: Opened, bytes_per_second: int = 0) -> None:
        self.opened = opened
        self.number = max([opened.generation, *generations(opened.root)]) + 1
        self.folder = folder_of(opened.root, self.number)
        self.store: LmdbStore | None = None
        self.checkpointer: Checkpointer | None = None
        self.index = 0
        self.term = 0
        self._rate = bytes_per_second
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._stop = threading.Event()
        self._copying: MapCopy | None = None
        self._error: Exception | None = None

    def fileno(self) -> int:
        """Becomes readable when the copy ended: call poll()."""
        return self._event

    @property
    def keep_from(self) -> int:
        """Applied index of the new map's durable checkpoint: the log is not cut above it."""
        return self.index if self.checkpointer is None else self.checkpointer.index

    def create(self) -> LmdbStore:
        """An empty generation, open, to be filled (installed snapshot, restore). Blocking."""
        create_generation(self.opened.root, self.number, self.opened.quota_bytes)
        self._open()
        assert self.store is not None
        return self.store

    def adopt(self, incoming: Path, index: int, term: int) -> None:
        """A folder that is whole and has its checkpoint becomes the new generation. Blocking."""
        saved = read_checkpoint(incoming)
        if saved is None or (saved.index, saved.term) != (index, term):
            raise CorruptionError(
                f"the log begins behind a snapshot at index {index}, term {term}, which is not "
                "here: remove the data directory of this member and let it rejoin", str(incoming),
            )
        hit("install")
        os.rename(incoming, self.folder)
        fsync_dir(self.opened.root)
        hit("install-renamed")
        self._open()

    def copy(self) -> None:
        """Starts a compacting copy of the store in use, in a thread."""
        with self.opened.store.begin_read() as txn:
            needed = txn.used_bytes()
        room = os.statvfs(self.opened.root)
        free = room.f_bavail * room.f_frsize
        if free < needed + SPACE_RESERVE_BYTES:
            raise BuildError(
                f"{self.opened.root}: a new generation needs {needed} bytes, {free} are free: "
                "make room, or compact first"
            )
        self.index = self.opened.checkpointer.index
        self.folder.mkdir(mode=0o700)
        self._thread = threading.Thread(target=self._copy, name="generation", daemon=True)
        self._thread.start()

    def poll(self) -> bool:
        """True once the copy is durable and open for the log. Raises BuildError."""
        if self.store is not None:
            return True
        if self._thread is None or not self._done.is_set():
            return False
        self._thread.join()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        if self._error is not None:
            error = self._error
            self.abandon()
            raise BuildError(f"generation {self.number} was not built: {error}")
        self._open()
        return True

    def wait(self) -> None:
        """Blocking: until the copy ended."""
        self._done.wait()
        self.poll()

    def switch(self, seal_now: bool = False) -> Retired:
        """Moves `opened` to the new generation, at a batch border. Durability: on return.

        `seal_now` takes a checkpoint of the new map first (installed snapshots and restores,
        whose log does not reach back to the map's first one). Blocking: a short sync.
        """
        store, checkpointer, opened = self.store, self.checkpointer, self.opened
        assert store is not None and checkpointer is not None, "poll() was not True yet"
        if seal_now:
            checkpointer.checkpoint_now()
        set_current(opened.root, self.number)
        retired = Retired(opened.root, opened.generation, opened.store, opened.checkpointer)
        opened.generation, opened.store = self.number, store
        opened.checkpointer = checkpointer
        self.store = self.checkpointer = None
        self._close_event()
        return retired

    def abandon(self) -> None:
        """Stops the build and removes its folder."""
        self._stop.set()
        if self._copying is not None:
            self._copying.stop()
        if self._thread is not None:
            self._thread.join()
        if self.checkpointer is not None:
            self.checkpointer.close()
        if self.store is not None:
            self.store.close()
        self.store = self.checkpointer = None
        remove_generation(self.opened.root, self.number)
        self._close_event()

    def _close_event(self) -> None:
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    def _open(self) -> None:
        """Opens the finished folder with a pin at its checkpoint."""
        use = FileLock(self.folder / USE_LOCK, exclusive=False)
        store = open_map(self.folder, use, self.opened.quota_bytes, readonly=False)
        pin = store.pin()
        saved = read_checkpoint(self.folder)
        if saved is None or take(store, pin) != saved:
            pin.close()
            store.close()
            raise BuildError(f"generation {self.number} is not at its checkpoint")
        mine = self.opened.checkpointer
        self.store = store
        self.checkpointer = Checkpointer(
            store, self.folder, pin, saved, mine.seconds, mine.dirty_bytes
        )
        self.index, self.term = saved.index, saved.term

    # --- the thread -----------------------------------------------------------------------------

    def _copy(self) -> None:
        try:
            self._pump()
            # Also makes the meta page of the other slot: a copy has one that counts.
            store = LmdbStore(self.folder, 1, create=False)
            seal(store, self.folder)
            store.close()
            fsync_dir(self.folder)
            fsync_dir(self.opened.root)
        except Exception as error:
            self._error = error
        self._done.set()
        os.eventfd_write(self._event, 1)

    def _pump(self) -> None:
        """The map in use -> a compact file, durable at the end."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        out = os.open(self.folder / DATA, flags, 0o600)
        try:
            self._copying = MapCopy(self.opened.store, out, self._rate)
            if self._stop.is_set() or not self._copying.run():
                raise BuildError("stopped")
            os.fsync(out)
        finally:
            os.close(out)


def install(opened: Opened, name: str, index: int, term: int) -> Retired:
    """Switches to a received snapshot, which the log's durable snapshot record names.

    A crash before CURRENT is renamed leaves the folder to be installed by the next start.
    Blocking: a few short syncs. Errors: CorruptionError when it is not here.
    """
    builder = GenerationBuilder(opened)
    builder.adopt(opened.root / (name + INCOMING), index, term)
    retired = builder.switch()
    hit("installed")
    # Only now: until CURRENT named it, the mark kept it from being taken for a leftover.
    with contextlib.suppress(FileNotFoundError):
        (opened.folder / RECEIVED).unlink()
    return retired


class Retired:
    """The generation that was in use: its map stays readable until its readers moved on.

    Closing a large map unmaps it, deleting it frees its blocks: both take tens of milliseconds, so
    a thread does them, the deleting in slices.
    """

    def __init__(
        self, root: Path, number: int, store: LmdbStore, checkpointer: Checkpointer
    ) -> None:
        self.root = root
        self.number = number
        self.store = store
        self._checkpointer: Checkpointer | None = checkpointer
        self._lock: FileLock | None = None
        self._thread: threading.Thread | None = None

    def poll(self) -> bool:
        """True once the folder is deleted. Never blocks: call it now and then from the loop."""
        if self._thread is not None:
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._checkpointer is not None:
            if not self._checkpointer.running or self._checkpointer.poll():
                self._start(self._close)
            return False
        folder = folder_of(self.root, self.number)
        if not folder.exists():
            if self._lock is not None:
                self._lock.close()
            return True
        try:
            self._lock = FileLock(folder / USE_LOCK, exclusive=True)
        except InUseError:
            return False
        self._start(self._delete)
        return False

    def wait(self) -> bool:
        """Blocking: poll() until it is deleted (True), or someone still reads it (False)."""
        while not self.poll():
            if self._thread is not None:
                self._thread.join()
            elif self._checkpointer is not None:
                self._checkpointer.wait()
            else:
                return False
        return True

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="retired", daemon=True)
        self._thread.start()

    def _close(self) -> None:
        assert self._checkpointer is not None
        self._checkpointer.close()
        self.store.close()
        self._checkpointer = None

    def _delete(self) -> None:
        """Nobody has the map open any more, and the lock keeps it so."""
        data = folder_of(self.root, self.number) / DATA
        # First of all: a folder without a checkpoint can't be taken for a usable generation.
        remove_durably(data.parent / CHECKPOINT_FILE)
        with contextlib.suppress(OSError):
            for size in range(data.stat().st_size, 0, -FREE_BYTES):
                os.truncate(data, max(0, size - FREE_BYTES))
                time.sleep(FREE_PAUSE_SECONDS)
        remove_generation(self.root, self.number)
