"""The client port of a gateway: gRPC and HTTP/1.1, in plain and under TLS.

Role: accepts connections of `--listen-client-urls` from the supervisor's listening sockets, looks
at their first bytes, and gives HTTP/2 to `_core/h2`, HTTP/1.1 to `http1`. What a call means is
behind the routes of that (`services`).
Caller: procs/gateway.

Invariants:
  1. Nobody is accepted before the gateway's own session is open.
  2. One buffer serves all reads of HTTP/2: nothing keeps a reference to it.
  3. Above OPEN_BYTES_MAX of unanswered proposals no client is read.
  4. What was gathered in a turn of the loop leaves in one write a connection (`flush`).
  5. What a small stream waits behind is bounded: h2's write a turn, WRITE_HIGH of the transport,
     UNSENT_BYTES of the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvnode._core.h2 import Connection, Http2
from kvnode.base.codes import Grpc
from kvnode.base.limits import MIB
from kvnode.procs.tls import tls_context

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

log = logging.getLogger("gateway")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WRITE_HIGH = 131072
WRITE_LOW = 32768
UNSENT_BYTES = 131072
OPEN_BYTES_MAX = 96 * MIB
TICK_SECONDS = 0.02
FIRST_BYTES_SECONDS = 20.0
HANDSHAKE_SECONDS = 10.0
BACKLOG = 4096
TCP_NOTSENT_LOWAT = 25
KEEPALIVE_SECONDS = 15
STREAMS_SECONDS = 0.2

Http1 = Callable[[asyncio.Transport, bytes], None]
"""Takes a connection over: its transport and what was read of it."""


def no_http1(transport: asyncio.Transport, first: bytes) -> None:
    """Where HTTP/1.1 is not served."""
    transport.write(b"HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\n"
                    b"Content-Length: 0\r\n\r\n")
    transport.close()


class Newcomer(asyncio.BufferedProtocol):
    """A client until its first bytes say what it speaks."""

    __slots__ = ("door", "first", "transport")

    def __init__(self, door: Door) -> None:
        self.door = door
        self.first = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.door.unknown[self] = self.door.loop.time()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.door.buffer

    def buffer_updated(self, nbytes: int) -> None:
        door = self.door
        self.first += door.buffer[:nbytes]
        if len(self.first) < len(PREFACE) and PREFACE.startswith(self.first):
            return
        door.unknown.pop(self, None)
        transport, first = self.transport, self.first
        assert transport is not None
        if not first.startswith(PREFACE):
            door.http1(transport, first)
            return
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        connection = Connection(door.http2, transport)
        transport.set_protocol(connection)
        connection.received(first)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.door.unknown.pop(self, None)


class Door:
    """All connections of the client port of one process. `http2.on_work` is to lead to a flush in
    this turn of the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        http2: Http2,
        http1: Http1 = no_http1,
    ) -> None:
        self.loop = loop
        self.http2 = http2
        self.http1 = http1
        self.buffer = http2.buffer
        self.unknown: dict[Newcomer, float] = {}
        """Connections without enough first bytes, with when they came; oldest first."""
        self.servers: list[Any] = []
        self.ticker: asyncio.TimerHandle | None = None
        self.held = False

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accepts from a listening socket, which stays the caller's business to make."""
        # Accepted sockets have these from the listening one.
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
        self.servers.append(
            await self.loop.create_server(
                lambda: Newcomer(self),
                sock=sock,
                backlog=BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
            )
        )

    def start(self) -> None:
        """Time passes from here on: deadlines, keep-alive, silent clients."""
        if self.ticker is None:
            self.tick()

    def tick(self) -> None:
        self.http2.tick()
        now = self.loop.time()
        while self.unknown:
            silent, since = next(iter(self.unknown.items()))
            if now - since < FIRST_BYTES_SECONDS:
                break
            del self.unknown[silent]
            if silent.transport is not None:
                silent.transport.abort()
        self.ticker = self.loop.call_later(TICK_SECONDS, self.tick)

    def hold(self, on: bool) -> None:
        """Reads no HTTP/2 client, or reads them again."""
        if on != self.held:
            self.held = on
            self.http2.hold(on)

    def drain(self) -> None:
        """No new connections. Those that there are end with `http2.drain`."""
        for server in self.servers:
            server.close()
        self.servers.clear()
        for silent in self.unknown:
            if silent.transport is not None:
                silent.transport.abort()


class ClientDoor:
    """The door of a gateway: its turn, its proposals' bound, its leader."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.turning = False
        self.leaderless_since: float | None = None
        self.http2 = gateway.services.http2
        self.http2.on_work = self.on_work
        self.http2.on_read = self.on_read
        self.door = Door(gateway.loop, self.http2)
        self.tls: ssl.SSLContext | None = None
        gateway.on_serving.append(self.serve)
        gateway.on_drain.append(self.drain)

    def on_work(self) -> None:
        """Something waits for a flush: this turn's, or another's."""
        if not self.turning:
            self.gateway.soon()

    def on_read(self) -> None:
        """A connection was read. A request that comes alone has its turn now."""
        gateway = self.gateway
        if gateway.turn_due is None and gateway.lane.lone():
            gateway.end_turn()
        else:
            gateway.soon()

    def begin_turn(self) -> None:
        """A turn that ends with `end_turn` has begun."""
        self.turning = True

    def end_turn(self) -> None:
        """The end of a turn: answers leave."""
        self.turning = False
        self.http2.flush()
        front = self.gateway.front
        self.door.hold(front.open_bytes + front.gathered_bytes > OPEN_BYTES_MAX)

    def drain(self) -> None:
        """No new connections; calls that would never end are ended soon, as etcd's."""
        self.door.drain()
        self.gateway.loop.call_later(
            STREAMS_SECONDS, self.http2.end_streams, Grpc.UNAVAILABLE, "etcdserver: server stopped"
        )

    def serve(self) -> None:
        """The gateway serves: clients are accepted."""
        self.gateway.loop.create_task(self._serve())

    async def _serve(self) -> None:
        for url, numbers in self.gateway.start.client_listeners.items():
            tls = None
            if url.startswith("https://"):
                tls = self.tls = self.tls or tls_context(self.gateway.config)
            for number in numbers:
                await self.door.listen(socket.socket(fileno=number), tls)
        self.door.start()
        self.watch_leader()

    def watch_leader(self) -> None:
        """Calls that ask for a leader end at once without one, their streams after three
        election timeouts, as etcd's."""
        loop = self.gateway.loop
        patience = 3 * self.gateway.config.election_timeout / 1000
        if self.gateway.member.leader():
            self.leaderless_since = None
            self.http2.set_leader(True)
        elif self.leaderless_since is None:
            self.leaderless_since = loop.time()
            self.http2.set_leader(False, end_streams=False)
        elif loop.time() - self.leaderless_since > patience:
            self.http2.set_leader(False)
        loop.call_later(0.1, self.watch_leader)
