"""What the applier does between batches: defragmentation and scrubbing.

Role: `Defragmenter` drives a new generation beside the one in use until it has caught up with the
log, and switches at a batch border; `Scrub` re-reads everything within the configured period.
Caller: procs/applier, in its one thread.

Invariants:
  1. Writers wait for one catch-up chunk at a time (CATCH_UP_BYTES, or one entry that is larger);
     for HOLD_CHUNKS when catching up has taken PATIENCE_SECONDS.
  2. The log is kept from the new generation's applied index while it is being built.
  3. An abandoned or interrupted build leaves the generation in use as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvnode._core import meters
from kvnode._core.machine import Machine
from kvnode.base.codes import Code
from kvnode.base.errors import DiskError
from kvnode.base.failpoint import hit
from kvnode.base.limits import MIB
from kvnode.env.clock import monotonic_us
from kvnode.env.generation import GenerationBuilder, Retired
from kvnode.env.scrub import Scrubber
from kvnode.procs.growth import with_room
from kvnode.wire.frames import PAIR, Frame, split_entries

if TYPE_CHECKING:
    from kvnode.procs.applier import Applier

log = logging.getLogger("applier")

CATCH_UP_BYTES = MIB // 8
COPY_BYTES_PER_SECOND = 100 * MIB
PATIENCE_SECONDS = 3.0      # of catching up, before writers are slowed for it
HOLD_SECONDS = 2.0
HOLD_CHUNKS = 6
POLL_SECONDS = 0.05
SCRUB_BYTES_PER_SECOND_MIN = MIB // 4
LET_GO_SECONDS = 2.0

Done = Callable[[int, bytes], None]


class Defragmenter:
    """At most one defragmentation at a time; those who ask meanwhile get the same answer."""

    def __init__(self, applier: Applier) -> None:
        self.applier = applier
        self.waiting: list[Done] = []
        self.began_us = 0
        self.builder: GenerationBuilder | None = None
        self.machine: Machine | None = None
        self.retired: Retired | None = None
        self.asked = 0
        self.since = 0.0            # when catching up began
        self.fed_at = 0.0           # when entries came last, and how often since holds() was False
        self.fed = 0

    @property
    def keep_from(self) -> int | None:
        """The log must be kept from here, while a generation is being built."""
        return None if self.builder is None else self.builder.keep_from

    def holds(self) -> bool:
        """Whether writers wait for the next chunk: under a load that fills the machine the new
        generation would never catch up. It takes HOLD_CHUNKS to one batch of theirs, of several
        entries, and only while the log answers."""
        now = self.applier.loop.now
        if (
            self.machine is None
            or self.fed >= HOLD_CHUNKS
            or now - self.since < PATIENCE_SECONDS
            or now - self.fed_at > HOLD_SECONDS
        ):
            self.fed = 0
            return False
        return True

    def begin(self, done: Done) -> None:
        """Starts a compacting copy; `done(code, text)` is called when it is in use, or failed."""
        self.waiting.append(done)
        if self.builder is not None:
            return
        if self.retired is not None and not self.retired.poll():
            self._end(Code.UNAVAILABLE, b"the generation before is still being read: try again")
            return
        self.retired = None
        builder = GenerationBuilder(self.applier.opened, COPY_BYTES_PER_SECOND)
        try:
            builder.copy()
        except DiskError as error:
            self._end(Code.NO_SPACE, str(error).encode())
            return
        self.builder = builder
        self.began_us = monotonic_us()
        meters.put(meters.SLOT["defrag_running"], 1)
        self.applier.loop.add(builder.fileno(), self.on_copied)
        hit("defrag-copy")

    def on_copied(self) -> None:
        """The copy is durable: it catches up with the log."""
        builder = self.builder
        assert builder is not None
        descriptor = builder.fileno()
        try:
            if not builder.poll():
                return
        except DiskError as error:
            self.applier.loop.remove(descriptor)
            self.builder = None
            self._end(Code.UNAVAILABLE, str(error).encode())
            return
        self.applier.loop.remove(descriptor)
        assert builder.store is not None
        hit("defrag-copied")
        self.machine = self.applier.machine_over(builder.store)
        self.since = self.applier.loop.now
        self.ask()

    def ask(self) -> None:
        """Asks consensus for the next entries, or switches when there are none."""
        machine, applier = self.machine, self.applier
        assert machine is not None
        if machine.applied_index == applier.machine.applied_index:
            self.switch()
            return
        self.asked = machine.applied_index + 1
        applier.ask_log(Frame.FETCH, PAIR.pack(self.asked, applier.machine.applied_index))

    def on_fetched(self, payload: bytes) -> None:
        """Entries of the log for the new generation."""
        machine, builder = self.machine, self.builder
        if machine is None or builder is None:
            return
        if not payload:
            self.abandon(b"the log no longer reaches back to the copy: try again")
            return
        entries = split_entries(payload)
        if entries[0][0] != machine.applied_index + 1:
            return
        self.fed += 1
        self.fed_at = self.applier.loop.now
        last = self.applier.machine.applied_index
        fitting = [entry[2] for entry in entries if entry[0] <= last]
        if fitting:
            data = b"".join(fitting)
            assert builder.store is not None
            self.machine, _ = with_room(
                builder.store, machine, self.applier.machine_over, lambda m: m.apply(data, False)
            )
            assert builder.checkpointer is not None
            builder.checkpointer.poll()
            builder.checkpointer.committed()
            hit("defrag-caught")
        self.ask()

    def on_new_consensus(self) -> None:
        """Consensus was started anew: what was asked is asked again."""
        if self.machine is not None:
            self.ask()

    def switch(self) -> None:
        """The new generation is where the old one is: it is the one in use from here on."""
        builder, machine, applier = self.builder, self.machine, self.applier
        assert builder is not None and machine is not None
        before = applier.machine.used_bytes()
        assert machine.state_hash == applier.machine.state_hash, "the copy went another way"
        hit("defrag-switch")
        self.retired = builder.switch()
        hit("defrag-switched")
        self.builder = self.machine = None
        applier.on_switched(machine)
        log.info(
            "defragmented",
            extra={"fields": {"generation": applier.opened.generation, "live-bytes": before}},
        )
        applier.loop.after(POLL_SECONDS, self.poll_retired)
        took = (monotonic_us() - self.began_us) * 1000
        meters.observe(meters.HISTOGRAM["defrag"], took)
        self._end(Code.OK, b"")

    def poll_retired(self) -> None:
        """Deletes the old generation once its last reader has closed."""
        if self.retired is not None and not self.retired.poll():
            self.applier.loop.after(POLL_SECONDS, self.poll_retired)
            return
        self.retired = None

    def stop_copy(self) -> None:
        """The map is to be moved: a copy of it under way is given up."""
        if self.machine is None:
            self.abandon(b"the map had to grow meanwhile: try again")

    def abandon(self, why: bytes = b"the node is stopping") -> None:
        """Stops a build under way."""
        if self.builder is not None:
            if self.machine is None:
                self.applier.loop.remove(self.builder.fileno())
            self.machine = None
            self.builder.abandon()
            self.builder = None
            self._end(Code.UNAVAILABLE, why)

    def _end(self, code: Code, text: bytes) -> None:
        meters.put(meters.SLOT["defrag_running"], 0)
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(code, text)


class Scrub:
    """Passes over all stored data, each within about `period` seconds."""

    def __init__(self, applier: Applier, period: float) -> None:
        self.applier = applier
        self.period = period
        self.found = 0
        self.scrubber: Scrubber | None = None
        self.let_go_at = 0.0
        if period > 0:
            self.restart()
            applier.loop.after(1.0, self.turn)

    def restart(self) -> None:
        """A new pass, over the store in use now."""
        if self.period <= 0:
            return
        applier = self.applier
        rate = max(SCRUB_BYTES_PER_SECOND_MIN, int(applier.machine.used_bytes() / self.period) + 1)
        self.scrubber = Scrubber(applier.opened.store, rate)

    def turn(self) -> None:
        """One slice, then the next when it is due."""
        scrubber = self.scrubber
        assert scrubber is not None
        for finding in scrubber.slice():
            self.found += 1
            log.error(
                "stored data is damaged: restore this member from a backup or another member",
                extra={
                    "fields": {"finding": str(finding), "path": str(self.applier.opened.folder)}
                },
            )
        # The record of each key maps 16 pages around it: left alone, all of the map in a minute.
        if self.applier.loop.now >= self.let_go_at:
            self.let_go_at = self.applier.loop.now + LET_GO_SECONDS
            self.applier.opened.checkpointer.let_go()
        if self.found:
            self.applier.tell_damage(self.found)
        self.applier.loop.after(max(0.005, scrubber.due_in()), self.turn)
