"""Snapshots on the applier's side: copies for members that are behind, installation of one.

Role: SNAPSHOT_MAKE starts a compact copy in threads, SNAPSHOT_MADE says where it is; INSTALL
switches to a received one. Caller: procs/applier, in its one thread.

Invariants:
  1. INSTALL comes only when the log's snapshot record is durable: there is no way back.
  2. What was held before INSTALL is in the snapshot, or was never committed: it is dropped.
  3. Gateways hear of the new generation before any result behind it, and propose again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kvnode.base.errors import DiskError
from kvnode.base.failpoint import hit
from kvnode.base.limits import MIB
from kvnode.env.generation import Retired, install
from kvnode.env.outgoing import SnapshotCopy
from kvnode.wire.frames import ONE, PAIR, QUAD, Frame
from kvnode.wire.snapfile import generation_name

if TYPE_CHECKING:
    from kvnode.procs.applier import Applier

log = logging.getLogger("applier")

COPY_BYTES_PER_SECOND = 100 * MIB
POLL_SECONDS = 0.05


class Copies:
    """At most one copy at a time."""

    def __init__(self, applier: Applier) -> None:
        self.applier = applier
        self.copy: SnapshotCopy | None = None
        self.retired: list[Retired] = []

    def on_frame(self, kind: int, payload: bytes) -> None:
        """SNAPSHOT_MAKE or INSTALL."""
        if kind == Frame.SNAPSHOT_MAKE:
            (file,) = ONE.unpack(payload)
            self.make(file)
        else:
            self.install(*PAIR.unpack(payload))

    # --- for other members ----------------------------------------------------------------------

    def make(self, file: int) -> None:
        """Starts a copy of the map as it is now."""
        self.stop()
        opened = self.applier.opened
        copy = SnapshotCopy(
            opened.store, opened.root, self.applier.start.cluster, file, COPY_BYTES_PER_SECOND
        )
        try:
            copy.start()
        except (OSError, DiskError) as error:
            copy.close()
            self.tell(file, (0, 0, 0), str(error))
            return
        self.copy = copy
        self.applier.loop.add(copy.fileno(), self.on_copied)
        hit("snapshot-copy")

    def on_copied(self) -> None:
        """The copy ended, well or not."""
        copy = self.copy
        assert copy is not None
        try:
            made = copy.poll()
        except DiskError as error:
            self.stop(str(error))
            return
        if made is not None:
            self.end()
            hit("snapshot-copied")
            self.tell(made.file, (made.index, made.term, made.size), "")

    def stop(self, why: str = "the map is being moved, or the node stops") -> None:
        """Gives up a copy under way: it reads the map that is in use now."""
        if self.copy is not None:
            file = self.copy.file
            self.end()
            self.tell(file, (0, 0, 0), why)

    def end(self) -> None:
        """Nothing is being copied."""
        if self.copy is not None:
            self.applier.loop.remove(self.copy.fileno())
            self.copy.close()
            self.copy = None

    def tell(self, file: int, made: tuple[int, int, int], why: str) -> None:
        """SNAPSHOT_MADE; index 0: there is none, and why."""
        self.applier.ask_log(Frame.SNAPSHOT_MADE, QUAD.pack(file, *made) + why.encode())

    # --- from another member --------------------------------------------------------------------

    def install(self, index: int, term: int) -> None:
        """Goes on from a received snapshot. CorruptionError when it is not here."""
        applier = self.applier
        if applier.machine.applied_index >= index:
            applier.ask_log(Frame.INSTALLED, PAIR.pack(index, term))
            return
        applier.defragmenter.abandon(b"a snapshot of another member takes the map's place")
        self.stop()
        applier.held.clear()
        applier.border = applier.border_term = 0
        if applier.lane is not None:
            applier.lane.disarm()
        before = applier.machine.applied_index
        retired = install(applier.opened, generation_name(index, term), index, term)
        self.retired.append(retired)
        applier.ask_log(Frame.INSTALLED, PAIR.pack(index, term))
        applier.on_switched(applier.machine_over(applier.opened.store))
        if applier.consensus_peer is not None:
            applier.leases.greet()
        for peer in applier.gateways.values():
            applier.server.send(peer, Frame.INSTALLED, PAIR.pack(index, term))
        log.info(
            "a snapshot is in use",
            extra={"fields": {"index": index, "term": term, "instead-of": before,
                              "generation": applier.opened.generation}},
        )
        applier.loop.after(POLL_SECONDS, self.poll_retired)

    def poll_retired(self) -> None:
        """Deletes maps that were in use once their last readers have closed."""
        self.retired = [retired for retired in self.retired if not retired.poll()]
        if self.retired:
            self.applier.loop.after(POLL_SECONDS, self.poll_retired)
