"""Links between the processes of one node: send a batch, receive many, notice a dead peer.

Role: moves frames between gateway, consensus and applier. Two implementations of
one interface: Unix stream sockets and ZeroMQ ROUTER/DEALER over ipc, chosen by `--link`.
Callers: procs/. An `Endpoint` is a listener with its peers, or a connector with its one peer; its
`fileno()` becomes readable when `receive()` has something to say.

A frame is an 8-byte head and a payload. Head, little-endian:

    0  u32  length of the payload
    4  u8   kind (wire/frames names them)
    5  u8   version = 1; another version ends the link
    6  u16  flags = 0

Worked example, kind 6 with 16 bytes of payload: `10000000 06 01 0000` and the payload.

Invariants:
  1. Frames of one peer arrive whole and in the order they were sent, or the peer is reported gone.
  2. `send` never blocks. What the socket does not take waits here; `backlog` tells the bytes, and
     the callers' credit bounds it (a gateway stops reading clients above its open-bytes limit).
  3. A peer is reported (GONE) once when its process ended or its connection broke.

Absent on purpose: retries of frames. A peer that comes back says HELLO, and the rooms above decide
what is to be said again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import zmq

from kvnode.base.errors import DecodeError, DiskError

GONE = 0
"""Kind of the message that says that a peer is gone; frame kinds begin at 1."""

VERSION = 1
HEAD = struct.Struct("<IBBH")
HEAD_SIZE = HEAD.size
PAYLOAD_BYTES_MAX = 1 << 30
_RECV_BYTES = 256 << 10
_SOCKET_BYTES = 4 << 20
_IOV_MAX = 512


class Peer:
    """One process at the other end; `tag` is the owner's to use."""

    __slots__ = ("backlog", "key", "tag")

    def __init__(self, key: object) -> None:
        self.key = key
        self.backlog = 0
        self.tag: object = None


class Message(NamedTuple):
    """One frame, or GONE."""

    peer: Peer
    kind: int
    payload: bytes


class Endpoint(Protocol):
    """What both implementations give."""

    def fileno(self) -> int:
        """Readable when `receive` has something."""

    def receive(self) -> list[Message]:
        """All frames that arrived. Blocking: never."""

    def send(self, peer: Peer, kind: int, *parts: bytes | memoryview) -> None:
        """Queues one frame whose payload is the parts, one after another. Blocking: never."""

    def pending(self) -> bool:
        """Whether `receive` would return something though `fileno` is quiet."""

    def close(self) -> None:
        """Ends all connections."""


