"""Reading a log back: replay, and the verdict on damage.

Callers: wal/log.py at open (`scan_log`, then `repair`), wal/tools.py (`scan_log` only).
Input: the folder, and `known_durable_index`, the highest index that is known from elsewhere to
have been durable here (the applied index, the checkpoint's index). `scan_log` writes nothing.

Verdict. Let X be the end of the last good record of the last segment.

 1. Damage in any segment but the last is corruption: a segment is synced whole before the next
    one gets its name.
 2. If anywhere behind X a whole header of this segment says that more than X was durable when
    it was written, the bytes at X were synced once: corruption.
 3. If the log then ends below `known_durable_index`, or begins above what the store holds, an
    acknowledged part is missing: corruption.
 4. Otherwise what stands at X was never known synced: a torn tail. It is cut, that is, every
    whole header behind X is zeroed and synced before anything is appended.

What is promised. Every acknowledged record is proven by one of: a later record that was encoded
after its sync was seen; the mark behind it, which is written before the acknowledgement when
nothing newer waits (so: after any death of the process, and after a clean stop also on the
platter); `known_durable_index`. Not provable: bytes of the last one or two groups that are lost
*after* their sync, together with a power cut or a death in the middle of the next group's write
(which overwrites the mark), before a checkpoint passed them. That takes a disk that loses what
it synced; such a loss is taken for a torn tail.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from kvnode._core.logrec import (
    ADVICE,
    CLOSED,
    CONFIGURATION,
    HEADER_BYTES,
    REASONS,
    SEGMENT_HEAD,
    SNAPSHOT,
    TORN_REASONS,
    Encoder,
    EntryTable,
    Scanner,
    decode_header,
    find_proof,
)
from kvnode.base.errors import CorruptionError, DecodeError
from kvnode.wal.disk import Disk
from kvnode.wal.state import (
    SUFFIX,
    Head,
    LogState,
    Segment,
    decode_head,
    decode_snapshot,
    parse_name,
)


@dataclass(slots=True)
class Scan:
    """A log as it was read. `end` and `crc` are the end of the last segment's good records."""

    segments: list[Segment]
    table: EntryTable
    state: LogState
    end: int
    crc: int
    head_end: int
    durable_offset: int
    reason: int
    zero_end: int
    headless: Segment | None
    records: int
    bytes: int

    @property
    def torn(self) -> bool:
        """Whether whole headers or a headless segment behind the end will be cut."""
        return self.headless is not None or (self.reason != CLOSED and self.zero_end > self.end)


def list_segments(disk: Disk, folder: str) -> list[Segment]:
    """The log's files in order, not opened; CorruptionError when one is missing in the middle."""
    found = []
    for name in disk.listdir(folder):
        segment = parse_name(folder, name)
        if segment is not None:
            found.append(segment)
        elif name.endswith(SUFFIX):
            raise CorruptionError(
                "not the name of a log segment; move the file away if it is yours, or restore "
                "the name it had",
                f"{folder}/{name}",
            )
    found.sort(key=lambda s: s.number)
    for a, b in itertools.pairwise(found):
        if b.number != a.number + 1:
            raise CorruptionError(
                f"segment {a.number} is followed by {b.number}: those between are missing; "
                f"{ADVICE}",
                b.path,
            )
    return found


def scan_log(disk: Disk, folder: str, known_durable_index: int = 0, write: bool = False) -> Scan:
    """Reads the whole log and judges it; the segments stay open, the caller closes them.

    Errors: CorruptionError with file and offset. With `write` the files are opened for writing.
    """
    segments = list_segments(disk, folder)
    if not segments:
        raise CorruptionError(f"no log segment here; {ADVICE}", folder)
    try:
        for s in segments:
            s.handle = disk.open(s.path, write=write)
        return _scan_open(disk, segments, known_durable_index)
    except BaseException:
        close_segments(disk, segments)
        raise


