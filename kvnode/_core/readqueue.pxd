# distutils: language = c++
"""Reads of a gateway: their barrier, their answers. See readqueue.pyx."""

from libc.stdint cimport uint8_t
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf
from kvnode._core.etcdpb cimport RangeReq, RespHeader
from kvnode._core.ranges cimport RangeReader, RangeState
from kvnode._core.sink cimport Ref, Sinks

cdef struct ReadItem:
    Ref ref
    bint serializable
    size_t at
    size_t n

# A Range that did not end within its first slice: it goes on, one slice a turn, each in a newer
# snapshot at the same revision.
cdef struct LongRead:
    Ref ref
    RangeReq req
    RangeState state
    kv_buf body            # what req's slices point into
    kv_buf out

cdef struct ReadSet:
    kv_buf bodies
    size_t n
    size_t cap
    ReadItem *items


cdef class ReadQueue:
    cdef:
        Sinks sinks
        ReadSet waiting
        ReadSet gathering
        ReadSet serial
        ReadSet held
        vector[Ref] holders    # one of each client whose reads are held
        vector[LongRead *] longs
        RespHeader head

    # A checked Range request waits for its turn.
    cdef int add_read(self, const Ref *ref, bint serializable, const uint8_t *p, size_t n) except -1
    # bytes of reads that are not answered
    cdef size_t bytes(self) noexcept nogil
    cdef int hold(self, ReadItem *item, const uint8_t *p) except -1
    cdef int serve(self, RangeReader reader, ReadSet *s) except -1
    cdef int begin_long(self, RangeReader reader, ReadItem *item, const uint8_t *p) except -1
    cdef bint step_one(self, RangeReader reader, LongRead *r) except? True
    cdef int end_long(self, LongRead *r, int code) except -1
    cdef int drop_long(self, LongRead *r) except -1
    cdef void free_long(self, LongRead *r) noexcept nogil
