# distutils: language = c++
"""Calls that Python answers or makes. See pycalls.pyx."""

from libc.stdint cimport uint8_t, uint32_t

from kvnode._core.buf cimport kv_buf
from kvnode._core.calls cimport Call, Methods
from kvnode._core.streams cimport Stream, Streams


cdef class PyMethods(Methods):
    cdef PyStreams streams
    cdef list handlers
    cdef dict calls

    cdef PyCall of(self, Call call)


cdef class PyCall:
    cdef PyStreams streams
    cdef Call call
    cdef bytes raw
    cdef dict pairs
    cdef readonly str path
    cdef readonly bint done
    cdef public object on_message
    cdef public object on_half_close
    cdef public object on_gone
    cdef public object on_room


cdef class LocalCall:
    cdef PyStreams streams
    cdef Call call
    cdef object on_message
    cdef object on_end
    cdef kv_buf got
    cdef size_t got_at
    cdef bint paused
    cdef bint draining
    cdef readonly bint done

    cdef int drain(self, Stream *s) except -1


cdef class PyStreams(Streams):
    cdef PyMethods python
    cdef dict local_calls

    cdef int put_pair(self, Stream *s, str name, value) except -1
    cdef int drain_local(self, Stream *s) except -1
    cdef void put_meta(self, Stream *s, const uint8_t *name, size_t n, const uint8_t *value,
                       size_t m) noexcept
    cdef int unknown(self, Stream *s, const uint8_t *path, size_t n) except -1
