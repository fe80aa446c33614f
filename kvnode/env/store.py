"""The state's folder: which map is in use, how it is opened, how it is left.

Role: opens the current generation for the one writer or for readers, rolls it back to its
checkpoint where that is needed, and keeps the marks that say so. Generations are built in
env.generation, checkpoints taken in env.checkpoint.
Callers: the applier (open_for_write), gateways and tools (open_for_read), `kvnode verify`.

    state/
      CURRENT        number of the generation in use, text; replaced by rename
      CLEAN          "generation txn index": the node stopped with a checkpoint, nothing was written
                     since
      RUNNING        the map in use was opened by this run of the node (see invariant 3); the
                     supervisor removes what an earlier run left, before it starts a writer
      writer.lock    flock'ed by the one writer, for as long as it lives
      00000001/      one generation
        data.mdb, lock.mdb   LMDB's
        checkpoint           env.checkpoint
        use.lock             flock'ed shared by everyone who has the map open, exclusively by a
                             roll-back and by who deletes the folder
        snapshot             it came from another member and CURRENT is about to name it
      N-T.incoming/  a snapshot on its way in, of index N and term T (env.incoming)
      outgoing/      snapshots for other members (env.outgoing)

Invariants
 1. A folder named by CURRENT has a checkpoint, from its first moment on.
 2. mode "node_start" without a valid CLEAN rolls back: both meta slots become the saved page, the
    lock file goes, LMDB opens exactly at the saved T. Nobody has the map open meanwhile.
 3. mode "process_restart" (the supervisor lives, the writer died) does not roll back, but takes a
    checkpoint before it returns, because the pins died with the process. If RUNNING is missing,
    the dead writer had not finished its own opening, and the start is a node_start.
 4. CLEAN is removed durably before open_for_write returns, so before the first write.
 5. When open_for_write returns, a pin at the saved T is held.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvnode.base.errors import CallerError, CorruptionError, DiskError
from kvnode.base.limits import (
    CHECKPOINT_DIRTY_BYTES,
    CHECKPOINT_SECONDS,
    MAP_BYTES_MIN,
    MAP_QUOTA_FACTOR,
    QUOTA_BYTES_DEFAULT,
)
from kvnode.env.checkpoint import FILE as CHECKPOINT_FILE
from kvnode.env.checkpoint import (
    Checkpoint,
    Checkpointer,
    fsync_dir,
    read_checkpoint,
    take,
    write_durably,
)
from kvnode.env.lmdbstore import LmdbStore

Mode = Literal["node_start", "process_restart"]

CURRENT = "CURRENT"
CLEAN = "CLEAN"
RUNNING = "RUNNING"
WRITER_LOCK = "writer.lock"
USE_LOCK = "use.lock"
DATA = "data.mdb"
LOCK = "lock.mdb"
INCOMING = ".incoming"
RECEIVED = "snapshot"
LOCK_WAIT_SECONDS = 2.0


class InUseError(CallerError):
    """Another process has the folder; the text says which lock is held."""


def map_bytes(quota_bytes: int) -> int:
    """Address space to reserve: growth under readers stays the rare path.

    KVNODE_TEST_MAP_BYTES reserves so little that the tests see it.
    """
    if tiny := os.environ.get("KVNODE_TEST_MAP_BYTES"):
        return int(tiny)
    return max(MAP_BYTES_MIN, MAP_QUOTA_FACTOR * quota_bytes)


# --- locks --------------------------------------------------------------------------------------


class FileLock:
    """A flock on a file of its own; it ends with close() or with the process."""

    def __init__(self, path: Path, exclusive: bool, wait_seconds: float = 0.0) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        until = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self._fd, how | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK or time.monotonic() >= until:
                    self.close()
                    raise InUseError(
                        f"{path} is locked by another process: a node is running on this data "
                        "directory; stop it first"
                    ) from None
            time.sleep(0.01)

    def share(self) -> None:
        """Exclusive becomes shared."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SharedMap(LmdbStore):
    """An LmdbStore that holds its folder's use lock until it is closed."""

    use: FileLock | None = None

    def close(self) -> None:
        super().close()
        if self.use is not None:
            self.use.close()


