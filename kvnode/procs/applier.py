"""The applier: the state machine's process, and the map's only writer.

Role: takes committed entries from consensus, applies several in one LMDB transaction, sends the
results to the gateways that asked, and keeps the map recoverable by checkpoints. Freed records,
the scrubber and defragmentation are done between batches.
Started by: the supervisor. Owns: the write side of `member/state`.

Entries come ahead of their commit (ENTRIES) and wait decoded in `held`; BORDER(index, term) lets
them be applied.

Invariants:
  1. Held entries have no gap; one with an index already held replaces it and all behind it.
  2. Nothing above the border is applied, and the border's entry has the border's term.
  3. A new consensus voids everything held; it sends again from applied + 1.
  4. After an error of the store nothing more is applied: the process ends, the supervisor starts
     it again, and the log repeats what was not committed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from typing import NoReturn, TypeVar

from kvnode._core import meters
from kvnode._core.machine import Machine
from kvnode._core.sharedword import APPLIED, DAMAGE, GENERATION, LIFE, READING, SharedWords
from kvnode.base.errors import CorruptionError, DiskError
from kvnode.base.failpoint import hit, points
from kvnode.base.limits import MIB, READING_SECONDS_MAX
from kvnode.env.clock import monotonic_us, random_u64
from kvnode.env.link import GONE, KINDS, Endpoint, Peer
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.room import Room
from kvnode.env.store import Opened, open_for_write
from kvnode.env.unixlink import UnixEndpoint
from kvnode.procs.copies import Copies
from kvnode.procs.growth import with_room
from kvnode.procs.lanes import ApplyLane
from kvnode.procs.leasing import LeaseTeller
from kvnode.procs.loop import Loop
from kvnode.procs.process import EXIT_FATAL, EXIT_NO_ROOM, Start, begin
from kvnode.procs.upkeep import Defragmenter, Scrub
from kvnode.state.quota import ALARM_NOSPACE
from kvnode.wire.frames import (
    FIVE,
    NOSPACE_STANDS,
    ONE,
    PAIR,
    QUAD,
    Frame,
    Hello,
    Role,
    decode_hello,
    split_entries,
)

log = logging.getLogger("applier")

APPLY_BYTES_MAX = 8 * MIB
FREE_RECORDS = 500
TELL_SECONDS = 0.02
TELL_BYTES = 16 * MIB
RECONNECT_SECONDS = 0.003
LANE_PASSES = 16
LANE_POINTS = frozenset({"lane", "lane-open", "lane-answered"})
ROOM_PART = 4
ROOM_SECONDS = 0.2
Result = TypeVar("Result")
Entry = tuple[int, int, memoryview]  # index, term, the entry with its head


class Applier:
    """One applier process."""

    def __init__(self, start: Start, loop: Loop, opened: Opened) -> None:
        self.start = start
        self.loop = loop
        self.opened = opened
        self.incarnation = random_u64()
        self.words = SharedWords(start.layout.words)
        self.machine = self.machine_over(opened.store)
        self.held: list[Entry] = []
        self.border = 0
        self.border_term = 0
        self.compacted = 0
        self.gateways: dict[int, Peer] = {}
        self.stopping = False
        self.server: Endpoint = KINDS[start.config.link].listen(start.layout.applier_socket)
        loop.add_source(self.server, self.on_server)
        self.consensus: Endpoint | None = None
        self.consensus_peer: Peer | None = None
        self.leases = LeaseTeller(self)
        self.telling = False
        self.reading_lowest = 0
        self.reading_since = 0.0
        self.untold_bytes = 0
        self.free_records = min(FREE_RECORDS, start.config.compaction_batch_limit)
        self.defragmenter = Defragmenter(self)
        self.copies = Copies(self)
        self.checkpoint_watch = -1
        self.checkpoint_fd()
        self.scrub = Scrub(self, start.config.scrub_period)
        self.lane: ApplyLane | None = None
        if isinstance(self.server, UnixEndpoint) and points() <= LANE_POINTS:
            self.lane = ApplyLane(
                loop.fileno(), self.on_lane, LANE_PASSES, self.server, self.words, self.on_leases,
                self.reload,
            )
            loop.wait_with(self.lane.wait)
        self._publish()
        # Also for freeing that waited for a long read to end.
        loop.every(start.config.checkpoint_interval, loop.want_idle)
        loop.at_end(self.turn)
        loop.on_idle(self.idle)

    def machine_over(self, store: LmdbStore) -> Machine:
        """The state machine over a store. KVNODE_TEST_NO_WINDOW=1 switches exactly-once off, for
        the test that must see its check fail."""
        window = os.environ.get("KVNODE_TEST_NO_WINDOW") != "1"
        return Machine(store, self.start.member, self.start.cluster, window=window)

    def write(self, work: Callable[[Machine], Result]) -> Result:
        """One transaction on the map in use, which grows when it is full."""
        self.machine, result = with_room(
            self.opened.store, self.machine, self.machine_over, work, self.make_way
        )
        return result

    def make_way(self) -> None:
        """The map is to be moved: copies of it under way are given up."""
        self.defragmenter.stop_copy()
        self.copies.stop()

    # --- consensus ------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connects to consensus and says how far this map is, or tries again soon."""
        made = KINDS[self.start.config.link].connect(self.start.layout.consensus_socket)
        if made is None:
            self.loop.after(RECONNECT_SECONDS, self.connect)
            return
        self.consensus, self.consensus_peer = made
        self.held.clear()
        self.border = self.border_term = 0
        hello = Hello(
            Role.APPLIER, os.getpid(), self.incarnation,
            self.machine.applied_index, self.machine.applied_term,
        )
        self.consensus.send(self.consensus_peer, Frame.HELLO, hello.encode())
        self.leases.greet()
        self.loop.add_source(self.consensus, self.on_consensus)

    def on_consensus(self) -> None:
        """ENTRIES and BORDER; a consensus that is gone is waited for."""
        endpoint = self.consensus
        if endpoint is None:
            return
        for message in endpoint.receive():
            if message.kind == GONE:
                self.loop.remove(endpoint.fileno())
                endpoint.close()
                self.consensus = self.consensus_peer = None
                self.connect()
                return
            if message.kind in (Frame.ENTRIES, Frame.LONE):
                self.hold(split_entries(message.payload))
            elif message.kind == Frame.COMMITTED:
                self.hold(split_entries(message.payload, PAIR.size))
                self.border, self.border_term = PAIR.unpack_from(message.payload)
            elif message.kind == Frame.BORDER:
                self.border, self.border_term = PAIR.unpack(message.payload)
            elif message.kind in (Frame.SNAPSHOT_MAKE, Frame.INSTALL):
                self.copies.on_frame(message.kind, message.payload)
            elif message.kind == Frame.FETCHED:
                self.defragmenter.on_fetched(message.payload)
            elif message.kind == Frame.HELLO:
                self.defragmenter.on_new_consensus()

    def hold(self, entries: list[Entry]) -> None:
        """Keeps entries until the border passes them."""
        held = self.held
        first = entries[0][0]
        expected = held[-1][0] + 1 if held else self.machine.applied_index + 1
        if first < expected:
            applied = self.machine.applied_index
            assert first > applied, f"entry {first} replaces applied {applied}"
            del held[first - applied - 1 :]
        else:
            assert first == expected, f"entry {first} leaves a gap behind {expected - 1}"
        held.extend(entries)
        hit("entries")

    # --- applying -------------------------------------------------------------------------------

    def turn(self) -> None:
        """The end of a turn: applies what the border allows, and lets lone entries through."""
        self.words.set(LIFE, monotonic_us())
        self.apply()
        if self.lane is not None:
            self.arm(self.lane)

    def apply(self) -> None:
        """Applies what the border allows, within a bound of bytes."""
        checkpointer = self.opened.checkpointer
        running = checkpointer.running
        if checkpointer.poll():
            hit("checkpointed")
            self._tell_applied()
        elif checkpointer.running and not running:
            hit("checkpoint")
        if self.border <= self.machine.applied_index or not self.held:
            return
        if self.opened.checkpointer.must_wait() or self.defragmenter.holds():
            self.loop.after(0.002, lambda: None)
            return
        count = size = 0
        for index, _, data in self.held:
            if index > self.border or (count and size + len(data) > APPLY_BYTES_MAX):
                break
            count += 1
            size += len(data)
        batch = self.held[:count]
        del self.held[:count]
        last = batch[-1]
        assert last[0] < self.border or last[1] == self.border_term, "the border has another term"
        hit("apply")
        entries = batch[0][2] if count == 1 else b"".join([entry[2] for entry in batch])
        compacted = self.machine.compact_revision
        began = monotonic_us()
        results = self.write(lambda machine: machine.apply(entries))
        meters.count_applied((monotonic_us() - began) * 1000)
        hit("committed")
        if self.machine.compact_revision != compacted:
            self.loop.want_idle()
        self.on_leases()
        self._publish()
        answered = set()
        for incarnation, answers in results:
            peer = self.gateways.get(incarnation)
            if peer is not None:
                answered.add(incarnation)
                if not hit("result"):
                    self.server.send(peer, Frame.RESULTS, answers)
        hit("results")
        self.after_commit(size, answered)
        if self.held and self.held[0][0] <= self.border:
            self.loop.after(0, lambda: None)

    def after_commit(self, size: int, answered: Collection[int]) -> None:
        """What follows a commit and its results: the other gateways, checkpoints, consensus."""
        if len(answered) < len(self.gateways):
            self._tell_head(answered)
        checkpointer = self.opened.checkpointer
        running = checkpointer.running
        checkpointer.committed(self.machine.applied_index, size)
        if checkpointer.running and not running:
            hit("checkpoint")
        self.untold_bytes += size
        if self.untold_bytes > TELL_BYTES:
            self._tell_applied()
        elif not self.telling:
            self.telling = True
            self.loop.after(TELL_SECONDS, self._tell_applied)

    def on_leases(self) -> None:
        """What the last call of apply did to leases goes ahead of its results."""
        if changed := self.machine.lease_events:
            self.leases.tell(changed)

    def arm(self, lane: ApplyLane) -> None:
        """Lets the next entry that comes alone through the lane, if everything is at rest."""
        lane.disarm()
        endpoint, peer = self.consensus, self.consensus_peer
        if (
            isinstance(endpoint, UnixEndpoint)
            and peer is not None
            and not self.held
            and not self.opened.checkpointer.must_wait()
            and not self.defragmenter.holds()
        ):
            self.compacted = self.machine.compact_revision
            lane.arm(endpoint, peer, self.machine, self.gateways)

    def on_lane(self, passes: int) -> None:
        """What follows the entries that went through the lane."""
        del passes
        hit("lane")
        lane, machine = self.lane, self.machine
        assert lane is not None
        self.border, self.border_term = machine.applied_index, machine.applied_term
        if machine.compact_revision != self.compacted:
            self.loop.want_idle()
        self.after_commit(lane.applied_bytes, lane.answered)

    def reload(self) -> None:
        """Another machine over the map: the lane's executed an entry that was not committed."""
        log.info("an entry's border is late or lost: the state machine is loaded anew",
                 extra={"fields": {"applied": self.machine.applied_index}})
        self.machine = self.machine_over(self.opened.store)

    def _publish(self) -> None:
        self.words.set(APPLIED, self.machine.applied_index)
        self.words.set(GENERATION, self.opened.generation)

    def _head(self) -> bytes:
        machine = self.machine
        return QUAD.pack(
            machine.applied_index, machine.revision, max(0, machine.compact_revision),
            self.opened.generation,
        )

    def _tell_head(self, answered: Collection[int] = ()) -> None:
        """HEAD to every gateway, but those whose RESULTS said as much."""
        head = self._head()
        for incarnation, peer in self.gateways.items():
            if incarnation not in answered:
                self.server.send(peer, Frame.HEAD, head)

    def _tell_applied(self) -> None:
        """APPLIED to consensus: not with each batch, it cuts the log and watches the quota."""
        self.telling = False
        self.untold_bytes = 0
        if self.consensus is None or self.consensus_peer is None:
            return
        machine = self.machine
        full = (ALARM_NOSPACE, self.start.member) in machine.alarms
        self.consensus.send(
            self.consensus_peer,
            Frame.APPLIED,
            FIVE.pack(
                machine.applied_index, machine.used_bytes(), self.keep_from(),
                machine.state_hash, NOSPACE_STANDS if full else 0,
            ),
        )

    def keep_from(self) -> int:
        """The log is needed from behind this index on."""
        checkpoint = self.opened.checkpointer.index
        building = self.defragmenter.keep_from
        return checkpoint if building is None else min(checkpoint, building)

    # --- gateways -------------------------------------------------------------------------------

    def on_server(self) -> None:
        """Gateways come, go, and ask for defragmentation."""
        for message in self.server.receive():
            if message.kind == GONE:
                self.gateways = {i: p for i, p in self.gateways.items() if p is not message.peer}
            elif message.kind == Frame.HELLO:
                hello = decode_hello(message.payload)
                self.gateways[hello.incarnation] = message.peer
                self.server.send(message.peer, Frame.HEAD, self._head())
            elif message.kind == Frame.DEFRAG:
                (number,) = ONE.unpack(message.payload)
                self.on_defrag(message.peer, number)

    def on_defrag(self, peer: Peer, number: int) -> None:
        """Builds a compact generation beside the one in use; answers when it is in use."""

        def done(code: int, text: bytes) -> None:
            head = ONE.pack(number) + int(code).to_bytes(4, "little")
            self.server.send(peer, Frame.DEFRAGGED, head, text)

        self.defragmenter.begin(done)

    def ask_log(self, kind: int, payload: bytes) -> None:
        """A question to consensus; nothing while it is away (it is asked again)."""
        if self.consensus is not None and self.consensus_peer is not None:
            self.consensus.send(self.consensus_peer, kind, payload)

    def on_switched(self, machine: Machine) -> None:
        """Another generation is in use: everybody is told."""
        self.copies.stop()
        self.machine = machine
        self.checkpoint_fd(True)
        self.scrub.restart()
        self._publish()
        self._tell_head()
        self._tell_applied()

    def tell_damage(self, found: int) -> None:
        """Findings of the scrubber, for status and metrics."""
        self.words.set(DAMAGE, found)

    def checkpoint_fd(self, again: bool = False) -> None:
        """Watches the checkpointer's descriptor (of another generation after a switch)."""
        if again:
            self.loop.remove(self.checkpoint_watch)
        self.checkpoint_watch = self.opened.checkpointer.fileno()
        self.loop.add(self.checkpoint_watch, self.on_checkpoint)

    def on_checkpoint(self) -> None:
        """A checkpoint ended: the log below it is no longer needed."""
        if self.opened.checkpointer.poll():
            hit("checkpointed")
            self._tell_applied()

    # --- between batches ------------------------------------------------------------------------

    def idle(self) -> bool:
        """Frees a slice of what compaction left, in a turn without messages; True: more is left."""
        lowest = self.lowest_reading()
        checkpointer = self.opened.checkpointer
        if checkpointer.must_wait():
            self.loop.after(0.002, self.loop.want_idle)
            return False
        before = self.opened.store.dirtied_bytes
        more = self.write(lambda machine: machine.free_some(self.free_records, lowest or None))
        if self.opened.store.dirtied_bytes != before:
            checkpointer.committed()
            if not more:
                self._tell_applied()
                # A physical compaction is answered now.
                self._tell_head()
        return more

    def lowest_reading(self) -> int:
        """The lowest revision that a long read on this node reads at; 0: none that freeing waits
        for. One that holds freeing up for READING_SECONDS_MAX is passed, and ends as compacted.
        """
        reading = [self.words.get(READING + n) for n in range(self.start.config.gateways)]
        lowest = min(filter(None, reading), default=0)
        if lowest != self.reading_lowest:
            self.reading_lowest = lowest
            self.reading_since = self.loop.now
        elif self.loop.now - self.reading_since > READING_SECONDS_MAX:
            return 0
        return lowest

    def stop(self) -> None:
        """Ends with a checkpoint and the clean mark."""
        self.defragmenter.abandon()
        self.copies.stop()
        self.opened.close_clean(self.machine.applied_index)
        self.loop.stop()


