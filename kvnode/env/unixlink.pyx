"""Unix stream sockets as links: the system calls and the framing, without Python between them.

Role: `UnixEndpoint` of env/link, which has the interface, the frame's layout and the invariants.
A lone put crosses four of these endpoints; receive and send in Python cost it about 60 us.
Callers: procs/, through env/link.

An endpoint listens and has peers, or connects and has one. An epoll object of its own makes many
sockets one descriptor. Reading: one buffer a peer, frames above it get a buffer of their own.
Writing: what the socket does not take is kept, whole frames' tails, and goes on when it is ready.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from kvnode._core.buf cimport kv_load_u16, kv_load_u32, kv_store_u16, kv_store_u32

import contextlib
import os
import select
import socket

from kvnode.env.peer import GONE, PAYLOAD_BYTES_MAX, VERSION, Message, Peer

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_recv "recv"(int fd, void *p, size_t n, int flags)
    ssize_t c_send "send"(int fd, const void *p, size_t n, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int c_epoll_wait "epoll_wait"(int epfd, epoll_event *events, int most, int timeout)
    int EPOLLIN
    int EPOLLOUT

cdef enum:
    RECV_BYTES = 262144
    LONE_BYTES = 16384        # frames up to here are joined with their head on the stack's buffer
    EVENTS = 64

assert VERSION == LINK_VERSION

_SOCKET_BYTES = 4 << 20
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33


cdef class Stream:
    """One connected socket."""

    def __cinit__(self, sock):
        self.room = <uint8_t *> malloc(RECV_BYTES)
        if self.room == NULL:
            raise MemoryError
        sock.setblocking(False)
        for force, plain in ((_SNDBUFFORCE, socket.SO_SNDBUF), (_RCVBUFFORCE, socket.SO_RCVBUF)):
            # The FORCE options pass the system's limit where that is permitted.
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, _SOCKET_BYTES)
            except OSError:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BYTES)
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = Peer(self)
        self.out = []

    def __dealloc__(self):
        free(self.room)

    cdef int read(self, list got) except -1:
        """Appends the messages that are complete; 1: the peer closed or broke the framing."""
        cdef ssize_t n
        cdef size_t size
        cdef bint short
        cdef char *d
        if self.peeked and self.split(got):
            return 1
        while True:
            if self.big is not None:
                d = PyBytes_AS_STRING(self.big)
                size = <size_t> len(self.big)
                n = c_recv(self.fd, d + self.big_at, size - self.big_at, MSG_DONTWAIT)
                if n <= 0:
                    return self.no_bytes(n)
                self.big_at += <size_t> n
                if self.big_at < size:
                    continue
                got.append(Message(self.peer, self.big_kind, self.big))
                self.big = None
                continue
            n = c_recv(self.fd, self.room + self.filled, RECV_BYTES - self.filled, MSG_DONTWAIT)
            if n <= 0:
                return self.no_bytes(n)
            self.filled += <size_t> n
            short = self.filled < RECV_BYTES
            if self.split(got):
                return 1
            if short and self.big is None:
                return 0

    cdef int split(self, list got) except -1:
        """Appends the frames that are whole in `room`; 1: the framing is broken."""
        cdef size_t size, at = 0, end = self.filled
        cdef uint8_t *p
        self.peeked = False
        while end - at >= HEAD_BYTES:
            p = self.room + at
            size = kv_load_u32(p)
            if p[5] != VERSION or kv_load_u16(p + 6) != 0 or p[4] == 0 \
                    or size > <size_t> PAYLOAD_BYTES_MAX:
                return 1
            if end - at - HEAD_BYTES < size:
                if HEAD_BYTES + size > RECV_BYTES:
                    self.big = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> size)
                    self.big_kind = p[4]
                    self.big_at = end - at - HEAD_BYTES
                    memcpy(PyBytes_AS_STRING(self.big), p + HEAD_BYTES, self.big_at)
                    at = end
                break
            got.append(Message(self.peer, p[4], p[HEAD_BYTES:HEAD_BYTES + size]))
            at += HEAD_BYTES + size
        self.filled = end - at
        if at and self.filled:
            memmove(self.room, self.room + at, self.filled)
        return 0

    cdef const uint8_t *peek(self, int kind, int other, size_t most, size_t *size) noexcept:
        """The payload of the one whole frame of `kind` that has come, or NULL. Also of one of
        `other` with whatever has come behind it, for `peek_behind`, which must be next.

        Whatever else has come is left for `receive`. The payload is used up: it stands in `room`
        behind its head until the next call of this stream.
        """
        cdef const uint8_t *p = self.room
        cdef ssize_t n
        if self.fd < 0 or self.filled or self.big is not None:
            return NULL
        n = c_recv(self.fd, self.room, RECV_BYTES, MSG_DONTWAIT)
        if n <= 0:
            # An end is seen again by `receive`.
            return NULL
        size[0] = kv_load_u32(p)
        if n < HEAD_BYTES or (p[4] != kind and p[4] != other) or p[5] != LINK_VERSION \
                or kv_load_u16(p + 6) != 0 or size[0] > most or <size_t> n < HEAD_BYTES + size[0] \
                or (p[4] != other and <size_t> n != HEAD_BYTES + size[0]):
            self.filled = <size_t> n
            self.peeked = True
            return NULL
        self.behind = <size_t> n - HEAD_BYTES - size[0]
        return p + HEAD_BYTES

    cdef const uint8_t *peek_behind(self, size_t before, int kind, size_t size) noexcept:
        """The payload, of `size` bytes, of the one frame that has come behind the one of `before`
        bytes that `peek` gave; NULL: that one and all that came are left for `receive`."""
        cdef uint8_t *p = self.room + HEAD_BYTES + before
        cdef ssize_t n = <ssize_t> self.behind
        self.behind = 0
        if n == 0:
            n = c_recv(self.fd, p, RECV_BYTES - HEAD_BYTES - before, MSG_DONTWAIT)
        if n == <ssize_t> (HEAD_BYTES + size) and kv_load_u32(p) == size and p[4] == kind \
                and p[5] == LINK_VERSION and kv_load_u16(p + 6) == 0:
            return p + HEAD_BYTES
        self.give_back(before + (<size_t> n if n > 0 else 0))
        return NULL

    cdef void give_back(self, size_t size) noexcept:
        """The frame that `peek` gave is left for `receive` after all. One that `peek_behind` gave
        belongs to it: `size` counts it with its head."""
        self.filled = HEAD_BYTES + size + self.behind
        self.behind = 0
        self.peeked = True

    cdef int put_frame(self, uint8_t *frame, int kind, size_t size) except -1:
        """Sends a frame whose payload stands behind HEAD_BYTES of room; 1: connection broken."""
        cdef ssize_t n = 0
        cdef size_t all = HEAD_BYTES + size
        kv_store_u32(frame, <uint32_t> size)
        frame[4] = <uint8_t> kind
        frame[5] = LINK_VERSION
        kv_store_u16(frame + 6, 0)
        if not self.out:
            n = c_send(self.fd, frame, all, MSG_DONTWAIT | MSG_NOSIGNAL)
            if n < 0:
                if errno != EAGAIN and errno != EINTR:
                    return 1
                n = 0
            if <size_t> n == all:
                return 0
        self.keep((<char *> frame)[n:all])
        return 0

    cdef int no_bytes(self, ssize_t n) noexcept:
        if n < 0 and (errno == EAGAIN or errno == EINTR):
            return 0
        return 1

    cdef int put(self, int kind, tuple parts) except -1:
        """Sends a frame or keeps what does not fit; 1: the connection is broken."""
        cdef uint8_t head[LONE_BYTES + HEAD_BYTES]
        cdef const unsigned char[::1] view
        cdef size_t size = 0, at = HEAD_BYTES
        for part in parts:
            size += <size_t> len(part)
        if size <= LONE_BYTES:
            # One buffer, one system call.
            for part in parts:
                view = part
                if view.shape[0]:
                    memcpy(head + at, &view[0], view.shape[0])
                    at += <size_t> view.shape[0]
            return self.put_frame(head, kind, size)
        kv_store_u32(head, <uint32_t> size)
        head[4] = <uint8_t> kind
        head[5] = LINK_VERSION
        kv_store_u16(head + 6, 0)
        self.keep((<char *> head)[:HEAD_BYTES])
        for part in parts:
            if len(part):
                self.keep(part)
        return self.flush()

    cdef int keep(self, object data) except -1:
        self.out.append(data)
        self.peer.backlog += len(data)
        return 0

    cdef int flush(self) except -1:
        """Sends what was kept; 1: the connection is broken."""
        cdef const unsigned char[::1] view
        cdef size_t done = 0, count = len(self.out)
        cdef ssize_t n
        cdef int broken = 0
        while done < count:
            view = self.out[done]
            n = c_send(self.fd, &view[self.out_at], <size_t> view.shape[0] - self.out_at,
                       MSG_DONTWAIT | MSG_NOSIGNAL)
            if n < 0:
                broken = 0 if errno == EAGAIN or errno == EINTR else 1
                break
            self.peer.backlog -= n
            self.out_at += <size_t> n
            if self.out_at == <size_t> view.shape[0]:
                self.out_at = 0
                done += 1
        if done:
            del self.out[:done]
        return broken


cdef class UnixEndpoint:
    """Unix stream sockets below one private folder; `listen` or `connect` make one."""

    def __cinit__(self):
        self.poll = select.epoll()
        self.poll_fd = self.poll.fileno()
        self.streams = {}
        self.listener = None
        self.listener_fd = -1
        self.gone = []
        self.path = ""

    @classmethod
    def listen(cls, str path):
        """Accepts peers at `path`; a left-over socket file is replaced."""
        cdef UnixEndpoint self = cls()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(64)
        sock.setblocking(False)
        self.listener = sock
        self.listener_fd = sock.fileno()
        self.path = path
        self.poll.register(sock.fileno(), EPOLLIN)
        return self

    @classmethod
    def connect(cls, str path):
        """Connects to the listener at `path`: (endpoint, peer), or None while nobody listens."""
        cdef UnixEndpoint self
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        self = cls()
        return self, self.add(sock)

    cdef object add(self, sock):
        cdef Stream stream = Stream(sock)
        self.streams[stream.fd] = stream
        self.poll.register(stream.fd, EPOLLIN)
        return stream.peer

    def fileno(self) -> int:
        """The epoll descriptor over all sockets."""
        return self.poll.fileno()

    def pending(self) -> bool:
        """Whether `receive` has what the descriptor does not tell: a peer that broke while
        sending, frames that a fast lane read and left."""
        return len(self.gone) > 0 or self.peeked is not None

    def receive(self) -> list:
        """All frames of all peers that were ready."""
        cdef epoll_event events[EVENTS]
        cdef list got = []
        cdef int i, n, fd, broken
        cdef Stream stream
        if self.gone:
            got.extend([Message(peer, GONE, b"") for peer in self.gone])
            self.gone.clear()
        if self.peeked is not None:
            stream = self.peeked
            self.peeked = None
            if stream.fd >= 0 and stream.peeked and stream.split(got):
                self.drop(stream)
                got.append(Message(stream.peer, GONE, b""))
        n = c_epoll_wait(self.poll_fd, events, EVENTS, 0)
        for i in range(n):
            fd = events[i].data.fd
            if fd == self.listener_fd:
                self.accept()
                continue
            stream = self.streams.get(fd)
            if stream is None:
                continue
            broken = 0
            if events[i].events & <uint32_t> EPOLLOUT:
                broken = stream.flush()
                self.watch(stream)
            if not broken and events[i].events & ~(<uint32_t> EPOLLOUT):
                broken = stream.read(got)
            if broken:
                self.drop(stream)
                got.append(Message(stream.peer, GONE, b""))
        return got

    cdef int accept(self) except -1:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return 0
            self.add(sock)

    def send(self, peer, int kind, *parts) -> None:
        """Queues one frame; a broken peer is reported by the next `receive`."""
        cdef Stream stream = <Stream?> peer.key
        if stream.fd >= 0:
            self.sent(stream, stream.put(kind, parts))

    cdef const uint8_t *peek(self, Stream stream, int kind, int other, size_t most,
                             size_t *size) noexcept:
        """`Stream.peek`; what it leaves is taken up by `receive`."""
        cdef const uint8_t *p = stream.peek(kind, other, most, size)
        if p == NULL and stream.peeked:
            self.peeked = stream
        return p

    cdef const uint8_t *peek_behind(self, Stream stream, size_t before, int kind,
                                    size_t size) noexcept:
        """`Stream.peek_behind`; what it leaves is taken up by `receive`."""
        cdef const uint8_t *p = stream.peek_behind(before, kind, size)
        if p == NULL:
            self.peeked = stream
        return p

    cdef void give_back(self, Stream stream, size_t size) noexcept:
        """`Stream.give_back`."""
        stream.give_back(size)
        self.peeked = stream

    cdef int send_frame(self, Stream stream, uint8_t *frame, int kind, size_t size) except -1:
        """`send` of a payload of `size` bytes that stands behind HEAD_BYTES of room."""
        return self.sent(stream, stream.put_frame(frame, kind, size))

    cdef int sent(self, Stream stream, int broken) except -1:
        if broken:
            self.drop(stream)
            self.gone.append(stream.peer)
        elif stream.out or stream.writing:
            self.watch(stream)
        return 0

    cdef int watch(self, Stream stream) except -1:
        cdef bint want = len(stream.out) > 0
        if want != stream.writing and stream.fd >= 0:
            stream.writing = want
            self.poll.modify(stream.fd, EPOLLIN | (EPOLLOUT if want else 0))
        return 0

    cdef int drop(self, Stream stream) except -1:
        if stream.fd < 0:
            return 0
        self.streams.pop(stream.fd, None)
        with contextlib.suppress(OSError):
            self.poll.unregister(stream.fd)
        stream.fd = -1
        stream.sock.close()
        stream.out.clear()
        stream.peer.backlog = 0
        return 0

    def close(self) -> None:
        """Closes the listener and all peers."""
        for stream in list(self.streams.values()):
            self.drop(stream)
        if self.listener is not None:
            self.listener.close()
            self.listener_fd = -1
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.poll.close()