def open_map(
    folder: Path, use: FileLock, quota_bytes: int, readonly: bool, writemap: bool = False
) -> SharedMap:
    """Opens the folder's map; `use` is closed with it, or at once when the opening fails."""
    try:
        store = SharedMap(
            folder, map_bytes(quota_bytes), readonly=readonly, writemap=writemap, create=False
        )
    except BaseException:
        use.close()
        raise
    store.use = use
    return store


# --- names and marks ----------------------------------------------------------------------------


def folder_of(root: Path, generation: int) -> Path:
    return root / f"{generation:08d}"


def generations(root: Path) -> list[int]:
    """Numbers of the generation folders that are there, finished or not."""
    names = [entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    return sorted(int(name) for name in names if len(name) == 8 and name.isdigit())


def current_generation(root: str | os.PathLike[str]) -> int | None:
    """The generation that CURRENT names; None in a folder that never held one."""
    path = Path(root) / CURRENT
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    if not text.strip().isdigit():
        raise CorruptionError("CURRENT names no generation", str(path))
    return int(text)


def set_current(root: str | os.PathLike[str], generation: int) -> None:
    """Durability: on return every later start uses this generation, which has its checkpoint."""
    root = Path(root)
    if read_checkpoint(folder_of(root, generation)) is None:
        raise CorruptionError(
            "generation without a checkpoint", str(folder_of(root, generation))
        )
    write_durably(root / CURRENT, f"{generation}\n".encode())


def read_clean(root: Path) -> tuple[int, int, int] | None:
    """(generation, txn, index) of a clean stop; a mark that is not whole counts as none."""
    try:
        words = (root / CLEAN).read_text().split()
    except FileNotFoundError:
        return None
    if len(words) != 3 or not all(word.isdigit() for word in words):
        return None
    return int(words[0]), int(words[1]), int(words[2])


def remove_durably(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        fsync_dir(path.parent)


def remove_generation(root: Path, generation: int) -> None:
    """CURRENT must not name it. Processes that still read it keep their map."""
    folder = folder_of(root, generation)
    # Its checkpoint goes first: a folder without one can't be taken for a usable generation.
    remove_durably(folder / CHECKPOINT_FILE)
    shutil.rmtree(folder, ignore_errors=True)


# --- roll-back ----------------------------------------------------------------------------------


def roll_back(folder: Path, saved: Checkpoint) -> None:
    """Makes the map what it was at the saved checkpoint. The caller holds use.lock exclusively.

    Durability: on return. An interrupted roll-back is repeated by the next start.
    """
    path = folder / DATA
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        if size < saved.map_bytes_min:
            raise CorruptionError(
                f"the map is shorter than its checkpoint ({saved.map_bytes_min} bytes): restore "
                "a backup, or remove the data directory of this member and let it rejoin",
                str(path),
                size,
            )
        for slot in (0, 1):
            page = saved.page_for_slot(slot)
            if os.pwrite(fd, page, slot * len(page)) != len(page):
                raise DiskError(f"{path}: short write of meta page {slot}")
        os.fsync(fd)
    finally:
        os.close(fd)
    remove_durably(folder / LOCK)


def create_generation(root: Path, generation: int, quota_bytes: int) -> None:
    """An empty map with its trees and a checkpoint at applied index 0, all durable."""
    folder = folder_of(root, generation)
    folder.mkdir(mode=0o700)
    store = LmdbStore(folder, map_bytes(quota_bytes))
    seal(store, folder)
    store.close()
    fsync_dir(root)


def seal(store: LmdbStore, folder: Path) -> Checkpoint:
    """Blocking: makes an open map's last state its checkpoint, with nobody writing."""
    store.sync()
    pin = store.pin()
    saved = take(store, pin)
    write_durably(folder / CHECKPOINT_FILE, saved.encode())
    pin.close()
    return saved


# --- opening ------------------------------------------------------------------------------------


@dataclass
class Opened:
    """The writer's view of the state's folder.

    `rolled_back`: the map was put back to its checkpoint. `index`, `term`: applied at open; the
    log is applied from index + 1.
    """

    root: Path
    generation: int
    store: LmdbStore
    checkpointer: Checkpointer
    index: int
    term: int
    rolled_back: bool
    quota_bytes: int
    writer: FileLock

    @property
    def folder(self) -> Path:
        return folder_of(self.root, self.generation)

    def close_clean(self, applied_index: int | None = None) -> None:
        """Ends with a checkpoint and the clean mark. Blocking: the sync. Durability: on return."""
        saved = self.checkpointer.checkpoint_now()
        assert applied_index in (None, saved.index), "the map holds another applied index"
        self.checkpointer.close()
        self.store.close()
        mark = f"{self.generation} {saved.txn} {saved.index}\n"
        write_durably(self.root / CLEAN, mark.encode())
        remove_durably(self.root / RUNNING)
        self.writer.close()

    def close(self) -> None:
        """Leaves without the mark, as a crash would: the next start rolls back."""
        self.checkpointer.close()
        self.store.close()
        self.writer.close()


def open_for_write(
    root: str | os.PathLike[str],
    mode: Mode = "node_start",
    quota_bytes: int = QUOTA_BYTES_DEFAULT,
    *,
    wanted_generation: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    dirty_bytes: int = CHECKPOINT_DIRTY_BYTES,
    writemap: bool = False,
    sync: bool = True,
    hold: bool = True,
) -> Opened:
    """Opens the current generation, or makes the first one. See invariants 2 to 5.

    Raises InUseError (another writer, or a process that still has the map open), CorruptionError,
    DiskError. Blocking: a roll-back or, after process_restart, a sync of the map.
    `wanted_generation`: that of the log's last snapshot record, which is switched to if the crash
    came between record and rename. `sync` and `hold` are the Checkpointer's.
    """
    root = Path(root)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    writer = FileLock(root / WRITER_LOCK, exclusive=True, wait_seconds=LOCK_WAIT_SECONDS)
    try:
        if mode == "process_restart" and not (root / RUNNING).exists():
            mode = "node_start"
        if mode == "node_start":
            with contextlib.suppress(FileNotFoundError):
                (root / RUNNING).unlink()
        generation = tidy(root, quota_bytes, wanted_generation)
        folder = folder_of(root, generation)
        saved = read_checkpoint(folder)
        if saved is None:
            raise CorruptionError("the generation in use has no checkpoint", str(folder))
        if not (folder / DATA).exists():
            raise CorruptionError(
                "the map is missing: restore it from a backup, or remove the data directory of "
                "this member and let it rejoin",
                str(folder / DATA),
            )
        use = FileLock(
            folder / USE_LOCK,
            exclusive=mode == "node_start",
            wait_seconds=LOCK_WAIT_SECONDS,
        )
        rolled_back = mode == "node_start" and not is_clean(root, generation, saved)
        if rolled_back:
            roll_back(folder, saved)
        elif mode == "node_start":
            remove_durably(folder / LOCK)
        store = open_map(folder, use, quota_bytes, readonly=False, writemap=writemap)
        try:
            checkpointer = first_pin(
                store, folder, saved, mode, checkpoint_seconds, dirty_bytes, sync, hold
            )
        except BaseException:
            store.close()
            raise
        use.share()
        remove_durably(root / CLEAN)
        (root / RUNNING).touch(mode=0o600)
    except BaseException:
        writer.close()
        raise
    saved = checkpointer.saved
    return Opened(
        root, generation, store, checkpointer, saved.index, saved.term, rolled_back, quota_bytes,
        writer,
    )


def first_pin(
    store: LmdbStore,
    folder: Path,
    saved: Checkpoint,
    mode: Mode,
    seconds: float,
    dirty_bytes: int,
    sync: bool,
    hold: bool,
) -> Checkpointer:
    """The pin at the saved state, or a new saved state at the pin (process_restart)."""
    store.reader_check()
    pin = store.pin()
    try:
        now = take(store, pin)
        if mode == "node_start" and (now.txn, now.index) != (saved.txn, saved.index):
            raise CorruptionError(
                f"the map opened at transaction {now.txn}, index {now.index}, but its checkpoint "
                f"is at {saved.txn}, index {saved.index}",
                str(folder / DATA),
            )
        if now.txn != saved.txn:
            if sync:
                store.sync()
            write_durably(folder / CHECKPOINT_FILE, now.encode())
    except BaseException:
        pin.close()
        raise
    return Checkpointer(store, folder, pin, now, seconds, dirty_bytes, sync, hold)


def is_clean(root: Path, generation: int, saved: Checkpoint) -> bool:
    """Whether the last stop left a mark that fits this generation and its checkpoint."""
    return read_clean(root) == (generation, saved.txn, saved.index)


def tidy(root: Path, quota_bytes: int, wanted: int | None = None) -> int:
    """Removes what interrupted builds left and makes the first generation where there is none.

    `wanted`: the generation of the log's snapshot record, whose switch may have been interrupted.
    """
    current = current_generation(root)
    present = generations(root)
    if current is None:
        for number in present:
            saved = read_checkpoint(folder_of(root, number))
            if saved is not None and saved.index > 0:
                raise CorruptionError(
                    f"CURRENT is missing but generation {number} holds data: write its number "
                    "into CURRENT if it is the one that was in use",
                    str(root / CURRENT),
                )
            remove_generation(root, number)
        create_generation(root, 1, quota_bytes)
        set_current(root, 1)
        return 1
    if current not in present:
        raise CorruptionError(
            f"CURRENT names generation {current}, which is not there: restore a backup",
            str(root / CURRENT),
        )
    if wanted is not None and wanted in present and wanted > current:
        set_current(root, wanted)
        current = wanted
    for number in present:
        if number != current and not put_back(root, number, current):
            remove_generation(root, number)
    return current


def put_back(root: Path, number: int, current: int) -> bool:
    """An installation that ended before CURRENT was renamed: the log asks for it again."""
    folder = folder_of(root, number)
    if not (folder / RECEIVED).exists():
        return False
    saved, used = read_checkpoint(folder), read_checkpoint(folder_of(root, current))
    if saved is None or used is None or saved.index <= used.index:
        return False
    remove_durably(folder / LOCK)
    os.rename(folder, root / f"{saved.index}-{saved.term}{INCOMING}")
    fsync_dir(root)
    return True


def open_for_read(
    root: str | os.PathLike[str], quota_bytes: int = QUOTA_BYTES_DEFAULT
) -> tuple[LmdbStore, int]:
    """The current generation read-only, and its number; close() it before opening another.

    Raises InUseError while a roll-back runs, DiskError when there is no map yet.
    """
    root = Path(root)
    for _ in range(8):
        generation = current_generation(root)
        if generation is None:
            raise DiskError(f"{root}: no generation yet: the applier has not made its first")
        folder = folder_of(root, generation)
        try:
            use = FileLock(folder / USE_LOCK, exclusive=False, wait_seconds=LOCK_WAIT_SECONDS)
            return open_map(folder, use, quota_bytes, readonly=True), generation
        except (FileNotFoundError, DiskError):
            # A switch between reading CURRENT and opening: the folder may be gone already.
            if current_generation(root) == generation:
                raise
    raise DiskError(f"{root}: CURRENT changes faster than its map can be opened")
