"""The native door of a gateway: the ROUTER socket of `--listen-zmq-urls` and its connections.

Role: when the socket is read, what libzmq may hold, who is ended. Messages are read in
`_core/nativefront`, answers packed and sent in `_core/conns`; HELLO and administration are
`greeting`'s.
Caller: procs/gateway.

Invariants:
  1. Nobody is read before the gateway's own session is open.
  2. Above OPEN_BYTES_MAX of unanswered proposals no client is read.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

from kvnode._core.conns import Conns
from kvnode._core.nativefront import NativeFront
from kvnode.base.failpoint import hit
from kvnode.base.limits import ENTRY_BYTES_MAX, MIB, PROPOSAL_BYTES_SOFT, SESSION_WINDOW
from kvnode.env.clock import monotonic_us
from kvnode.env.zmqlib import functions
from kvnode.procs.greeting import CREDIT_BYTES, Greeter

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

log = logging.getLogger("gateway")

OPEN_BYTES_MAX = 96 * MIB
OWN_OPEN_MAX = SESSION_WINDOW // 2
HOARD_BYTES = ENTRY_BYTES_MAX + CREDIT_BYTES
SWEEP_SECONDS = 1.0
HOARD_SECONDS = 0.05
HELLO_US = 5_000_000
SILENT_US = 60_000_000


class NativeDoor:
    """Native clients of one gateway."""

    def __init__(self, gateway: Gateway, batch_bytes_max: int) -> None:
        self.gateway = gateway
        self.loop = gateway.loop
        self.serving = False
        self.emptied = -1
        """Messages sent when the socket was last found empty; -1: it was not."""
        self.socket = self._bind()
        self.conns = Conns(functions(), self.socket.underlying)
        gateway.sinks.add(self.conns)
        self.messages = NativeFront(
            self.conns, gateway.front, max_request_bytes=gateway.config.max_request_bytes
        )
        self.greeter = Greeter(gateway, self.conns, batch_bytes_max)

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
        for url, fd in self.gateway.start.listeners.items():
            # The supervisor's listening socket: libzmq takes the descriptor over.
            sock.setsockopt(zmq.USE_FD, fd)
            sock.bind(url)
        return sock

    def run(self) -> None:
        """Watches over connections from now on."""
        self.loop.call_later(SWEEP_SECONDS, self.sweep)
        self.loop.add_reader(self.monitor.FD, self.on_monitor)
        # Edge-triggered: its descriptor speaks only after somebody has found it empty.
        self.on_monitor()
        self.loop.call_later(HOARD_SECONDS, self.end_hoarders)

    def serve(self) -> None:
        """The gateway's session is open: clients are read."""
        self.serving = True
        self.loop.add_reader(self.socket.FD, self.on_socket)
        self.on_socket()

    def on_socket(self) -> None:
        """The ROUTER's descriptor is edge-triggered: read until it is empty or there is enough.

        Empty means found empty after the last answer left: a send takes the edge of what came
        meanwhile. So this is called after each turn that sent anything, too.
        """
        self.read_out(pumped=False)

    def after_turn(self) -> None:
        """The end of a turn: what came meanwhile is looked for, if its edge may be gone."""
        if self.emptied != self.conns.sends:
            self.read_out(pumped=True)

    def read_out(self, pumped: bool) -> None:
        """Reads until the socket is empty; `pumped`: a turn has just ended."""
        gateway = self.gateway
        if not self.serving or gateway.stopping:
            return
        front = gateway.front
        self.emptied = -1
        while True:
            if (
                front.open_bytes + front.gathered_bytes > OPEN_BYTES_MAX
                or front.own_open_count > OWN_OPEN_MAX
            ):
                gateway.pump()
                return
            sends = self.conns.sends
            count = self.messages.drain(monotonic_us(), 2048)
            hit("drain")
            if count == 0:
                if pumped:
                    self.emptied = sends
                    return
                gateway.pump()
                pumped = True
            else:
                pumped = False
                if front.gathered_bytes > PROPOSAL_BYTES_SOFT:
                    gateway.pump()

    def take_events(self) -> bool:
        """What the messages leave to Python; whether there was any."""
        events = self.conns.take_events()
        for event in events:
            if event[0] == "hello":
                self.greeter.on_hello(*event[1:])
            elif event[0] == "request":
                self.greeter.on_request(*event[1:])
        return bool(events)

    def sweep(self) -> None:
        """Ends connections that never greeted or fell silent."""
        self.conns.expire(monotonic_us(), HELLO_US, SILENT_US)
        self.after_turn()
        self.loop.call_later(SWEEP_SECONDS, self.sweep)

    def on_monitor(self) -> None:
        """Connections come and go: their descriptors are watched for hoarded frames."""
        while int(self.monitor.EVENTS) & zmq.POLLIN:
            event = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self.conns.watch(event["value"])
            else:
                self.conns.unwatch(event["value"])

    def end_hoarders(self) -> None:
        """Bounds what libzmq holds of messages that never end."""
        ended = self.conns.end_hoarders(HOARD_BYTES)
        if ended:
            log.warning("connections ended", extra={"fields": {"count": ended,
                        "why": "a message without an end, or more than their credit"}})
        self.loop.call_later(HOARD_SECONDS, self.end_hoarders)

    def stop(self) -> None:
        """Nothing is read any more."""
        self.loop.remove_reader(self.monitor.FD)
        self.loop.remove_reader(self.socket.FD)

    def close(self) -> None:
        """Blocking: answers that libzmq still holds leave within the socket's linger time."""
        self.socket.disable_monitor()
        self.socket.close()
        zmq.Context.instance().destroy(0)
