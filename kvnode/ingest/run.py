"""The import itself: chunks to batches, several in flight, each with its checkpoint.

Role: drives reader, job and client; one thread. Caller: cli. A batch is one PUT_BATCH request: its
puts in order, each with a revision of its own, and the checkpoint last. 4,000 records a batch cost
the node 3.4 us of CPU each, 1,000 cost 7.2 (random keys dirty fewer pages each); above it no gain.

Invariants:
  1. At most `lanes` batches are unanswered, and they are closed in the order of submission.
  2. A batch covers positions that no checkpoint covers yet, and none twice.
  3. After a bad record (unless they are skipped) or a refusal no batch is submitted.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

from kvnode._core.messages import encode_put_batch
from kvnode.base.codes import STATUS, Code, Kind
from kvnode.base.errors import UnavailableError
from kvnode.client.engine import Outcome, Pending
from kvnode.client.sync import Client, decode
from kvnode.ingest.job import Job, Lane, State
from kvnode.ingest.records import BadRecord, Chunk, IngestError
from kvnode.ingest.sources import Reader

BATCH_RECORDS = 4000
BATCH_BYTES = 1 << 20
IN_FLIGHT = 8
_POLL_SECONDS = 0.25


@dataclass(slots=True)
class Batch:
    """Records of [start, end) in the order of their positions; `before`: records below start."""

    start: int
    end: int
    before: int
    chunks: list[Chunk] = field(default_factory=list)
    count: int = 0
    bytes: int = 0

    def locate(self, index: int) -> tuple[Chunk, int]:
        """The chunk of record `index`, and its index there."""
        for chunk in self.chunks:
            if index < len(chunk.keys):
                return chunk, index
            index -= len(chunk.keys)
        raise IndexError(index)


@dataclass
class Summary:
    """What one run did. `records` and `bytes` (keys and values) are this run's."""

    records: int = 0
    bytes: int = 0
    rejected: int = 0
    seconds: float = 0.0
    last_revision: int = 0
    records_before: int = 0


