# distutils: language = c++
"""gRPC over HTTP/2: the gateway's Calls. See h2.pyx."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf
from kvnode._core.nghttp2 cimport (
    nghttp2_data_provider, nghttp2_frame, nghttp2_option, nghttp2_session,
    nghttp2_session_callbacks,
)
from kvnode._core.pycalls cimport PyStreams
from kvnode._core.streams cimport Stream

cdef enum:
    PATH_KEEP_BYTES = 64

cdef struct Conn:
    uint32_t number
    bint used
    bint dirty                 # in the list of those that may have something to write
    bint paused                # its transport takes nothing now
    bint stopped               # its transport was told not to read
    bint calmed                # too much of something: it ends once its GOAWAY is written
    bint goaway                # the last GOAWAY was submitted
    nghttp2_session *session
    void *owner                # the Http2
    void *transport            # both held
    void *write
    Stream *first              # its streams
    Stream *head               # whose headers are coming
    uint32_t streams
    int64_t out_bytes
    int64_t in_bytes
    uint64_t read_us           # when something came
    uint64_t ping_us           # when this side asked whether the client is there; 0: not waiting
    uint64_t pinged_us         # the client's last ping
    uint64_t close_us          # when its transport is closed; 0: never
    bint starved               # a stream had little room for what others have
    uint64_t turn              # the flush in which it wrote WRITE_BYTES
    int strikes
    bint strikes_reset
    int64_t resets             # what is left of its resets
    uint64_t resets_us
    uint32_t nuisance          # frames without a use since the last message
    int32_t route              # of its last path
    size_t path_n
    uint8_t path[PATH_KEEP_BYTES]


cdef class Http2(PyStreams):
    cdef vector[Conn *] conns
    cdef vector[uint32_t] free_conns
    cdef vector[uint32_t] dirty
    cdef nghttp2_session_callbacks *callbacks
    cdef nghttp2_option *option
    cdef nghttp2_data_provider provider
    cdef kv_buf scratch
    cdef readonly bytearray buffer
    cdef uint32_t max_streams
    cdef size_t header_bytes_max
    cdef uint64_t ping_min_us
    cdef uint64_t ping_interval_us
    cdef uint64_t ping_timeout_us
    cdef readonly uint32_t connections
    cdef readonly uint64_t goaways             # connections ended for what their client did
    cdef readonly uint64_t written_bytes
    cdef readonly uint64_t read_bytes
    cdef readonly bint draining
    cdef bint holding
    cdef readonly bint reading                 # input is being taken: on_read or on_work follows
    cdef public object on_read                 # instead of on_work, at the end of what was read
    cdef bint asked
    cdef uint64_t swept_us
    cdef uint64_t turns
    cdef object error

    cpdef bint flush(self) except? True
    cdef void mark(self, Conn *c) noexcept
    cdef int submit(self, Stream *s) except -1
    cdef int write_conn(self, Conn *c) except -1
    cdef int take_input(self, Conn *c, const uint8_t *p, size_t n) except -1
    cdef void calm(self, Conn *c, uint32_t code, bytes text) noexcept
    cdef int end_conn(self, Conn *c) except -1
    cdef int on_path(self, Conn *c, Stream *s, const uint8_t *p, size_t n) except -1
    cdef int on_header(self, Conn *c, Stream *s, const uint8_t *name, size_t n,
                       const uint8_t *value, size_t m) except -1
    cdef int on_head(self, Conn *c, Stream *s, bint last) except -1
    cdef int on_frame(self, Conn *c, const nghttp2_frame *frame) except -1
    cdef void on_ping(self, Conn *c) noexcept
    cdef void on_reset(self, Conn *c) noexcept
    cdef int refuse_head(self, Stream *s, int http_status, int status, bytes text) except -1
    cdef void feed_conn(self, Conn *c) noexcept
    cdef void leave(self, Conn *c, Stream *s) noexcept
    cdef void say_goodbye(self, Conn *c) noexcept
    cdef void last_goaway(self, Conn *c) noexcept
    cdef int note(self, Stream *s, bytes form, const uint8_t *value, size_t m) except -1
    cdef void nuisance(self, Conn *c) noexcept
    cdef int sweep(self, uint64_t now) except -1


cdef class Connection:
    cdef Http2 http2
    cdef uint32_t number
    cdef bint open
