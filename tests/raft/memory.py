"""A log storage in memory, with what a crash leaves of it."""

from __future__ import annotations

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft import (
    CompactedError,
    Configuration,
    Entry,
    HardState,
    Ready,
    Snapshot,
)


class MemoryStorage:
    """`persist` takes what a Ready has to write; everything taken is durable."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.configuration_index = Index(0)
        self.hard_state = HardState(Term(0), MemberID(0), Index(0))
        self.snapshot_index = Index(0)
        self.snapshot_term = Term(0)
        self.list: list[Entry] = []
        self.before: tuple[int, int] = (0, 0)   # index and term before the first entry

    @property
    def first_index(self) -> Index:
        return Index(self.before[0] + 1)

    @property
    def last_index(self) -> Index:
        return Index(self.before[0] + len(self.list))

    def term(self, index: Index) -> Term:
        if index < self.before[0]:
            raise CompactedError(f"entry {index} is compacted")
        if index == self.before[0]:
            return Term(self.before[1])
        return self.list[index - self.first_index].term

    def entries(self, lo: Index, hi: Index, max_bytes: int) -> list[Entry]:
        if lo < self.first_index:
            raise CompactedError(f"entry {lo} is compacted")
        assert lo < hi <= self.last_index + 1
        found: list[Entry] = []
        size = 0
        for entry in self.list[lo - self.first_index : hi - self.first_index]:
            size += len(entry.data)
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    def persist(self, ready: Ready) -> None:
        if ready.snapshot is not None:
            self.install(ready.snapshot)
        if ready.configuration is not None:
            self.configuration_index, self.configuration = ready.configuration
        for entry in ready.entries:
            assert self.first_index <= entry.index <= self.last_index + 1, "gap in the storage"
            del self.list[entry.index - self.first_index :]
            self.list.append(entry)
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state

    def install(self, snapshot: Snapshot) -> None:
        self.list = []
        self.before = (snapshot.index, snapshot.term)
        self.snapshot_index, self.snapshot_term = snapshot.index, snapshot.term

    def compact(self, index: int) -> None:
        """Drop the entries up to `index`."""
        if index > self.before[0]:
            term = self.term(Index(index))
            del self.list[: index - self.before[0]]
            self.before = (index, term)
