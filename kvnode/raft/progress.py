"""What a leader knows about one other member, and how much it may send to it.

Caller: `replication` and `membership`. States:

 PROBE      where the logs agree is not known: one APPEND, then wait for its answer or for a
            heartbeat's.
 REPLICATE  pipelined: APPENDs go out optimistically until the window (messages and bytes) is full.
 SNAPSHOT   what the member needs is compacted: nothing goes out until it reports a log that can be
            continued, or the outside reports failure.

Invariants, asserted:
 P1 match < next, and match never goes back within a term.
 P2 the window's bytes are the sum of its messages and it is empty unless REPLICATE.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from kvnode.base.ids import Index


class ProgressState(IntEnum):
    """See the module."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


PROBE = ProgressState.PROBE
REPLICATE = ProgressState.REPLICATE
SNAPSHOT = ProgressState.SNAPSHOT


class Progress:
    """One other member, as the leader sees it in its term."""

    __slots__ = (
        "acked_round",
        "known_commit",
        "match",
        "next",
        "paused",
        "pending_snapshot",
        "recent_active",
        "sent_commit",
        "state",
        "window",
        "window_bytes",
        "window_bytes_max",
        "window_messages_max",
    )

    def __init__(self, next_index: int, window_messages_max: int, window_bytes_max: int) -> None:
        self.match = 0
        self.next = next_index
        self.state = PROBE
        self.paused = False              # a probe is out, or the window asked for a pause
        self.pending_snapshot = 0        # index of the snapshot under way; 0: not chosen yet
        self.recent_active = False       # heard from since the last quorum check
        self.sent_commit = 0             # commit index the member was told last
        self.known_commit = 0            # commit index that it said it knows
        self.acked_round = 0             # newest read round that it answered
        self.window: deque[tuple[int, int]] = deque()  # (last index, bytes) of APPENDs out
        self.window_bytes = 0
        self.window_messages_max = window_messages_max
        self.window_bytes_max = window_bytes_max

    def window_full(self) -> bool:
        return (
            len(self.window) >= self.window_messages_max
            or self.window_bytes >= self.window_bytes_max
        )

    def _clear_window(self) -> None:
        self.window.clear()
        self.window_bytes = 0
        self.paused = False

    def become_probe(self) -> None:
        if self.state == SNAPSHOT:
            # The snapshot may be installed without its answer having arrived.
            self.next = max(self.match, self.pending_snapshot) + 1
        else:
            self.next = self.match + 1
        self.pending_snapshot = 0
        self.state = PROBE
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self._clear_window()

    def become_replicate(self) -> None:
        self.state = REPLICATE
        self.pending_snapshot = 0
        self.next = self.match + 1
        self._clear_window()

    def become_snapshot(self) -> None:
        self.state = SNAPSHOT
        self.pending_snapshot = 0
        self._clear_window()

    def sent(self, count: int, last_index: int, size: int) -> None:
        """An APPEND with `count` entries left, `last_index` its last, `size` its bytes."""
        if self.state == REPLICATE:
            if count:
                self.next = last_index + 1
                self.window.append((last_index, size))
                self.window_bytes += size
            self.paused = self.window_full()
        else:
            self.paused = True

    def maybe_update(self, index: int) -> bool:
        """The member has durably all up to `index`; False if that is no news."""
        if index >= self.next:
            self.next = index + 1
        if index <= self.match:
            return False
        self.match = index
        self.paused = False
        assert self.match < self.next, "P1"
        return True

    def maybe_decrease(self, rejected: int, probe_at: int) -> bool:
        """An APPEND behind `rejected` was refused; False if that refusal is stale."""
        if self.state == REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            self.sent_commit = min(self.sent_commit, self.next - 1)
            return True
        if self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, probe_at + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return True

    def acknowledged(self, index: int) -> None:
        """Open the window by what is durable at the member."""
        window = self.window
        while window and window[0][0] <= index:
            self.window_bytes -= window.popleft()[1]
        assert self.window_bytes >= 0, "P2"
        self.paused = self.window_full()

    def __str__(self) -> str:
        text = f"{self.state.name.lower()} match={self.match} next={self.next}"
        if self.paused:
            text += " paused"
        if self.state == SNAPSHOT:
            text += f" snapshot={self.pending_snapshot}"
        if self.window:
            text += f" window={len(self.window)}/{self.window_bytes}B"
        return text if self.recent_active else text + " inactive"

    def keep_from(self) -> Index:
        """The oldest entry that this member still needs from the leader's log."""
        if self.state == SNAPSHOT and self.pending_snapshot:
            return Index(self.pending_snapshot + 1)
        return Index(self.match + 1)