def wait_room(room: Room) -> None:
    """Blocking: until the disk has room for what is already in the log."""
    if room.free() >= room.reserve // ROOM_PART:
        return
    log.error(room.text())
    while room.free() < room.reserve // ROOM_PART:
        time.sleep(ROOM_SECONDS)


def give_up(error: Exception, room: Room, status: int) -> NoReturn:
    """Ends the process after an error of the store. LMDB reports a full disk as EIO, too."""
    log.error(str(error))
    sys.exit(EXIT_NO_ROOM if room.low() and not isinstance(error, CorruptionError) else status)


def main() -> None:
    """Entry of the process."""
    start = begin("applier")
    loop = Loop()
    room = Room(start.layout.state)
    try:
        wait_room(room)
        opened = open_for_write(
            start.layout.state,
            mode="process_restart" if start.restart else "node_start",
            quota_bytes=start.config.quota_backend_bytes,
            checkpoint_seconds=start.config.checkpoint_interval,
            dirty_bytes=start.config.checkpoint_dirty_bytes,
            # 1: without syncs, for the power cuts that must be seen to catch it.
            sync=os.environ.get("KVNODE_TEST_NO_CHECKPOINT_SYNC") != "1",
        )
        applier = Applier(start, loop, opened)
    except (CorruptionError, DiskError) as error:
        give_up(error, room, EXIT_FATAL)
    loop.on_signal(applier.stop, signal.SIGTERM)
    applier.connect()
    start.ready()
    try:
        loop.run()
    except CorruptionError as error:
        give_up(error, room, EXIT_FATAL)
    except DiskError as error:
        give_up(error, room, 1)


if __name__ == "__main__":
    main()
