"""Snapshots on their way in: files that another member sends, until they are a generation.

Role: writes the pieces, says how much is durable after a restart, checks the whole, and makes it a
map with a checkpoint. Caller: procs/feeding; everything on the disk happens in one thread, so that
heartbeats never wait for it.

    state/<index>-<term>.incoming/
      snapshot       "file size have": which file it is, how much of it is durable (replaced whole)
      data.mdb       the bytes so far
      checkpoint     env/checkpoint: only when the file was whole, checked and durable

The applier makes the folder a generation (env/generation, `install`) when the log's snapshot
record is durable, and not before.

Invariants
 1. `have` in the file `snapshot` is never more than what is durable.
 2. A folder with a checkpoint holds the whole map that its sender's CRC speaks of.
 3. There is one folder: the start of another file removes what was there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from kvnode._core.crc32c import crc32c
from kvnode.base.errors import CorruptionError, DecodeError, DiskError
from kvnode.base.failpoint import hit
from kvnode.base.limits import MIB
from kvnode.env.checkpoint import FILE as CHECKPOINT_FILE
from kvnode.env.checkpoint import fsync_dir, read_checkpoint, write_durably
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.store import DATA, INCOMING, RECEIVED, map_bytes, remove_durably, seal
from kvnode.wire.snapfile import TAIL_BYTES, FileName, Tail, decode_tail

SYNC_BYTES = 16 * MIB
SYNC_SECONDS = 1.0         # on a slow link: what a restart loses
READ_BYTES = MIB // 2
SPACE_RESERVE_BYTES = 64 * MIB


class IncomingFolder:
    """The folder of one file. Blocking; for one thread. Errors: DiskError, OSError."""

    def __init__(self, root: Path, cluster: int, name: FileName) -> None:
        self.root = root
        self.cluster = cluster
        self.name = name
        self.path = root / (name.generation + INCOMING)
        self.have = 0
        self.complete = False
        self._durable = 0
        self._synced_at = time.monotonic()
        self._fd = -1

    def open(self) -> None:
        """Takes up what is there of this file, or begins anew; other files' folders go."""
        for other in folders(self.root):
            if other != self.path:
                remove_folder(other)
        have = self._mark()
        if have is None:
            remove_folder(self.path)
            self._need_room()
            self.path.mkdir(mode=0o700)
            self._write_mark(0)
            fsync_dir(self.root)
            have = 0
        elif (self.path / CHECKPOINT_FILE).exists():
            self.have, self.complete = self.name.size, True
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path / DATA, flags, 0o600)
        self.have = self._durable = min(have, os.fstat(self._fd).st_size)
        os.ftruncate(self._fd, self.have)

    def _need_room(self) -> None:
        room = os.statvfs(self.root)
        free = room.f_bavail * room.f_frsize
        if free < self.name.size + SPACE_RESERVE_BYTES:
            raise DiskError(
                f"{self.root}: a snapshot of {self.name.size} bytes is being sent to this member, "
                f"{free} are free: make room"
            )

    def _mark(self) -> int | None:
        """How much of this file is durable here; None: nothing, or of another file."""
        try:
            words = (self.path / RECEIVED).read_text().split()
        except FileNotFoundError:
            return None
        if len(words) != 3 or not all(word.isdigit() for word in words):
            return None
        file, size, have = map(int, words)
        return have if (file, size) == (self.name.file, self.name.size) else None

    def _write_mark(self, have: int) -> None:
        write_durably(
            self.path / RECEIVED, f"{self.name.file} {self.name.size} {have}\n".encode()
        )

    def write(self, offset: int, data: bytes) -> None:
        """The next piece."""
        assert offset == self.have and self._fd >= 0
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, self.have)
            self.have += done
            view = view[done:]
        waited = time.monotonic() - self._synced_at
        if self.have - self._durable >= SYNC_BYTES or waited >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """What came so far is durable, and said to be."""
        os.fdatasync(self._fd)
        hit("snapshot-synced")
        self._write_mark(self.have)
        self._durable = self.have
        self._synced_at = time.monotonic()

    def finish(self) -> None:
        """Checks the whole file and gives it a checkpoint. Durability: on return."""
        assert self.have == self.name.size
        self.sync()
        hit("snapshot-received")
        tail = self._check()
        os.ftruncate(self._fd, tail.map_bytes)
        os.fsync(self._fd)
        hit("snapshot-checked")
        store = LmdbStore(self.path, map_bytes(0), create=False)
        try:
            saved = seal(store, self.path)
        finally:
            store.close()
        if (saved.index, saved.term) != self.name[:2]:
            remove_durably(self.path / CHECKPOINT_FILE)
            raise CorruptionError(
                f"the snapshot {self.name.generation} holds the state at {saved.index}, term "
                f"{saved.term}", str(self.path),
            )
        fsync_dir(self.path)
        fsync_dir(self.root)
        self.complete = True
        hit("snapshot-sealed")

    def _check(self) -> Tail:
        """The CRC of what is in the file, not of what was to be written."""
        tail = decode_tail(os.pread(self._fd, TAIL_BYTES, self.have - TAIL_BYTES))
        expected = (*self.name[:2], self.cluster, self.name.file, self.have - TAIL_BYTES)
        if tail[1:] != expected:
            raise CorruptionError(f"snapshot of {tail[1:]}, not {expected}", str(self.path))
        crc = at = 0
        while at < tail.map_bytes:
            data = os.pread(self._fd, min(READ_BYTES, tail.map_bytes - at), at)
            if not data:
                raise CorruptionError("the snapshot's file is cut short", str(self.path), at)
            crc = crc32c(data, crc)
            at += len(data)
        if crc != tail.map_crc:
            raise CorruptionError("the snapshot is damaged (CRC)", str(self.path))
        return tail

    def close(self) -> None:
        """Lets go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Gone for good."""
        self.close()
        remove_folder(self.path)


