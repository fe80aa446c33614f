"""What the code of a method and the HTTP/2 floor below it say to each other. See calls.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf

# One stream, by value. A number is used again by later streams, with another generation.
cdef struct Call:
    uint32_t number
    uint32_t generation

# One encoded message, its gRPC prefix included, that several streams send: written once, never
# changed, freed with its last holder.
cdef struct Shared:
    uint32_t refs
    uint32_t n             # bytes of data, the prefix of 5 included
    uint8_t data[1]

cdef Shared *shared_new(size_t n) noexcept nogil
cdef void shared_hold(Shared *m) noexcept nogil
cdef void shared_drop(Shared *m) noexcept nogil

cdef enum:
    PREFIX_BYTES = 5


# Downcalls: implemented by the HTTP/2 floor (h2.Http2), used by Methods. Each is harmless on a
# stream that is gone.
cdef class Calls:
    # whether the stream still takes messages
    cdef bint alive(self, Call call) noexcept nogil
    # bytes that it takes before it counts as full; <= 0: wait for on_room
    cdef int64_t room(self, Call call) noexcept nogil
    # a message of its own: append it to the buffer (after what is there), then end_message
    cdef kv_buf *begin_message(self, Call call) except NULL
    cdef int end_message(self, Call call) except -1
    # drops what begin_message opened
    cdef int undo_message(self, Call call) except -1
    # a message that others send too: holds it until it is sent
    cdef int send(self, Call call, Shared *m) except -1
    # a message of two parts: a head of its own (n bytes without a prefix, copied), then what others
    # send too: the bytes of tail behind its prefix. Holds tail until it is sent; tail's own prefix
    # is not sent
    cdef int send_tail(self, Call call, const uint8_t *head, size_t n, Shared *tail) except -1
    # a message of n bytes that come in pieces, as room allows; the pieces sum up to n
    cdef int begin_long(self, Call call, uint64_t n) except -1
    cdef int add_long(self, Call call, const uint8_t *p, size_t n) except -1
    # the trailers, after all that was sent; the stream takes nothing more. on_gone does not follow
    cdef int finish(self, Call call, int grpc_status, const uint8_t *text, size_t n) except -1
    # Writes out what has gathered. True while something is left that waits for the transport.
    cdef bint flush(self) except? True


# Upcalls: one object serves the methods that were routed to it, by their number.
cdef class Methods:
    # headers came; no message yet
    cdef int on_open(self, Call call, int method) except -1
    # a whole message, unpacked. For a method whose client sends one message it comes once, and the
    # client has half-closed by then
    cdef int on_message(self, Call call, int method, const uint8_t *p, size_t n) except -1
    # the client sends no more (only for methods whose client streams)
    cdef int on_half_close(self, Call call, int method) except -1
    # reset, deadline or connection lost: nothing is sent any more, forget the call
    cdef int on_gone(self, Call call, int method) except -1
    # room() was <= 0 and is no longer
    cdef int on_room(self, Call call, int method) except -1
