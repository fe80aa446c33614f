"""`kvnode wal dump` and `kvnode wal verify` as plain functions.

Caller: cli. They only read, and may run on a copy or on the folder of a stopped node.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from kvnode._core.crc32c import crc32c
from kvnode._core.logrec import (
    CLOSED,
    CONFIGURATION,
    ENTRY,
    HARD_STATE,
    HEADER_BYTES,
    KIND_NAMES,
    MARK,
    REASONS,
    SEGMENT_HEAD,
    SNAPSHOT,
    decode_header,
)
from kvnode.base.errors import CorruptionError, DecodeError
from kvnode.wal.disk import Disk
from kvnode.wal.recover import close_segments, list_segments, scan_log
from kvnode.wal.state import LogState, Segment, decode_head, decode_snapshot

PREVIEW_BYTES = 16


@dataclass(slots=True)
class Report:
    """What `verify` found. `ok` is False exactly when `error` says why."""

    ok: bool
    error: str = ""
    path: str = ""
    offset: int = 0
    segments: int = 0
    records: int = 0
    bytes: int = 0
    first_index: int = 0
    last_index: int = 0
    torn: bool = False
    closed: bool = False
    state: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """One paragraph for a person."""
        if not self.ok:
            return f"damaged: {self.error}"
        tail = "torn, the next start cuts it" if self.torn else "sound"
        return (
            f"sound: {self.segments} segments, {self.records} records, {self.bytes} bytes, "
            f"entries {self.first_index} to {self.last_index}, tail {tail}, "
            f"{'all synced' if self.closed else 'not closed by a mark'}"
        )


def verify(disk: Disk, path: str, known_durable_index: int = 0) -> Report:
    """Checks every record and every rule of recover.py; never raises for damage."""
    try:
        scan = scan_log(disk, path, known_durable_index)
    except CorruptionError as e:
        return Report(False, str(e), e.path, e.offset)
    every = [*scan.segments, *([scan.headless] if scan.headless else [])]
    close_segments(disk, every)
    state = asdict(scan.state)
    state["configuration"] = scan.state.configuration.hex()
    return Report(
        True,
        segments=len(scan.segments),
        records=scan.records,
        bytes=scan.bytes,
        first_index=scan.table.first,
        last_index=scan.table.last,
        torn=scan.torn,
        closed=scan.reason == CLOSED,
        state=state,
    )


def dump(disk: Disk, path: str, out: TextIO, as_json: bool = False) -> int:
    """Writes one line a record, damaged ones included; returns how many places were damaged.

    A segment's lines end where its records do: at a mark, at zeros, or at damage.
    """
    damaged = 0
    segments = list_segments(disk, path)
    for segment in segments:
        segment.handle = disk.open(segment.path, write=False)
        try:
            last = segment is segments[-1]
            for record in records(disk, segment):
                damaged += "damage" in record and not (last and record["kind"] == "end")
                out.write((json.dumps(record) if as_json else _line(record)) + "\n")
        finally:
            close_segments(disk, [segment])
    return damaged


def records(disk: Disk, segment: Segment) -> Iterator[dict[str, Any]]:
    """The records of an open segment in order, then one of kind "end" that says why it ended."""
    data = memoryview(disk.read(segment.handle, 0, disk.size(segment.handle)))
    offset, before = 0, None
    while True:
        header = decode_header(data, offset, segment.seed)
        where = {"segment": segment.number, "offset": offset}
        if header is None:
            zero = not any(data[offset : offset + HEADER_BYTES])
            end = "no more records" if zero else REASONS[0]
            yield {**where, "kind": "end", **({} if zero else {"damage": end})}
            return
        crc, previous, data_crc, length, kind, entry_type, index, term, durable = header
        record: dict[str, Any] = {
            **where,
            "kind": KIND_NAMES.get(kind, f"kind {kind}"),
            "index": index,
            "term": term,
            "length": length,
            "durable_offset": durable,
        }
        if before is not None and previous != before:
            yield {**record, "kind": "end", "damage": "does not follow the record before"}
            return
        size = HEADER_BYTES + (length + 7 & ~7)
        body = data[offset + HEADER_BYTES : offset + size]
        if len(body) != size - HEADER_BYTES or crc32c(body) != data_crc:
            record["damage"] = "data damaged or incomplete"
        else:
            record.update(_detail(kind, entry_type, header, bytes(body[:length])))
        yield record
        if kind == MARK:
            return
        offset, before = offset + size, crc


def _detail(kind: int, entry_type: int, header: tuple[int, ...], body: bytes) -> dict[str, Any]:
    """What a record says beyond its header."""
    try:
        if kind == ENTRY:
            return {"type": entry_type, "data": body[:PREVIEW_BYTES].hex()}
        if kind == HARD_STATE:
            return {"vote": int.from_bytes(body, "little"), "commit": header[6]}
        if kind == CONFIGURATION:
            return {"configuration": body.hex()}
        if kind == SEGMENT_HEAD:
            state = decode_head(body, header[6], header[7], header[1]).state
            return {"state": {**asdict(state), "configuration": state.configuration.hex()}}
        if kind == SNAPSHOT:
            state, last = decode_snapshot(body, header[6], header[7], LogState(0, 0))
            return {"last": last, "generation": state.generation}
    except DecodeError as e:
        return {"damage": str(e)}
    return {}


def _line(record: dict[str, Any]) -> str:
    head = f"{record.pop('segment'):>4} {record.pop('offset'):>10} {record.pop('kind'):<13}"
    return head + "".join(f" {k}={v}" for k, v in record.items() if k != "state")
