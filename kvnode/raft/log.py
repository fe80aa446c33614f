"""The log as consensus sees it: what storage holds, and the tail that storage may not hold yet.

Caller: the rest of this room. The storage is handed in (`LogStorage`) and only read; entries reach
it through `Ready`. The tail keeps entries with their data while they are not durable, and on a
leader as long as followers need them and `tail_bytes_max` allows; terms are kept as runs, so the
hot path never asks the storage.

```
      storage                    │ tail                               │
 first_index ...       tail_first ...   persisted ...   handed ...   last
                   committed: anywhere above the storage's first
```

Invariants, asserted where they could break:
 L1 indexes have no gap and terms don't go back along the log.
 L2 what is committed is never truncated or replaced.
 L3 persisted <= handed <= last and tail_first <= persisted + 1: all that is not durable is here
    (while a snapshot is being installed: all that is behind it).
 L4 committed never goes back and never passes last.
 L5 what was handed out for applying <= min(committed, persisted), and never goes back.
 L6 an acknowledged Ready vouches only for entries that were not replaced since it was handed out
    (the A-B-A race of overlapping writes): truncation lowers the marks still in flight.

Deliberately absent: deciding when to compact. The storage moves its `first_index`; a reader that
comes too late gets CompactedError.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from kvnode.base.ids import Index, Term
from kvnode.raft.configuration import ConfigurationChange, decode_change
from kvnode.raft.errors import CompactedError, LogLostError
from kvnode.raft.types import ENTRY_CONFIGURATION, Entry, Snapshot, Span


class LogStorage(Protocol):
    """The durable log, read only. Blocking: may read the disk for entries no longer in memory."""

    @property
    def first_index(self) -> Index:
        """Index of the oldest entry that is still there; last_index + 1 if there is none."""
        ...

    @property
    def last_index(self) -> Index:
        """Index of the newest durable entry; of the snapshot record if there is none behind it."""
        ...

    def term(self, index: Index) -> Term:
        """Term for first_index - 1 .. last_index; CompactedError below."""
        ...

    def entries(self, lo: Index, hi: Index, max_bytes: int) -> Sequence[Entry]:
        """Entries lo .. hi - 1, as many as fit `max_bytes` of data but at least one.

        CompactedError if `lo` is below first_index. Entries stay valid for ever (bytes).
        """
        ...


class RaftLog:
    """Entries, terms and the marks persisted, committed and handed out for applying."""

    __slots__ = (
        "applied",
        "changes",
        "committed",
        "handed",
        "handed_applying",
        "in_flight",
        "last_index",
        "last_term",
        "persisted",
        "run_starts",
        "run_terms",
        "snapshot",
        "storage",
        "tail",
        "tail_bytes",
        "tail_first",
    )

    def __init__(
        self, storage: LogStorage, snapshot_index: Index, snapshot_term: Term, committed: Index,
        applied: Index,
    ) -> None:
        self.storage = storage
        last = max(storage.last_index, snapshot_index)
        if max(committed, applied) > last:
            raise LogLostError(
                f"the log ends at {last}, but {max(committed, applied)} was committed: the"
                " directory is old or damaged; remove the member and add it anew"
            )
        self.last_index = Index(last)
        self.last_term = snapshot_term if last == snapshot_index else storage.term(Index(last))
        self.run_starts: list[int] = [last]
        self.run_terms: list[Term] = [self.last_term]
        self.tail: list[Entry] = []
        self.tail_first = last + 1
        self.tail_bytes = 0
        self.persisted = self.last_index
        self.handed = self.last_index
        self.committed = committed
        self.handed_applying = applied
        self.applied = applied
        # Marks of Readies not yet acknowledged:
        # [number, last index that it makes durable, term, vote, tick when handed out, commit].
        self.in_flight: deque[list[int]] = deque()
        # A snapshot to install that is not durable yet.
        self.snapshot: Snapshot | None = None
        # Changes of configuration above `committed`.
        self.changes: deque[tuple[Index, ConfigurationChange]] = deque()
        self._find_changes(Index(committed + 1))

    def _find_changes(self, lo: Index) -> None:
        for entry in self.stored_entries(lo, Index(self.last_index + 1)):
            if entry.type == ENTRY_CONFIGURATION:
                self.changes.append((entry.index, decode_change(entry.data)))

    def stored_entries(self, lo: Index, hi: Index) -> list[Entry]:
        """All entries of lo .. hi - 1 that the storage holds (only for a start: unbounded)."""
        found: list[Entry] = []
        while lo < hi:
            found.extend(self.storage.entries(lo, hi, 1 << 20))
            lo = Index(found[-1].index + 1)
        return found

    # Reading.

    def term(self, index: int) -> Term:
        """The term of the entry at `index` <= last; CompactedError if that's too long ago."""
        starts = self.run_starts
        if index >= starts[-1]:
            assert index <= self.last_index, f"L1: no entry {index} yet"
            return self.run_terms[-1]
        if index >= starts[0]:
            return self.run_terms[bisect_right(starts, index) - 1]
        return self.storage.term(Index(index))

    def matches(self, index: int, term: int) -> bool:
        """Whether the log has an entry `index` of that `term`."""
        if index > self.last_index:
            return False
        try:
            return self.term(index) == term
        except CompactedError:
            return False

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends so is at least as new as this one (the vote's condition)."""
        return term > self.last_term or (term == self.last_term and index >= self.last_index)

    def entries(self, lo: int, max_bytes: int) -> Sequence[Entry]:
        """Entries from `lo` on up to `max_bytes`, at least one if there is one."""
        if lo < self.tail_first:
            return self.storage.entries(Index(lo), Index(self.tail_first), max_bytes)
        tail = self.tail
        begin = lo - self.tail_first
        if max_bytes >= self.tail_bytes:
            return tail[begin:] if begin else tail.copy()
        size = 0
        end = begin
        for end in range(begin, len(tail)):
            size += len(tail[end].data)
            if size > max_bytes and end > begin:
                return tail[begin:end]
        return tail[begin : end + 1]

    def last_not_above(self, index: int, term: int) -> tuple[Index, Term]:
        """The greatest entry <= `index` with a term <= `term`: where two logs may agree.

        Terms don't go back, so an entry of a greater term can't be in the other log. Ends at what
        is compacted, with term 0 for "not known".
        """
        index = min(index, self.last_index)
        try:
            while index > 0:
                found = self.term(index)
                if found <= term:
                    return Index(index), found
                if index >= self.run_starts[0]:
                    index = self.run_starts[bisect_right(self.run_starts, index) - 1] - 1
                else:
                    index -= 1
        except CompactedError:
            return Index(index), Term(0)
        return Index(0), Term(0)

    # Writing.

    def append_own(self, term: Term, kind: int, data: bytes) -> Index:
        """A leader's new entry."""
        index = Index(self.last_index + 1)
        self.tail.append(Entry(index, term, kind, data))
        self.tail_bytes += len(data)
        self.last_index = index
        if term != self.last_term:
            self._begin_run(index, term)
        return index

    def _begin_run(self, index: int, term: Term) -> None:
        assert term > self.last_term, "L1: terms don't go back"
        self.run_starts.append(index)
        self.run_terms.append(term)
        self.last_term = term

    def append_from(self, entries: Sequence[Entry]) -> None:
        """A follower takes what a leader sent; the entry before them matches already.

        Entries that are here are skipped; the first that differs replaces all from there on.
        DecodeError: a change of configuration is not readable, nothing was taken.
        """
        first_new = 0
        if entries[0].index <= self.last_index:
            for entry in entries:
                if not self.matches(entry.index, entry.term):
                    break
                first_new += 1
            if first_new == len(entries):
                return
        changes = [
            (entry.index, decode_change(entry.data))
            for entry in entries[first_new:]
            if entry.type == ENTRY_CONFIGURATION
        ]
        if entries[first_new].index <= self.last_index:
            self._truncate(entries[first_new].index)
        assert entries[first_new].index == self.last_index + 1, "L1: gap"
        tail = self.tail
        for entry in entries[first_new:]:
            tail.append(entry)
            self.tail_bytes += len(entry.data)
            if entry.term != self.last_term:
                self._begin_run(entry.index, entry.term)
        self.last_index = entries[-1].index
        self.changes.extend(changes)

    def _truncate(self, index: int) -> None:
        """Forget the entries from `index` on."""
        assert index > self.committed, f"L2: entry {index} is committed ({self.committed})"
        last = Index(index - 1)
        while self.run_starts and self.run_starts[-1] > last:
            self.run_starts.pop()
            self.run_terms.pop()
        if not self.run_starts:
            self.run_starts.append(last)
            self.run_terms.append(self.storage.term(last))
        self.last_index = last
        self.last_term = self.run_terms[-1]
        if index >= self.tail_first:
            for entry in self.tail[index - self.tail_first :]:
                self.tail_bytes -= len(entry.data)
            del self.tail[index - self.tail_first :]
        else:
            self.tail.clear()
            self.tail_bytes = 0
            self.tail_first = index
        self._lower_marks(last)
        while self.changes and self.changes[-1][0] >= index:
            self.changes.pop()

    def _lower_marks(self, last: Index) -> None:
        self.handed = min(self.handed, last)
        self.persisted = min(self.persisted, last)
        for mark in self.in_flight:
            mark[1] = min(mark[1], last)

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew behind a snapshot; it counts as durable when its record is."""
        assert snapshot.index > self.committed, "L4: a snapshot of the past"
        self._lower_marks(self.committed)
        self.snapshot = snapshot
        self.tail.clear()
        self.tail_bytes = 0
        self.tail_first = snapshot.index + 1
        self.run_starts[:] = [snapshot.index]
        self.run_terms[:] = [snapshot.term]
        self.last_index = self.handed = self.committed = snapshot.index
        self.handed_applying = snapshot.index
        self.last_term = snapshot.term
        self.changes.clear()

    # Marks.

    def commit_to(self, index: int) -> None:
        """Raise the commit index."""
        assert index <= self.last_index, f"L4: commit {index} above last {self.last_index}"
        if index > self.committed:
            self.committed = Index(index)

    def take_unhanded(self) -> list[Entry]:
        """Entries for the next Ready."""
        entries = self.tail[self.handed + 1 - self.tail_first :]
        self.handed = self.last_index
        return entries

    def take_appliable(self) -> Span | None:
        """What may be applied and was not handed out for it."""
        last = self.committed
        if last > self.persisted:
            last = self.persisted
        if last <= self.handed_applying:
            return None
        span = Span(Index(self.handed_applying + 1), last, self.term(last))
        self.handed_applying = last
        return span

    def persisted_to(self, number: int) -> list[int] | None:
        """All Readies up to `number` are durable; returns the last one's mark."""
        mark = None
        in_flight = self.in_flight
        while in_flight and in_flight[0][0] <= number:
            mark = in_flight.popleft()
        if mark is None:
            return None
        last = mark[1]
        if last > self.persisted:
            assert last <= self.handed, "L3: more durable than was handed out"
            self.persisted = Index(last)
            if self.snapshot is not None and last >= self.snapshot.index:
                self.snapshot = None
        return mark

    def trim(self, keep_after: int, tail_bytes_max: int) -> None:
        """Drop data of durable entries <= `keep_after`, and further ones above the byte bound."""
        tail = self.tail
        limit = self.persisted + 1 - self.tail_first
        count = min(limit, keep_after + 1 - self.tail_first)
        if count < 0:
            count = 0
        if count == len(tail):
            tail.clear()
            self.tail_bytes = 0
        else:
            for entry in tail[:count]:
                self.tail_bytes -= len(entry.data)
            while count < limit and self.tail_bytes > tail_bytes_max:
                self.tail_bytes -= len(tail[count].data)
                count += 1
            del tail[:count]
        self.tail_first += count
        durable_here = self.tail_first <= self.persisted + 1 or self.snapshot is not None
        assert durable_here, "L3: not durable and not here"
