"""The gateway: clients in, proposals and reads out, answers back.

Role: one process that serves clients. The native front (`_core/front`) does what is per request;
here stands what is per turn of the loop and per connection: sessions, proposals kept until they
are answered, read barriers, links to consensus and applier, administration.
Started by: the supervisor. Owns: the ROUTER socket of `--listen-zmq-urls`, a read-only map.

Life of a write: `on_socket` drains messages into one proposal, `pump` sends it to consensus and
keeps its bytes in `open`; RESULTS from the applier are matched to it; `flush` sends the answers.
Life of a read: `pump` begins a barrier (the shared word for a sole voter, else a round of
consensus), and when this member has applied that index, the front answers from a new snapshot.

Invariants:
  1. A proposal stays in `open` until all its groups are answered, and exactly these bytes are
     proposed again after a death of consensus or applier: the sessions' windows make that safe.
  2. An incarnation's session is registered before the first client is read.
  3. A read's barrier begins after the read arrived.
  4. Above OPEN_BYTES_MAX of unanswered proposals no client is read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

import uvloop
import zmq
from zmq.utils.monitor import recv_monitor_message

from kvnode._core.front import Front
from kvnode._core.ranges import RangeReader
from kvnode._core.sharedword import COMMIT, READING, SOLE, TERM, SharedWords
from kvnode.base.codes import Code, Kind
from kvnode.base.failpoint import hit
from kvnode.base.limits import (
    ENTRY_BYTES_MAX,
    MIB,
    PROPOSAL_BYTES_SOFT,
    SESSION_WINDOW,
)
from kvnode.env.clock import monotonic_us, random_u64
from kvnode.env.link import GONE, KINDS, Endpoint, Message, Peer
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.store import open_for_read
from kvnode.env.zmqlib import functions
from kvnode.procs.greeting import CREDIT_BYTES, Greeter
from kvnode.procs.process import Start, begin
from kvnode.wire.frames import ONE, PAIR, QUAD, Frame, Hello, Role

log = logging.getLogger("gateway")

OPEN_BYTES_MAX = 96 * MIB
HOARD_BYTES = ENTRY_BYTES_MAX + CREDIT_BYTES
OWN_OPEN_MAX = SESSION_WINDOW // 2
RECONNECT_SECONDS = 0.003
SWEEP_SECONDS = 1.0
HOARD_SECONDS = 0.05
FULL_SECONDS = 0.2
STUCK_SECONDS = 1.0
HELLO_US = 5_000_000
SILENT_US = 60_000_000
DRAIN_SECONDS = 1.5
_OWN_SESSION_TOKEN = 1


class Wire:
    """A connection to consensus or applier that is made again after it broke."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        kind: str,
        path: str,
        hello: bytes,
        on_message: Callable[[Message], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.endpoint_type = KINDS[kind]
        self.path = path
        self.hello = hello
        self.on_message = on_message
        self.on_up = on_up
        self.on_down = on_down
        self.endpoint: Endpoint | None = None
        self.peer: Peer | None = None
        self.at_end: Callable[[], None] = lambda: None

    def connect(self) -> None:
        """Connects now, or tries again soon."""
        made = self.endpoint_type.connect(self.path)
        if made is None:
            self.loop.call_later(RECONNECT_SECONDS, self.connect)
            return
        self.endpoint, self.peer = made
        self.loop.add_reader(self.endpoint.fileno(), self.on_readable)
        self.endpoint.send(self.peer, Frame.HELLO, self.hello)
        self.on_up()
        self.on_readable()

    def on_readable(self) -> None:
        """Hands over every frame, then ends the turn."""
        while self.endpoint is not None:
            for message in self.endpoint.receive():
                if message.kind == GONE:
                    self._lost()
                    return
                self.on_message(message)
            if self.endpoint is None or not self.endpoint.pending():
                break
        self.at_end()

    def _lost(self) -> None:
        assert self.endpoint is not None
        self.loop.remove_reader(self.endpoint.fileno())
        self.endpoint.close()
        self.endpoint = self.peer = None
        self.on_down()
        self.connect()

    def send(self, kind: int, *parts: bytes) -> bool:
        """Sends one frame; False while there is nobody."""
        if self.endpoint is None or self.peer is None:
            return False
        self.endpoint.send(self.peer, kind, *parts)
        if self.endpoint.pending():
            self.loop.call_soon(self.on_readable)
        return True


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
        self.barrier_id = 0
        self.barrier_open = False
        self.calls: dict[int, Callable[[int, bytes], None]] = {}
        self.next_token = _OWN_SESSION_TOKEN + 1
        self.socket = self._bind()
        batch_max = min(ENTRY_BYTES_MAX, max(config.max_request_bytes, 16 * MIB))
        self.front = Front(
            functions(),
            self.socket.underlying,
            member=start.member,
            cluster=start.cluster,
            incarnation=self.incarnation,
            max_request_bytes=config.max_request_bytes,
            max_batch_bytes=batch_max,
            max_txn_ops=config.max_txn_ops,
        )
        self.greeter = Greeter(self, batch_max)
        hello = Hello(Role.GATEWAY, os.getpid(), self.incarnation).encode()
        self.consensus = Wire(
            loop, config.link, start.layout.consensus_socket, hello,
            self.on_consensus, self.on_consensus_up, self.on_consensus_down,
        )
        self.applier = Wire(
            loop, config.link, start.layout.applier_socket, hello,
            self.on_applier, self.on_applier_up, self.greeter.on_applier_down,
        )
        self.consensus.at_end = self.end_turn
        self.applier.at_end = self.end_turn

    def _bind(self) -> zmq.Socket[bytes]:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        sock = context.socket(zmq.ROUTER)
        sock.setsockopt(zmq.LINGER, 200)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.SNDHWM, 64)
        sock.setsockopt(zmq.RCVHWM, 1024)
        sock.setsockopt(zmq.MAXMSGSIZE, ENTRY_BYTES_MAX)
        sock.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        sock.setsockopt(zmq.BACKLOG, 1024)
        sock.setsockopt(zmq.IPV6, 1)
        self.monitor = sock.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
        )
        for url, fd in self.start.listeners.items():
            # The supervisor's listening socket: libzmq takes the descriptor over.
            sock.setsockopt(zmq.USE_FD, fd)
            sock.bind(url)
        return sock

    def run(self) -> None:
        """Connects to the node's other processes; the session opens when consensus is there."""
        self.consensus.connect()
        self.applier.connect()
        self.loop.call_later(SWEEP_SECONDS, self.sweep)
        self.loop.add_reader(self.monitor.FD, self.on_monitor)
        # Edge-triggered: its descriptor speaks only after somebody has found it empty.
        self.on_monitor()
        self.loop.call_later(HOARD_SECONDS, self.end_hoarders)

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
            self.loop.add_reader(self.socket.FD, self.on_socket)
            self.on_socket()
            log.info(
                "gateway serves",
                extra={"fields": {"listen-zmq-urls": list(self.start.listeners)}},
            )
            self.start.ready()

        self.propose(Kind.SESSION_OPEN, self.greeter.session_open(session, gateway=True), opened)

    def propose(self, kind: int, body: bytes, done: Callable[[int, bytes], None]) -> None:
        """A request of the gateway's own; `done(code, response)` is called once."""
        token = self.next_token
        self.next_token = token % 0xFFFFFFF0 + 1
        self.calls[token] = done
        self.front.propose(token, kind, body)
        self.pump()

    # --- clients --------------------------------------------------------------------------------

    def on_socket(self) -> None:
        """The ROUTER's descriptor is edge-triggered: read until it is empty or there is enough.

        Empty means found empty after the last answer left: a send takes the edge of what came
        meanwhile.
        """
        if not self.session_ready or self.stopping:
            return
        front = self.front
        pumped = False
        while True:
            if (
                front.open_bytes + front.gathered_bytes > OPEN_BYTES_MAX
                or front.own_open_count > OWN_OPEN_MAX
            ):
                self.pump()
                return
            count = front.drain(monotonic_us(), 2048)
            hit("drain")
            if count == 0:
                if pumped:
                    return
                self.pump()
                pumped = True
            else:
                pumped = False
                if front.gathered_bytes > PROPOSAL_BYTES_SOFT:
                    self.pump()

    def end_turn(self) -> None:
        """After frames of the other processes: answers leave, then the socket is asked.

        Sending takes note of what arrived meanwhile, and its descriptor stays quiet about it.
        """
        self.pump()
        self.on_socket()

    def pump(self) -> None:
        """The end of a turn: events, the proposal, the reads, the answers."""
        front = self.front
        while events := front.take_events():
            for event in events:
                self.on_event(event)
        made = front.take_proposal()
        if made is not None:
            number, batch = made
            if not self.open:
                self.progress = self.loop.time()
            self.open[number] = batch
            if not hit("proposal"):
                self.consensus.send(Frame.PROPOSE, batch)
            hit("proposed")
        if self.reader is not None:
            if front.reads_serializable:
                self.reader.refresh()
                front.serve_serializable(self.reader)
            self.advance_reads()
            if front.long_reads:
                self.step_long()
            # An idle gateway would keep its last snapshot's pages from being used again.
            self.reader.close()
        if front.flush():
            self.loop.call_later(0.001, self.end_turn)
        hit("flushed")

    def on_event(self, event: tuple) -> None:  # type: ignore[type-arg]
        """What the front leaves to Python."""
        kind = event[0]
        if kind == "own":
            _, token, code, body = event
            done = self.calls.pop(token, None)
            if done is not None:
                done(code, body)
        elif kind == "hello":
            self.greeter.on_hello(*event[1:])
        elif kind == "request":
            self.greeter.on_request(*event[1:])

    def on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A programmer's error ends the process: the supervisor starts a sound one."""
        error = context.get("exception")
        log.critical("the gateway ends", exc_info=error if isinstance(error, Exception) else None)
        self.failed = True
        loop.stop()

    # --- reads ----------------------------------------------------------------------------------

    def advance_reads(self) -> None:
        """Begins a barrier for gathered reads, answers those whose index is applied here."""
        front = self.front
        assert self.reader is not None
        while True:
            if front.reads_waiting == 0:
                if front.reads_gathering == 0:
                    return
                front.begin_barrier()
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
            self.reader.refresh()
            if self.reader.applied_index < self.read_need:
                return
            front.set_term(self.words.get(TERM))
            front.serve_waiting(self.reader)

    def step_long(self) -> None:
        """One slice of every long read, in a new snapshot; says which revisions are needed."""
        assert self.reader is not None
        self.reader.refresh()
        more = self.front.step_long(self.reader)
        self.words.set(READING + self.start.number, self.front.lowest_reading())
        if more:
            self.loop.call_soon(self.end_turn)

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
        if self.front.reads_waiting and self.read_need is None:
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
            self.repeated.discard(number)

    def on_consensus_down(self) -> None:
        self.barrier_open = False

    def on_consensus(self, message: Message) -> None:
        """A frame of consensus."""
        if message.kind == Frame.BARRIER_OK:
            number, index = PAIR.unpack(message.payload)
            if number == self.barrier_id and self.barrier_open:
                self.barrier_open = False
                self.read_need = index
        elif message.kind == Frame.REFUSED:
            self.on_refused(message.payload)

    def on_applier_up(self) -> None:
        """A (new) applier: its map is opened. It may not know this gateway yet."""
        self._open_map()
        self.greeted = False

    def _open_map(self) -> None:
        if self.reader is not None:
            self.reader.close()
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
            self.front.on_results(message.payload)
            self.forget_finished()
            hit("results")
        elif message.kind == Frame.HEAD:
            _, _, _, generation = QUAD.unpack(message.payload)
            if generation != self.generation:
                self._open_map()
            if not self.greeted:
                # Its first word: results find this gateway from here on. Those that the dead one
                # did not send, or that found nobody, come back through the sessions' windows.
                self.greeted = True
                self.propose_again()
        else:
            self.greeter.on_applier(message)

    # --- housekeeping ---------------------------------------------------------------------------

    def sweep(self) -> None:
        """Ends connections that never greeted or fell silent."""
        self.front.expire(monotonic_us(), HELLO_US, SILENT_US)
        stuck = bool(self.open) and self.loop.time() - self.progress > STUCK_SECONDS
        if stuck and not self.stuck:
            log.error(
                f"nothing was acknowledged for {STUCK_SECONDS:g} s though writes are waiting: the "
                f"disk under {self.start.layout.member} may not answer"
            )
        elif self.stuck and not stuck:
            log.info("writes are acknowledged again")
        self.stuck = stuck
        self.loop.call_later(SWEEP_SECONDS, self.sweep)

    def on_monitor(self) -> None:
        """Connections come and go: their descriptors are watched for hoarded frames."""
        while int(self.monitor.EVENTS) & zmq.POLLIN:
            event = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self.front.watch(event["value"])
            else:
                self.front.unwatch(event["value"])

    def end_hoarders(self) -> None:
        """Bounds what libzmq holds of messages that never end."""
        ended = self.front.end_hoarders(HOARD_BYTES)
        if ended:
            log.warning("connections ended", extra={"fields": {"count": ended,
                        "why": "a message without an end, or more than their credit"}})
        self.loop.call_later(HOARD_SECONDS, self.end_hoarders)

    def stop(self) -> None:
        """Answers what was taken, then ends. Blocking: at most DRAIN_SECONDS."""
        if self.stopping:
            return
        self.stopping = True
        deadline = self.loop.time() + DRAIN_SECONDS

        def drained() -> None:
            self.pump()
            if (self.open or self.front.reads_waiting) and self.loop.time() < deadline:
                self.loop.call_later(0.005, drained)
                return
            self.words.set(READING + self.start.number, 0)
            self.loop.remove_reader(self.monitor.FD)
            self.loop.remove_reader(self.socket.FD)
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
    # Answers that libzmq still holds leave within the socket's linger time.
    gateway.socket.disable_monitor()
    gateway.socket.close()
    zmq.Context.instance().destroy(0)


if __name__ == "__main__":
    main()
