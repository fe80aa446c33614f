# distutils: language = c++
"""The table of streams below the calls. See streams.pyx."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf
from kvnode._core.calls cimport Call, Calls, Shared

cdef enum:
    CODES = 17
    BUCKETS = 11
    WHEEL_SLOTS = 4096
    WHEEL_US = 10000
    NO_ROUTE = -1
    SLOW_MAX = 64

# A part of what a stream has to send.
cdef struct Item:
    Shared *m          # NULL: the next n bytes of the stream's own buffer
    size_t at          # offset in m.data
    size_t n

# What is counted of a method.
cdef struct Counts:
    uint64_t started
    uint64_t received
    uint64_t received_bytes
    uint64_t sent
    uint64_t sent_bytes
    uint64_t handled[CODES]
    uint64_t seconds[BUCKETS + 1]
    uint64_t handling_us

# A unary call that took longer than it should.
cdef struct Slow:
    int32_t route
    int status
    uint64_t us

cdef struct Stream:
    uint32_t number
    uint32_t generation
    int32_t route              # index of its method; NO_ROUTE: it was refused at its headers
    int32_t id                 # of its HTTP/2 connection
    uint32_t owner             # connection, or local call
    bint used
    bint local
    bint opened                # on_open was called
    bint touched               # in the list of those with something new to send
    bint submitted             # its response headers were handed to nghttp2
    bint deferred              # nghttp2 waits for more
    bint full                  # somebody asked for room and there was none
    bint roomy                 # in the list of those that have room again
    bint half_closed           # the client sends no more
    bint finished              # trailers were given; no upcall names it any more
    bint reset                 # closed by its client or lost
    bint has_leader            # the call wants a member that has a leader
    bint messages              # headers and messages were sent: no trailers-only answer
    bint gzip
    bint delivering            # an upcall reads inb
    bint broken                # it ended within a long message: it is reset, without trailers
    int http_status
    int status
    kv_buf text                # of the trailers, percent-encoded
    kv_buf inb                 # what came of messages
    kv_buf meta                # metadata: u32 n, u32 m, name, value
    size_t head_bytes          # sum of the header list
    # of its headers, until they are complete
    bint is_post, is_grpc, timed, bad
    kv_buf path                # the path, if it has no route
    kv_buf fault               # what is wrong with its headers; or its method or content type
    kv_buf encoding            # grpc-encoding, if it is unknown
    uint64_t timeout_us
    # outgoing
    kv_buf out
    size_t out_at
    Item *items
    size_t items_n, items_at, items_cap
    size_t tail                # own bytes behind the last item
    size_t queued              # all bytes to send
    size_t open_at             # where begin_message began
    bint open_message
    uint64_t long_left
    # time
    uint64_t began_us
    uint64_t deadline_us       # 0: none
    Stream *later
    Stream **before
    # its connection's list
    Stream *next_of
    Stream **link_of

cdef struct Route:
    void *methods              # a Methods, held by Streams.held
    int method
    bint client_streams
    bint server_streams
    bint wants_meta

cdef uint64_t clock_us() noexcept nogil


cdef class Streams(Calls):
    cdef vector[Stream *] streams
    cdef vector[uint32_t] free_streams
    cdef vector[uint32_t] touched
    cdef vector[uint32_t] roomy
    cdef vector[Route] routes
    cdef vector[Counts] counts
    cdef Stream *wheel[WHEEL_SLOTS]
    cdef uint64_t wheel_at
    cdef readonly uint32_t open_streams
    cdef readonly int64_t out_bytes          # queued in all streams, of their own
    cdef readonly int64_t shared_bytes        # shared ones, by each of their streams
    cdef bint starved                         # a stream had little room for what all have
    cdef readonly int64_t in_bytes           # of messages that are not complete
    cdef readonly uint64_t max_message_bytes
    cdef readonly bint leader
    cdef dict numbers                         # path -> index of its method
    cdef list paths
    cdef list held
    cdef set services
    cdef bint busy
    cdef public object on_work
    cdef uint64_t fixed_us
    cdef kv_buf nowhere
    cdef uint64_t slow_us                     # a unary call above it is noted; 0: none is
    cdef Slow slow[SLOW_MAX]
    cdef uint64_t slow_n                      # noted or not for want of room, since take_slow

    cdef uint64_t now(self) noexcept nogil
    cdef inline Stream *find(self, Call call) noexcept nogil:
        cdef Stream *s
        if call.number >= self.streams.size():
            return NULL
        s = self.streams[call.number]
        if not s.used or s.generation != call.generation or s.finished or s.reset:
            return NULL
        return s

    cdef Stream *new_stream(self) except NULL
    cdef void release(self, Stream *s) noexcept
    cdef void touch(self, Stream *s) noexcept
    cdef int work(self) except -1
    cdef int64_t owner_room(self, Stream *s) noexcept nogil
    cdef void owner_count(self, Stream *s, int64_t n) noexcept nogil
    # incoming
    cdef int end_some(self, bint asked_leader, int status, bytes text) except -1
    cdef int open_call(self, Stream *s) except -1
    cdef int feed(self, Stream *s, const uint8_t *p, size_t n) except -1
    cdef int half_close(self, Stream *s) except -1
    cdef int gone(self, Stream *s) except -1
    cdef int deliver_inb(self, Stream *s) except -1
    cdef void count_in(self, Stream *s, int64_t n) noexcept nogil
    cdef void drop_in(self, Stream *s) noexcept nogil
    cdef int deliver(self, Stream *s, const uint8_t *p, size_t n) except -1
    cdef int give(self, Stream *s, int flag, const uint8_t *p, size_t n) except -1
    cdef int too_large(self, Stream *s, uint64_t n) except -1
    cdef int refuse(self, Stream *s, int status, bytes text) except -1
    # outgoing
    cdef int own_bytes(self, Stream *s, size_t n) except -1
    cdef void count_sent(self, Stream *s, uint64_t n) noexcept nogil
    cdef void count_end(self, Stream *s, int status) noexcept nogil
    cdef int add_item(self, Stream *s, Shared *m, size_t at) except -1
    cdef void take_out(self, Stream *s, uint8_t *to, size_t n) noexcept
    cdef void drop_out(self, Stream *s) noexcept
    cdef int end_call(self, Stream *s, int status, const uint8_t *text, size_t n) except -1
    cdef bint crowded(self, int64_t bytes_max) noexcept nogil
    cdef void feed_starved(self) noexcept
    cdef int give_room(self) except -1
    # time
    cdef void set_deadline(self, Stream *s, uint64_t at_us) noexcept nogil
    cdef void unset_deadline(self, Stream *s) noexcept nogil
    cdef int expire(self, uint64_t now_us) except -1