def folders(root: Path) -> list[Path]:
    """What is on its way in."""
    return [p for p in root.iterdir() if p.name.endswith(INCOMING) and p.is_dir()]


def remove_folder(folder: Path) -> None:
    """Its checkpoint goes first: a folder without one is never installed."""
    if folder.exists():
        remove_durably(folder / CHECKPOINT_FILE)
        shutil.rmtree(folder, ignore_errors=True)


def remove_obsolete(root: Path, applied: int) -> int:
    """What the state has passed, and what is of no known form; the highest index that is left."""
    left = 0
    for folder in folders(root):
        index = folder.name.split("-")[0]
        if not index.isdigit() or int(index) <= applied:
            remove_folder(folder)
        else:
            left = max(left, int(index))
    return left


def is_ready(root: Path, name: str, index: int, term: int) -> bool:
    """Whether the folder of that name can be installed."""
    with contextlib.suppress(FileNotFoundError, CorruptionError):
        saved = read_checkpoint(root / (name + INCOMING))
        return saved is not None and (saved.index, saved.term) == (index, term)
    return False


class IncomingThread:
    """`state.transfer.IncomingFiles` over a folder: one job after another in a thread.

    `fileno` becomes readable when `poll` has news: ("opened", name, have, complete),
    ("written", name, have), ("finished", name), ("broken", name, text).
    """

    def __init__(self, root: Path, cluster: int) -> None:
        self.root = root
        self.cluster = cluster
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._news: SimpleQueue[tuple[object, ...]] = SimpleQueue()
        self._folder: IncomingFolder | None = None
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        return self._event

    def poll(self) -> list[tuple[object, ...]]:
        """What has happened since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        out = []
        while not self._news.empty():
            out.append(self._news.get())
        return out

    def begin(self, name: FileName) -> None:
        self._put(lambda: self._begin(name))

    def write(self, offset: int, data: bytes) -> None:
        self._put(lambda: self._write(offset, data))

    def finish(self) -> None:
        self._put(self._finish)

    def forget(self) -> None:
        """The folder was installed: it is nobody's any more."""
        self._put(self._close)

    def discard(self, applied: int) -> None:
        """Nobody wants what has come: the state is at `applied`."""
        self._put(lambda: self._remove(applied))

    def close(self) -> None:
        """Ends the thread; what has come stays for the next start."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
        if self._folder is not None:
            self._folder.close()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    # --- the thread -----------------------------------------------------------------------------

    def _put(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="incoming", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except (OSError, DiskError, CorruptionError, DecodeError) as error:
                folder, self._folder = self._folder, None
                if folder is not None:
                    with contextlib.suppress(OSError):
                        folder.remove()
                    self._tell("broken", folder.name, str(error))

    def _tell(self, *news: object) -> None:
        self._news.put(news)
        os.eventfd_write(self._event, 1)

    def _begin(self, name: FileName) -> None:
        self._close()
        self._folder = folder = IncomingFolder(self.root, self.cluster, name)
        folder.open()
        self._tell("opened", name, folder.have, folder.complete)

    def _write(self, offset: int, data: bytes) -> None:
        if self._folder is not None:
            self._folder.write(offset, data)
            self._tell("written", self._folder.name, self._folder.have)

    def _finish(self) -> None:
        if self._folder is not None:
            self._folder.finish()
            self._folder.close()
            self._tell("finished", self._folder.name)

    def _close(self) -> None:
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def _remove(self, applied: int) -> None:
        self._close()
        remove_obsolete(self.root, applied)
