"""A disk in memory for the log: what is synced and what is not, crashes, power cuts, faults.

Shape: kvnode/wal/disk.py. Writes of the writer are queued and run by `step()`, or at once when
`lazy` is False. A power cut keeps of each file what was synced plus any subset of the sectors
written since, and of the folder's changes since its last sync any prefix.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

SECTOR = 512


@dataclass
class MemFile:
    data: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)

    def sync(self) -> None:
        self.synced = bytearray(self.data)

    def cut_power(self, rng: Random) -> None:
        out = bytearray(self.synced)
        for at in range(0, len(self.data), SECTOR):
            new = self.data[at : at + SECTOR]
            if new != self.synced[at : at + SECTOR] and rng.random() < 0.5:
                out.extend(bytes(max(0, at - len(out))))
                out[at : at + len(new)] = new
        self.data, self.synced = out, bytearray(out)


class MemJob:
    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.value, self.error = None, None
        try:
            self.value = call(*args)
        except OSError as e:
            self.error = e

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class MemWriter:
    """The contract of _core/logwriter.pyx without a thread."""

    def __init__(self, disk: MemDisk) -> None:
        self.disk = disk
        self.queue: list[tuple[Any, ...]] = []
        self.tickets = self.done = 0
        self.error: tuple[int, str] | None = None

    @property
    def in_flight_bytes(self) -> int:
        return sum(len(op[3]) for op in self.queue if op[0] == "write")

    def submit(
        self, handle: int, offset: int, data: Any, tail: int = 0, here: bool = False
    ) -> int:
        return self._push(("write", handle, offset, memoryview(data), tail))

    def rename(self, src: str, dst: str, folder: int) -> int:
        return self._push(("rename", src, dst, folder))

    def _push(self, op: tuple[Any, ...]) -> int:
        self.tickets += 1
        self.queue.append((*op, self.tickets))
        if not self.disk.lazy:
            self.step()
        return self.tickets

    def step(self, sync: bool = True) -> None:
        """Runs all that is queued; without `sync` the bytes of the first file are left unsynced."""
        while self.queue and self.error is None:
            op = self.queue[0]
            try:
                if op[0] == "rename":
                    self.disk.rename(op[1], op[2])
                    self.disk.fsync_dir("")
                    self.done = op[-1]
                    self.queue.pop(0)
                    continue
                run = [op]
                for other in self.queue[1:]:
                    if other[0] != "write" or other[1] != op[1]:
                        break
                    run.append(other)
                for _, handle, offset, data, tail, _ in run:
                    self.disk.pwrite(handle, offset, data[: len(data) - tail])
                if not sync:
                    return
                self.disk.fdatasync(op[1])
                if len(run) == len(self.queue):
                    _, handle, offset, data, tail, _ = run[-1]
                    self.disk.pwrite(handle, offset + len(data) - tail, data[len(data) - tail :])
                del self.queue[: len(run)]
                self.done = run[-1][-1]
            except OSError as e:
                self.error = (e.errno or 0, str(e))

    def fileno(self) -> int:
        return -1

    def completed(self) -> int:
        return self.done

    def in_flight_age_us(self) -> int:
        return 0

    def last_progress_us(self) -> int:
        return 0

    def stats(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.step()


class MemDisk:
    """`faults` maps a call's name to a function that may raise, given the number of the call."""

    def __init__(self, seed: int = 1, lazy: bool = False) -> None:
        self.rng = Random(seed)
        self.lazy = lazy
        self.names: dict[str, MemFile] = {}
        self.history: list[dict[str, MemFile]] = []
        self.handles: dict[int, MemFile] = {}
        self.next = 100
        self.faults: dict[str, Callable[[int], None]] = {}
        self.calls: dict[str, int] = {}
        self.writers: list[MemWriter] = []
        self.share = False  # reads give views, for tests that read one large file often

    def _call(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if name in self.faults:
            self.faults[name](self.calls[name])

    def fail(self, name: str, code: int = errno.EIO, after: int = 0) -> None:
        """Makes the call `name` fail with `code` from its (after + 1)th run from now on."""
        begin = self.calls.get(name, 0) + after

        def fault(number: int) -> None:
            if number > begin:
                raise OSError(code, os.strerror(code))

        self.faults[name] = fault

    def crash(self, power: bool = False) -> MemDisk:
        """The disk that the next life finds; not lazy."""
        other = MemDisk(self.rng.randrange(1 << 30))
        if power:
            names = self.rng.choice([*self.history, self.names])
            for path, file in names.items():
                other.names[path] = MemFile(bytearray(file.data), bytearray(file.synced))
                other.names[path].cut_power(self.rng)
            return other
        # Killed only: all is seen by the next life, and what was not synced still is not.
        copies: dict[int, MemFile] = {}

        def copied(names: dict[str, MemFile]) -> dict[str, MemFile]:
            for f in names.values():
                if id(f) not in copies:
                    copies[id(f)] = MemFile(bytearray(f.data), bytearray(f.synced))
            return {path: copies[id(f)] for path, f in names.items()}

        other.names = copied(self.names)
        other.history = [copied(names) for names in self.history]
        return other

    def _changed(self, before: dict[str, MemFile]) -> None:
        self.history.append(before)

    def listdir(self, path: str) -> list[str]:
        return sorted(p.rsplit("/", 1)[1] for p in self.names if p.rsplit("/", 1)[0] == path)

    def mkdir(self, path: str) -> None:
        pass

    def open(self, path: str, create: bool = False, write: bool = True) -> int:
        self._call("open")
        if create:
            assert path not in self.names, path
            self._changed(dict(self.names))
            self.names[path] = MemFile()
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, path)
        self.next += 1
        self.handles[self.next] = self.names[path]
        return self.next

    def open_dir(self, path: str) -> int:
        return 1

    def close(self, handle: int) -> None:
        if handle != 1:
            del self.handles[handle]

    def size(self, handle: int) -> int:
        return len(self.handles[handle].data)

    def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        if self.share:
            return memoryview(self.handles[handle].data)[offset : offset + size]
        return bytes(self.handles[handle].data[offset : offset + size])

    def pwrite(self, handle: int, offset: int, data: Any) -> None:
        data = bytes(data)
        file = self.handles[handle]
        file.data.extend(bytes(max(0, offset - len(file.data))))
        try:
            self._call("pwrite")
        except OSError:
            half = data[: len(data) // 2]
            file.data[offset : offset + len(half)] = half
            raise
        file.data[offset : offset + len(data)] = data

    def fdatasync(self, handle: int) -> None:
        self._call("fdatasync")
        self.handles[handle].sync()

    def allocate(self, handle: int, size: int) -> None:
        self._call("allocate")
        file = self.handles[handle]
        file.data.extend(bytes(max(0, size - len(file.data))))

    def fill_zeros(self, handle: int, size: int) -> None:
        self._call("fill_zeros")
        file = self.handles[handle]
        file.data[:size] = bytes(size)
        file.sync()

    def rename(self, src: str, dst: str) -> None:
        self._call("rename")
        self._changed(dict(self.names))
        self.names[dst] = self.names.pop(src)

    def unlink(self, path: str) -> None:
        self._call("unlink")
        self._changed(dict(self.names))
        self.names.pop(path, None)

    def fsync_dir(self, path: str) -> None:
        self._call("fsync_dir")
        self.history.clear()

    def writer(self) -> MemWriter:
        self.writers.append(MemWriter(self))
        return self.writers[-1]

    def background(self, call: Callable[..., Any], *args: Any) -> MemJob:
        return MemJob(call, args)

    def random_u32(self) -> int:
        return self.rng.getrandbits(32)

    def shutdown(self) -> None:
        pass
