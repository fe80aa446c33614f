# distutils: language = c++
"""Answers that wait until what they made invisible is freed. See freed.pyx."""

from libc.stdint cimport int64_t, uint32_t
from libcpp.unordered_map cimport unordered_map

from kvnode._core.buf cimport kv_buf
from kvnode._core.sink cimport Ref, Sink, Sinks

cdef struct Waiting:
    Ref ref
    int64_t revision
    bint done              # executed: only the freeing is missing
    kv_buf body


cdef class FreedSink(Sink):
    cdef:
        Sinks sinks
        unordered_map[uint32_t, Waiting] waiting
        uint32_t next_id
        size_t done

    # A Ref whose answer reaches `ref` once everything below `revision` is freed.
    cdef Ref wrap(self, const Ref *ref, int64_t revision)
