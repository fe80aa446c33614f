"""Where a request came from and its answer goes. Table of contents of sink.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf

cdef enum:
    SINKS_MAX = 8

# One request, by value: a late answer finds its sink, and the sink finds out that the client went.
cdef struct Ref:
    uint32_t sink          # number among the gateway's Sinks
    uint32_t conn          # the rest is the sink's own
    uint32_t generation
    uint32_t id
    uint32_t size          # bytes that it holds of what is bounded


cdef class Sink:
    cdef uint32_t number
    # it calls by itself when there is room again: nobody has to ask every millisecond
    cdef bint wakes
    # long answers: their size first (begin_long), then pieces as room allows. Without it they are
    # gathered and answered whole
    cdef bint pieces

    # whether anybody still waits for the answer
    cdef bint alive(self, const Ref *ref) noexcept nogil
    # the client has not taken enough of its answers for more reads
    cdef bint full(self, const Ref *ref) noexcept nogil
    # a read is put aside because its client is full; False: this client was known to be
    cdef bint mark_held(self, const Ref *ref) noexcept nogil
    cdef void unmark_held(self, const Ref *ref) noexcept nogil
    # long reads under way of the client: +1, -1
    cdef void count_long(self, const Ref *ref, int change) noexcept nogil
    # the answer; exactly once for each request, unless it is dropped with its client
    cdef int answer(self, const Ref *ref, int code, int state, const uint8_t *p,
                    size_t n) except -1
    # the same in place: the body is appended to the buffer (after what is there), then
    # close_answer. A code other than 0: what was appended is cut off
    cdef kv_buf *open_answer(self, const Ref *ref) except NULL
    cdef int close_answer(self, const Ref *ref, int code) except -1
    # drops what open_answer began: the answer comes later
    cdef int undo_answer(self, const Ref *ref) except -1
    # only where `pieces`: bytes that the client takes now; a message of n bytes, its pieces, and
    # the end of the answer, which with a code other than 0 may cut the message short
    cdef int64_t room(self, const Ref *ref) noexcept nogil
    cdef int begin_long(self, const Ref *ref, uint64_t n) except -1
    cdef int add_long(self, const Ref *ref, const uint8_t *p, size_t n) except -1
    cdef int end_long(self, const Ref *ref, int code) except -1
    # the answer would be n bytes, more than a message can have
    cdef int refuse_size(self, const Ref *ref, uint64_t n, uint64_t most) except -1
    # Sends what has gathered; True while something is left that must be tried again soon.
    cdef bint flush(self) except? True


cdef class Sinks:
    cdef PyObject *table[SINKS_MAX]
    cdef uint32_t count
    cdef list kept

    cdef inline Sink of(self, const Ref *ref):
        return <Sink> self.table[ref.sink]


# Python's own requests: their answers are collected for take_answers.
cdef class OwnSink(Sink):
    cdef kv_buf body
    cdef list answers
