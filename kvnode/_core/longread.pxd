# distutils: language = c++
"""Ranges that take more than one slice. See longread.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf
from kvnode._core.etcdpb cimport RangeReq, RespHeader
from kvnode._core.ranges cimport RangeMark, RangeReader, RangeState
from kvnode._core.sink cimport Ref, Sink, Sinks

cdef enum:
    SLICE_WORK = 10000           # units of 100 ns: a slice of a long read lasts about 1 ms
    SLICE_BYTES = 262144

    LONG_WHOLE = 0               # gathered, then answered
    LONG_PIECES = 1              # one message, sized first
    LONG_STREAM = 2              # RangeStream: messages, each sized first

    PART_SIZE = 0
    PART_SEND = 1

cdef struct LongRead:
    Ref ref
    int mode
    int part
    RangeReq req
    RangeState state
    RangeMark mark         # where the message under way begins
    RespHeader head
    kv_buf body            # what req's slices point into
    kv_buf out
    bint last              # the message under way ends the answer
    bint more              # known once the last message was sized
    int64_t count
    int64_t chunk          # keys of the message under way, at most
    uint64_t left          # bytes of it that are not sent
    uint64_t began_ns


cdef class LongReads:
    cdef:
        Sinks sinks
        vector[LongRead *] reads
        size_t turn
        int64_t stream_bytes
        uint64_t message_bytes_max

    cdef size_t sort_room(self) noexcept nogil
    # A Range that did not end within its first slice: its state moves here. `done` are the bytes
    # that it appended (header included), `phase` the one that it began with.
    cdef int take(self, const Ref *ref, const uint8_t *body, size_t body_n, RangeState *state,
                  int phase, const RespHeader *head, const uint8_t *done,
                  size_t done_n) except -1
    # A RangeStream, from its beginning.
    cdef int begin_stream(self, const Ref *ref, const uint8_t *body, size_t body_n,
                          const RespHeader *head, RangeReader reader) except -1

    cdef LongRead *new_read(self, const Ref *ref, const uint8_t *body, size_t n,
                            const RespHeader *head) except NULL
    cdef bint step_one(self, RangeReader reader, LongRead *r) except? True
    cdef bint step_whole(self, Sink sink, RangeReader reader, LongRead *r) except? True
    cdef int size_part(self, RangeReader reader, LongRead *r) noexcept nogil
    cdef bint begin_send(self, Sink sink, LongRead *r) except? True
    cdef int send_part(self, Sink sink, RangeReader reader, LongRead *r) except -100
    cdef void next_chunk(self, LongRead *r) noexcept nogil
    cdef int end(self, LongRead *r, int code) except -1
    cdef int drop(self, LongRead *r) except -1

cdef void long_free(LongRead *r) noexcept nogil
cdef int read_code(int rc) noexcept nogil