class _Stream:
    """One connected Unix stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        for force, plain in ((socket.SO_SNDBUF, socket.SO_SNDBUF), (socket.SO_RCVBUF,) * 2):
            # SO_SNDBUFFORCE (32) and SO_RCVBUFFORCE (33) pass the system's limit where permitted.
            number = 32 if force == socket.SO_SNDBUF else 33
            try:
                sock.setsockopt(socket.SOL_SOCKET, number, _SOCKET_BYTES)
            except OSError:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BYTES)
        self.sock = sock
        self.peer = Peer(self)
        self.out: deque[memoryview] = deque()
        self.buffer = bytearray(_RECV_BYTES)
        self.view = memoryview(self.buffer)
        self.filled = 0
        self.want = 0
        self.big: bytearray | None = None
        self.big_at = 0
        self.writing = False

    def queue(self, kind: int, parts: Sequence[bytes | memoryview]) -> None:
        size = 0
        for part in parts:
            size += len(part)
        head = HEAD.pack(size, kind, VERSION, 0)
        if not self.out and size <= 4096:
            # The common lone frame: one buffer, one system call.
            data = head + b"".join(parts)
            try:
                sent = self.sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                sent = 0
            if sent < len(data):
                self.out.append(memoryview(data)[sent:])
                self.peer.backlog += len(data) - sent
            return
        self.out.append(memoryview(head))
        for part in parts:
            if len(part):
                self.out.append(memoryview(part))
        self.peer.backlog += size + HEAD_SIZE
        self.flush()

    def flush(self) -> None:
        out = self.out
        while out:
            vector = [out[i] for i in range(min(len(out), _IOV_MAX))]
            try:
                sent = self.sock.sendmsg(vector, (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            self.peer.backlog -= sent
            while sent:
                first = out[0]
                if sent >= len(first):
                    sent -= len(first)
                    out.popleft()
                else:
                    out[0] = first[sent:]
                    sent = 0

    def read(self) -> Iterator[tuple[int, bytes]]:
        """Frames that are complete; ConnectionError when the peer closed."""
        while True:
            if self.big is not None:
                view = memoryview(self.big)[self.big_at :]
                try:
                    n = self.sock.recv_into(view)
                except (BlockingIOError, InterruptedError):
                    return
                if n == 0:
                    raise ConnectionError("closed")
                self.big_at += n
                if self.big_at < len(self.big):
                    continue
                data, self.big = self.big, None
                yield self.want, bytes(data)
                continue
            # One buffer for ever: a fresh one of this size would be mapped and unmapped each time.
            try:
                n = self.sock.recv_into(self.view[self.filled :])
            except (BlockingIOError, InterruptedError):
                return
            if n == 0:
                raise ConnectionError("closed")
            end = self.filled + n
            short = end < _RECV_BYTES
            view = self.view
            at = 0
            while end - at >= HEAD_SIZE:
                size, kind, version, _ = HEAD.unpack_from(view, at)
                if version != VERSION or size > PAYLOAD_BYTES_MAX:
                    raise DecodeError("frame head is not one of this version")
                stop = at + HEAD_SIZE + size
                if stop > end:
                    if HEAD_SIZE + size > _RECV_BYTES:
                        self.big = bytearray(size)
                        self.big_at = end - at - HEAD_SIZE
                        self.big[: self.big_at] = view[at + HEAD_SIZE : end]
                        self.want = kind
                        at = end
                    break
                yield kind, bytes(view[at + HEAD_SIZE : stop])
                at = stop
            self.filled = end - at
            if at and at < end:
                self.buffer[: self.filled] = self.buffer[at:end]
            if short and self.big is None:
                return


class UnixEndpoint:
    """Unix stream sockets below one private folder.

    `listen` gives an endpoint that accepts peers, `connect` one with a single peer. An epoll
    object of its own makes many sockets one descriptor.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._streams: dict[int, _Stream] = {}
        self._listener: socket.socket | None = None
        self._gone: list[_Stream] = []
        self._path = ""

    @classmethod
    def listen(cls, path: str) -> UnixEndpoint:
        """Accepts peers at `path`; a left-over socket file is replaced."""
        self = cls()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(64)
        sock.setblocking(False)
        self._listener = sock
        self._path = path
        self._poll.register(sock.fileno(), select.EPOLLIN)
        return self

    @classmethod
    def connect(cls, path: str) -> tuple[UnixEndpoint, Peer] | None:
        """Connects to the listener at `path`; None while nobody listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        self = cls()
        return self, self._add(sock)

    def _add(self, sock: socket.socket) -> Peer:
        stream = _Stream(sock)
        self._streams[sock.fileno()] = stream
        self._poll.register(sock.fileno(), select.EPOLLIN)
        return stream.peer

    def fileno(self) -> int:
        """The epoll descriptor over all sockets."""
        return self._poll.fileno()

    def pending(self) -> bool:
        """Whether a peer broke while sending, which `receive` reports."""
        return bool(self._gone)

    def receive(self) -> list[Message]:
        """All frames of all peers that were ready."""
        out: list[Message] = []
        if self._gone:
            out.extend(Message(s.peer, GONE, b"") for s in self._gone)
            self._gone.clear()
        for fd, events in self._poll.poll(0):
            if self._listener is not None and fd == self._listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, _ = self._listener.accept()
                        self._add(sock)
                continue
            stream = self._streams.get(fd)
            if stream is None:
                continue
            try:
                if events & select.EPOLLOUT:
                    stream.flush()
                    self._watch(stream)
                if events & ~select.EPOLLOUT:
                    for kind, payload in stream.read():
                        out.append(Message(stream.peer, kind, payload))
            except (OSError, DecodeError):
                self._drop(stream)
                out.append(Message(stream.peer, GONE, b""))
        return out

    def send(self, peer: Peer, kind: int, *parts: bytes | memoryview) -> None:
        """Queues one frame; a broken peer is reported by the next `receive`."""
        stream = peer.key
        assert isinstance(stream, _Stream)
        if stream.sock.fileno() < 0:
            return
        try:
            stream.queue(kind, parts)
            if stream.out or stream.writing:
                self._watch(stream)
        except OSError:
            self._drop(stream)
            self._gone.append(stream)

    def _watch(self, stream: _Stream) -> None:
        want = bool(stream.out)
        if want != stream.writing:
            stream.writing = want
            mask = select.EPOLLIN | (select.EPOLLOUT if want else 0)
            self._poll.modify(stream.sock.fileno(), mask)

    def _drop(self, stream: _Stream) -> None:
        fd = stream.sock.fileno()
        if fd < 0:
            return
        self._streams.pop(fd, None)
        with contextlib.suppress(OSError):
            self._poll.unregister(fd)
        stream.sock.close()
        stream.out.clear()
        stream.peer.backlog = 0

    def close(self) -> None:
        """Closes the listener and all peers."""
        for stream in list(self._streams.values()):
            self._drop(stream)
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._poll.close()


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


KINDS: dict[str, type[UnixEndpoint] | type[ZmqEndpoint]] = {
    "unix": UnixEndpoint,
    "zmq": ZmqEndpoint,
}


def private_folder(path: str) -> None:
    """Makes `path` a folder of this user alone (0700); DiskError if it is another user's."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise DiskError(f"{path} is not a folder of this user: remove it or choose another")
    os.chmod(path, 0o700)
