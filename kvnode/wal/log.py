"""The log: segments of records, group commit, rotation, recycling, cutting, reading back.

Caller: procs/consensus, in one thread. Disk, writer thread and randomness come with the `Disk`.

    log = Log.open(disk, path, known_durable_index=applied)      or Log.create(...)
    log.append(entries); log.save_hard_state(term, vote, commit) any number, only encodes
    ticket = log.submit()                                        hands them to the writer
    ... poll log.fileno() ...
    if log.completed() >= ticket: act on it (answer the vote, count the own acknowledgement)
    log.durable_index                                            entries durable here
    log.cut(index); log.close()

Invariants
 1. What was saved before a submit is durable when completed() >= its ticket, not sooner.
 2. Records are only ever appended. An entry with an index already there replaces it and all
    behind it, here and in recovery, by the same table.
 3. Each segment begins with a copy of all in force. A segment is cut only if the head of the one
    behind it is durable.
 4. A new segment gets its name after the one before is synced whole (the writer's order).
 5. After the first failure everything raises LogFailedError; nothing is retried.
 6. A record larger than a segment stands first in its segment and extends it.
 7. Space for a segment is reserved before the first record of a call is encoded: NoSpaceError
    leaves the log as it was.

Deliberately absent: Raft's rules (raft/), the verdict on damage (recover.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvnode._core.logrec import (
    CONFIGURATION,
    HARD_STATE,
    HEADER_BYTES,
    SEGMENT_HEAD,
    SNAPSHOT,
    Chunk,
    Encoder,
    EntryTable,
    read_entries,
    record_bytes,
    segment_seed,
)
from kvnode._core.logwriter import LogWriter
from kvnode.base.errors import ConfigError
from kvnode.base.limits import SEGMENT_BYTES_DEFAULT
from kvnode.wal.disk import Disk, LogFailedError, NoSpaceError, Writer
from kvnode.wal.recover import Scan, close_segments, repair, scan_log, write_mark
from kvnode.wal.spares import Spares
from kvnode.wal.state import (
    SUFFIX,
    LogState,
    Segment,
    encode_head,
    encode_snapshot,
    segment_name,
    with_snapshot,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Entry = tuple[int, int, int, Buffer]

SEGMENT_BYTES_MIN = 4096
STATE_BYTES = 1024


@dataclass(slots=True)
class _InFlight:
    """One submitted buffer: where it goes, and the last index that it makes durable."""

    ticket: int
    segment: Segment
    offset: int
    chunk: Chunk
    last: int


class Log:
    """A member's log. Made by `create` or `open`."""

    def __init__(self, disk: Disk, path: str, scan: Scan, segment_bytes: int, spares: int) -> None:
        self._disk = disk
        self._path = path
        self._segments = scan.segments
        self._table = scan.table
        self._state = scan.state
        self._segment_bytes = segment_bytes
        self._head_end = scan.head_end
        self._encoder = Encoder()
        self._encoder.begin(scan.segments[-1].seed, scan.crc, scan.end, scan.end)
        self._in_flight: deque[_InFlight] = deque()
        self._ticket = 0
        self._done = 0
        self._durable_index = scan.table.last
        self._failed: LogFailedError | None = None
        self._closed = False
        self._folder = disk.open_dir(path)
        self._spares = Spares(disk, path, segment_bytes, spares)
        self._spares.adopt()
        self._writer: Writer = disk.writer()
        self._spares.maintain()

    @staticmethod
    def exists(disk: Disk, path: str) -> bool:
        """Whether a log was made here: then `open` it, damage and all, never `create`."""
        try:
            return any(name.endswith(SUFFIX) for name in disk.listdir(path))
        except FileNotFoundError:
            return False

    @classmethod
    def create(
        cls,
        disk: Disk,
        path: str,
        state: LogState,
        *,
        segment_bytes: int = SEGMENT_BYTES_DEFAULT,
        spares: int = 1,
    ) -> Log:
        """Makes a new log that begins behind `state.snapshot_index`; durable on return.

        A crash before leaves no segment name. Blocking: fills the first segment.
        """
        _check_size(segment_bytes)
        disk.mkdir(path)
        assert not cls.exists(disk, path), "a log is here already"
        first, salt = state.snapshot_index + 1, disk.random_u32()
        name = f"{path}/{segment_name(1, first, salt)}"
        temporary = f"{path}/spare-0.fresh"
        disk.unlink(temporary)
        segment = Segment(1, first, salt, name, disk.open(temporary, create=True), 0)
        segment.seed = segment_seed(1, salt)
        disk.fill_zeros(segment.handle, segment_bytes)
        encoder = Encoder()
        encoder.begin(segment.seed, 0, 0, 0)
        encoder.record(
            SEGMENT_HEAD, first, state.snapshot_term, encode_head(segment, state, 0, segment_bytes)
        )
        end = encoder.offset
        disk.pwrite(segment.handle, 0, memoryview(encoder.take())[:end])
        disk.fdatasync(segment.handle)
        write_mark(disk, segment, encoder.crc, end)
        disk.rename(temporary, name)
        disk.fsync_dir(path)
        table = EntryTable(first, state.snapshot_term, state.snapshot_index)
        scan = Scan([segment], table, state, end, encoder.crc, end, end, 3, end, None, 1, end)
        return cls(disk, path, scan, segment_bytes, spares)

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        *,
        known_durable_index: int = 0,
        cluster_id: int | None = None,
        member_id: int | None = None,
        segment_bytes: int = SEGMENT_BYTES_DEFAULT,
        spares: int = 1,
    ) -> Log:
        """Reads the log back, cuts a torn tail; all that it holds is durable on return.

        Errors: CorruptionError (see recover.py), ConfigError for another member's log.
        """
        _check_size(segment_bytes)
        scan = scan_log(disk, path, known_durable_index, write=True)
        try:
            for what, have, want in (
                ("cluster", scan.state.cluster_id, cluster_id),
                ("member", scan.state.member_id, member_id),
            ):
                if want is not None and have != want:
                    raise ConfigError(
                        f"{path} is the log of {what} {have:x}, this node is {what} {want:x}: "
                        "give it its own data directory"
                    )
            repair(disk, path, scan)
        except BaseException:
            close_segments(disk, scan.segments)
            raise
        return cls(disk, path, scan, segment_bytes, spares)

    # What is in force

    @property
    def state(self) -> LogState:
        """All in force, as saved so far (not only what is durable)."""
        return self._state

    @property
    def first_index(self) -> int:
        """Index of the first entry that can be read; last_index + 1 when there is none."""
        return self._table.first

    @property
    def last_index(self) -> int:
        return self._table.last

    @property
    def durable_index(self) -> int:
        """All entries up to here are durable in this log, as of the last completed()."""
        return self._durable_index

    def term(self, index: int) -> int | None:
        """The term of an entry, of first_index - 1 and of the snapshot; None if not known."""
        if index == self._state.snapshot_index:
            return self._state.snapshot_term
        return self._table.term(index)

    # Saving

    def append(self, entries: Sequence[Entry]) -> None:
        """Encodes entries (index, term, type, data), indexes rising by one.

        The first may be any from first_index (above the commit index) to last_index + 1; what
        stood at and above it is replaced. Errors: NoSpaceError (nothing taken).
        """
        self._check()
        if not entries:
            return
        first = entries[0][0]
        if first <= self._table.last:
            assert first > self._state.commit, f"entry {first} would replace a committed one"
            self._lower_durable(first - 1)
        self._reserve([memoryview(e[3]).nbytes for e in entries])
        listed = list(entries)
        at = 0
        while True:
            fresh = self._encoder.offset == self._head_end
            at = self._encoder.entries(
                listed, at, self._table, self._segments[-1].number, self._segment_bytes, fresh
            )
            if at == len(listed):
                return
            self._rotate()

    def save_hard_state(self, term: int, vote: int, commit: int) -> None:
        """Encodes term, vote and commit index. A vote counts when its ticket is completed."""
        self._record(HARD_STATE, commit, term, vote.to_bytes(8, "little"))
        self._state = replace(self._state, term=term, vote=vote, commit=commit)

    def save_configuration(self, configuration: bytes, index: int) -> None:
        """Encodes the configuration that the entry at `index` made."""
        self._record(CONFIGURATION, index, 0, configuration)
        self._state = replace(self._state, configuration=configuration, configuration_index=index)

    def save_snapshot(
        self, index: int, term: int, configuration: bytes, configuration_index: int, generation: str
    ) -> None:
        """Encodes that the snapshot at `index` stands for all up to it.

        Entries above stay when the log holds `index` with this `term`; else the log is empty
        behind the snapshot. Durability: its ticket; rename CURRENT only after that.
        """
        assert index > self._state.snapshot_index, "snapshots only go forward"
        kept = self.term(index) == term
        last = max(index, self._table.last) if kept else index
        body = encode_snapshot(last, configuration, configuration_index, generation)
        self._record(SNAPSHOT, index, term, body)
        self._table.restart(index, term, last)
        if not kept:
            # Durable up to the snapshot only with this record's ticket.
            self._lower_durable(index - 1)
        self._state = with_snapshot(
            self._state, index, term, configuration, configuration_index, generation
        )

    def submit(self, here: bool = False) -> int:
        """Hands what was encoded to the writer; the ticket of all saved so far.

        `here`: when nothing is in flight, the caller's thread syncs instead of the writer's.
        Blocking: never; with `here` for that sync.
        """
        self._check()
        encoder = self._encoder
        if encoder.pending_bytes:
            segment, offset = self._segments[-1], encoder.offset - encoder.pending_bytes
            chunk = encoder.take()
            self._ticket = self._writer.submit(
                segment.handle, offset, chunk, HEADER_BYTES, here
            )
            if segment.head_ticket is None:
                segment.head_ticket = self._ticket
            self._in_flight.append(
                _InFlight(self._ticket, segment, offset, chunk, self._table.last)
            )
        return self._ticket

    def lane(self) -> tuple[Encoder, EntryTable, Any, int, int, int] | None:
        """What a fast lane (procs/lanes) writes lone entries with while all is durable, or None:
        (encoder, table, writer, handle, segment's number, end of the segment)."""
        self._check()
        if not isinstance(self._writer, LogWriter):
            return None
        if self._in_flight or self._encoder.pending_bytes:
            return None
        segment = self._segments[-1]
        if segment.head_ticket is None or segment.head_ticket > self._done:
            return None
        return (
            self._encoder, self._table, self._writer, segment.handle, segment.number,
            self._segment_bytes,
        )

    def lone_appended(self, ticket: int, commit: int) -> None:
        """The lane has appended up to the table's end, durable with `ticket`; the hard state that
        it wrote last has this `commit`."""
        self._ticket = self._done = ticket
        self._durable_index = self._table.last
        if commit != self._state.commit:
            self._state = replace(self._state, commit=commit)

    def fileno(self) -> int:
        """Readable when completed() has news, also of a failure."""
        return self._writer.fileno()

    def completed(self) -> int:
        """The highest finished ticket; all up to it is durable. LogFailedError after a failure.

        Blocking: never.
        """
        self._check()
        self._collect()
        self._spares.maintain()
        return self._done

    def _collect(self) -> None:
        self._done = self._writer.completed()
        while self._in_flight and self._in_flight[0].ticket <= self._done:
            item = self._in_flight.popleft()
            self._durable_index = max(self._durable_index, item.last)
            if item.segment is self._segments[-1]:
                self._encoder.durable_offset = item.offset + len(item.chunk) - HEADER_BYTES
        error = self._writer.error
        if error is not None:
            self._failed = LogFailedError(
                f"the log in {self._path} can't be written ({error[1]}); nothing after index "
                f"{self._durable_index} is durable. The node must stop: check the disk, start anew"
            )
            raise self._failed

    # Reading and cutting

    def entries(self, lo: int, hi: int, bytes_max: int) -> list[tuple[int, int, int, bytes]]:
        """Entries lo..hi-1, as many as fit in `bytes_max` of data, at least one.

        Asking below first_index or above last_index is a programmer's error. Errors:
        CorruptionError. Blocking: reads from the page cache, or the disk for old ones.
        """
        self._check()
        assert self._table.first <= lo < hi <= self._table.last + 1, (lo, hi)
        if self._encoder.pending_bytes:
            self.submit()
        out: list[tuple[int, int, int, bytes]] = []
        while lo < hi:
            span = self._table.span(lo, hi, bytes_max)
            assert span is not None
            number, offset, size, end = span
            segment = self._segments[number - self._segments[0].number]
            data = self._read(segment, offset, size)
            got = read_entries(data, offset, segment.seed, self._table, lo, end, segment.path)
            out += got
            bytes_max -= sum(len(e[3]) for e in got)
            lo = end
            if lo < hi:
                located = self._table.locate(lo)
                assert located is not None
                if located[2] > bytes_max:
                    break
        return out

    def _read(self, segment: Segment, offset: int, size: int) -> Buffer:
        """Bytes of a segment, those not yet written from the buffers in flight."""
        waiting = [f for f in self._in_flight if f.segment is segment]
        written = waiting[0].offset if waiting else offset + size
        parts: list[Buffer] = []
        if offset < written:
            parts.append(self._disk.read(segment.handle, offset, min(size, written - offset)))
        for f in waiting:
            lo, hi = (
                max(offset, f.offset),
                min(offset + size, f.offset + len(f.chunk) - HEADER_BYTES),
            )
            if lo < hi:
                parts.append(memoryview(f.chunk)[lo - f.offset : hi - f.offset])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def cut(self, index: int) -> int:
        """Lets go of segments that hold only entries below `index`; returns how many.

        The entry at `index` itself stays, so that its term is known after a restart. Callers
        pass at most the last checkpoint's index. Blocking: never, files go in the background.
        """
        self._check()
        assert index <= self._durable_index, "only what is durable may be cut"
        keep_from = max(index, self._table.first)
        located = self._table.locate(keep_from)
        keep = located[0] if located else self._segments[-1].number
        gone: list[Segment] = []
        while self._segments[0].number < keep and self._head_durable(self._segments[1]):
            gone.append(self._segments.pop(0))
        if gone:
            self._table.cut_below(self._table.first_in(self._segments[0].number))
            self._spares.retire(gone)
        return len(gone)

    def _head_durable(self, segment: Segment) -> bool:
        return segment.head_ticket is not None and segment.head_ticket <= self._done

    # Watching and ending

    @property
    def room_bytes(self) -> int:
        """Bytes that can be saved without another block of the disk."""
        rest = max(0, self._segment_bytes - self._encoder.offset)
        return rest + len(self._spares) * self._segment_bytes

    @property
    def space_error(self) -> OSError | None:
        """Why no spare segment could be made (a full disk); None when sound."""
        return self._spares.error

    def has_room(self, size: int) -> bool:
        """Whether a record of `size` bytes can be saved: reserves the blocks that it needs.

        A few records of state fit behind it.
        """
        self._check()
        try:
            self._reserve([size, STATE_BYTES])
        except NoSpaceError:
            return False
        return True

    def retry_space(self) -> None:
        """Tries again to prepare a spare, at the caller's pace (about once a second)."""
        self._spares.retry()

    def in_flight_age_us(self) -> int:
        """Age of the oldest unfinished write, 0 when idle: too old stops the heartbeats."""
        return self._writer.in_flight_age_us()

    def last_progress_us(self) -> int:
        """Monotonic microseconds of the writer's last sign of life."""
        return self._writer.last_progress_us()

    def stats(self) -> dict[str, Any]:
        """The writer's counters and the log's extent."""
        return {
            **self._writer.stats(),
            "segments": len(self._segments),
            "spares": len(self._spares),
            "in_flight_bytes": self._writer.in_flight_bytes,
            "active_bytes": self._encoder.offset,
        }

    def close(self) -> None:
        """Submits what is left, waits for it, and makes the closing mark durable.

        Blocking: for the writer and the background. After a failure only lets go.
        """
        if self._closed:
            return
        try:
            if self._failed is None:
                self.submit()
                self._writer.close()
                self._collect()
                self._disk.fdatasync(self._segments[-1].handle)
        finally:
            self._closed = True
            self._writer.close()
            self._spares.close()
            self._disk.shutdown()
            close_segments(self._disk, self._segments)
            self._disk.close(self._folder)

    # Inside

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
        assert not self._closed, "the log is closed"

    def _lower_durable(self, last: int) -> None:
        self._durable_index = min(self._durable_index, last)
        for item in self._in_flight:
            item.last = min(item.last, last)

    def _record(self, kind: int, index: int, term: int, body: bytes) -> None:
        self._check()
        if self._reserve([len(body)]):
            self._rotate()
        self._encoder.record(kind, index, term, body)

    def _reserve(self, lengths: list[int]) -> bool:
        """Reserves the segments that records of these lengths will open (invariant 7)."""
        offset, fresh = self._encoder.offset, self._encoder.offset == self._head_end
        total = sum(lengths) + len(lengths) * (HEADER_BYTES + 7)
        if offset + total + HEADER_BYTES <= self._segment_bytes:
            return False
        head = record_bytes(len(encode_head(self._segments[-1], self._state, 0, 0)))
        sizes: list[int] = []
        if fresh and offset + record_bytes(lengths[0]) + HEADER_BYTES > self._segment_bytes:
            self._spares.extend(self._segments[-1].handle, offset + record_bytes(lengths[0]))
        for n in lengths:
            if not fresh and offset + record_bytes(n) + HEADER_BYTES > self._segment_bytes:
                sizes.append(head)
                offset = head
            offset += record_bytes(n)
            fresh = False
            if sizes:
                sizes[-1] = offset + HEADER_BYTES
        if sizes:
            self._spares.reserve(sizes)
        return bool(sizes)

    def _rotate(self) -> None:
        """Ends the active segment and begins the next one with all in force."""
        self.submit()
        encoder, before = self._encoder, self._segments[-1]
        spare, handle = self._spares.take()
        number, salt = before.number + 1, self._disk.random_u32()
        first = self._table.last + 1
        path = f"{self._path}/{segment_name(number, first, salt)}"
        self._ticket = self._writer.rename(spare, path, self._folder)
        segment = Segment(number, first, salt, path, handle, segment_seed(number, salt), None)
        end = encoder.offset
        encoder.begin(segment.seed, encoder.crc, 0, 0)
        body = encode_head(segment, self._state, end, self._segment_bytes)
        encoder.record(SEGMENT_HEAD, first, self._table.term(first - 1) or 0, body)
        self._head_end = encoder.offset
        self._segments.append(segment)
        self._spares.maintain()


def _check_size(segment_bytes: int) -> None:
    if segment_bytes < SEGMENT_BYTES_MIN or segment_bytes % 8:
        raise ConfigError(
            f"a log segment of {segment_bytes} bytes: at least {SEGMENT_BYTES_MIN}, a multiple of 8"
        )
