"""Free space of the disk under a node, and what is kept of it.

Role: a full disk must refuse writes at a place of our choosing, before the map or the log meet it
in the middle of a commit. Callers: procs/consensus (refuses proposals below the reserve),
procs/applier (waits with opening the map), procs/greeting (status).
"""

from __future__ import annotations

import os

from kvnode.base.limits import MIB

RESERVE_BYTES = 64 * MIB
_RESERVE_PART = 8


class Room:
    """The file system that holds `path`. One statvfs a question, about 2 us."""

    def __init__(self, path: str) -> None:
        self.path = path
        info = os.statvfs(path)
        self.reserve = min(RESERVE_BYTES, info.f_blocks * info.f_frsize // _RESERVE_PART)
        """Bytes that stay free for what is already in the log, deletes and compaction."""

    def free(self) -> int:
        """Bytes that this user can still write."""
        info = os.statvfs(self.path)
        return info.f_bavail * info.f_frsize

    def low(self) -> bool:
        """Whether writes are to be refused."""
        return self.free() < self.reserve

    def text(self) -> str:
        """For people: what is the matter and what to do."""
        return (
            f"the disk under {self.path} is almost full ({self.free() >> 20} MiB free, "
            f"{self.reserve >> 20} MiB are kept): writes are refused until there is room"
        )
