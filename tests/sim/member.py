"""One simulated member: a disk, a log, Raft, the state machine, and a gateway for clients.

The order in which a Ready is handled is the one that `kvnode.raft` prescribes; the log is the
production log over a disk in memory, the state machine the production one over a store in memory.
A kill loses what was in memory; a power cut also what the disk was not told to sync.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from kvnode._core.envelope import build_batch
from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode._core.ranges import RangeReader
from kvnode.base.codes import Code, Kind
from kvnode.base.errors import KvnodeError
from kvnode.base.ids import Index, MemberID, Term
from kvnode.procs.consensus import LogReader
from kvnode.raft import (
    CompactedError,
    Configuration,
    Entry,
    HardState,
    LogLostError,
    Message,
    Node,
    NodeConfig,
    ProposalRefusedError,
    Ready,
    Snapshot,
    decode_configuration,
    encode_configuration,
)
from kvnode.raft.codec import decode_message, encode_message
from kvnode.raft.types import SNAPSHOT
from kvnode.wal.disk import LogFailedError
from kvnode.wal.log import Log
from kvnode.wal.state import LogState
from tests.oracle.requests import decode_results
from tests.sim.world import MS, SECOND
from tests.support.memdisk import MemDisk

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

CLUSTER_ID = 77
SEGMENT_BYTES = 16 << 10
TICK_US = 100 * MS
CHECKPOINT_US = SECOND
REPEAT_US = 700 * MS
TRANSFER_BYTES_PER_MS = 20_000
ENTRY = struct.Struct("<QQII")

Reply = Callable[[int, bytes], None]


class Member:
    """One member, up or down. What survives a crash: `disk`, `saved`, `generations`."""

    def __init__(self, sim: Simulation, member: MemberID, founders: Configuration) -> None:
        self.sim = sim
        self.id = member
        self.founders = founders
        self.disk = MemDisk(sim.world.random.randrange(1 << 30), lazy=True)
        self.saved = MemStore()
        self.generations: dict[str, MemStore] = {}
        self.store = self.saved.clone()
        self.up = False
        self.gone = False
        self.starts = 0
        self.drift = 1.0 + sim.world.random.uniform(-0.05, 0.05)
        self.slow_disk = False
        self.frozen = False
        self.applied_to = 0
        self.node: Node
        self.wal: Log
        self.machine: Machine

    # --- life -----------------------------------------------------------------------------------

    def start(self, power_lost: bool = True) -> None:
        """Recovers as a node does: the map at its checkpoint, the log, then what is missing."""
        self.starts += 1
        self.up = True
        self.disk.lazy = True
        if power_lost:
            self.store = self.saved.clone()
        self.machine = Machine(self.store, self.id, CLUSTER_ID)
        applied = self.machine.applied_index
        if Log.exists(self.disk, "wal"):
            self.wal = Log.open(
                self.disk, "wal", known_durable_index=applied, cluster_id=CLUSTER_ID,
                member_id=self.id, segment_bytes=SEGMENT_BYTES,
            )
        else:
            assert applied == 0, "the map has entries and there is no log"
            self.wal = Log.create(
                self.disk, "wal",
                LogState(CLUSTER_ID, self.id, configuration=encode_configuration(self.founders)),
                segment_bytes=SEGMENT_BYTES,
            )
        state = self.wal.state
        if state.snapshot_index > applied:
            self.install(self.generations[state.generation])
            applied = self.machine.applied_index
        self.sim.checks.on_start(self)
        self.node = Node(
            NodeConfig(
                id=self.id,
                random=Random(f"{self.sim.world.seed}/{self.id}/{self.starts}"),
                storage=LogReader(self.wal),
                configuration=decode_configuration(state.configuration),
                configuration_index=Index(state.configuration_index),
                hard_state=HardState(Term(state.term), MemberID(state.vote), Index(state.commit)),
                snapshot_index=Index(state.snapshot_index),
                snapshot_term=Term(state.snapshot_term),
                applied=Index(applied),
                **self.sim.options,  # type: ignore[arg-type]
            )
        )
        self.applied_to = applied
        self.tickets: deque[tuple[int, Ready]] = deque()
        self.to_apply: deque[object] = deque()
        self.writing = self.applying = False
        self.incarnation = self.starts
        self.slots = 0
        self.open: dict[int, tuple[bytes, Reply, int]] = {}
        self.reads: dict[int, tuple[bytes, Reply]] = {}
        self.ready_reads: list[tuple[int, int]] = []
        self.read_count = 0
        self.reader = RangeReader(self.store)
        self.bodies: dict[tuple[int, int], MemStore] = {}
        self.known_leader = MemberID(0)
        self._every(int(TICK_US * self.drift), self.tick)
        self._every(CHECKPOINT_US, self.checkpoint)
        self._every(REPEAT_US, self.repeat)
        self.turn()

    def _every(self, period: int, call: Callable[[], None]) -> None:
        life = self.starts

        def again() -> None:
            if self.up and self.starts == life:
                self.sim.world.after(period, again)
                if not self.frozen:
                    call()

        self.sim.world.after(self.sim.world.random.randrange(1, period), again)

    def crash(self, power: bool) -> None:
        """Ends at once. Writes on their way to the disk may be there in part."""
        random = self.sim.world.random
        writer = self.disk.writers[-1]
        if writer.queue and random.random() < 0.6:
            writer.step(sync=random.random() < 0.5)
        self.sim.checks.on_crash(self)
        self.disk = self.disk.crash(power)
        self.up = self.frozen = False
        self.sim.world.say(f"member {self.id} {'loses power' if power else 'is killed'}")

    def fatal(self, error: Exception) -> None:
        """An error that ends the process; the supervisor starts it again."""
        self.sim.world.say(f"member {self.id} ends: {error}")
        self.crash(power=False)
        self.sim.restart_later(self, power_lost=False)

    # --- inputs ---------------------------------------------------------------------------------

    def tick(self) -> None:
        self.node.tick()
        self.turn()

    def receive(self, raw: bytes, body: MemStore | None) -> None:
        """A message of another member; `body` is a snapshot's content."""
        if not self.up or self.frozen:
            return
        message = decode_message(raw)
        if body is not None and message.snapshot is not None:
            self.bodies[message.snapshot.index, message.snapshot.term] = body
        try:
            self.node.step(message)
        except LogLostError as error:
            raise self.sim.violated(f"{self.id}: {error}") from error
        self.turn()

    def request(self, group: dict[str, object], reply: Reply) -> None:
        """A write of a client: proposed, and proposed again until it is answered."""
        if not self.up or self.frozen:
            return
        self.slots += 1
        slot = self.slots
        batch = build_batch(
            [{**group, "member": self.id, "incarnation": self.incarnation, "slot": slot}]
        )
        self.open[slot] = (batch, reply, self.sim.world.now)
        self.propose(batch)
        self.turn()

    def read(self, body: bytes, serializable: bool, reply: Reply) -> None:
        """A Range of a client."""
        if not self.up or self.frozen:
            return
        if serializable:
            self.reader.refresh()
            reply(*self.reader.serve(Kind.RANGE, body))
            self.reader.close()
            return
        self.read_count += 1
        self.reads[self.read_count] = (body, reply)
        try:
            self.node.read_index(self.read_count)
        except KvnodeError:
            del self.reads[self.read_count]
        self.turn()

    def propose(self, batch: bytes) -> None:
        try:
            self.node.propose(batch)
        except ProposalRefusedError:
            self.sim.refused += 1

    def repeat(self) -> None:
        """What is open for long is proposed once more, the same bytes: windows make it harmless."""
        now = self.sim.world.now
        for batch, _, since in list(self.open.values()):
            if now - since > REPEAT_US:
                self.propose(batch)
        self.open = {s: o for s, o in self.open.items() if now - o[2] < 20 * SECOND}
        self.turn()

    # --- the Ready loop -------------------------------------------------------------------------

    def turn(self) -> None:
        """Everything that is ready."""
        try:
            while self.up and (ready := self.node.ready()) is not None:
                self.on_ready(ready)
        except LogFailedError as error:
            self.fatal(error)
            return
        if self.up:
            self.kick_disk()
            self.kick_apply()

    def on_ready(self, ready: Ready) -> None:
        node, wal = self.node, self.wal
        self.sim.checks.on_ready(self, ready)
        for message in ready.messages:
            self.send(message)
        if ready.needs_persist:
            if ready.snapshot is not None:
                self.save_snapshot(ready.snapshot)
            if ready.configuration is not None and ready.snapshot is None:
                index, configuration = ready.configuration
                wal.save_configuration(encode_configuration(configuration), index)
            if ready.entries:
                wal.append(ready.entries)
            if ready.hard_state is not None:
                wal.save_hard_state(*ready.hard_state)
            self.tickets.append((wal.submit(), ready))
        if ready.snapshot is not None:
            self.to_apply.append((ready.number, ready.snapshot))
        if ready.committed is not None:
            self.to_apply.append(ready.committed)
        for state in ready.read_states:
            self.ready_reads.append((int(state.context), state.index))  # type: ignore[call-overload]
        for wanted in ready.snapshot_requests:
            self.send_snapshot(wanted)
        if ready.soft_state is not None:
            self.sim.checks.on_role(self)
            leader = ready.soft_state.leader
            if leader and leader != self.known_leader:
                self.known_leader = leader
                for batch, _, _ in list(self.open.values()):
                    self.propose(batch)
        if node.removed and not self.gone:
            self.sim.on_removed(self)

    def send(self, message: Message, body: MemStore | None = None) -> None:
        raw = encode_message(message)
        target = self.sim.members.get(message.to)
        if target is None:
            return
        self.sim.network.send(self.id, message.to, lambda: target.receive(raw, body))

    # --- disk -----------------------------------------------------------------------------------

    def kick_disk(self) -> None:
        """The log's thread: writes and syncs what is queued, after a while."""
        if self.writing or not self.tickets:
            return
        self.writing = True
        world = self.sim.world
        delay = world.random.randrange(100, 600)
        if self.slow_disk or world.chance(0.005):
            delay += world.random.randrange(400 * MS if self.slow_disk else 30 * MS)
        life = self.starts

        def done() -> None:
            if not self.up or self.starts != life:
                return
            if self.frozen:
                world.after(50 * MS, done)
                return
            self.writing = False
            self.disk.writers[-1].step()
            self.on_log()

        world.after(delay, done)

    def on_log(self) -> None:
        """Readies up to the completed ticket are durable."""
        try:
            completed = self.wal.completed()
        except LogFailedError as error:
            self.fatal(error)
            return
        number = 0
        while self.tickets and self.tickets[0][0] <= completed:
            _, ready = self.tickets.popleft()
            number = ready.number
            self.sim.checks.on_durable(self, ready)
            for message in ready.messages_after_persist:
                self.send(message)
        if number:
            self.node.on_persisted(number)
        self.turn()

    def checkpoint(self) -> None:
        """The map becomes durable; the log is cut below it."""
        self.saved = self.store.clone()
        index = self.machine.applied_index
        if index > self.wal.first_index and index <= self.wal.durable_index:
            keep = min(
                [index, *(m.needs_from for m in self.node.status().members
                          if self.sim.world.chance(0.5))]
            )
            self.wal.cut(max(keep, self.wal.first_index))

    # --- apply ----------------------------------------------------------------------------------

    def kick_apply(self) -> None:
        if self.applying or not (self.to_apply or self.ready_reads):
            return
        self.applying = True
        life = self.starts

        def done() -> None:
            if not self.up or self.starts != life:
                return
            if self.frozen:
                self.sim.world.after(50 * MS, done)
                return
            self.applying = False
            self.apply()

        self.sim.world.after(self.sim.world.random.randrange(20, 300), done)

    def apply(self) -> None:
        """Spans in order; a snapshot in their place once its record is durable."""
        while self.to_apply:
            work = self.to_apply[0]
            if isinstance(work, tuple) and isinstance(work[1], Snapshot):
                number, snapshot = work
                if any(ready.number <= number for _, ready in self.tickets):
                    break
                self.install(self.generations[generation_of(snapshot)])
                self.node.on_applied(Index(snapshot.index))
                self.sim.snapshots += 1
            else:
                self.apply_span(int(work.first), int(work.last))  # type: ignore[attr-defined]
            if not self.to_apply:
                break   # the snapshot's record took the rest away
            self.to_apply.popleft()
        self.serve_reads()
        self.turn()

    def apply_span(self, first: int, last: int) -> None:
        if first != self.applied_to + 1:
            raise self.sim.violated(f"{self.id} applies {first} after {self.applied_to}")
        while first <= last:
            entries = self.wal.entries(first, last + 1, 1 << 20)
            for entry in entries:
                self.sim.checks.on_apply(self, Entry(*entry))  # type: ignore[arg-type]
            count = self.sim.world.random.choice([1, 2, len(entries)])
            for at in range(0, len(entries), count):
                part = entries[at : at + count]
                raw = b"".join(ENTRY.pack(i, t, k, len(d)) + d for i, t, k, d in part)
                for incarnation, results in self.machine.apply(raw):
                    if incarnation == self.incarnation:
                        self.answer(results)
                self.applied_to = part[-1][0]
                self.sim.checks.on_state(self)
            first = entries[-1][0] + 1
        self.node.on_applied(Index(last))
        if self.sim.world.chance(0.3):
            self.machine.free_some(5)

    def answer(self, results: bytes) -> None:
        for result in decode_results(results):
            waiting = self.open.pop(result.slot, None)
            if waiting is not None:
                code, body = result.code, b""
                if result.results:
                    code, _, body = result.results[0]
                waiting[1](code, body)

    def serve_reads(self) -> None:
        """Reads whose index is applied here."""
        left = []
        for context, index in self.ready_reads:
            if index > self.machine.applied_index:
                left.append((context, index))
                continue
            waiting = self.reads.pop(context, None)
            if waiting is not None:
                self.reader.refresh()
                waiting[1](*self.reader.serve(Kind.RANGE, waiting[0]))
                self.reader.close()
        self.ready_reads = left

    # --- snapshots ------------------------------------------------------------------------------

    def send_snapshot(self, wanted: MemberID) -> None:
        """A copy of the map as it is, brought over at disk speed; it may break off."""
        world = self.sim.world
        index = self.machine.applied_index
        try:
            snapshot = self.node.snapshot_at(Index(index)) if index else None
        except CompactedError:
            snapshot = None
        if snapshot is None or world.chance(0.2):
            self.node.report_snapshot(wanted, delivered=False)
            return
        body = self.store.clone()
        life = self.starts
        delay = 20 * MS + world.random.randrange(200 * MS)

        def brought() -> None:
            if not self.up or self.starts != life:
                return
            cut = (self.id, wanted) in self.sim.network.cut or world.chance(0.2)
            target = self.sim.members.get(wanted)
            if cut or target is None or not target.up or target.frozen:
                self.node.report_snapshot(wanted, delivered=False)
            else:
                keep, self.node.messages = self.node.messages, []
                sent = self.node.send_snapshot(wanted, snapshot)
                made, self.node.messages = self.node.messages, keep
                for message in made:
                    assert message.type == SNAPSHOT
                    self.send(message, body)
                self.node.report_snapshot(wanted, delivered=sent)
            self.turn()

        world.after(delay, brought)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """The snapshot's bytes are a durable generation before the record that names it."""
        name = generation_of(snapshot)
        self.generations[name] = self.bodies[snapshot.index, snapshot.term]
        self.wal.save_snapshot(
            snapshot.index, snapshot.term, encode_configuration(snapshot.configuration),
            snapshot.configuration_index, name,
        )
        self.to_apply.clear()

    def install(self, generation: MemStore) -> None:
        """Goes on over another map. What was open is proposed again: its entries may be in it."""
        self.store = generation.clone()
        self.saved = generation.clone()
        self.machine = Machine(self.store, self.id, CLUSTER_ID)
        self.applied_to = self.machine.applied_index
        self.reader = RangeReader(self.store)
        for batch, _, _ in list(getattr(self, "open", {}).values()):
            self.propose(batch)


def generation_of(snapshot: Snapshot) -> str:
    return f"snapshot-{snapshot.index}-{snapshot.term}"


NOT_EXECUTED = frozenset({Code.OUTCOME_UNKNOWN, Code.WINDOW_EXCEEDED, Code.NO_LEADER})
