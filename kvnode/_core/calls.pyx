"""Calls and their methods: the border between gRPC streams and what answers them.

Role: two abstract classes and the message that streams share. `h2.Http2` is the Calls of a
gateway; the KV, watch and lease fronts are Methods; Python's own handlers stand behind one too.
One thread only: everything runs on the gateway's loop.

Invariants:
  1. After on_gone, or after finish, no upcall names that call again.
  2. A Shared message is never changed once it was given to `send`.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from kvnode._core.buf cimport kv_buf


cdef Shared *shared_new(size_t n) noexcept nogil:
    """A message of n bytes to be filled in at data + PREFIX_BYTES; NULL without memory."""
    cdef Shared *m = <Shared *> malloc(sizeof(Shared) + PREFIX_BYTES + n)
    if m == NULL:
        return NULL
    m.refs = 1
    m.n = <uint32_t> (n + PREFIX_BYTES)
    m.data[0] = 0
    m.data[1] = <uint8_t> (n >> 24)
    m.data[2] = <uint8_t> (n >> 16)
    m.data[3] = <uint8_t> (n >> 8)
    m.data[4] = <uint8_t> n
    return m


cdef void shared_hold(Shared *m) noexcept nogil:
    m.refs += 1


cdef void shared_drop(Shared *m) noexcept nogil:
    m.refs -= 1
    if m.refs == 0:
        free(m)


cdef class Calls:
    """The streams of a gateway, as their methods see them."""

    cdef bint alive(self, Call call) noexcept nogil:
        return False

    cdef int64_t room(self, Call call) noexcept nogil:
        return 0

    cdef kv_buf *begin_message(self, Call call) except NULL:
        raise NotImplementedError

    cdef int end_message(self, Call call) except -1:
        raise NotImplementedError

    cdef int undo_message(self, Call call) except -1:
        raise NotImplementedError

    cdef int send(self, Call call, Shared *m) except -1:
        raise NotImplementedError

    cdef int send_tail(self, Call call, const uint8_t *head, size_t n, Shared *tail) except -1:
        raise NotImplementedError

    cdef int begin_long(self, Call call, uint64_t n) except -1:
        raise NotImplementedError

    cdef int add_long(self, Call call, const uint8_t *p, size_t n) except -1:
        raise NotImplementedError

    cdef int finish(self, Call call, int grpc_status, const uint8_t *text, size_t n) except -1:
        raise NotImplementedError

    cdef bint flush(self) except? True:
        raise NotImplementedError


cdef class Methods:
    """What answers the calls of some methods."""

    cdef int on_open(self, Call call, int method) except -1:
        return 0

    cdef int on_message(self, Call call, int method, const uint8_t *p, size_t n) except -1:
        raise NotImplementedError

    cdef int on_half_close(self, Call call, int method) except -1:
        return 0

    cdef int on_gone(self, Call call, int method) except -1:
        return 0

    cdef int on_room(self, Call call, int method) except -1:
        return 0
