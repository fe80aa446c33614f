"""One connection of a client: a DEALER socket towards one endpoint, greeted or not yet.

Role: sends and receives whole messages, notices a dead peer, keeps the connection alive while its
owner waits. Knows nothing of requests: that is `engine`.
Caller: client/engine. A `Connection` is used once: after any failure its owner opens another.

Inputs: an endpoint (tcp://HOST:PORT) and what to say in HELLO. Outputs: messages, or
ConnectionLost with the reason.

Invariants:
  1. libzmq never reconnects by itself (RECONNECT_IVL -1): a new TCP connection is a new identity
     for the gateway, which would not know that HELLO was said, and credit would be miscounted.
  2. `receive` returns within its timeout. PING goes out when nothing was sent for one heartbeat;
     a peer silent for LIFE_HEARTBEATS of them is lost.

No Python thread; libzmq's own I/O thread belongs to the process's one context.
"""

from __future__ import annotations

import math
import struct
import time

import zmq

from kvnode.base.errors import DecodeError, PeerError
from kvnode.wire import native
from kvnode.wire.native import Hello, HelloOk, Opcode

LIFE_HEARTBEATS = 3
STALE_HEARTBEATS = 2
"""A gateway drops clients that were silent for longer than this."""

HEARTBEAT_SECONDS_DEFAULT = 5.0
SEND_MESSAGES_MAX = 16384
"""libzmq's HWM counts messages: the bytes are bounded by the credit."""

_CLOSE_LINGER_MS = 200
_TAKE_MESSAGES_MAX = 256
_EVENT = struct.Struct("=H")
_LOST_EVENTS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class ConnectionLost(PeerError):
    """The connection ended; another one may do. `code` is set when the gateway said why."""

    def __init__(self, text: str, code: int = 0) -> None:
        self.code = code
        super().__init__(text)


class Connection:
    """A DEALER socket to `endpoint`. The constructor returns at once; `greet` waits."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.limits = HelloOk()
        self.heartbeat = HEARTBEAT_SECONDS_DEFAULT
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, SEND_MESSAGES_MAX)
        socket.setsockopt(zmq.RCVHWM, SEND_MESSAGES_MAX)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.IPV6, 1)
        self._monitor = socket.get_monitor_socket(_LOST_EVENTS)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._socket = socket
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self.last_sent = self.last_heard = time.monotonic()
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConnectionLost(f"{endpoint}: {error.strerror}") from error

    def greet(self, hello: Hello, deadline: float) -> HelloOk:
        """Says HELLO and waits for the answer until `deadline` (monotonic seconds).

        Raises ConnectionLost; with a code when the gateway refused.
        """
        self.send(native.encode_hello(hello))
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConnectionLost(f"{self.endpoint}: no answer to HELLO")
            for message in self.receive(left):
                header = native.decode_header(message)
                if header.opcode == Opcode.ERROR:
                    code, text = native.decode_error(message)
                    raise ConnectionLost(f"{self.endpoint}: {text}", code)
                if header.opcode != Opcode.HELLO_OK:
                    raise DecodeError(f"{self.endpoint} answered HELLO with {header.opcode.name}")
                self.limits = native.decode_hello_ok(message)
                if self.limits.version != native.VERSION:
                    raise DecodeError(
                        f"{self.endpoint} chose protocol version {self.limits.version}, "
                        f"which this client does not speak"
                    )
                if self.limits.heartbeat_ms:
                    self.heartbeat = self.limits.heartbeat_ms / 1000
                return self.limits

    def send(self, message: bytes) -> bool:
        """Hands a message to libzmq; False when its queue is full (nothing was sent)."""
        try:
            self._socket.send(message, zmq.DONTWAIT)
        except zmq.Again:
            return False
        self.last_sent = time.monotonic()
        return True

    def receive(self, timeout: float) -> list[bytes]:
        """Messages that are there; waits for the first up to `timeout` seconds, [] if none came.

        Raises ConnectionLost when the peer is gone or silent.
        """
        messages = self._take()
        if messages:
            return messages
        now = time.monotonic()
        silent_until = self.last_heard + LIFE_HEARTBEATS * self.heartbeat
        ping_at = self.last_sent + self.heartbeat
        wait = max(0.0, min(timeout, silent_until - now, ping_at - now))
        ready = dict(self._poller.poll(math.ceil(wait * 1000)))
        if self._socket in ready:
            return self._take()
        if self._monitor in ready:
            # As zmq.utils.monitor reads it, which would import asyncio: 50 ms of a command's start.
            (event,) = _EVENT.unpack_from(self._monitor.recv_multipart()[0])
            if event == zmq.EVENT_DISCONNECTED:
                raise ConnectionLost(f"{self.endpoint}: connection closed by the node")
            raise ConnectionLost(f"{self.endpoint}: cannot connect")
        now = time.monotonic()
        if now >= silent_until:
            raise ConnectionLost(f"{self.endpoint}: silent for {now - self.last_heard:.1f} s")
        if now >= ping_at:
            self.send(native.encode_message(Opcode.PING))
            self.last_sent = now
        return messages

    def _take(self) -> list[bytes]:
        messages: list[bytes] = []
        try:
            while len(messages) < _TAKE_MESSAGES_MAX:
                # Several frames in one message are not this protocol: the decoder says so.
                messages.append(b"".join(self._socket.recv_multipart(zmq.DONTWAIT)))
        except zmq.Again:
            pass
        if messages:
            self.last_heard = time.monotonic()
        return messages

    def stale(self) -> bool:
        """True when nothing was said for so long that the gateway may have dropped us."""
        return time.monotonic() - self.last_sent > STALE_HEARTBEATS * self.heartbeat

    def close(self, goodbye_session: int = -1) -> None:
        """Closes the socket; with a session (0 = none) says GOODBYE first.

        Blocking: no; libzmq keeps trying to hand over the GOODBYE for 0.2 s.
        """
        if self._socket.closed:
            return
        linger = 0
        if goodbye_session >= 0 and self.send(
            native.encode_message(Opcode.GOODBYE, session=goodbye_session)
        ):
            linger = _CLOSE_LINGER_MS
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger)
