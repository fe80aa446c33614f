# distutils: language = c++
"""gRPC over HTTP/2: connections, their streams' headers, what is written when.

Role: the top floor of the gRPC front, over nghttp2. Sans-IO: bytes that came are handed in
(`received_buffer`), what is to be written is handed to the connection's transport in `flush`.
Callers: `procs/door` owns the sockets; the gateway's turn calls `flush`. One thread only.

A transport is any object with write(bytes), close(), pause_reading(), resume_reading().

Life of a call: nghttp2 gives its headers (`on_header`, `on_head`: grpc-go's checks, codes and
texts), its data (`feed`), its end (`half_close`). What its methods send gathers in the stream; it
is `touched`, and the next flush hands it to nghttp2 (`submit`), which asks for data as windows
allow (`read_data`) and is given it frame by frame (`send_data`).

Invariants:
  1. nghttp2 is never entered twice: upcalls come from it, so `flush` inside one does nothing, and
     `busy` says so. What they leave is written by the flush after.
  2. A flush writes at most about WRITE_BYTES of a connection, and nothing while its transport is
     paused: what a small stream waits behind is bounded by that, by the transport's limit, and by
     the kernel's (TCP_NOTSENT_LOWAT, set by the door).
  3. A connection has at most CONN_IN_BYTES of unfinished messages, and no new calls above
     CONN_OUT_BYTES of answers not taken. Above CONN_OUT_SOFT its streams have little room, above
     CONN_OUT_HARD none.
  4. A client that resets too often, pings too often or sends frames without a use gets GOAWAY with
     ENHANCE_YOUR_CALM; its transport is closed LINGER_US later, so that it reads why.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from kvnode._core.buf cimport (
    kv_buf_clear, kv_buf_free, kv_buf_grow, kv_buf_trim, kv_put_bytes,
)
from kvnode._core.nghttp2 cimport *
from kvnode._core.pycalls cimport PyStreams
from kvnode._core.streams cimport NO_ROUTE, Stream

cdef extern from *:
    """
    #include <nghttp2/nghttp2.h>
    extern "C" void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t)
      __attribute__((weak));
    /* Older ones have neither the function nor the limit. */
    static inline void kv_own_reset_limit(nghttp2_option *option) {
      if (nghttp2_option_set_stream_reset_rate_limit)
        nghttp2_option_set_stream_reset_rate_limit(option, (uint64_t)1 << 40, (uint64_t)1 << 40);
    }
    """
    void kv_own_reset_limit(nghttp2_option *option) noexcept

cdef enum:
    READ_BYTES = 262144
    WRITE_BYTES = 262144
    SCRATCH_KEEP = 1048576
    STREAM_WINDOW = 1048576
    CONN_WINDOW = 8388608
    STREAM_HIGH = 524288          # as streams.HIGH_BYTES
    STREAM_RESERVE = 32768        # as streams.RESERVE_BYTES
    OUT_BYTES_SOFT = 268435456    # as streams'
    OUT_BYTES_HARD = 536870912
    CONN_OUT_SOFT = 8388608
    CONN_OUT_HARD = 33554432      # no stream has room
    CONN_OUT_BYTES = 67108864
    CONN_IN_BYTES = 67108864
    STREAMS_MAX = 262144          # of all connections
    RESETS_BURST = 2000
    RESETS_PER_SECOND = 200
    NUISANCE_MAX = 10000
    STRIKES_MAX = 2
    LINGER_US = 1000000
    SWEEP_US = 500000
    IDLE_PING_US = 7200000000

    OK = 0
    CODE_INVALID_ARGUMENT_ = 3
    CODE_EXHAUSTED_ = 8
    CODE_UNIMPLEMENTED_ = 12
    CODE_INTERNAL_ = 13
    CODE_DEADLINE_ = 4

cdef uint8_t NO_COPY = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
cdef nghttp2_nv HEAD[2]            # of every answer with messages
cdef nghttp2_nv STATUS_OK[1]       # the trailers of most

cdef inline nghttp2_nv pair(const char *name, size_t n, const char *value, size_t m,
                            uint8_t flags) noexcept nogil:
    return nghttp2_nv(<uint8_t *> name, <uint8_t *> value, n, m, flags)

HEAD[0] = pair(b":status", 7, b"200", 3, NO_COPY)
HEAD[1] = pair(b"content-type", 12, b"application/grpc", 16, NO_COPY)
STATUS_OK[0] = pair(b"grpc-status", 11, b"0", 1, NO_COPY)

cdef const char **HTTP_TEXT = [b"200", b"400", b"405", b"415"]
cdef const char **CODE_TEXT = [
    b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b"10", b"11", b"12", b"13", b"14",
    b"15", b"16"]


# --- nghttp2's callbacks --------------------------------------------------------------------------


cdef int cb_begin_headers(nghttp2_session *session, const nghttp2_frame *frame,
                          void *user) noexcept:
    cdef Conn *c = <Conn *> user
    cdef Http2 self = <Http2> c.owner
    cdef Stream *s
    c.head = NULL
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    try:
        s = self.new_stream()
    except BaseException as error:
        self.error = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    s.id = frame.hd.stream_id
    s.owner = c.number
    s.next_of = c.first
    s.link_of = &c.first
    if s.next_of != NULL:
        s.next_of.link_of = &s.next_of
    c.first = s
    c.streams += 1
    c.head = s
    nghttp2_session_set_stream_user_data(session, s.id, s)
    return 0


cdef int cb_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                   size_t n, const uint8_t *value, size_t m, uint8_t flags, void *user) noexcept:
    cdef Conn *c = <Conn *> user
    cdef Http2 self = <Http2> c.owner
    if c.head == NULL or c.head.id != frame.hd.stream_id or c.head.reset:
        return 0
    try:
        return self.on_header(c, c.head, name, n, value, m)
    except BaseException as error:
        self.error = error
        return NGHTTP2_ERR_CALLBACK_FAILURE


cdef int cb_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept:
    cdef Conn *c = <Conn *> user
    cdef Http2 self = <Http2> c.owner
    try:
        return self.on_frame(c, frame)
    except BaseException as error:
        self.error = error
        return NGHTTP2_ERR_CALLBACK_FAILURE


cdef int cb_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *p,
                 size_t n, void *user) noexcept:
    cdef Conn *c = <Conn *> user
    cdef Http2 self = <Http2> c.owner
    cdef Stream *s = <Stream *> nghttp2_session_get_stream_user_data(session, stream_id)
    if s == NULL or s.finished or s.reset:
        return 0
    try:
        self.feed(s, p, n)
        if c.in_bytes > CONN_IN_BYTES:
            self.refuse(s, CODE_EXHAUSTED_, b"etcdserver: too many requests")
    except BaseException as error:
        self.error = error
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int cb_close(nghttp2_session *session, int32_t stream_id, uint32_t code, void *user) noexcept:
    cdef Conn *c = <Conn *> user
    cdef Http2 self = <Http2> c.owner
    cdef Stream *s = <Stream *> nghttp2_session_get_stream_user_data(session, stream_id)
    if s == NULL:
        return 0
    try:
        self.gone(s)
    except BaseException as error:
        self.error = error
    self.leave(c, s)
    return NGHTTP2_ERR_CALLBACK_FAILURE if self.error is not None else 0


cdef ssize_t read_data(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length,
                       uint32_t *flags, nghttp2_data_source *source, void *user) noexcept:
    """How many bytes the next DATA frame of a stream has; `send_data` copies them."""
    cdef Stream *s = <Stream *> nghttp2_session_get_stream_user_data(session, stream_id)
    cdef size_t n
    if s == NULL:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    n = min(length, s.queued)
    flags[0] = NGHTTP2_DATA_FLAG_NO_COPY
    if n == s.queued and s.finished:
        if s.broken:
            if n == 0:
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
            return n
        flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
        submit_trailers(session, s)
    elif n == 0:
        s.deferred = True
        return NGHTTP2_ERR_DEFERRED
    return n


cdef int send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head,
                   size_t length, nghttp2_data_source *source, void *user) noexcept:
    cdef Conn *c = <Conn *> user
    cdef Http2 self = <Http2> c.owner
    cdef Stream *s
    cdef uint8_t *d
    if self.scratch.n >= WRITE_BYTES:
        return NGHTTP2_ERR_WOULDBLOCK
    s = <Stream *> nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if s == NULL or s.queued < length:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    d = kv_buf_grow(&self.scratch, 9 + length)
    if d == NULL:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    memcpy(d, head, 9)
    self.take_out(s, d + 9, length)
    # A client may ping for each DATA frame: that is how grpc-go measures a connection.
    c.strikes_reset = True
    return 0


cdef int cb_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept:
    """An answer is over: a client that still sends is told to stop. Not before, because nghttp2
    sends no headers of a stream that is to be reset."""
    cdef Stream *s
    if frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        s = <Stream *> nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if s != NULL and not s.half_closed:
            nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s.id, NGHTTP2_NO_ERROR)
    return 0


cdef void submit_trailers(nghttp2_session *session, Stream *s) noexcept:
    cdef nghttp2_nv nv[2]
    if s.status == OK and s.text.n == 0:
        nghttp2_submit_trailer(session, s.id, STATUS_OK, 1)
    else:
        fill_status(nv, s)
        nghttp2_submit_trailer(session, s.id, nv, 2 if s.text.n else 1)


cdef void fill_status(nghttp2_nv *nv, Stream *s) noexcept:
    cdef int k = s.status if 0 <= s.status <= 16 else 2
    nv[0] = pair(b"grpc-status", 11, CODE_TEXT[k], 2 if k > 9 else 1, NO_COPY)
    nv[1] = pair(b"grpc-message", 12, <const char *> s.text.p, s.text.n,
                 NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_INDEX)


cdef int64_t timeout_of(const uint8_t *p, size_t n) noexcept nogil:
    """Microseconds of a grpc-timeout; -1: not one."""
    cdef uint64_t v = 0
    cdef size_t i
    if n < 2 or n > 9:
        return -1
    for i in range(n - 1):
        if p[i] < 0x30 or p[i] > 0x39:
            return -1
        v = v * 10 + p[i] - 0x30
    if p[n - 1] == 0x48:      # H
        return <int64_t> (v * 3600 * 1000000)
    if p[n - 1] == 0x4d:      # M
        return v * 60000000
    if p[n - 1] == 0x53:      # S
        return v * 1000000
    if p[n - 1] == 0x6d:      # m
        return v * 1000
    if p[n - 1] == 0x75:      # u
        return v
    if p[n - 1] == 0x6e:      # n
        return (v + 999) // 1000
    return -1


cdef bint is_base64(const uint8_t *p, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if not (0x41 <= p[i] <= 0x5a or 0x61 <= p[i] <= 0x7a or 0x30 <= p[i] <= 0x39
                or p[i] == 0x2b or p[i] == 0x2f or p[i] == 0x3d or p[i] == 0x2c):
            return False
    return True


cdef class Http2(PyStreams):
    """All HTTP/2 connections of a gateway. Times are microseconds."""

    def __cinit__(self, *, uint64_t max_streams=0xffffffff, size_t header_bytes_max=65536,
                  uint64_t ping_min_us=5000000, uint64_t ping_interval_us=7200000000,
                  uint64_t ping_timeout_us=20000000, **_):
        self.max_streams = <uint32_t> min(max_streams, 0xffffffff)
        self.header_bytes_max = header_bytes_max
        self.ping_min_us = ping_min_us
        self.ping_interval_us = ping_interval_us
        self.ping_timeout_us = ping_timeout_us
        self.buffer = bytearray(READ_BYTES)
        if nghttp2_session_callbacks_new(&self.callbacks) or nghttp2_option_new(&self.option):
            raise MemoryError
        nghttp2_session_callbacks_set_on_begin_headers_callback(self.callbacks, cb_begin_headers)
        nghttp2_session_callbacks_set_on_header_callback(self.callbacks, cb_header)
        nghttp2_session_callbacks_set_on_frame_recv_callback(self.callbacks, cb_frame)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(self.callbacks, cb_data)
        nghttp2_session_callbacks_set_on_stream_close_callback(self.callbacks, cb_close)
        nghttp2_session_callbacks_set_on_frame_send_callback(self.callbacks, cb_sent)
        nghttp2_session_callbacks_set_send_data_callback(self.callbacks, send_data)
        nghttp2_option_set_no_closed_streams(self.option, 1)
        # Its own bound (1,000, then 33 a second) would end clients that cancel often; see on_reset.
        kv_own_reset_limit(self.option)
        self.provider.source.ptr = NULL
        self.provider.read_callback = read_data

    def __dealloc__(self):
        cdef size_t i
        cdef Conn *c
        for i in range(self.conns.size()):
            c = self.conns[i]
            if c.session != NULL:
                nghttp2_session_del(c.session)
            if c.used:
                Py_DECREF(<object> c.transport)
                Py_DECREF(<object> c.write)
            free(c)
        nghttp2_session_callbacks_del(self.callbacks)
        nghttp2_option_del(self.option)
        kv_buf_free(&self.scratch)

    # --- connections ----------------------------------------------------------------------------

    def connection_made(self, transport) -> int:
        """A new connection, before its first byte; returns its number."""
        cdef Conn *c
        cdef nghttp2_settings_entry settings[4]
        cdef uint32_t number
        if self.free_conns.size():
            number = self.free_conns.back()
            self.free_conns.pop_back()
            c = self.conns[number]
            memset(c, 0, sizeof(Conn))
        else:
            c = <Conn *> calloc(1, sizeof(Conn))
            if c == NULL:
                raise MemoryError
            number = <uint32_t> self.conns.size()
            self.conns.push_back(c)
        c.number = number
        c.owner = <void *> self
        c.route = NO_ROUTE
        c.resets = RESETS_BURST
        c.read_us = c.resets_us = self.now()
        if nghttp2_session_server_new2(&c.session, self.callbacks, c, self.option):
            self.free_conns.push_back(number)
            raise MemoryError
        write = transport.write
        Py_INCREF(transport)
        Py_INCREF(write)
        c.transport = <void *> transport
        c.write = <void *> write
        c.used = True
        self.connections += 1
        settings[0] = nghttp2_settings_entry(NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW)
        settings[1] = nghttp2_settings_entry(NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE,
                                             <uint32_t> self.header_bytes_max)
        settings[2] = nghttp2_settings_entry(NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
                                             self.max_streams)
        nghttp2_submit_settings(c.session, NGHTTP2_FLAG_NONE, settings, 3)
        nghttp2_session_set_local_window_size(c.session, NGHTTP2_FLAG_NONE, 0, CONN_WINDOW)
        if self.holding:
            c.stopped = True
            transport.pause_reading()
        if self.draining:
            self.say_goodbye(c)
        self.mark(c)
        self.work()
        return number

    def received_buffer(self, uint32_t number, size_t n) -> None:
        """n bytes of connection `number` stand in `buffer`."""
        cdef Conn *c = self.conns[number]
        assert n <= READ_BYTES
        self.take_input(c, <const uint8_t *> <char *> self.buffer, n)

    def received(self, uint32_t number, const uint8_t[::1] data not None) -> None:
        """Bytes of connection `number`."""
        cdef Conn *c = self.conns[number]
        if data.shape[0]:
            self.take_input(c, &data[0], <size_t> data.shape[0])

    cdef int take_input(self, Conn *c, const uint8_t *p, size_t n) except -1:
        cdef ssize_t took
        assert not self.busy
        if not c.used or c.calmed:
            return 0
        c.read_us = self.now()
        c.ping_us = 0
        self.read_bytes += n
        self.busy = self.reading = True
        try:
            took = nghttp2_session_mem_recv(c.session, p, n)
        finally:
            self.busy = self.reading = False
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if took < 0 or <size_t> took != n:
            # Not HTTP/2 at all, or nghttp2 has no memory: nothing can be said.
            self.end_conn(c)
            return self.work()
        self.mark(c)
        if c.paused and c.out_bytes > CONN_OUT_BYTES and not c.stopped:
            c.stopped = True
            (<object> c.transport).pause_reading()
        if self.on_read is None or self.asked:
            return self.work()
        self.asked = True
        self.on_read()
        return 0

    def lost(self, uint32_t number) -> None:
        """The transport of connection `number` is closed: its number may be used again."""
        cdef Conn *c = self.conns[number]
        cdef Stream *s
        if not c.used:
            return
        assert not self.busy
        # What a call's end makes others send waits for the next flush.
        while c.first != NULL:
            s = c.first
            try:
                self.gone(s)
            finally:
                self.leave(c, s)
        nghttp2_session_del(c.session)
        c.session = NULL
        c.used = False
        Py_DECREF(<object> c.transport)
        Py_DECREF(<object> c.write)
        c.transport = c.write = NULL
        self.connections -= 1
        if not c.dirty:
            self.free_conns.push_back(number)
        self.work()

    cdef void leave(self, Conn *c, Stream *s) noexcept:
        """A stream is over for its connection."""
        if c.session != NULL:
            nghttp2_session_set_stream_user_data(c.session, s.id, NULL)
        if c.head == s:
            c.head = NULL
        s.link_of[0] = s.next_of
        if s.next_of != NULL:
            s.next_of.link_of = s.link_of
        c.streams -= 1
        self.release(s)

    cdef int end_conn(self, Conn *c) except -1:
        """Closes a connection's transport; `lost` follows from there."""
        c.calmed = True
        c.close_us = 0
        (<object> c.transport).close()
        return 0

    def pause_writing(self, uint32_t number) -> None:
        """The transport has enough for now."""
        self.conns[number].paused = True

    def resume_writing(self, uint32_t number) -> None:
        """The transport takes bytes again."""
        cdef Conn *c = self.conns[number]
        if not c.used:
            return
        c.paused = False
        if c.stopped and not self.holding:
            c.stopped = False
            (<object> c.transport).resume_reading()
        self.mark(c)
        self.work()

    def hold(self, bint on) -> None:
        """Reads nothing from any connection, or reads again: for a gateway that has too much."""
        cdef size_t i
        cdef Conn *c
        self.holding = on
        for i in range(self.conns.size()):
            c = self.conns[i]
            if not c.used or c.stopped == on:
                continue
            c.stopped = on
            if on:
                (<object> c.transport).pause_reading()
            else:
                (<object> c.transport).resume_reading()

    def drain(self) -> None:
        """GOAWAY on every connection: calls under way go on, no new ones are taken."""
        cdef size_t i
        self.draining = True
        for i in range(self.conns.size()):
            if self.conns[i].used:
                self.say_goodbye(self.conns[i])
        self.work()

    cdef void say_goodbye(self, Conn *c) noexcept:
        """The first of two GOAWAYs: what the client sent before it has read it is still served.
        The second goes when it has answered the ping behind it."""
        nghttp2_submit_shutdown_notice(c.session)
        nghttp2_submit_ping(c.session, NGHTTP2_FLAG_NONE, <const uint8_t *> b"goodbye!")
        c.close_us = self.now() + LINGER_US
        self.mark(c)

    cdef void last_goaway(self, Conn *c) noexcept:
        if not c.goaway:
            c.goaway = True
            nghttp2_submit_goaway(c.session, NGHTTP2_FLAG_NONE,
                                  nghttp2_session_get_last_proc_stream_id(c.session),
                                  NGHTTP2_NO_ERROR, NULL, 0)
            self.mark(c)

    @property
    def idle(self) -> bool:
        """Whether no call is under way and nothing waits to be written, in transports neither."""
        cdef size_t i
        cdef Conn *c
        if self.open_streams or self.dirty.size():
            return False
        for i in range(self.conns.size()):
            c = self.conns[i]
            if c.used and (c.paused or (<object> c.transport).get_write_buffer_size()):
                return False
        return True

    # --- what came ------------------------------------------------------------------------------

    cdef int on_path(self, Conn *c, Stream *s, const uint8_t *p, size_t n) except -1:
        if c.route != NO_ROUTE and n == c.path_n and memcmp(c.path, p, n) == 0:
            s.route = c.route
            return 0
        number = self.numbers.get(p[:n] if n else b"")
        if number is None:
            kv_put_bytes(&s.path, p, n)
            return 0
        s.route = number
        if n <= PATH_KEEP_BYTES:
            c.route = s.route
            c.path_n = n
            memcpy(c.path, p, n)
        return 0

    cdef int on_header(self, Conn *c, Stream *s, const uint8_t *name, size_t n,
                       const uint8_t *value, size_t m) except -1:
        cdef int64_t us
        s.head_bytes += n + m + 32
        if s.head_bytes > self.header_bytes_max:
            nghttp2_submit_rst_stream(c.session, NGHTTP2_FLAG_NONE, s.id, NGHTTP2_FRAME_SIZE_ERROR)
            s.reset = True
            return 0
        if name[0] == 0x3a:
            if n == 5 and memcmp(name, b":path", 5) == 0:
                return self.on_path(c, s, value, m)
            if n == 7 and memcmp(name, b":method", 7) == 0:
                s.is_post = m == 4 and memcmp(value, b"POST", 4) == 0
                if not s.is_post:
                    kv_buf_clear(&s.encoding)
                    self.note(s, b'Received a HEADERS frame with :method "%s" which should be POST',
                              value, m)
            return 0
        if n == 12 and memcmp(name, b"content-type", 12) == 0:
            s.is_grpc = m >= 16 and memcmp(value, b"application/grpc", 16) == 0 and (
                m == 16 or value[16] == 0x2b or value[16] == 0x3b)
            if not s.is_grpc:
                kv_buf_clear(&s.text)
                kv_put_bytes(&s.text, value, m)
            return 0
        if n == 12 and memcmp(name, b"grpc-timeout", 12) == 0:
            us = timeout_of(value, m)
            if us < 0:
                s.bad = True
                self.note(s, b"malformed grpc-timeout: transport: not a timeout: \"%s\"", value, m)
            else:
                s.timed = True
                s.timeout_us = <uint64_t> us
            return 0
        if n == 13 and memcmp(name, b"grpc-encoding", 13) == 0:
            s.gzip = m == 4 and memcmp(value, b"gzip", 4) == 0
            kv_buf_clear(&s.encoding)
            if not s.gzip and not (m == 8 and memcmp(value, b"identity", 8) == 0):
                kv_put_bytes(&s.encoding, value, m)
            return 0
        if n > 4 and memcmp(name + n - 4, b"-bin", 4) == 0 and not is_base64(value, m):
            s.bad = True
            self.note(s, b"malformed binary metadata \"%s\"", value, m)
            return 0
        if n > 5 and memcmp(name, b"grpc-", 5) == 0 or n == 2 and memcmp(name, b"te", 2) == 0:
            return 0
        self.put_meta(s, name, n, value, m)
        return 0

    cdef int note(self, Stream *s, bytes form, const uint8_t *value, size_t m) except -1:
        """What is wrong with its headers: the first thing."""
        cdef bytes text
        cdef const uint8_t *p
        if s.fault.n == 0:
            text = form % value[:min(m, 1024)]
            p = text
            kv_put_bytes(&s.fault, p, len(text))
        return 0

    cdef int refuse_head(self, Stream *s, int http_status, int status, bytes text) except -1:
        s.http_status = http_status
        return self.refuse(s, status, text)

    cdef int on_head(self, Conn *c, Stream *s, bint last) except -1:
        """The headers of a call are complete."""
        if s.reset:
            return 0
        s.half_closed = False
        if not s.is_grpc:
            text = b'invalid gRPC request content-type "%s"' % s.text.p[:s.text.n]
            self.refuse_head(s, 3, CODE_INVALID_ARGUMENT_, text)
        elif s.bad:
            self.refuse_head(s, 1, CODE_INTERNAL_, s.fault.p[:s.fault.n])
        elif not s.is_post:
            self.refuse_head(s, 2, CODE_INTERNAL_, s.fault.p[:s.fault.n] if s.fault.n else b"")
        elif s.timed and s.timeout_us == 0:
            self.refuse(s, CODE_DEADLINE_, b"context deadline exceeded")
        elif s.route == NO_ROUTE:
            self.unknown(s, s.path.p, s.path.n)
        elif s.encoding.n:
            self.refuse(s, CODE_UNIMPLEMENTED_, b'grpc: Decompressor is not installed for '
                        b'grpc-encoding "%s"' % s.encoding.p[:s.encoding.n])
        elif (c.out_bytes > CONN_OUT_BYTES or self.open_streams > STREAMS_MAX
              or self.crowded(OUT_BYTES_HARD)):
            self.refuse(s, CODE_EXHAUSTED_, b"etcdserver: too many requests")
        else:
            if s.timed:
                self.set_deadline(s, s.began_us + s.timeout_us)
            self.open_call(s)
        if last:
            self.half_close(s)
        return 0

    cdef int on_frame(self, Conn *c, const nghttp2_frame *frame) except -1:
        cdef Stream *s
        cdef int kind = frame.hd.type
        if kind == NGHTTP2_DATA:
            if not frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
                if frame.hd.length:
                    c.nuisance = 0
                else:
                    self.nuisance(c)
                return 0
            c.nuisance = 0
            s = <Stream *> nghttp2_session_get_stream_user_data(c.session, frame.hd.stream_id)
            if s != NULL:
                self.half_close(s)
        elif kind == NGHTTP2_HEADERS:
            if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
                if c.head != NULL and c.head.id == frame.hd.stream_id:
                    s = c.head
                    c.head = NULL
                    self.on_head(c, s, frame.hd.flags & NGHTTP2_FLAG_END_STREAM)
            elif frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
                s = <Stream *> nghttp2_session_get_stream_user_data(c.session, frame.hd.stream_id)
                if s != NULL:
                    self.half_close(s)
        elif kind == NGHTTP2_PING:
            if not frame.hd.flags & NGHTTP2_FLAG_ACK:
                self.on_ping(c)
            elif self.draining:
                self.last_goaway(c)
        elif kind == NGHTTP2_RST_STREAM:
            self.on_reset(c)
        elif kind == NGHTTP2_SETTINGS or kind == NGHTTP2_PRIORITY:
            self.nuisance(c)
        return 0

    cdef void nuisance(self, Conn *c) noexcept:
        c.nuisance += 1
        if c.nuisance > NUISANCE_MAX:
            self.calm(c, NGHTTP2_ENHANCE_YOUR_CALM, b"too many frames without a use")

    cdef void on_ping(self, Conn *c) noexcept:
        """grpc-go's rule: strikes for pings that come too often, forgiven when something was
        sent since."""
        cdef uint64_t now = self.now()
        cdef uint64_t least = self.ping_min_us
        if least and c.streams == 0:
            # Nothing to keep alive: grpc-go's two hours.
            least = IDLE_PING_US
        if c.strikes_reset:
            c.strikes_reset = False
            c.strikes = 0
        elif c.pinged_us and c.pinged_us + least > now:
            c.strikes += 1
        c.pinged_us = now
        if c.strikes > STRIKES_MAX:
            self.calm(c, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_pings")

    cdef void on_reset(self, Conn *c) noexcept:
        """A client reset a call: a bucket of RESETS_BURST, filled by RESETS_PER_SECOND."""
        cdef uint64_t now = self.now()
        cdef int64_t more = <int64_t> ((now - c.resets_us) * RESETS_PER_SECOND // 1000000)
        if more > 0:
            c.resets = min(<int64_t> RESETS_BURST, c.resets + more)
            c.resets_us = now
        c.resets -= 1
        if c.resets < 0:
            self.calm(c, NGHTTP2_ENHANCE_YOUR_CALM, b"too many resets")

    cdef void calm(self, Conn *c, uint32_t code, bytes text) noexcept:
        """The last word to a client; nothing of what it sends is looked at any more."""
        cdef const uint8_t *p = text
        if c.calmed:
            return
        c.calmed = True
        self.goaways += 1
        c.close_us = self.now() + LINGER_US
        nghttp2_submit_goaway(c.session, NGHTTP2_FLAG_NONE,
                              nghttp2_session_get_last_proc_stream_id(c.session), code, p,
                              len(text))

    # --- what goes ------------------------------------------------------------------------------

    cdef int64_t owner_room(self, Stream *s) noexcept nogil:
        cdef Conn *c
        if s.local:
            return STREAM_HIGH
        c = self.conns[s.owner]
        if c.out_bytes <= CONN_OUT_SOFT:
            return STREAM_HIGH
        c.starved = True
        return STREAM_RESERVE if c.out_bytes <= CONN_OUT_HARD else 0

    cdef void owner_count(self, Stream *s, int64_t n) noexcept nogil:
        if not s.local:
            self.conns[s.owner].out_bytes += n

    cdef void count_in(self, Stream *s, int64_t n) noexcept nogil:
        self.in_bytes += n
        if not s.local:
            self.conns[s.owner].in_bytes += n

    cdef int work(self) except -1:
        if not self.busy and not self.asked and self.on_work is not None:
            self.asked = True
            self.on_work()
        return 0

    cdef void mark(self, Conn *c) noexcept:
        if not c.dirty:
            c.dirty = True
            self.dirty.push_back(c.number)

    cdef int submit(self, Stream *s) except -1:
        """Hands nghttp2 what is new of a stream."""
        cdef Conn *c = self.conns[s.owner]
        cdef nghttp2_nv nv[4]
        if not s.submitted:
            if s.queued == 0 and not s.messages:
                if not s.finished:
                    return 0
                nv[0] = pair(b":status", 7, HTTP_TEXT[s.http_status], 3, NO_COPY)
                nv[1] = HEAD[1]
                fill_status(&nv[2], s)
                nghttp2_submit_response(c.session, s.id, nv, 4 if s.text.n else 3, NULL)
            else:
                nghttp2_submit_response(c.session, s.id, HEAD, 2, &self.provider)
            s.submitted = True
        elif s.deferred:
            s.deferred = False
            nghttp2_session_resume_data(c.session, s.id)
        c.strikes_reset = True
        self.mark(c)
        return 0

    cdef int write_conn(self, Conn *c) except -1:
        """Writes what a connection has, up to a bound. Leaves it marked when there is more."""
        cdef const uint8_t *p
        cdef ssize_t n = 0
        kv_buf_clear(&self.scratch)
        while self.scratch.n < WRITE_BYTES:
            n = nghttp2_session_mem_send(c.session, &p)
            if n <= 0:
                break
            kv_put_bytes(&self.scratch, p, <size_t> n)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.scratch.n:
            self.written_bytes += self.scratch.n
            (<object> c.write)(PyBytes_FromStringAndSize(<char *> self.scratch.p,
                                                         <ssize_t> self.scratch.n))
        if n < 0 or self.scratch.err:
            return self.end_conn(c)
        if c.starved and c.out_bytes <= CONN_OUT_SOFT:
            self.feed_conn(c)
        if self.scratch.n >= WRITE_BYTES:
            # Others first, and what its transport does not take yet.
            c.turn = self.turns
            self.mark(c)
        elif not c.calmed and not nghttp2_session_want_read(c.session) and (
                not nghttp2_session_want_write(c.session)):
            # Its last GOAWAY is written and its calls are over.
            self.end_conn(c)
        return 0

    cdef void feed_conn(self, Conn *c) noexcept:
        """Its streams have room again that waited for others' answers."""
        cdef Stream *s = c.first
        c.starved = False
        while s != NULL:
            if s.full and not s.roomy and s.queued <= STREAM_RESERVE // 2:
                s.roomy = True
                self.roomy.push_back(s.number)
            s = s.next_of

    cpdef bint flush(self) except? True:
        """Writes out what has gathered, gives local calls theirs, says where there is room again.
        True while something is left: `on_work` was called for it, or its transport is paused."""
        cdef vector[uint32_t] todo
        cdef size_t i
        cdef Stream *s
        cdef Conn *c
        cdef int _turn
        cdef bint gave = False
        if self.busy:
            return True
        self.busy = True
        self.asked = False
        self.turns += 1
        try:
            for _turn in range(4):
                todo.clear()
                todo.swap(self.touched)
                for i in range(todo.size()):
                    s = self.streams[todo[i]]
                    s.touched = False
                    if not s.used:
                        continue
                    if s.local:
                        self.drain_local(s)
                    elif not s.reset:
                        self.submit(s)
                todo.clear()
                todo.swap(self.dirty)
                for i in range(todo.size()):
                    c = self.conns[todo[i]]
                    c.dirty = False
                    if not c.used:
                        self.free_conns.push_back(c.number)
                    elif c.turn == self.turns:
                        self.mark(c)
                    elif not c.paused:
                        self.write_conn(c)
                if self.starved and not self.crowded(OUT_BYTES_SOFT):
                    self.feed_starved()
                if self.roomy.size():
                    self.give_room()
                    gave = True
                if self.touched.size() == 0:
                    break
        finally:
            self.busy = False
            if self.scratch.cap > SCRATCH_KEEP:
                kv_buf_trim(&self.scratch, SCRATCH_KEEP)
        if self.touched.size() or self.dirty.size():
            self.work()
            return True
        if gave:
            # Whoever got room may have more to say in a turn of its own.
            self.work()
        return False

    # --- time -----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Deadlines, keep-alive, connections that are to be closed. Call it every 10 to 100 ms."""
        cdef uint64_t now = self.now()
        self.expire(now)
        if now - self.swept_us >= SWEEP_US:
            self.swept_us = now
            self.sweep(now)

    cdef int sweep(self, uint64_t now) except -1:
        cdef size_t i
        cdef Conn *c
        for i in range(self.conns.size()):
            c = self.conns[i]
            if not c.used:
                continue
            if c.close_us and now >= c.close_us:
                if c.calmed:
                    self.end_conn(c)
                else:
                    # It never answered the ping behind its first GOAWAY.
                    c.close_us = 0
                    self.last_goaway(c)
            elif c.ping_us:
                if self.ping_timeout_us and now - c.ping_us >= self.ping_timeout_us:
                    self.end_conn(c)
            elif self.ping_interval_us and now - c.read_us >= self.ping_interval_us:
                c.ping_us = now
                nghttp2_submit_ping(c.session, NGHTTP2_FLAG_NONE, NULL)
                self.mark(c)
        if self.dirty.size():
            self.work()
        return 0


cdef class Connection:
    """A connection as asyncio's BufferedProtocol, from its first bytes on: a read costs no Python
    frame. All read into the Http2's one buffer."""

    def __init__(self, Http2 http2 not None, transport):
        self.http2 = http2
        self.number = http2.connection_made(transport)
        self.open = True

    def connection_made(self, transport) -> None:
        """It is made already."""

    def get_buffer(self, size_hint):
        return self.http2.buffer

    def buffer_updated(self, Py_ssize_t n):
        if self.open:
            self.http2.take_input(self.http2.conns[self.number],
                                  <const uint8_t *> <char *> self.http2.buffer, <size_t> n)

    def received(self, bytes data not None):
        """What was read before it was known for HTTP/2."""
        cdef const uint8_t *p = data
        self.http2.take_input(self.http2.conns[self.number], p, len(data))

    def eof_received(self):
        return False

    def pause_writing(self):
        if self.open:
            self.http2.pause_writing(self.number)

    def resume_writing(self):
        if self.open:
            self.http2.resume_writing(self.number)

    def connection_lost(self, error):
        if self.open:
            self.open = False
            self.http2.lost(self.number)
