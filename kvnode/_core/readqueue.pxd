# distutils: language = c++
"""Reads of a gateway: their barrier, their answers. See readqueue.pyx."""

from libc.stdint cimport uint8_t
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf
from kvnode._core.etcdpb cimport RangeReq, RespHeader
from kvnode._core.longread cimport LongReads
from kvnode._core.ranges cimport RangeReader
from kvnode._core.sink cimport Ref, Sink, Sinks

cdef enum:
    READ_SERIALIZABLE = 1    # whatever this member has: no barrier
    READ_STREAM = 2          # a RangeStream

cdef struct ReadItem:
    Ref ref
    int flags
    size_t at
    size_t n

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
        LongReads longs
        RespHeader head

    # A checked Range request waits for its turn.
    cdef int add_read(self, const Ref *ref, int flags, const uint8_t *p, size_t n) except -1
    # what reads that are not answered hold
    cdef size_t bytes(self) noexcept nogil
    cdef int hold(self, ReadItem *item, const uint8_t *p) except -1
    cdef int serve(self, RangeReader reader, ReadSet *s) except -1
    cdef int serve_short(self, RangeReader reader, Sink sink, ReadItem *item, const RangeReq *req,
                         const uint8_t *p) except -1
