"""The Watch method's Methods. See watchcalls.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from kvnode._core.calls cimport Call, Calls, Methods
from kvnode._core.watchgroup cimport Stream
from kvnode._core.watchhub cimport WatchHub
from kvnode._core.watchpb cimport WatchReq


cdef class Watches(Methods):
    cdef readonly WatchHub hub
    cdef Calls calls
    cdef Stream **streams        # by number of the call
    cdef size_t streams_cap
    cdef Stream *ready           # streams with requests that a turn should look at
    cdef Stream *ready_last
    cdef list asking             # addresses of streams with an unanswered progress request
    cdef size_t inbox_max
    cdef Stream *find(self, Call call) noexcept nogil
    cdef void make_ready(self, Stream *s) noexcept nogil
    cdef void forget(self, Stream *s) noexcept
    cdef int end(self, Stream *s, int status, bytes text) except -1
    cdef int answer_asking(self) except -1
    cdef int take(self, Stream *s, int budget) except -1
    cdef int answer(self, Stream *s, WatchReq *q) except -1
    cdef int on_create(self, Stream *s, WatchReq *q) except -1