def close_segments(disk: Disk, segments: list[Segment]) -> None:
    for s in segments:
        if s.handle >= 0:
            disk.close(s.handle)
            s.handle = -1


def _scan_open(disk: Disk, segments: list[Segment], known: int) -> Scan:
    heads = [_read_head(disk, s) for s in segments]
    headless = None
    if heads[-1] is None:
        headless = segments[-1]
        _assert_never_synced(disk, headless)
        if len(segments) == 1:
            raise CorruptionError(f"the only segment has no readable head; {ADVICE}", headless.path)
        segments, heads = segments[:-1], heads[:-1]
        known = max(known, headless.first - 1)
    for s, h in zip(segments, heads, strict=True):
        if h is None:
            raise CorruptionError(f"the segment's head is damaged; {ADVICE}", s.path)
        if (h.number, h.salt, h.next_index) != (s.number, s.salt, s.first):
            raise CorruptionError(f"the file's name does not fit its head; {ADVICE}", s.path)
    scan = _replay(disk, segments, [h for h in heads if h is not None])
    scan.headless = headless
    _check_known(scan, known)
    return scan


def _read_head(disk: Disk, segment: Segment) -> Head | None:
    raw = bytes(memoryview(disk.read(segment.handle, 0, HEADER_BYTES)))
    header = decode_header(raw, 0, segment.seed)
    if header is None or header[4] != SEGMENT_HEAD or header[3] > disk.size(segment.handle):
        return None
    size = HEADER_BYTES + (header[3] + 7 & ~7)
    scanner = Scanner(
        disk.read(segment.handle, 0, size), segment.seed, None, EntryTable(), segment.number
    )
    if scanner.next() != SEGMENT_HEAD:
        return None
    try:
        return decode_head(
            scanner.record_data(), scanner.record_index, scanner.record_term, scanner.record_prev
        )
    except DecodeError as e:
        raise CorruptionError(str(e), segment.path) from e


def _assert_never_synced(disk: Disk, segment: Segment) -> None:
    """The last segment has no head: fine if it only just got its name (its head was not synced)."""
    data = disk.read(segment.handle, 0, disk.size(segment.handle))
    proof, durable, _ = find_proof(data, 0, segment.seed)
    if proof >= 0:
        raise CorruptionError(
            f"the segment's head is damaged, though the record at {proof} says that {durable} "
            f"bytes were synced; {ADVICE}",
            segment.path,
        )


def _replay(disk: Disk, segments: list[Segment], heads: list[Head]) -> Scan:
    first = heads[0]
    table = EntryTable(first.next_index, first.last_term, first.state.snapshot_index)
    state = first.state
    scan = Scan(segments, table, state, 0, 0, 0, 0, 0, 0, None, 0, 0)
    for i, (segment, head) in enumerate(zip(segments, heads, strict=True)):
        data = disk.read(segment.handle, 0, disk.size(segment.handle))
        if i and (head.state != state or head.next_index != table.last + 1):
            raise CorruptionError(
                f"the segment's head differs from what the log before it says; {ADVICE}",
                segment.path,
            )
        scanner = Scanner(data, segment.seed, scan.crc if i else None, table, segment.number)
        state = _replay_segment(scanner, segment, head, state, table)
        scan.records += scanner.records
        scan.bytes += scanner.offset
        scan.state, scan.end, scan.crc = state, scanner.offset, scanner.crc
        scan.durable_offset, scan.reason = scanner.durable_offset, scanner.reason
        scan.head_end = HEADER_BYTES + (_head_length(data, segment) + 7 & ~7)
        why = REASONS[scanner.reason]
        if i + 1 < len(segments):
            after = heads[i + 1]
            if (scanner.offset, scanner.crc) != (after.previous_end, after.previous_crc):
                raise CorruptionError(
                    f"{why}, where the next segment proves synced records; {ADVICE}",
                    segment.path,
                    scanner.offset,
                )
        else:
            _judge_end(scan, segment, data, why)
    return scan


