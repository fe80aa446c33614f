"""The clock side of leases: when they end, what is written down of the time they have left.

Role: kept by the leader's consensus process beside Raft. No clock of its own: every call brings
the monotonic time in microseconds. What ends a lease is a revoke in the log; this only says when
one is to be proposed. The table itself is `_core/leaseclock`.
Caller: procs/leasing. Inputs: stored leases and rows of events in apply order (`_core/leases`),
keep-alives, signs of life. Outputs: answers as arrays, batches to propose.

Lease time is monotonic time less the pauses. A pause is time in which keep-alives could not have
been heard: this process stood still (SIGSTOP, a frozen machine), or a gateway that carries
keep-alives gave no sign of life. After a pause the clock stands still for as long again, at most
GRACE_US, so that what waited in sockets is heard before anything ends. A gateway that is silent for
SILENT_US_MAX counts no more: its clients are elsewhere, or gone.

Invariants:
  1. A lease's revoke is proposed only when its TTL of lease time has passed since its grant was
     applied, its last keep-alive was heard, or it was loaded; so never early by monotonic time.
  2. Nothing is answered and nothing expires before the table is whole (`loaded`), and not in
     another term than the one it was loaded for.
  3. At most `revokes_per_second` revokes are proposed, in batches; none twice in a term unless the
     first was not taken.
  4. A remaining time in the log is never less than what a later answer promised: keep-alives of
     a lease with one are answered after a checkpoint of 0 was applied.

Absent on purpose: quorum rounds and links (procs/leasing), the minimum TTL (the gateway's).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kvnode._core.envelope import build_batch
from kvnode._core.leaseclock import LeaseClock
from kvnode._core.messages import encode_checkpoints, encode_lease
from kvnode._core.storetxn import ReadTxn
from kvnode.base.codes import Kind

CHECKPOINT_SECONDS = 300       # etcd's interval: longer leases are written down that often
REVOKES_PER_SECOND = 1000      # etcd's rate
CHECKPOINTS_MAX = 1000         # in one proposal, as etcd
STALL_US = 500_000             # a tick that comes so late, or a gateway so silent, is a pause
SILENT_US = 1_000_000
SILENT_US_MAX = 60_000_000
GRACE_US = 1_000_000


class Work(NamedTuple):
    """A batch to propose; `ids` are told to `not_proposed` if it is not taken."""

    batch: bytes
    ids: list[int]
    expires: bool


class Lessor:
    """Leases of one term of leadership."""

    def __init__(
        self,
        checkpoint_seconds: int = CHECKPOINT_SECONDS,
        revokes_per_second: int = REVOKES_PER_SECOND,
    ) -> None:
        self.clock = LeaseClock(checkpoint_seconds)
        self.rate = revokes_per_second
        self.index = 0                # rows of events up to here are in the table
        self.loaded = False
        self.granted = self.revoked = self.expired = 0
        self._paused = 0              # microseconds
        self._ticked: int | None = None
        self._stands_until = 0
        self._stall_began: int | None = None
        self._budget = 0.0
        self._rows: list[bytes] = []

    # --- time

    def time(self, now: int) -> int:
        """Lease time."""
        return now - self._paused

    def tick(self, now: int, signs_of_life: Iterable[int] = ()) -> None:
        """Once a tick, before anything expires; signs_of_life: each carrying gateway's last one."""
        before = now if self._ticked is None else self._ticked
        self._ticked = now
        passed = now - before
        if passed > STALL_US:
            self._pause(now, passed, passed)
            return
        silent = max((now - at for at in signs_of_life if now - at < SILENT_US_MAX), default=0)
        if silent > SILENT_US:
            if self._stall_began is None:
                # The silence counts from its beginning: no keep-alive was heard since then.
                self._stall_began = now - silent
                passed = silent
            self._pause(now, passed, now - self._stall_began)
            return
        self._stall_began = None
        if before < self._stands_until:
            self._paused += min(now, self._stands_until) - before
            return
        self._budget = min(self._budget + passed * self.rate / 1e6, self.rate / 2)

    def _pause(self, now: int, passed: int, length: int) -> None:
        self._paused += passed
        self._stands_until = max(self._stands_until, now + min(length, GRACE_US))

    # --- the table

    def reset(self) -> None:
        """Not the leader, or not yet: forgets everything."""
        self.clock.clear()
        self.loaded = False
        self.index = 0
        self._rows.clear()

    def load(self, txn: ReadTxn, start: bytes, count_max: int, now: int) -> bytes | None:
        """A slice of the stored leases; where to go on, or None: all are there."""
        return self.clock.load(txn, start, count_max, self.time(now))

    def load_done(self, index: int, now: int) -> None:
        """The table is that of applied index `index`; rows that came meanwhile are added."""
        self.index = index
        self.loaded = True
        rows, self._rows = self._rows, []
        for part in rows:
            self.told(part, 0, now)

    def loading(self, rows: bytes, at: int) -> None:
        """Rows that came while the table is being read."""
        self._rows.append(rows[at:])

    def told(self, rows: bytes, at: int, now: int) -> None:
        """Rows of events from offset `at`, in apply order."""
        granted, revoked = self.clock.told(rows, at, self.index, self.time(now))
        self.granted += granted
        self.revoked += revoked

    # --- answers

    def renew(self, ids: bytes, at: int, now: int, count: bool = True) -> tuple[bytes, bool]:
        """See LeaseClock.renew."""
        return self.clock.renew(ids, at, self.time(now), count)

    def times(self, ids: bytes, at: int, now: int) -> bytes:
        """See LeaseClock.times."""
        return self.clock.times(ids, at, self.time(now))

    def clearing(self, ids: bytes, at: int) -> Work | None:
        """A checkpoint that lifts persisted times before keep-alives are answered."""
        found = self.clock.clears(ids, at)
        return self._points([(lease, 0) for lease in found]) if found else None

    # --- what is due

    def work(self, now: int) -> list[Work]:
        """Batches to propose now."""
        out: list[Work] = []
        if not self.loaded or now < self._stands_until or self._stall_began is not None:
            return out
        time = self.time(now)
        ended = self.clock.due(time, int(self._budget))
        if ended:
            self._budget -= len(ended)
            self.expired += len(ended)
            requests = [(int(Kind.LEASE_REVOKE), encode_lease(lease)) for lease in ended]
            out.append(Work(build_batch([{"requests": requests}]), ended, True))
        points = self.clock.checkpoints(time, CHECKPOINTS_MAX)
        if points:
            out.append(self._points(points))
        return out

    def last_words(self, now: int) -> list[Work]:
        """Checkpoints of all leases that lost time, for an orderly end."""
        points = self.clock.all_checkpoints(self.time(now)) if self.loaded else []
        step = 100 * CHECKPOINTS_MAX
        return [self._points(points[i : i + step]) for i in range(0, len(points), step)]

    def _points(self, points: list[tuple[int, int]]) -> Work:
        body = encode_checkpoints(points)
        batch = build_batch([{"requests": [(int(Kind.LEASE_CHECKPOINT), body)]}])
        return Work(batch, [lease for lease, _ in points], False)

    def not_proposed(self, work: Work) -> None:
        """It was not taken: what it was for is due again."""
        self.clock.not_proposed(work.ids)
        if work.expires:
            self.expired -= len(work.ids)
