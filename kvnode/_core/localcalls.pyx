"""Calls within this process: streams that end in Python lists. For tests of Methods and benches.

Stands where h2.Http2 stands in a gateway. A stream counts as full from `limit` bytes on that
nobody took; taking them calls on_room, as a transport that drains does.

Invariants: upcalls happen inside the methods below, never inside a downcall.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_buf_free, kv_buf_init, kv_buf_clear
from kvnode._core.calls cimport PREFIX_BYTES, Call, Calls, Methods, Shared


cdef class Stream:
    """One open call."""

    cdef Call call
    cdef Methods methods
    cdef int number
    cdef bint full
    cdef list messages
    cdef readonly object status
    cdef readonly unsigned long long pending


cdef class LocalCalls(Calls):
    """limit: bytes of messages that a stream takes before it is full."""

    cdef dict streams
    cdef uint32_t next_number
    cdef kv_buf buf
    cdef bint discard
    cdef public long long limit
    cdef readonly unsigned long long sent
    cdef readonly unsigned long long sent_bytes

    def __cinit__(self, long long limit=1 << 20, bint discard=False):
        self.streams = {}
        self.limit = limit
        self.discard = discard
        kv_buf_init(&self.buf)

    def __dealloc__(self):
        kv_buf_free(&self.buf)

    # --- the client's side

    def open(self, Methods methods not None, int number=0):
        """A new call of a method; its handle."""
        cdef Stream s = Stream()
        s.call.number = self.next_number
        s.call.generation = 7
        s.methods = methods
        s.number = number
        s.messages = []
        self.streams[self.next_number] = s
        self.next_number += 1
        methods.on_open(s.call, number)
        return s.call.number

    def message(self, unsigned int handle, bytes body not None):
        cdef Stream s = self.streams[handle]
        if s.status is None:
            s.methods.on_message(s.call, s.number, body, len(body))

    def half_close(self, unsigned int handle):
        cdef Stream s = self.streams[handle]
        if s.status is None:
            s.methods.on_half_close(s.call, s.number)

    def reset(self, unsigned int handle):
        """The client goes away."""
        cdef Stream s = self.streams.pop(handle)
        if s.status is None:
            s.methods.on_gone(s.call, s.number)

    def take(self, unsigned int handle, int count=-1):
        """The next messages, at most `count`; the stream has room again."""
        cdef Stream s = self.streams[handle]
        cdef list taken = s.messages if count < 0 else s.messages[:count]
        s.messages = [] if count < 0 else s.messages[count:]
        for m in taken:
            s.pending -= len(m)
        if s.full and <int64_t> s.pending < self.limit and s.status is None:
            s.full = False
            s.methods.on_room(s.call, s.number)
        return taken

    def status(self, unsigned int handle):
        """(code, text) once it was finished, else None."""
        return self.streams[handle].status

    def pending(self, unsigned int handle):
        """Bytes that wait to be taken."""
        return self.streams[handle].pending

    # --- downcalls

    cdef Stream find(self, Call call):
        cdef Stream s = self.streams.get(call.number)
        if s is None or s.call.generation != call.generation or s.status is not None:
            return None
        return s

    cdef bint alive(self, Call call) noexcept nogil:
        with gil:
            return self.find(call) is not None

    cdef int64_t room(self, Call call) noexcept nogil:
        cdef int64_t left
        with gil:
            s = self.find(call)
            if s is None:
                return 0
            left = self.limit - <int64_t> (<Stream> s).pending
            if left <= 0:
                (<Stream> s).full = True
            return left

    cdef int put(self, Call call, bytes message) except -1:
        s = self.find(call)
        if s is not None:
            self.sent += 1
            self.sent_bytes += len(message)
            (<Stream> s).messages.append(message)
            (<Stream> s).pending += len(message)
        return 0

    cdef kv_buf *begin_message(self, Call call) except NULL:
        kv_buf_clear(&self.buf)
        return &self.buf

    cdef int end_message(self, Call call) except -1:
        return self.put(call, (<const char *> self.buf.p)[:self.buf.n] if self.buf.n else b"")

    cdef int undo_message(self, Call call) except -1:
        return 0

    cdef int send(self, Call call, Shared *m) except -1:
        return self.put(call, (<const char *> m.data)[PREFIX_BYTES:m.n])

    cdef int send_tail(self, Call call, const uint8_t *head, size_t n, Shared *tail) except -1:
        cdef bytes message
        if self.discard:
            self.sent += 1
            self.sent_bytes += n + tail.n - PREFIX_BYTES
            return 0
        message = (<const char *> head)[:n] + (<const char *> tail.data)[PREFIX_BYTES:tail.n]
        return self.put(call, message)

    cdef int begin_long(self, Call call, uint64_t n) except -1:
        kv_buf_clear(&self.buf)
        raise NotImplementedError

    cdef int finish(self, Call call, int grpc_status, const uint8_t *text, size_t n) except -1:
        s = self.find(call)
        if s is not None:
            (<Stream> s).status = (grpc_status, (<const char *> text)[:n].decode() if n else "")
        return 0

    cdef bint flush(self) except? True:
        return False