def _head_length(data: object, segment: Segment) -> int:
    header = decode_header(data, 0, segment.seed)  # type: ignore[arg-type]
    assert header is not None, "the head was read before"
    return header[3]


def _replay_segment(
    scanner: Scanner, segment: Segment, head: Head, state: LogState, table: EntryTable
) -> LogState:
    scanner.set_hard_state(head.state.term, head.state.vote, head.state.commit)
    kind = scanner.next()
    while kind:
        state = replace(state, term=scanner.term, vote=scanner.vote, commit=scanner.commit)
        try:
            if kind == CONFIGURATION:
                state = replace(
                    state,
                    configuration=scanner.record_data(),
                    configuration_index=scanner.record_index,
                )
            elif kind == SNAPSHOT:
                state, last = decode_snapshot(
                    scanner.record_data(), scanner.record_index, scanner.record_term, state
                )
                table.restart(scanner.record_index, scanner.record_term, last)
                scanner.set_hard_state(state.term, state.vote, state.commit)
            elif scanner.record_offset:
                raise DecodeError("a second segment head")
        except DecodeError as e:
            raise CorruptionError(str(e), segment.path, scanner.record_offset) from e
        kind = scanner.next()
    return replace(state, term=scanner.term, vote=scanner.vote, commit=scanner.commit)


def _judge_end(scan: Scan, segment: Segment, data: object, why: str) -> None:
    """Rules 2 and 4: torn tail or corruption at the end of the last segment."""
    if scan.reason != CLOSED and scan.reason not in TORN_REASONS:
        raise CorruptionError(f"{why}; {ADVICE}", segment.path, scan.end)
    proof, durable, scan.zero_end = find_proof(data, scan.end, segment.seed)  # type: ignore[arg-type]
    if proof >= 0:
        raise CorruptionError(
            f"{why}, though the record at {proof} says that {durable} bytes were synced; {ADVICE}",
            segment.path,
            scan.end,
        )


def _check_known(scan: Scan, known: int) -> None:
    """Rule 3: the log must join on to what is known to have been durable."""
    path = scan.segments[-1].path
    if scan.table.last < known:
        raise CorruptionError(
            f"the log ends at index {scan.table.last}, but {known} was known durable: its tail is "
            f"missing or damaged; {ADVICE}",
            path,
            scan.end,
        )
    if scan.table.first > max(known, scan.state.snapshot_index) + 1:
        raise CorruptionError(
            f"the log begins at index {scan.table.first}, but the store holds only up to "
            f"{max(known, scan.state.snapshot_index)}; {ADVICE}",
            scan.segments[0].path,
        )


def repair(disk: Disk, folder: str, scan: Scan) -> None:
    """Cuts the torn tail and makes all that was read durable, before anything is appended.

    What no mark proves is written again, not only synced: after a failed sync in a former life
    the kernel may hold pages that are clean in memory and never reached the disk.
    """
    if scan.headless is not None:
        disk.close(scan.headless.handle)
        disk.unlink(scan.headless.path)
    # Also for a former life that died between a rename and the folder's sync.
    disk.fsync_dir(folder)
    active = scan.segments[-1]
    if scan.reason == CLOSED and scan.zero_end <= scan.end + HEADER_BYTES:
        return
    size = scan.end - scan.durable_offset
    if size:
        disk.pwrite(
            active.handle, scan.durable_offset, disk.read(active.handle, scan.durable_offset, size)
        )
    if scan.zero_end > scan.end:
        disk.pwrite(active.handle, scan.end, bytes(scan.zero_end - scan.end))
    disk.fdatasync(active.handle)
    write_mark(disk, active, scan.crc, scan.end)


def write_mark(disk: Disk, segment: Segment, crc: int, end: int) -> None:
    """Leaves the mark that attests `end`; the caller has synced up to there."""
    encoder = Encoder()
    encoder.begin(segment.seed, crc, end, end)
    disk.pwrite(segment.handle, end, encoder.take())
