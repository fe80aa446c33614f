"""What the system says of this node's processes, for metrics.

Role: one reading of /proc for a set of process ids, summed up so that it is true of the node.
Caller: procs/httpside. Blocking: reads of /proc, some 50 microseconds a process.

Several processes share the pages of the map and of the interpreter: memory is the sum of what is
each one's own plus the largest share in files, not the sum of the resident sizes.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Use:
    """Of all processes together; descriptors are those of the one nearest to its limit."""

    cpu_seconds: float
    resident_bytes: int
    virtual_bytes: int
    descriptors: int
    descriptors_max: int
    start_seconds: float
    """Unix time at which the oldest of them began."""


def read_use(pids: Iterable[int]) -> Use:
    """A reading; processes that are gone are left out."""
    cpu = own = files = virtual = 0
    descriptors, descriptors_max = 0, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    start = 0.0
    for pid in pids:
        try:
            fields = _read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
            status = _status(_read(f"/proc/{pid}/status"))
            opened = _descriptors(pid)
            limit = _limit(pid)
        except OSError:
            continue
        cpu += int(fields[11]) + int(fields[12])
        began = int(fields[19]) / _TICKS
        start = min(start, began) if start else began
        virtual += int(fields[20])
        own += status.get("RssAnon", 0) + status.get("RssShmem", 0)
        files = max(files, status.get("RssFile", 0))
        if opened / limit > descriptors / descriptors_max:
            descriptors, descriptors_max = opened, limit
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return Use(
        cpu / _TICKS, own + files, virtual, descriptors, descriptors_max, round(boot + start, 2)
    )


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _status(text: str) -> dict[str, int]:
    """The sizes of /proc/PID/status, in bytes."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            sizes[name] = int(words[0]) << 10
    return sizes


def _descriptors(pid: int) -> int:
    # Since Linux 6.2 the folder's size is its count; before it was 0.
    path = f"/proc/{pid}/fd"
    return os.stat(path).st_size or len(os.listdir(path))


def _limit(pid: int) -> int:
    soft = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    return soft if soft > 0 else 1 << 30
