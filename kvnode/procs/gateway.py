"""The gateway: clients in, proposals and reads out, answers back.

Role: one process that serves clients. What is per request is Cython: the doors read clients
(`nativedoor` ZeroMQ), `_core/front` packs writes and matches results, `_core/readqueue` answers
reads, and each answer goes to the sink of its door. Here stands what is per turn of the loop:
the gateway's session, proposals kept until they are answered, read barriers, snapshots, links to
consensus and applier.
Started by: the supervisor. Owns: a read-only map.

Life of a write: a door hands the request to the front, `pump` sends what has gathered to consensus
as one proposal and keeps its bytes in `open`; RESULTS from the applier are matched to it; the
sinks send the answers.
Life of a read: `pump` begins a barrier (the shared word for a sole voter, else a round of
consensus), and when this member has applied that index, it is answered from a new snapshot.

Hooks, for doors and for what lives beside key-value requests (watches, leases):
  on_head     () in a turn after frames of the applier, before answers leave
  on_turn     () each turn, before answers leave; `snapshot()` is there for it, `soon()` asks for
              another turn
  on_serving  () once: the session is open, clients may be read
  on_drain    () once, at SIGTERM; then `busy` () is asked until none says True, a bounded time

Invariants:
  1. A proposal stays in `open` until all its groups are answered, and exactly these bytes are
     proposed again after a death of consensus or applier: the sessions' windows make that safe.
  2. An incarnation's session is registered before the first client is read.
  3. A read's barrier begins after the read arrived.
  4. The session's window is never exceeded: above OWN_OPEN_MAX sequences requests gather.
  5. A snapshot ends with its turn: an idle gateway pins no pages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

import uvloop

from kvnode._core import meters
from kvnode._core.freed import FreedSink
from kvnode._core.front import Front
from kvnode._core.ranges import RangeReader
from kvnode._core.readqueue import ReadQueue
from kvnode._core.sharedword import ANSWERED, COMMIT, READING, SOLE, TERM, SharedWords
from kvnode._core.sink import OwnSink, Sinks
from kvnode.base.codes import Code, Kind
from kvnode.base.failpoint import hit
from kvnode.base.limits import ENTRY_BYTES_MAX, MIB
from kvnode.env.clock import random_u64
from kvnode.env.link import Message
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.store import open_for_read
from kvnode.procs.compacting import Compacting
from kvnode.procs.door import ClientDoor
from kvnode.procs.gatelane import GateLane
from kvnode.procs.httpside import HttpSide
from kvnode.procs.keepalives import LEASE_ANSWERS
from kvnode.procs.member import Member
from kvnode.procs.nativedoor import OWN_OPEN_MAX, NativeDoor
from kvnode.procs.patience import Patience
from kvnode.procs.process import Start, begin
from kvnode.procs.services import Services
from kvnode.procs.wires import Wire
from kvnode.wire.frames import ONE, PAIR, QUAD, Frame, Hello, Role

log = logging.getLogger("gateway")

FULL_SECONDS = 0.2
STUCK_SECONDS = 1.0
BLOCKED_SECONDS = 0.001
NOT_YET_US = 2000
NOT_YET_SECONDS = 0.002
DRAIN_SECONDS = 1.5
_OWN_SESSION_TOKEN = 1


class NotYetError(Exception):
    """The map does not hold yet what was answered."""


class Gateway:
    """One gateway process."""

    def __init__(self, start: Start, loop: asyncio.AbstractEventLoop) -> None:
        config = start.config
        self.start = start
        self.config = config
        self.loop = loop
        self.incarnation = random_u64()
        self.words = SharedWords(start.layout.words)
        self.open: dict[int, bytes] = {}
        self.repeated: set[int] = set()
        self.session_ready = False
        self.stopping = False
        self.failed = False
        self.reader: RangeReader | None = None
        self.store: LmdbStore | None = None
        self.generation = 0
        self.read_need: int | None = None
        self.greeted = False
        self.progress = 0.0
        self.stuck = False
        self.leader = 0
        self.leader_told = False
        self.barrier_id = 0
        self.barrier_open = False
        self.calls: dict[int, Callable[[int, bytes], None]] = {}
        self.next_token = _OWN_SESSION_TOKEN + 1
        self.turn_due: asyncio.Handle | None = None
        self.snapshot_open = self.snapshot_behind = False
        self.head_moved = False
        self.on_head: list[Callable[[], None]] = []
        self.on_turn: list[Callable[[], None]] = []
        self.on_serving: list[Callable[[], None]] = []
        self.on_drain: list[Callable[[], None]] = []
        self.busy: list[Callable[[], bool]] = []
        batch_max = min(ENTRY_BYTES_MAX, max(config.max_request_bytes, 16 * MIB))
        self.sinks = Sinks()
        self.own = OwnSink()
        self.freed = FreedSink(self.sinks)
        self.sinks.add(self.own)
        self.sinks.add(self.freed)
        self.reads = ReadQueue(
            self.sinks,
            member=start.member,
            cluster=start.cluster,
            stream_bytes=config.max_request_bytes,
        )
        self.front = Front(
            self.sinks,
            self.own,
            self.freed,
            self.reads,
            member=start.member,
            incarnation=self.incarnation,
            max_request_bytes=config.max_request_bytes,
            max_batch_bytes=batch_max,
            max_txn_ops=config.max_txn_ops,
        )
        self.patience = Patience(self)
        self.member = Member(self)
        self.compacting = Compacting(self)
        self.native = NativeDoor(self, batch_max)
        self.services = Services(self)
        self.on_serving.append(self.native.serve)
        self.lane = GateLane(self.front)
        self.clients = ClientDoor(self)
        self.http = HttpSide(self)
        hello = Hello(Role.GATEWAY, os.getpid(), self.incarnation).encode()
        self.consensus = Wire(
            loop, config.link, start.layout.consensus_socket, hello,
            self.on_consensus, self.on_consensus_up, self.on_consensus_down, self.end_turn,
        )
        self.applier = Wire(
            loop, config.link, start.layout.applier_socket, hello,
            self.on_applier, self.on_applier_up, self.member.on_applier_down,
            self.end_turn,
        )

    def run(self) -> None:
        """Connects to the node's other processes; the session opens when consensus is there."""
        self.consensus.connect()
        self.applier.connect()
        self.native.run()
        self.loop.call_later(STUCK_SECONDS, self.watch_progress)

    # --- own session ----------------------------------------------------------------------------

    def open_session(self) -> None:
        """Registers this incarnation's session through the log."""
        if self.session_ready or self.calls:
            return
        session = random_u64()

        def opened(code: int, body: bytes) -> None:
            if code == Code.NO_SPACE:
                self.loop.call_later(FULL_SECONDS, self.open_session)
                return
            if code != Code.OK:
                raise RuntimeError(f"the gateway's session was refused: {Code(code).name}")
            self.front.set_session(session)
            self.session_ready = True
            for hook in self.on_serving:
                hook()
            log.info(
                "gateway serves",
                extra={"fields": {"listen-zmq-urls": list(self.start.listeners)}},
            )
            self.start.ready()

        body = self.native.greeter.session_open(session, gateway=True)
        self.propose(Kind.SESSION_OPEN, body, opened)

    def propose(self, kind: int, body: bytes, done: Callable[[int, bytes], None]) -> None:
        """A request of the gateway's own; `done(code, response)` is called once."""
        self.front.propose(self._expect(done), kind, body)
        self.pump()

    def read(self, body: bytes, done: Callable[[int, bytes], None]) -> None:
        """A RangeRequest of the gateway's own; `done(code, response)` is called once."""
        self.front.read(self._expect(done), body)
        self.soon()

    def _expect(self, done: Callable[[int, bytes], None]) -> int:
        token = self.next_token
        self.next_token = token % 0xFFFFFFF0 + 1
        self.calls[token] = done
        return token

    # --- turns ----------------------------------------------------------------------------------

    def soon(self) -> None:
        """A door has taken requests, or there is room for answers: one turn for all that comes
        in this round of the loop."""
        if self.turn_due is None:
            self.turn_due = self.loop.call_soon(self.end_turn)

    def end_turn(self) -> None:
        """After frames of the other processes: answers leave, then the native socket is asked.

        Sending takes note of what arrived meanwhile, and its descriptor stays quiet about it.
        """
        if self.turn_due is not None:
            # This turn is the one that was asked for.
            self.turn_due.cancel()
            self.turn_due = None
        self.pump()
        self.native.after_turn()

    def pump(self) -> None:
        """The end of a turn: events, the proposals, the reads, the answers."""
        self.clients.begin_turn()
        self.lane.end_turn()
        while self.native.take_events() or self.take_own():
            pass
        self.propose_gathered()
        if self.reader is not None:
            try:
                self.serve_from(self.reader)
            except NotYetError:
                self.loop.call_later(NOT_YET_SECONDS, self.end_turn)
            self.end_snapshot()
        if self.take_own():
            self.soon()
        blocked = self.sinks.flush()
        self.clients.end_turn()
        if self.reads.release_held() or blocked:
            self.loop.call_later(BLOCKED_SECONDS, self.end_turn)
        hit("flushed")

    def serve_from(self, reader: RangeReader) -> None:
        """What this turn has to do with the map."""
        self.serve_reads(reader)
        if len(self.freed):
            self.freed.turn(self.snapshot())
        if self.head_moved:
            self.head_moved = False
            for on_head in self.on_head:
                on_head()
        for on_turn in self.on_turn:
            on_turn()

    def take_own(self) -> bool:
        """Answers to the gateway's own requests; whether there was any."""
        answers = self.own.take_answers()
        for token, code, body in answers:
            done = self.calls.pop(token, None)
            if done is not None:
                done(code, body)
        return bool(answers)

    def propose_gathered(self) -> None:
        """Writes that have gathered go to consensus, and are kept."""
        if self.front.own_open_count > OWN_OPEN_MAX:
            return
        for number, batch in self.front.take_proposals():
            if not self.open:
                self.progress = self.loop.time()
            self.open[number] = batch
            self.patience.on_proposed(number)
            if not hit("proposal"):
                self.consensus.send(Frame.PROPOSE, batch)
            hit("proposed")

    def on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A programmer's error ends the process: the supervisor starts a sound one."""
        error = context.get("exception")
        log.critical("the gateway ends", exc_info=error if isinstance(error, Exception) else None)
        self.failed = True
        loop.stop()

    # --- reads ----------------------------------------------------------------------------------

    def snapshot(self, newest: bool = False, wait: bool = True) -> RangeReader:
        """This turn's snapshot, taken when first asked for; `newest`: taken now.

        It holds all that was answered to anybody before. The applier answers a lone write a moment
        before it commits: then this waits, as long as a commit takes. Without `wait` it may lack
        that write. Errors: NotYetError, the commit takes long (a new applier does it); ask again.
        """
        assert self.reader is not None
        if newest or self.snapshot_behind or not self.snapshot_open:
            self.reader.refresh()
            self.snapshot_open = True
            answered = self.words.get(ANSWERED)
            self.snapshot_behind = self.reader.applied_index < answered
            if wait and self.snapshot_behind:
                committed = self.words.wait_applied(answered, NOT_YET_US)
                self.reader.refresh()
                if not committed or self.reader.applied_index < answered:
                    raise NotYetError
                self.snapshot_behind = False
        return self.reader

    def end_snapshot(self) -> None:
        """Lets go of this turn's snapshot, so that its pages can be used again."""
        if self.snapshot_open:
            self.snapshot_open = False
            assert self.reader is not None
            self.reader.close()

    def serve_reads(self, reader: RangeReader) -> None:
        """Answers what can be answered now."""
        reads = self.reads
        if reads.reads_serializable:
            reads.set_term(self.words.get(TERM))
            reads.serve_serializable(self.snapshot())
        self.advance_reads()
        if reads.long_reads:
            self.step_long()

    def advance_reads(self) -> None:
        """Begins a barrier for gathered reads, answers those whose index is applied here."""
        reads = self.reads
        while True:
            if reads.reads_waiting == 0:
                if reads.reads_gathering == 0:
                    return
                reads.begin_barrier()
                self.patience.on_barrier()
                self.read_need = None
                word = self.words.get(COMMIT)
                if word & SOLE and not self.config.force_read_barrier:
                    self.read_need = word & ~SOLE
                elif not self._ask_barrier():
                    return
            if self.read_need is None:
                if not self.barrier_open:
                    self._ask_barrier()
                return
            reader = self.snapshot()
            if reader.applied_index < self.read_need:
                reader = self.snapshot(newest=True)
                if reader.applied_index < self.read_need:
                    return
            reads.set_term(self.words.get(TERM))
            reads.serve_waiting(reader)

    def step_long(self) -> None:
        """One slice of every long read, in a new snapshot; says which revisions are needed."""
        more = self.reads.step_long(self.snapshot())
        self.publish_reading()
        if more:
            self.soon()

    def publish_reading(self) -> None:
        """The lowest revision that is being read here: freeing stays below it."""
        readers = (self.reads.lowest_reading(), self.member.lowest_reading())
        self.words.set(READING + self.start.number, min(filter(None, readers), default=0))

    def _ask_barrier(self) -> bool:
        self.barrier_id += 1
        self.barrier_open = self.consensus.send(Frame.READ_BARRIER, ONE.pack(self.barrier_id))
        return self.barrier_open

    # --- links ----------------------------------------------------------------------------------

    def on_consensus_up(self) -> None:
        """A (new) consensus: everything open is proposed again, in order."""
        if not self.session_ready and not self.calls:
            self.open_session()
            return
        self.propose_again()
        self.services.keep_alives.ask_again()
        if self.reads.reads_waiting and self.read_need is None:
            self._ask_barrier()

    def propose_again(self) -> None:
        """Everything open, once more: what was executed is answered from the windows."""
        self.repeated.update(self.open)
        for batch in self.open.values():
            self.consensus.send(Frame.PROPOSE, batch)

    def on_refused(self, payload: bytes) -> None:
        """Consensus took a proposal's bytes not (a full disk).

        One that was proposed before may have been executed then: it stays open, and is proposed
        again until it is taken. The others' clients hear of it.
        """
        code, batch = int.from_bytes(payload[:8], "little"), payload[8:]
        number = next((n for n, held in self.open.items() if held == batch), None)
        if number is None:
            return
        if number in self.repeated:
            self.loop.call_later(FULL_SECONDS, self.repeat, number)
            return
        meters.add(meters.SLOT["proposals_failed"])
        self.front.refuse(batch, code)
        self.forget_finished()

    def repeat(self, number: int) -> None:
        """Proposes one open proposal again."""
        batch = self.open.get(number)
        if batch is not None:
            self.consensus.send(Frame.PROPOSE, batch)

    def forget_finished(self) -> None:
        """Lets go of proposals that are answered."""
        for number in self.front.take_finished():
            self.open.pop(number, None)
            self.patience.on_answered(number)
            self.repeated.discard(number)

    def on_consensus_down(self) -> None:
        self.barrier_open = self.leader_told = False
        self.leader = 0

    def on_leader(self, leader: int) -> None:
        """Who leads. What went to the one before may be lost with it."""
        self.leader = leader
        if leader and self.leader_told:
            self.propose_again()
            self.services.keep_alives.ask_again()
        self.leader_told = True

    def on_consensus(self, message: Message) -> None:
        """A frame of consensus."""
        if message.kind == Frame.BARRIER_OK:
            number, index = PAIR.unpack(message.payload)
            if number == self.barrier_id and self.barrier_open:
                self.barrier_open = False
                self.read_need = index
        elif message.kind == Frame.REFUSED:
            self.on_refused(message.payload)
        elif message.kind == Frame.LEADER:
            self.on_leader(PAIR.unpack(message.payload)[0])
        elif message.kind in LEASE_ANSWERS:
            self.services.keep_alives.on_answer(message.payload)

    def on_applier_up(self) -> None:
        """A (new) applier: its map is opened. It may not know this gateway yet."""
        self._open_map()
        self.greeted = False

    def _open_map(self) -> None:
        self.end_snapshot()
        if self.store is not None:
            self.store.close()
        self.store, self.generation = open_for_read(
            self.start.layout.state, self.config.quota_backend_bytes
        )
        self.reader = RangeReader(self.store)

    def on_applier(self, message: Message) -> None:
        """A frame of the applier."""
        if message.kind == Frame.RESULTS:
            self.progress = self.loop.time()
            self._on_news()
            self.front.on_results(message.payload)
            if self.services.watching.watches.idle:
                # No events are to go ahead of the answers: those of the native door leave now.
                self.sinks.flush()
            self.forget_finished()
            hit("results")
        elif message.kind == Frame.HEAD:
            _, _, _, generation = QUAD.unpack(message.payload)
            self._on_news()
            if generation != self.generation:
                self._open_map()
            if not self.greeted:
                # Its first word: results find this gateway from here on. Those that the dead one
                # did not send, or that found nobody, come back through the sessions' windows.
                self.greeted = True
                self.propose_again()
        elif message.kind == Frame.INSTALLED:
            # What held the open proposals may be in the snapshot: it is never applied here.
            self.propose_again()
        else:
            self.member.on_applier(message)

    def _on_news(self) -> None:
        """The map has moved: this turn's snapshot is not to be an older one."""
        self.head_moved = True
        self.end_snapshot()

    # --- housekeeping ---------------------------------------------------------------------------

    def watch_progress(self) -> None:
        """Says aloud when writes wait and nothing is acknowledged."""
        self.patience.tick()
        waiting = self.session_ready and bool(self.open)  # before, the others may still open files
        stuck = waiting and self.loop.time() - self.progress > STUCK_SECONDS
        if stuck and not self.stuck:
            log.error(
                f"nothing was acknowledged for {STUCK_SECONDS:g} s though writes are waiting: the "
                f"disk under {self.start.layout.member} may not answer"
            )
        elif self.stuck and not stuck:
            log.info("writes are acknowledged again")
        self.stuck = stuck
        self.loop.call_later(STUCK_SECONDS, self.watch_progress)

    def stop(self) -> None:
        """Answers what was taken, then ends. Blocking: at most DRAIN_SECONDS."""
        if self.stopping:
            return
        self.stopping = True
        for hook in self.on_drain:
            hook()
        deadline = self.loop.time() + DRAIN_SECONDS

        def drained() -> None:
            self.pump()
            busy = any([ask() for ask in self.busy])
            if (busy or self.open or self.reads.reads_waiting) and self.loop.time() < deadline:
                self.loop.call_later(0.005, drained)
                return
            self.words.set(READING + self.start.number, 0)
            self.native.stop()
            self.loop.stop()

        drained()


def main() -> None:
    """Entry of the process."""
    start = begin("gateway")
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    gateway = Gateway(start, loop)
    loop.add_signal_handler(signal.SIGTERM, gateway.stop)
    loop.set_exception_handler(gateway.on_exception)
    gateway.run()
    loop.run_forever()
    if gateway.failed:
        sys.exit(1)
    gateway.native.close()


if __name__ == "__main__":
    main()
