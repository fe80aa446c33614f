"""What sources hand to the pipeline: chunks of records by position, and bad records.

Role: the one shape between readers (jsonl, manifests) and the pipeline (run), and the checks that
every record passes before it may be sent. Callers: jsonl, manifests, sources, run.

Positions count the items of a job from 0 on, through all sources in their order: a line of JSONL
(blank and bad ones too), an object of a manifest. A checkpoint is a set of positions, so a source
read again must give every item its old position.

Invariants:
  1. A chunk covers [start, end) whole: positions in it without a record are blank or rejected.
  2. Records in a chunk stand in the order of the source; a key may be there several times.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvnode.base.errors import CallerError
from kvnode.base.limits import KEY_BYTES_MAX, REQUEST_BYTES_DEFAULT

_SHOWN_CHARS_MAX = 64 << 10


class IngestError(CallerError):
    """An import can't go on; the text says what to do. `status` is the command's exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        self.status = status
        super().__init__(text)


class BadRecord(IngestError):
    """One item can't be stored: where it stands (`source`, `line` from 1), why, its own text."""

    def __init__(
        self, source: str, line: int, reason: str, record: str, position: int = -1
    ) -> None:
        self.source = source
        self.line = line
        self.reason = reason
        self.record = record
        self.position = position
        super().__init__(f"{source}:{line}: {reason}", status=3)


@dataclass(slots=True)
class Limits:
    """What one record may have, and what goes in front of its key."""

    value_bytes_max: int = REQUEST_BYTES_DEFAULT
    prefix: bytes = b""

    def fault(self, key: bytes, value: bytes) -> str:
        """Why a record (its key with the prefix) can't be stored; "" if it can."""
        if len(key) <= len(self.prefix):
            return "the key is empty"
        if len(key) > KEY_BYTES_MAX:
            return f"the key has {len(key)} bytes; at most {KEY_BYTES_MAX} are allowed"
        if len(key) + len(value) > self.value_bytes_max:
            return (
                f"key and value have {len(key) + len(value)} bytes; at most "
                f"{self.value_bytes_max} are allowed (--max-record-bytes, and the node's "
                f"--max-request-bytes)"
            )
        return ""


@dataclass(slots=True)
class Chunk:
    """Records of the positions [start, end) of one source.

    positions: of each record, or None when record i stands at start + i.
    lines: of each record, or None when it is `line` + i.
    """

    source: str
    start: int
    end: int
    keys: list[bytes]
    values: list[bytes]
    line: int = 1
    positions: list[int] | None = None
    lines: list[int] | None = None
    bad: list[BadRecord] = field(default_factory=list)

    def cut(self, start: int, end: int) -> Chunk:
        """The part of it in [start, end)."""
        if start <= self.start and end >= self.end:
            return self
        start, end = max(start, self.start), min(end, self.end)
        if self.positions is None:
            a, b = start - self.start, end - self.start
        else:
            a = bisect.bisect_left(self.positions, start)
            b = bisect.bisect_left(self.positions, end)
        return Chunk(
            self.source, start, end, self.keys[a:b], self.values[a:b], self.line + a,
            None if self.positions is None else self.positions[a:b],
            None if self.lines is None else self.lines[a:b],
            [one for one in self.bad if start <= one.position < end],
        )  # fmt: skip

    def line_of(self, index: int) -> int:
        """The line of record `index`."""
        return self.line + index if self.lines is None else self.lines[index]


def shown(text: bytes | str) -> str:
    """A record as it stands among the rejects: decoded, cut at 64 Ki characters."""
    if isinstance(text, bytes):
        text = text[: 4 * _SHOWN_CHARS_MAX].decode("utf-8", "replace")
    text = text.strip()
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "..."


Chunks = Iterator[Chunk]