class Rejects:
    """rejects.jsonl: {"source", "line", "reason", "record", "position", "job"} for each bad item.

    A resumed job appends, and does not write a position again.
    """

    def __init__(self, path: str, job: str, resumed: bool) -> None:
        self.path = path
        self._job = job
        self._file: IO[str] | None = None
        self._resumed = resumed
        self._known: set[int] = set()
        if resumed and os.path.exists(path):
            self._known = set(self._positions())

    def _positions(self) -> Iterator[int]:
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and row.get("job") == self._job:
                    yield int(row["position"])

    def add(self, bad: BadRecord) -> bool:
        """Writes it, on disk before any later batch is sent; False if it was there before."""
        if bad.position in self._known:
            return False
        self._known.add(bad.position)
        if self._file is None:
            self._file = open(self.path, "a" if self._resumed else "w",  # noqa: SIM115
                              encoding="utf-8", errors="replace")  # fmt: skip
        row = {"source": bad.source, "line": bad.line, "reason": bad.reason, "record": bad.record,
               "position": bad.position, "job": self._job}  # fmt: skip
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Importer:
    """One run of one job."""

    def __init__(
        self, client: Client, job: Job, reader: Reader, state: State, rejects: Rejects | None,
        batch_records: int = BATCH_RECORDS, batch_bytes: int = BATCH_BYTES,
        patience_seconds: float = 60.0, on_progress: Callable[[Summary], None] | None = None,
    ) -> None:  # fmt: skip
        self.summary = Summary(records_before=state.below + sum(n for _, _, n in state.holes))
        self._client = client
        self._job = job
        self._reader = reader
        self._state = state
        self._rejects = rejects
        self._batch_records = batch_records
        self._batch_bytes = batch_bytes
        self._patience = patience_seconds
        self._on_progress = on_progress
        self._flying: deque[tuple[Batch, Pending]] = deque()
        self._submitted = 0

    def run(self) -> Summary:
        """Everything to the end; BadRecord, IngestError, RequestError or UnavailableError.

        Durability: what a checkpoint names is on disk on a quorum.
        """
        begun = time.monotonic()
        try:
            for batch in self._batches():
                self._submit(batch)
            self._land(0)
            self._job.finish(self._position, self._before, done=True)
        except BadRecord:
            self._land(0)
            self._job.finish(self._position, self._before, done=False)
            raise
        finally:
            self.summary.seconds = time.monotonic() - begun
        return self.summary

    # --- batches ----------------------------------------------------------------------------------

    def _batches(self) -> Iterator[Batch]:
        """Batches of what is not applied yet, in order. A bad record ends them after the last
        batch before it, unless bad records are skipped."""
        holes = deque(self._state.holes)
        self._position, self._before = self._state.low, self._state.below
        open_batch: Batch | None = None
        for chunk in self._reader.chunks(self._state.low):
            for piece in self._missing(chunk, holes):
                size = sum(map(len, piece.keys)) + sum(map(len, piece.values))
                if open_batch is not None and (
                    open_batch.end != piece.start
                    or open_batch.count + len(piece.keys) > self._batch_records
                    or open_batch.bytes + size > self._batch_bytes
                ):
                    yield open_batch
                    open_batch = None
                if open_batch is None:
                    open_batch = Batch(piece.start, piece.end, self._before)
                if piece.keys:
                    open_batch.chunks.append(piece)
                open_batch.end = piece.end
                open_batch.count += len(piece.keys)
                open_batch.bytes += size
                self._position = piece.end
                self._before += len(piece.keys)
                for bad in piece.bad:
                    self._reject(bad)
            for bad in chunk.bad:
                if self._rejects is None:
                    if open_batch is not None:
                        yield open_batch
                    raise bad
        if open_batch is not None:
            yield open_batch

    def _missing(self, chunk: Chunk, holes: deque[tuple[int, int, int]]) -> Iterator[Chunk]:
        """The parts of a chunk that are not applied yet."""
        at = max(chunk.start, self._position)
        while at < chunk.end:
            while holes and holes[0][1] <= at:
                holes.popleft()
            if holes and holes[0][0] <= at:
                at = min(holes[0][1], chunk.end)
                if at == holes[0][1]:
                    self._before += holes[0][2]
                    self._position = at
                continue
            end = min(chunk.end, holes[0][0]) if holes else chunk.end
            yield chunk.cut(at, end)
            at = end

    def _reject(self, bad: BadRecord) -> None:
        if self._rejects is not None and self._rejects.add(bad):
            self.summary.rejected += 1

    # --- in flight --------------------------------------------------------------------------------

    def _submit(self, batch: Batch) -> None:
        if not batch.count:
            return
        self._land(self._job.lanes - 1)
        first = self._flying[0][0] if self._flying else batch
        lane = Lane(batch.start, batch.end, batch.count, first.start, first.before)
        key, value = self._job.checkpoint(self._submitted, lane)
        keys: list[bytes] = []
        values: list[bytes] = []
        for chunk in batch.chunks:
            keys += chunk.keys
            values += chunk.values
        keys.append(key)
        values.append(value)
        pending = self._client.submit(Kind.PUT_BATCH, encode_put_batch(keys, values))
        self._submitted += 1
        self._flying.append((batch, pending))
        self._client.flush()
        self._close_answered()

    def _land(self, flying_max: int) -> None:
        """Waits until at most that many batches are unanswered."""
        deadline = time.monotonic() + self._patience
        while len(self._flying) > flying_max:
            before = len(self._flying)
            self._close_answered()
            if len(self._flying) < before:
                deadline = time.monotonic() + self._patience
            elif len(self._flying) > flying_max:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"no answer for {self._patience:g} s; the same command resumes the import"
                    )
                self._client.poll(_POLL_SECONDS)

    def _close_answered(self) -> None:
        flying = self._flying
        while flying and flying[0][1].done:
            batch, pending = flying.popleft()
            self._on_answer(batch, pending)

    def _on_answer(self, batch: Batch, pending: Pending) -> None:
        summary = self.summary
        refused = []
        if pending.outcome is not Outcome.APPLIED:
            answer = decode(Kind.PUT_BATCH, pending.result())
            refused = list(answer.refused)
            summary.last_revision = max(summary.last_revision, answer.last_revision)
        for refusal in refused:
            self._on_refusal(batch, refusal.index, refusal.code)
        summary.records += batch.count - len(refused)
        summary.bytes += batch.bytes
        if self._on_progress is not None:
            self._on_progress(summary)

    def _on_refusal(self, batch: Batch, index: int, code: int) -> None:
        """The node refused one put of a batch that it applied."""
        if index >= batch.count:
            raise IngestError(f"job {self._job.name}: the node refused its checkpoint, code {code}")
        chunk, at = batch.locate(index)
        try:
            reason = STATUS[Code(code)][1]
        except ValueError:
            reason = f"code {code}"
        position = chunk.start + at if chunk.positions is None else chunk.positions[at]
        text = chunk.keys[at].decode("utf-8", "replace")
        bad = BadRecord(chunk.source, chunk.line_of(at), f"refused by the node: {reason}", text,
                        position)  # fmt: skip
        if self._rejects is None:
            raise IngestError(f"{bad}; the job's checkpoint counts it as done: mend it and import "
                              "it alone", status=3)  # fmt: skip
        self._reject(bad)


