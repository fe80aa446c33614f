"""The state machine as the applier process holds it.

Role: Python's side of `_core/machine`, once a batch: entries in, results out, freeing, figures.
Caller: procs/applier and tests. No clock, no randomness, no disk of its own; the store is handed
in. What a request does is decided in `_core`.

Invariants:
  1. Every number that leaves here follows from the log, but used_bytes and freed_revision.
  2. After an error the machine is not used again: the process stops and opens the store anew.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from kvnode._core.machine import Machine
from kvnode._core.store import Store
from kvnode.base.ids import ClusterID, Index, MemberID, Revision, Term

ENTRY = struct.Struct("<QQII")     # index, term, type, length; then the data
Entry = tuple[int, int, int, bytes | memoryview]

# Records that freeing looks at in a second, when it mostly deletes (bench/core_apply.py).
FREED_PER_SECOND = 500_000


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """(index, term, type, data) of each entry as one buffer, the form that Machine reads."""
    parts: list[bytes | memoryview] = []
    for index, term, kind, data in entries:
        parts.append(ENTRY.pack(index, term, kind, len(data)))
        parts.append(data)
    return b"".join(parts)


class StateMachine:
    """One member's copy of the state."""

    def __init__(self, store: Store, member: MemberID | int, cluster: ClusterID | int) -> None:
        """Loads the state. Errors: ConfigError (another cluster's), CorruptionError, DiskError."""
        self._made_of = (store, member, cluster)
        self._core = Machine(*self._made_of)

    def reload(self) -> None:
        """Reads the state anew from the same store, after an error that left the store usable.

        That is a full map: the transaction was aborted, and the caller grows the map, reloads and
        applies the same entries again.
        """
        self._core = Machine(*self._made_of)

    def apply(self, entries: Sequence[Entry], *, answer: bool = True) -> list[tuple[int, bytes]]:
        """Applies committed entries in one transaction: [(gateway incarnation, results)].

        Durability: as the store's commit; without an fsync. Blocking: for the transaction, with
        the GIL released. Errors: AssertionError for a gap, else the machine is dead.
        """
        return self._core.apply(pack_entries(entries), answer)

    def set_limits(self, max_txn_ops: int) -> None:
        """Does nothing: limits of requests are each gateway's own.

        What stands in the log is executed by every member alike, so no member's flag may matter.
        """

    def free_slice(self, seconds: float, lowest_reading: int = 0) -> bool:
        """Frees for about `seconds` what compaction made invisible; True: there is more.

        `lowest_reading`: the lowest revision that a gateway of this node still reads, 0 for none.
        """
        return self._core.free_some(int(seconds * FREED_PER_SECOND), lowest_reading or None)

    def used_bytes(self) -> int:
        """Live bytes of the store, which the quota counts."""
        return self._core.used_bytes()

    @property
    def applied_index(self) -> Index:
        return Index(self._core.applied_index)

    @property
    def applied_term(self) -> Term:
        return Term(self._core.applied_term)

    @property
    def revision(self) -> Revision:
        return Revision(self._core.revision)

    @property
    def compact_revision(self) -> Revision:
        """0 if there was no compaction."""
        return Revision(max(0, self._core.compact_revision))

    @property
    def freed_revision(self) -> Revision:
        """Reads at revisions below it may miss records."""
        return Revision(self._core.freed_revision)

    @property
    def state_hash(self) -> int:
        return self._core.state_hash

    @property
    def session_count(self) -> int:
        return self._core.session_count

    @property
    def alarms(self) -> list[tuple[int, int]]:
        """(alarm, member id) of every alarm that is raised."""
        return self._core.alarms

    @property
    def counters(self) -> dict[str, int]:
        return self._core.counters
