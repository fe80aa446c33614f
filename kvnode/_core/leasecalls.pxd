"""Keep-alives and questions about leases over gRPC streams. Table of contents of leasecalls.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf
from kvnode._core.calls cimport Call, Calls, Methods
from kvnode._core.etcdpb cimport RespHeader
from kvnode._core.ranges cimport RangeReader

# Who asked: a stream, or (local != 0) Python.
cdef struct Asker:
    Call call
    uint64_t id
    uint32_t local
    bint keys

# An open keep-alive stream: answers that are owed, and whether its client sends no more.
cdef struct Stream:
    uint32_t owed
    bint half_closed

cdef class Batch:
    cdef int kind
    cdef vector[Asker] askers
    cdef bytes payload
    cdef int64_t revision
    cdef bytes answer          # LEASE_TIMES_OK that waits for its index to be applied here
    cdef bint keys

cdef class LeaseCalls(Methods):
    cdef:
        Calls calls
        object wake
        bint awake
        vector[Asker] gathered[3]      # by method
        unordered_map[uint64_t, Stream] streams
        dict open                      # token -> Batch that consensus was asked
        dict locals                    # number -> done(code, body)
        list late
        uint64_t next_token
        uint32_t next_local
        uint64_t waiting               # askers gathered or open
        uint64_t most
        RespHeader head
        kv_buf scratch
        kv_buf list
        readonly uint64_t keep_alives  # that have come
    cdef int refuse(self, Asker *a, int code) except -1
    cdef int owe_less(self, const Asker *a) except -1
    cdef kv_buf *open_answer(self, const Asker *a) except NULL
    cdef int close_answer(self, const Asker *a, int method) except -1
    cdef int answer_kept(self, Batch batch, const uint8_t *p) except -1
    cdef int answer_times(self, Batch batch, RangeReader reader) except -1
    cdef int answer_ids(self, Batch batch, const uint8_t *p, size_t n) except -1
    cdef int put_keys(self, RangeReader reader, int64_t id, kv_buf *out) except -1
