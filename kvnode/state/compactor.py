"""When history is compacted by itself, and up to which revision: etcd's two modes.

Role: sans-IO; the caller hands in the time and the current revision, and proposes what comes back.
Caller: procs/compacting. Times are seconds of any steady clock.

periodic, P kept: the revision is noted every min(P, 1 h) / 10; compacted is the oldest note, of P
to P and a tenth ago, for the first time after P, then every min(P, 1 h). So 10 min kept means every
10 min, 24 h kept means every hour, each time at a revision of 24 h before.

revision, N kept: every 5 min at the current revision - N.

A member that does not lead goes on noting revisions and compacts nothing. A compaction that was
refused is asked for again at the next note (periodic) or 5 min later (revision).

Invariants:
  1. Nothing younger than what is to be kept is ever asked for.
  2. The same revision is asked for once, unless it was refused.
  3. Between `wake` returning a revision and `done`, `due` is never.
"""

from __future__ import annotations

from typing import Protocol

HOUR = 3600.0
NOTES = 10
REVISION_SECONDS = 300.0
NEVER = float("inf")


class Compactor(Protocol):
    """One mode."""

    due: float
    """When to call `wake` next."""

    def wake(self, now: float, revision: int, leading: bool) -> int | None:
        """At `due`: a revision to compact, or None."""
        ...

    def done(self, now: float, revision: int, good: bool) -> None:
        """What was asked for is compacted (or was before), or was refused; `revision`: current."""
        ...


class Periodic:
    """Keeps the history of a period."""

    def __init__(self, period: float, now: float, revision: int) -> None:
        assert period > 0
        self.period = period
        self.every = min(period, HOUR)
        self.pause = self.every / NOTES
        # Rounded: 0.3 / 0.03 is less than 10.
        self.notes_max = int(round(period / self.pause, 6)) + 1
        self.notes = [revision]
        self.wait = period
        self.last_good = now
        self.last_revision = 0
        self.due = now + self.pause

    def wake(self, now: float, revision: int, leading: bool) -> int | None:
        """See Compactor."""
        oldest = self.notes[0]
        # A timer's clock may be a little early: what is due within a hundredth of a pause is due.
        early = now - self.last_good < self.wait - self.pause / 100
        if not leading or early or oldest == self.last_revision:
            self._note(now, revision)
            return None
        self.wait = self.every
        self.due = NEVER
        return oldest

    def done(self, now: float, revision: int, good: bool) -> None:
        """See Compactor."""
        if good:
            self.last_good = now
            self.last_revision = self.notes[0]
        self._note(now, revision)

    def _note(self, now: float, revision: int) -> None:
        self.notes.append(revision)
        if len(self.notes) > self.notes_max:
            del self.notes[0]
        self.due = now + self.pause


class ByRevision:
    """Keeps a number of revisions."""

    def __init__(self, kept: int, now: float) -> None:
        assert kept > 0
        self.kept = kept
        self.last_revision = 0
        self.asked = 0
        self.due = now + REVISION_SECONDS

    def wake(self, now: float, revision: int, leading: bool) -> int | None:
        """See Compactor."""
        wanted = revision - self.kept
        if not leading or wanted <= 0 or wanted == self.last_revision:
            self.due = now + REVISION_SECONDS
            return None
        self.asked = wanted
        self.due = NEVER
        return wanted

    def done(self, now: float, revision: int, good: bool) -> None:
        """See Compactor."""
        if good:
            self.last_revision = self.asked
        self.due = now + REVISION_SECONDS


def compactor(mode: str, kept: float, now: float, revision: int) -> Compactor | None:
    """The Compactor of Config.compaction(); None: nothing is compacted by itself."""
    if not kept:
        return None
    return Periodic(kept, now, revision) if mode == "periodic" else ByRevision(int(kept), now)
