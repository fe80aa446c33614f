"""Entries of a stopped node's log, read without changing a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvnode._core.logrec import read_entries
from kvnode.env.disk import RealDisk
from kvnode.wal.recover import close_segments, list_segments, scan_log

CHUNK_BYTES = 8 << 20
FIRST_KIND_AT = 88  # behind the heads of the batch and of its first group


def wal_entries(
    folder: Path, first: int = 0, last: int | None = None
) -> Iterator[list[tuple[int, int, int, bytes]]]:
    """Lists of (index, term, type, data) from `first` (0: the oldest) to `last` (None: the newest).

    IndexError when the log begins behind `first` or ends before `last`.
    """
    disk = RealDisk()
    scan = scan_log(disk, str(folder), list_segments(disk, str(folder))[0].first - 1)
    try:
        at = max(first, scan.table.first)
        last = scan.table.last if last is None else last
        if first and first < at:
            raise IndexError(f"the log begins at {at}, behind {first}")
        if last > scan.table.last:
            raise IndexError(f"the log ends at {scan.table.last}, before {last}")
        while at <= last:
            number, offset, size, end = scan.table.span(at, last + 1, CHUNK_BYTES)
            segment = scan.segments[number - scan.segments[0].number]
            data = disk.read(segment.handle, offset, size)
            yield read_entries(data, offset, segment.seed, scan.table, at, end, segment.path)
            at = end
    finally:
        close_segments(disk, scan.segments)
        disk.shutdown()


def first_kinds(folder: Path) -> list[int]:
    """The kind of each batch's first request, in the log's order."""
    return [
        data[FIRST_KIND_AT]
        for entries in wal_entries(folder)
        for _, _, kind, data in entries
        if kind == 0 and len(data) > FIRST_KIND_AT
    ]
