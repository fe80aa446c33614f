# distutils: language = c++
"""Reads of a gateway's native listener: their barrier, their answers. See readqueue.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf
from kvnode._core.conns cimport Conn, Conns, Ref
from kvnode._core.etcdpb cimport RangeReq, RespHeader
from kvnode._core.ranges cimport RangeReader, RangeState

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


cdef class ReadQueue(Conns):
    cdef:
        ReadSet waiting
        ReadSet gathering
        ReadSet serial
        ReadSet held
        vector[uint32_t] holders
        vector[LongRead *] longs
        RespHeader head

    cdef int add_read(self, Ref *ref, bint serializable, const uint8_t *p, size_t n) except -1
    cdef int hold(self, ReadItem *item, const uint8_t *p) except -1
    cdef bint release_held(self) except? True
    cdef int serve(self, RangeReader reader, ReadSet *s) except -1
    cdef int begin_long(self, RangeReader reader, ReadItem *item, const uint8_t *p) except -1
    cdef bint step_one(self, RangeReader reader, LongRead *r) except? True
    cdef int end_long(self, LongRead *r, int code) except -1
    cdef void free_long(self, LongRead *r) noexcept nogil
