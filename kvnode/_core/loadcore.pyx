"""Load on 2382 from one thread, cheap enough not to be what is measured.

Role: the request loop of the load generator. It speaks ZMTP 3 frames and kvnode's native messages
over TCP sockets that loadgen/zmtp.py has connected and greeted; no libzmq, no Python per request.
Caller: loadgen/native.py. What h2load is to etcd's port, this is to ours.

Requests are puts or single-key reads of keys drawn uniformly from a key space (see `key_text`).
Three ways to send:
  packed    each connection keeps `in_flight` requests open; what one turn has freed leaves as one
            message with as many requests (or several messages of at most `pack_max`)
  unpacked  the same, one request a message
  paced     `rate` requests a second in all, one a message, over the connections in turn; latencies
            count from the moment a request was due, so a stall shows in all that it delayed

Invariants:
  1. A request's id is its slot number; a slot has at most one open request. An answer to a slot
     that has none is a protocol error and ends the run.
  2. Every request sent is answered before `run` returns, or `run` raises.

Latency buckets, in microseconds: below 128 one bucket each; above, 64 buckets a power of two
(`bucket_of`), so a value is known to 1.6 %.

Keys: 32 hexadecimal digits of splitmix64 at 2*i and 2*i + 1 from the seed. seed 1, i 0:
    "910a2dec89025cc1beeb8da1658eec67"
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

from cpython.bytes cimport PyBytes_FromStringAndSize

from kvnode._core.buf cimport (
    kv_buf, kv_buf_clear, kv_buf_free, kv_buf_grow, kv_buf_init, kv_buf_need, kv_load_be64,
    kv_load_u32, kv_put_bytes, kv_store_be64, kv_store_u32, kv_varint_size,
    kv_varint_write,
)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *out)
    enum: CLOCK_MONOTONIC

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *data, size_t size)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout)
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD

cdef extern from "<sys/timerfd.h>" nogil:
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)
    enum: TFD_TIMER_ABSTIME
    enum: TFD_NONBLOCK

cdef enum:
    HEADER = 32
    ITEM = 24
    ANSWER = 16
    KEY = 32
    OP_REQUESTS = 3
    OP_ANSWERS = 4
    OP_ERROR = 8
    KIND_PUT_ = 1
    KIND_RANGE_ = 2
    BUCKETS = 4096
    READ_BYTES = 262144
    POOL_BYTES = 65536
    TIMER = 0xFFFFFFFF
    STALL_MS_MAX = 30000

    FAIL_NONE = 0
    FAIL_CLOSED = 1
    FAIL_PROTOCOL = 2
    FAIL_REFUSED = 3
    FAIL_STALLED = 4
    FAIL_MEMORY = 5

_FAILURES = {
    FAIL_CLOSED: "the node closed the connection",
    FAIL_PROTOCOL: "the node sent something that is not an answer to an open request",
    FAIL_REFUSED: "the node ended the connection: ",
    FAIL_STALLED: "no answer for 30 s",
    FAIL_MEMORY: "out of memory",
}

cdef struct Conn:
    int fd
    bint blocked          # waits for EPOLLOUT
    kv_buf out
    size_t sent           # bytes of `out` that are gone
    kv_buf inp
    uint32_t *idle        # stack of slots without a request
    uint32_t idle_count


class LoadError(Exception):
    """The node answered wrongly or not at all."""


cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline uint64_t mix(uint64_t seed, uint64_t n) noexcept nogil:
    """The n-th number of splitmix64 started at `seed`."""
    cdef uint64_t z = seed + (n + 1) * <uint64_t>0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline void hex16(uint8_t *out, uint64_t v) noexcept nogil:
    cdef int i
    cdef uint8_t d
    for i in range(16):
        d = (v >> (60 - 4 * i)) & 15
        out[i] = d + (48 if d < 10 else 87)


cdef inline void write_key(uint8_t *out, uint64_t seed, uint64_t i) noexcept nogil:
    hex16(out, mix(seed, 2 * i))
    hex16(out + 16, mix(seed, 2 * i + 1))


cdef inline uint32_t bucket_of(uint64_t us) noexcept nogil:
    cdef uint32_t top = 6
    if us < 128:
        return <uint32_t>us
    while us >> (top + 1):
        top += 1
    return (top - 5) * 64 + <uint32_t>(us >> (top - 6)) - 64


def bucket(uint64_t us):
    """Number of the bucket that counts `us` microseconds."""
    return bucket_of(us)


def key_text(uint64_t seed, uint64_t i):
    """Key number i of the space that `seed` names."""
    cdef uint8_t out[KEY]
    write_key(out, seed, i)
    return PyBytes_FromStringAndSize(<char *>out, KEY)


def encode_put_batches(const uint8_t[::1] records, size_t puts_per_batch):
    """kvnodepb.PutBatch bodies of records { u32 key length, u32 value length, key, value }.

    Each holds `puts_per_batch` puts, the last one what is left. ValueError if a record is cut.
    """
    cdef size_t at = 0, end = records.shape[0], k, v, inner, n
    cdef kv_buf b
    cdef uint8_t *d
    bodies = []
    assert puts_per_batch > 0
    kv_buf_init(&b)
    try:
        while at < end:
            kv_buf_clear(&b)
            n = 0
            while n < puts_per_batch and at < end:
                if end - at < 8:
                    raise ValueError("the file ends inside a record")
                k = kv_load_u32(&records[at])
                v = kv_load_u32(&records[at + 4])
                at += 8
                if end - at < k + v:
                    raise ValueError("the file ends inside a record")
                inner = 2 + kv_varint_size(k) + kv_varint_size(v) + k + v
                d = kv_buf_grow(&b, 1 + kv_varint_size(inner) + inner)
                if d == NULL:
                    raise MemoryError
                d[0] = 0x0A
                d = kv_varint_write(d + 1, inner)
                d[0] = 0x0A
                d = kv_varint_write(d + 1, k)
                if k:
                    memcpy(d, &records[at], k)
                d += k
                d[0] = 0x12
                d = kv_varint_write(d + 1, v)
                if v:
                    memcpy(d, &records[at + k], v)
                at += k + v
                n += 1
            bodies.append(PyBytes_FromStringAndSize(<char *>b.p, b.n))
    finally:
        kv_buf_free(&b)
    return bodies


cdef class Load:
    """A run's connections and counters. `run` may be called several times; counters start anew.

    fds: connected sockets that have said HELLO, non-blocking; they stay the caller's to close.
    After a run: `answered`, `seconds`, `codes[code]`, `buckets`, `messages_sent`, `short` (reads
    whose answer was too small to hold the value).
    """

    cdef Conn *conns
    cdef uint32_t conn_count, in_flight, value_bytes, kind, next_conn, pack_max
    cdef uint64_t seed, key_space, draw
    cdef uint64_t *begun          # when a slot's request was sent or due, 0 if it has none
    cdef uint8_t *pool
    cdef int epoll, timer, failure
    cdef uint64_t open_requests, first_due
    cdef uint64_t interval_ns
    cdef uint64_t[BUCKETS] hist
    cdef uint64_t[256] code_counts
    cdef object error_text
    cdef kv_buf error
    cdef readonly uint64_t answered, messages_sent, short
    cdef readonly double seconds

    def __cinit__(self, fds, uint32_t in_flight, *, bint reads, bint packed, uint64_t key_space,
                  uint64_t seed, uint64_t draw_seed, uint32_t value_bytes=256,
                  uint32_t pack_max=0):
        cdef uint32_t c, slots
        cdef size_t i
        cdef epoll_event event
        assert len(fds) > 0 and in_flight > 0 and key_space > 0 and value_bytes <= 32768
        kv_buf_init(&self.error)
        self.conn_count = len(fds)
        self.in_flight = in_flight
        self.kind = KIND_RANGE_ if reads else KIND_PUT_
        self.pack_max = (pack_max or in_flight) if packed else 1
        self.key_space = key_space
        self.seed = seed
        self.draw = mix(draw_seed, 0)
        self.value_bytes = value_bytes
        slots = self.conn_count * in_flight
        self.conns = <Conn *>calloc(self.conn_count, sizeof(Conn))
        self.begun = <uint64_t *>calloc(slots, sizeof(uint64_t))
        self.pool = <uint8_t *>malloc(POOL_BYTES)
        if self.conns == NULL or self.begun == NULL or self.pool == NULL:
            raise MemoryError
        for i in range(POOL_BYTES // 16):
            hex16(self.pool + 16 * i, mix(draw_seed ^ 0x5A5A, i))
        self.epoll = epoll_create1(0)
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
        if self.epoll < 0 or self.timer < 0:
            raise OSError(errno, "epoll or timerfd")
        event.events = EPOLLIN
        event.data.u32 = TIMER
        epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.timer, &event)
        for c in range(self.conn_count):
            kv_buf_init(&self.conns[c].out)
            kv_buf_init(&self.conns[c].inp)
            self.conns[c].fd = fds[c]
            self.conns[c].idle = <uint32_t *>malloc(in_flight * sizeof(uint32_t))
            if self.conns[c].idle == NULL:
                raise MemoryError
            for i in range(in_flight):
                self.conns[c].idle[i] = c * in_flight + <uint32_t>i
            self.conns[c].idle_count = in_flight
            event.events = EPOLLIN
            event.data.u32 = c
            if epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.conns[c].fd, &event) != 0:
                raise OSError(errno, "epoll_ctl")

    def __dealloc__(self):
        cdef uint32_t c
        if self.conns != NULL:
            for c in range(self.conn_count):
                kv_buf_free(&self.conns[c].out)
                kv_buf_free(&self.conns[c].inp)
                free(self.conns[c].idle)
            free(self.conns)
        free(self.begun)
        free(self.pool)
        kv_buf_free(&self.error)
        if self.epoll > 0:
            close(self.epoll)
        if self.timer > 0:
            close(self.timer)

    @property
    def codes(self):
        """Answers by refusal code; 0 is success."""
        return {code: self.code_counts[code] for code in range(256) if self.code_counts[code]}

    @property
    def buckets(self):
        """Count of answers in each latency bucket."""
        return [self.hist[i] for i in range(BUCKETS)]

    def run(self, double seconds, uint64_t requests_max=0, double rate=0.0):
        """Sends for so long, or until `requests_max` were sent; then waits for what is open.

        rate > 0: paced. LoadError if the node breaks the protocol, closes or stalls.
        """
        cdef uint64_t begin
        cdef int failure
        self.answered = self.messages_sent = self.short = 0
        memset(self.hist, 0, sizeof(self.hist))
        memset(self.code_counts, 0, sizeof(self.code_counts))
        self.interval_ns = <uint64_t>(1e9 / rate) if rate > 0 else 0
        begin = now_ns()
        with nogil:
            failure = self._loop(begin, begin + <uint64_t>(seconds * 1e9), requests_max)
        self.seconds = (now_ns() - begin) / 1e9
        if failure != FAIL_NONE:
            text = _FAILURES[failure]
            if failure == FAIL_REFUSED:
                text += (<char *>self.error.p)[: self.error.n].decode("utf-8", "replace")
            raise LoadError(text)
        return self.answered

    cdef int _loop(self, uint64_t begin, uint64_t end, uint64_t requests_max) noexcept nogil:
        cdef epoll_event[128] events
        cdef int n, i, failure
        cdef uint32_t c
        cdef uint64_t sent = 0, due = begin, now
        cdef uint64_t limit = requests_max if requests_max else <uint64_t>-1
        cdef bint paced = self.interval_ns > 0
        cdef uint8_t[8] ticks
        if paced:
            self._set_timer(due)
        else:
            for c in range(self.conn_count):
                failure = self._fill(&self.conns[c], &sent, limit)
                if failure:
                    return failure
        while True:
            now = now_ns()
            if now >= end or sent >= limit:
                if self.open_requests == 0:
                    return FAIL_NONE
                limit = sent
            n = epoll_wait(self.epoll, events, 128, STALL_MS_MAX)
            if n == 0:
                return FAIL_STALLED
            if n < 0:
                if errno == EINTR:
                    continue
                return FAIL_CLOSED
            for i in range(n):
                c = events[i].data.u32
                if c == TIMER:
                    read(self.timer, ticks, 8)
                    continue
                if events[i].events & EPOLLOUT:
                    failure = self._flush(c)
                    if failure:
                        return failure
                if events[i].events & ~EPOLLOUT:
                    failure = self._receive(c)
                    if failure:
                        return failure
                    if not paced and now < end:
                        failure = self._fill(&self.conns[c], &sent, limit)
                        if failure:
                            return failure
            if paced:
                now = now_ns()
                while due <= now and due < end and sent < limit:
                    failure = self._send_due(due)
                    if failure:
                        return failure
                    sent += 1
                    due += self.interval_ns
                if due < end and sent < limit:
                    self._set_timer(due)
                elif due >= end:
                    limit = sent

    cdef void _set_timer(self, uint64_t due) noexcept nogil:
        cdef itimerspec when
        memset(&when, 0, sizeof(when))
        when.it_value.tv_sec = <long>(due // 1000000000)
        when.it_value.tv_nsec = <long>(due % 1000000000)
        timerfd_settime(self.timer, TFD_TIMER_ABSTIME, &when, NULL)

    cdef int _send_due(self, uint64_t due) noexcept nogil:
        """One paced request over the next connection that has room."""
        cdef uint32_t _try, c = 0
        for _try in range(self.conn_count):
            c = self.next_conn
            self.next_conn = (c + 1) % self.conn_count
            if self.conns[c].idle_count:
                self._message(&self.conns[c], 1, due)
                return self._flush(c)
        return FAIL_STALLED

    cdef int _fill(self, Conn *conn, uint64_t *sent, uint64_t limit) noexcept nogil:
        """Uses every idle slot of a connection, as far as the limit goes."""
        cdef uint64_t now = now_ns()
        cdef uint32_t n = conn.idle_count, part
        if n > limit - sent[0]:
            n = <uint32_t>(limit - sent[0])
        if n == 0:
            return FAIL_NONE
        sent[0] += n
        while n:
            part = n if n < self.pack_max else self.pack_max
            self._message(conn, part, now)
            n -= part
        return self._flush(<uint32_t>(conn - self.conns))

    cdef void _message(self, Conn *conn, uint32_t count, uint64_t begun) noexcept nogil:
        """Appends one ZMTP frame with one REQUESTS message of `count` requests."""
        cdef uint32_t value = self.value_bytes if self.kind == KIND_PUT_ else 0
        cdef size_t body = 2 + KEY
        cdef size_t payload, frame
        cdef uint32_t _i, slot
        cdef uint8_t *d
        if value:
            body += 1 + kv_varint_size(value) + value
        payload = HEADER + count * (ITEM + body)
        frame = 9 if payload > 255 else 2
        d = kv_buf_grow(&conn.out, frame + payload)
        if d == NULL:
            self.failure = FAIL_MEMORY
            return
        if payload > 255:
            d[0] = 2
            kv_store_be64(d + 1, payload)
        else:
            d[0] = 0
            d[1] = <uint8_t>payload
        d += frame
        memset(d, 0, HEADER)
        memcpy(d, <const char *>b"KVN1", 4)
        d[4] = OP_REQUESTS
        kv_store_u32(d + 8, count)
        d += HEADER
        for _i in range(count):
            conn.idle_count -= 1
            slot = conn.idle[conn.idle_count]
            self.begun[slot] = begun
            memset(d, 0, ITEM)
            kv_store_u32(d, slot)
            kv_store_u32(d + 4, <uint32_t>body)
            d[8] = <uint8_t>self.kind
            d += ITEM
            self.draw = mix(self.draw, 0)
            d[0] = 0x0A
            d[1] = KEY
            write_key(d + 2, self.seed, self.draw % self.key_space)
            d += 2 + KEY
            if value:
                d[0] = 0x12
                d = kv_varint_write(d + 1, value)
                memcpy(d, self.pool + (self.draw >> 32) % (POOL_BYTES - value), value)
                d += value
        self.open_requests += count
        self.messages_sent += 1

    cdef int _flush(self, uint32_t c) noexcept nogil:
        cdef Conn *conn = &self.conns[c]
        cdef ssize_t n
        if self.failure:
            return self.failure
        while conn.sent < conn.out.n:
            n = send(conn.fd, conn.out.p + conn.sent, conn.out.n - conn.sent,
                     MSG_NOSIGNAL | MSG_DONTWAIT)
            if n < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    return FAIL_CLOSED
                self._watch(c, True)
                return FAIL_NONE
            conn.sent += n
        kv_buf_clear(&conn.out)
        conn.sent = 0
        self._watch(c, False)
        return FAIL_NONE

    cdef void _watch(self, uint32_t c, bint blocked) noexcept nogil:
        cdef epoll_event event
        if self.conns[c].blocked == blocked:
            return
        self.conns[c].blocked = blocked
        event.events = EPOLLIN | EPOLLOUT if blocked else EPOLLIN
        event.data.u32 = c
        epoll_ctl(self.epoll, EPOLL_CTL_MOD, self.conns[c].fd, &event)

    cdef int _receive(self, uint32_t c) noexcept nogil:
        """Reads what is there and takes all whole messages of it."""
        cdef Conn *conn = &self.conns[c]
        cdef ssize_t n
        cdef size_t at = 0, left, head, size
        cdef const uint8_t *p
        cdef int failure
        if not kv_buf_need(&conn.inp, READ_BYTES):
            return FAIL_MEMORY
        n = recv(conn.fd, conn.inp.p + conn.inp.n, READ_BYTES, MSG_DONTWAIT)
        if n < 0:
            return FAIL_NONE if errno == EAGAIN or errno == EINTR else FAIL_CLOSED
        if n == 0:
            return FAIL_CLOSED
        conn.inp.n += n
        while True:
            p = conn.inp.p + at
            left = conn.inp.n - at
            if left < 2:
                break
            if p[0] & 1:
                return FAIL_PROTOCOL
            head = 9 if p[0] & 2 else 2
            if left < head:
                break
            size = kv_load_be64(p + 1) if p[0] & 2 else p[1]
            if left - head < size:
                break
            if not p[0] & 4:
                failure = self._take(conn, p + head, size)
                if failure:
                    return failure
            at += head + size
        left = conn.inp.n - at
        if at and left:
            memmove(conn.inp.p, conn.inp.p + at, left)
        conn.inp.n = left
        return FAIL_NONE

    cdef int _take(self, Conn *conn, const uint8_t *p, size_t size) noexcept nogil:
        """One native message."""
        cdef uint32_t count, _i, slot, length
        cdef uint32_t base = <uint32_t>(conn - self.conns) * self.in_flight
        cdef const uint8_t *end = p + size
        cdef uint64_t now, us
        if size < HEADER or p[0] != 75 or p[1] != 86 or p[2] != 78 or p[3] != 49:
            return FAIL_PROTOCOL
        if p[4] == OP_ERROR:
            kv_buf_clear(&self.error)
            if size > HEADER + 4:
                kv_put_bytes(&self.error, p + HEADER + 4, size - HEADER - 4)
            return FAIL_REFUSED
        if p[4] != OP_ANSWERS:
            return FAIL_NONE
        count = kv_load_u32(p + 8)
        p += HEADER
        now = now_ns()
        for _i in range(count):
            if end - p < ANSWER:
                return FAIL_PROTOCOL
            slot = kv_load_u32(p)
            length = kv_load_u32(p + 4)
            if <size_t>(end - p) - ANSWER < length:
                return FAIL_PROTOCOL
            if slot < base or slot >= base + self.in_flight or self.begun[slot] == 0:
                return FAIL_PROTOCOL
            us = (now - self.begun[slot]) // 1000 if now > self.begun[slot] else 0
            self.hist[bucket_of(us)] += 1
            self.code_counts[p[8]] += 1
            if self.kind == KIND_RANGE_ and length < KEY + self.value_bytes:
                self.short += 1
            self.begun[slot] = 0
            conn.idle[conn.idle_count] = slot
            conn.idle_count += 1
            self.answered += 1
            self.open_requests -= 1
            p += ANSWER + length
        return FAIL_NONE
