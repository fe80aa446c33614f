"""The real disk under the log: files, syncs, the writer thread, one thread for slow chores.

Caller: procs (hands it to wal.log.Log) and the tools. The simulator has its own of this shape
(kvnode/wal/disk.py says what is promised).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kvnode._core.logwriter import LogWriter
from kvnode.base.limits import MIB

FILL_SYNC_BYTES = 4 * MIB

if TYPE_CHECKING:
    from typing_extensions import Buffer


class RealDisk:
    """Handles are file descriptors. Files are 0600, folders 0700, links are not followed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        # Also when it was there: a former life may have died between the two.
        self.fsync_dir(os.path.dirname(os.path.abspath(path)))

    def open(self, path: str, create: bool = False, write: bool = True) -> int:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)

    def open_dir(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self, handle: int) -> None:
        os.close(handle)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def read(self, handle: int, offset: int, size: int) -> Buffer:
        first = os.pread(handle, size, offset)
        if len(first) == size:
            return first
        out = bytearray(first)
        while len(out) < size:
            part = os.pread(handle, size - len(out), offset + len(out))
            if not part:
                break
            out += part
        return out

    def pwrite(self, handle: int, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        while len(view):
            done = os.pwrite(handle, view, offset)
            offset += done
            view = view[done:]

    def fdatasync(self, handle: int) -> None:
        os.fdatasync(handle)

    def allocate(self, handle: int, size: int) -> None:
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def fill_zeros(self, handle: int, size: int) -> None:
        zeros = memoryview(bytes(MIB))
        offset = 0
        while offset < size:
            part = zeros[: min(MIB, size - offset)]
            self.pwrite(handle, offset, part)
            offset += len(part)
            if offset % FILL_SYNC_BYTES == 0:
                # A sync of it all at the end would hold up the log's for as long as 64 MiB take.
                os.fdatasync(handle)
        os.fsync(handle)

    def rename(self, src: str, dst: str) -> None:
        os.rename(src, dst)

    def unlink(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def fsync_dir(self, path: str) -> None:
        handle = self.open_dir(path)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def writer(self) -> LogWriter:
        return LogWriter()

    def background(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wal-chores")
        return self._pool.submit(call, *args)

    def random_u32(self) -> int:
        return secrets.randbits(32)

    def shutdown(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
