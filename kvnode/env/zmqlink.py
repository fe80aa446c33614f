"""ZeroMQ as links: ROUTER and DEALER over ipc (`--link zmq`).

Role: the other implementation of env/link's interface, under the same tests. A module of its own so
that a node with Unix links does not load libzmq three times over.
Callers: procs/, through env/link, which has the interface, the frame's layout and the invariants.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct

import zmq

from kvnode.base.errors import DecodeError
from kvnode.env.peer import GONE, VERSION, Message, Peer

HEAD = struct.Struct("<IBBH")
_PEER_HELLO = b"\0"


class ZmqEndpoint:
    """ROUTER (listening) and DEALER (connecting) over ipc.

    ZeroMQ tells nothing of a peer's death, so both ends exchange process ids when they meet and
    watch them by pidfd. The high-water marks are off: the callers' credit is the bound, and a
    mark would drop or block instead of telling.
    """

    def __init__(self, context: zmq.Context, kind: int) -> None:
        self._sock = context.socket(kind)
        self._sock.setsockopt(zmq.LINGER, 0)
        self._sock.setsockopt(zmq.SNDHWM, 0)
        self._sock.setsockopt(zmq.RCVHWM, 0)
        self._router = kind == zmq.ROUTER
        if self._router:
            self._sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._poll = select.epoll()
        self._poll.register(self._sock.getsockopt(zmq.FD), select.EPOLLIN)
        self._peers: dict[bytes, Peer] = {}
        self._pidfds: dict[int, bytes] = {}
        self._gone: list[Peer] = []

    @classmethod
    def listen(cls, path: str) -> ZmqEndpoint:
        """A ROUTER bound at ipc `path`."""
        self = cls(zmq.Context.instance(), zmq.ROUTER)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._sock.bind(f"ipc://{path}")
        os.chmod(path, 0o600)
        return self

    @classmethod
    def connect(cls, path: str) -> tuple[ZmqEndpoint, Peer] | None:
        """A DEALER connected to ipc `path`; None while nobody listens there."""
        # A DEALER would queue for a listener that is not there; ask the socket file first.
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        finally:
            probe.close()
        self = cls(zmq.Context.instance(), zmq.DEALER)
        self._sock.setsockopt(zmq.RECONNECT_IVL, -1)
        self._sock.connect(f"ipc://{path}")
        peer = Peer(b"")
        self._peers[b""] = peer
        self._hello(b"")
        return self, peer

    def _hello(self, key: bytes) -> None:
        body = _PEER_HELLO + os.getpid().to_bytes(4, "little")
        self._sock.send_multipart([key, body] if self._router else [body])

    def fileno(self) -> int:
        """The epoll descriptor over the socket's descriptor and the peers' pidfds."""
        return self._poll.fileno()

    def pending(self) -> bool:
        """ZeroMQ's descriptor is edge-triggered: ask the socket itself."""
        return bool(self._gone) or bool(self._sock.getsockopt(zmq.EVENTS) & zmq.POLLIN)

    def receive(self) -> list[Message]:
        """All frames that arrived."""
        out: list[Message] = []
        if self._gone:
            out.extend(Message(p, GONE, b"") for p in self._gone)
            self._gone.clear()
        dead = [fd for fd, _ in self._poll.poll(0) if fd in self._pidfds]
        while True:
            try:
                parts = self._sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            key = parts.pop(0) if self._router else b""
            if len(parts) == 1 and parts[0][:1] == _PEER_HELLO:
                self._meet(key, int.from_bytes(parts[0][1:5], "little"))
                continue
            peer = self._peers.get(key)
            if peer is None or len(parts) != 2:
                continue
            size, kind, version, _ = HEAD.unpack(parts[0])
            if version != VERSION or size != len(parts[1]):
                raise DecodeError("frame head is not one of this version")
            out.append(Message(peer, kind, parts[1]))
        for fd in dead:
            key = self._pidfds.pop(fd)
            self._poll.unregister(fd)
            os.close(fd)
            peer = self._peers.pop(key, None)
            if peer is not None:
                out.append(Message(peer, GONE, b""))
        return out

    def _meet(self, key: bytes, pid: int) -> None:
        if self._router and key not in self._peers:
            self._peers[key] = Peer(key)
            self._hello(key)
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            peer = self._peers.pop(key, None)
            if peer is not None:
                self._gone.append(peer)
            return
        self._pidfds[fd] = key
        self._poll.register(fd, select.EPOLLIN)

    def send(self, peer: Peer, kind: int, *parts: bytes | memoryview) -> None:
        """Queues one frame; a peer that is gone is reported by the next `receive`."""
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        message = [HEAD.pack(len(body), kind, VERSION, 0), body]
        if self._router:
            assert isinstance(peer.key, bytes)
            if peer.key not in self._peers:
                return
            message.insert(0, peer.key)
        try:
            self._sock.send_multipart(message, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            if self._peers.pop(peer.key, None) is not None:  # type: ignore[call-overload]
                self._gone.append(peer)

    def close(self) -> None:
        """Closes the socket at once; what was not sent is lost, as at a death."""
        for fd in self._pidfds:
            os.close(fd)
        self._sock.close(0)
        self._poll.close()
