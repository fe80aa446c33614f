# distutils: language = c++
"""The table of streams: calls under way, what they have to send, what has come of them, deadlines.

Role: the lowest floor of the gRPC front. It knows messages and statuses; how they travel is known
above: `h2.Http2` (nghttp2) and `pycalls` (calls inside the process). One thread only.

A message is a prefix of 5 bytes (u8 compressed, u32 BE length) and its bytes.
    00 00 00 00 02 08 01        the message 08 01

Invariants:
  1. A stream's outgoing bytes are one queue: its own in `out`, shared messages by reference.
     `queued` is their sum, `tail` the own bytes behind the last item.
  2. Full means: queued >= HIGH_BYTES, or >= RESERVE_BYTES when its connection or all streams
     together have too much, or anything above a harder bound of those. on_room follows once queued
     <= LOW_BYTES (RESERVE_BYTES / 2).
  3. Unfinished messages of all streams are bounded by IN_BYTES_MAX: one above is refused.
  4. on_gone follows on_open exactly once, unless `finish` was called before.
"""

import zlib

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove, memset

from kvnode._core.buf cimport (
    kv_buf, kv_buf_clear, kv_buf_free, kv_buf_grow, kv_buf_trim, kv_load_be32,
    kv_put_bytes, kv_put_u8, kv_store_be32,
)
from kvnode._core.calls cimport (
    PREFIX_BYTES, Call, Calls, Methods, Shared, shared_drop, shared_hold,
)

cdef extern from *:
    """
    #include <time.h>
    static inline uint64_t kv_clock_us(void) {
      struct timespec t;
      clock_gettime(CLOCK_MONOTONIC, &t);
      return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
    }
    """
    uint64_t kv_clock_us() noexcept nogil

cdef enum:
    HIGH_BYTES = 524288
    LOW_BYTES = 131072
    RESERVE_BYTES = 32768
    OUT_BYTES_SOFT = 268435456     # of all streams: above, each has RESERVE_BYTES
    OUT_BYTES_HARD = 536870912     # above, none has room
    SHARED_PART = 8
    IN_BYTES_MAX = 536870912
    KEEP_BYTES = 4096
    CODE_CANCELLED = 1
    CODE_DEADLINE = 4
    CODE_EXHAUSTED = 8
    CODE_UNIMPLEMENTED = 12
    CODE_INTERNAL = 13
    CODE_UNAVAILABLE = 14

CODE_NAMES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound",
    "AlreadyExists", "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted",
    "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated",
)
"""gRPC's codes by number, as etcd's metrics spell them."""

BUCKET_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram of handling times."""

cdef uint64_t[BUCKETS] BUCKET_US
for _at, _seconds in enumerate(BUCKET_SECONDS):
    BUCKET_US[<size_t> _at] = <uint64_t> (_seconds * 1e6)


cdef uint64_t clock_us() noexcept nogil:
    return kv_clock_us()


cdef void percent_encode(kv_buf *b, const uint8_t *p, size_t n) noexcept:
    """Text as a grpc-message: what is not printable ASCII, and %, as %XX."""
    cdef const char *digits = b"0123456789ABCDEF"
    cdef size_t i
    for i in range(n):
        if 0x20 <= p[i] <= 0x7e and p[i] != 0x25:
            kv_put_u8(b, p[i])
        else:
            kv_put_u8(b, 0x25)
            kv_put_u8(b, <uint8_t> digits[p[i] >> 4])
            kv_put_u8(b, <uint8_t> digits[p[i] & 15])


cdef class Streams(Calls):
    """Streams of a gateway; `on_work` is called when something waits for a flush."""

    def __cinit__(self, *, uint64_t max_message_bytes=2 << 20, **_):
        self.max_message_bytes = max_message_bytes
        self.leader = True
        self.numbers = {}
        self.paths = []
        self.held = []
        self.services = set()
        self.on_work = None
        memset(self.wheel, 0, sizeof(self.wheel))
        self.wheel_at = kv_clock_us() // WHEEL_US

    def __dealloc__(self):
        cdef size_t i, k
        cdef Stream *s
        for i in range(self.streams.size()):
            s = self.streams[i]
            # Nothing virtual: what is above is gone by now.
            for k in range(s.items_at, s.items_n):
                if s.items[k].m != NULL:
                    shared_drop(s.items[k].m)
            free(s.items)
            kv_buf_free(&s.out)
            kv_buf_free(&s.inb)
            kv_buf_free(&s.text)
            kv_buf_free(&s.meta)
            kv_buf_free(&s.path)
            kv_buf_free(&s.fault)
            kv_buf_free(&s.encoding)
            free(s)
        kv_buf_free(&self.nowhere)

    cdef uint64_t now(self) noexcept nogil:
        return self.fixed_us if self.fixed_us else kv_clock_us()

    def set_clock(self, uint64_t us) -> None:
        """Tests: time stands at `us` from here on (0: the machine's clock)."""
        if not us or not self.fixed_us:
            self.fixed_us = us
            self.wheel_at = self.now() // WHEEL_US
        self.fixed_us = us

    # --- methods --------------------------------------------------------------------------------

    def route(self, bytes path not None, Methods methods not None, int number,
              bint client_streams=False, bint server_streams=False, bint metadata=False) -> None:
        """Calls of `path` ("/package.Service/Method") are answered by `methods` from now on."""
        cdef Route r
        cdef Counts c
        r.methods = <void *> methods
        r.method = number
        r.client_streams = client_streams
        r.server_streams = server_streams
        r.wants_meta = metadata
        self.held.append(methods)
        self.services.add(path[:path.rfind(b"/") + 1])
        if path in self.numbers:
            self.routes[<size_t> self.numbers[path]] = r
            return
        memset(&c, 0, sizeof(c))
        self.numbers[path] = self.routes.size()
        self.paths.append(path.decode())
        self.routes.push_back(r)
        self.counts.push_back(c)

    def counters(self) -> dict:
        """By path: type, started, handled by code, messages, bytes, handling times."""
        cdef size_t i
        cdef int k
        cdef Counts *c
        out = {}
        for i in range(self.counts.size()):
            c = &self.counts[i]
            kind = ("unary", "server_stream", "client_stream", "bidi_stream")[
                self.routes[i].server_streams + 2 * self.routes[i].client_streams]
            out[self.paths[i]] = {
                "type": kind,
                "started": c.started,
                "handled": {CODE_NAMES[k]: c.handled[k] for k in range(CODES)},
                "received": c.received,
                "received_bytes": c.received_bytes,
                "sent": c.sent,
                "sent_bytes": c.sent_bytes,
                "seconds": [c.seconds[k] for k in range(BUCKETS + 1)],
                "seconds_sum": c.handling_us / 1e6,
            }
        return out

    def set_leader(self, bint has, bint end_streams=True) -> None:
        """Whether this member knows a leader. Without one, new calls that ask for it are refused,
        and with `end_streams` open streams that did end."""
        self.leader = has
        if not has and end_streams:
            self.end_some(True, CODE_UNAVAILABLE, b"etcdserver: no leader")

    def end_streams(self, int status, str text not None) -> None:
        """Ends the calls of methods whose client streams: a watch would never end by itself."""
        self.end_some(False, status, text.encode())

    cdef int end_some(self, bint asked_leader, int status, bytes text) except -1:
        cdef size_t i
        cdef Stream *s
        for i in range(self.streams.size()):
            s = self.streams[i]
            if not s.used or not s.opened or s.finished or s.reset:
                continue
            if self.routes[s.route].client_streams or (
                    asked_leader and self.routes[s.route].server_streams):
                if s.has_leader or not asked_leader:
                    self.refuse(s, status, text)
        return 0

    # --- the table ------------------------------------------------------------------------------

    cdef Stream *new_stream(self) except NULL:
        cdef Stream *s
        cdef uint32_t number
        if self.free_streams.size():
            number = self.free_streams.back()
            self.free_streams.pop_back()
            s = self.streams[number]
        else:
            s = <Stream *> calloc(1, sizeof(Stream))
            if s == NULL:
                raise MemoryError
            s.number = <uint32_t> self.streams.size()
            self.streams.push_back(s)
        s.used = True
        s.generation += 1
        s.route = NO_ROUTE
        s.began_us = self.now()
        self.open_streams += 1
        return s

    cdef void release(self, Stream *s) noexcept:
        """Its number may be used again."""
        cdef kv_buf out, inb, text = s.text, meta = s.meta, path = s.path, fault = s.fault
        cdef kv_buf encoding = s.encoding
        cdef Item *items
        cdef size_t cap
        cdef uint32_t number = s.number, generation = s.generation
        cdef bint touched = s.touched, roomy = s.roomy
        if not s.used:
            return
        self.unset_deadline(s)
        self.drop_out(s)
        self.drop_in(s)
        out, inb = s.out, s.inb
        items, cap = s.items, s.items_cap
        kv_buf_trim(&out, KEEP_BYTES)
        kv_buf_trim(&text, KEEP_BYTES)
        kv_buf_trim(&meta, KEEP_BYTES)
        kv_buf_trim(&path, KEEP_BYTES)
        kv_buf_trim(&fault, KEEP_BYTES)
        kv_buf_trim(&encoding, KEEP_BYTES)
        memset(s, 0, sizeof(Stream))
        s.number, s.generation = number, generation
        # It may still stand in these lists: the flags keep it from standing there twice.
        s.touched, s.roomy = touched, roomy
        s.out, s.inb, s.text, s.meta = out, inb, text, meta
        s.path, s.fault, s.encoding = path, fault, encoding
        s.items, s.items_cap = items, cap
        self.open_streams -= 1
        self.free_streams.push_back(number)

    cdef void touch(self, Stream *s) noexcept:
        if not s.touched:
            s.touched = True
            self.touched.push_back(s.number)

    cdef int work(self) except -1:
        """Something waits for a flush."""
        if not self.busy and self.on_work is not None:
            self.on_work()
        return 0

    cdef int64_t owner_room(self, Stream *s) noexcept nogil:
        """What the stream's connection takes; above."""
        return HIGH_BYTES

    cdef void owner_count(self, Stream *s, int64_t n) noexcept nogil:
        """Outgoing bytes of the stream's connection changed; above."""

    # --- what came ------------------------------------------------------------------------------

    cdef int open_call(self, Stream *s) except -1:
        """Its headers are complete and its route is known."""
        cdef Route *r = &self.routes[s.route]
        cdef Call call = Call(s.number, s.generation)
        self.counts[s.route].started += 1
        s.opened = True
        if s.has_leader and not self.leader:
            return self.refuse(s, CODE_UNAVAILABLE, b"etcdserver: no leader")
        (<Methods> r.methods).on_open(call, r.method)
        return 0

    cdef int feed(self, Stream *s, const uint8_t *p, size_t n) except -1:
        """Bytes of messages. Those of a streaming client are given on when they are whole."""
        cdef uint64_t need
        cdef size_t have
        if s.finished or s.reset or n == 0:
            return 0
        if not self.routes[s.route].client_streams:
            self.count_in(s, n)
            kv_put_bytes(&s.inb, p, n)
            if s.inb.err:
                raise MemoryError
            if s.inb.n >= PREFIX_BYTES:
                need = kv_load_be32(s.inb.p + 1)
                if need > self.max_message_bytes:
                    return self.too_large(s, need)
                if s.inb.n > need + PREFIX_BYTES:
                    return self.refuse(s, CODE_INTERNAL, b"cardinality violation: received multiple"
                                       b" request messages for non-client-streaming RPC")
            if self.in_bytes > IN_BYTES_MAX:
                return self.refuse(s, CODE_EXHAUSTED, b"etcdserver: too many requests")
            return 0
        while n:
            if s.inb.n == 0 and n >= PREFIX_BYTES:
                need = kv_load_be32(p + 1)
                if need > self.max_message_bytes:
                    return self.too_large(s, need)
                need += PREFIX_BYTES
                if n >= need:
                    self.deliver(s, p, need)
                    if s.finished or s.reset:
                        return 0
                    p += need
                    n -= need
                    continue
            need = PREFIX_BYTES
            if s.inb.n >= PREFIX_BYTES:
                need += kv_load_be32(s.inb.p + 1)
            have = min(n, need - s.inb.n)
            kv_put_bytes(&s.inb, p, have)
            if s.inb.err:
                raise MemoryError
            self.count_in(s, have)
            p += have
            n -= have
            if s.inb.n >= PREFIX_BYTES:
                need = kv_load_be32(s.inb.p + 1)
                if need > self.max_message_bytes:
                    return self.too_large(s, need)
                if s.inb.n == need + PREFIX_BYTES:
                    self.deliver_inb(s)
                    if s.finished or s.reset:
                        return 0
            if self.in_bytes > IN_BYTES_MAX:
                return self.refuse(s, CODE_EXHAUSTED, b"etcdserver: too many requests")
        return 0

    cdef int too_large(self, Stream *s, uint64_t n) except -1:
        return self.refuse(s, CODE_EXHAUSTED, b"grpc: received message larger than max (%d vs. %d)"
                           % (n, self.max_message_bytes))

    cdef int half_close(self, Stream *s) except -1:
        """The client sends no more."""
        cdef Route *r
        if s.half_closed:
            return 0
        s.half_closed = True
        if s.finished or s.reset:
            return 0
        r = &self.routes[s.route]
        if r.client_streams:
            if s.inb.n:
                return self.refuse(s, CODE_INTERNAL, b"unexpected EOF")
            (<Methods> r.methods).on_half_close(Call(s.number, s.generation), r.method)
            return 0
        if s.inb.n == 0:
            return self.refuse(s, CODE_INTERNAL, b"cardinality violation: received no request "
                               b"message from non-client-streaming RPC")
        if s.inb.n < PREFIX_BYTES or s.inb.n < kv_load_be32(s.inb.p + 1) + PREFIX_BYTES:
            return self.refuse(s, CODE_INTERNAL, b"unexpected EOF")
        return self.deliver_inb(s)

    cdef int deliver_inb(self, Stream *s) except -1:
        s.delivering = True
        self.deliver(s, s.inb.p, s.inb.n)
        s.delivering = False
        self.drop_in(s)
        return 0

    cdef void drop_in(self, Stream *s) noexcept nogil:
        if s.inb.n:
            self.count_in(s, -<int64_t> s.inb.n)
        kv_buf_trim(&s.inb, KEEP_BYTES)

    cdef void count_in(self, Stream *s, int64_t n) noexcept nogil:
        """Bytes of its unfinished messages changed; above."""
        self.in_bytes += n

    cdef int deliver(self, Stream *s, const uint8_t *p, size_t n) except -1:
        """One whole message, its prefix included."""
        return self.give(s, p[0], p + PREFIX_BYTES, n - PREFIX_BYTES)

    cdef int give(self, Stream *s, int flag, const uint8_t *p, size_t n) except -1:
        cdef Route *r = &self.routes[s.route]
        cdef Counts *c = &self.counts[s.route]
        cdef bytes whole
        c.received += 1
        c.received_bytes += n
        if flag == 0:
            (<Methods> r.methods).on_message(Call(s.number, s.generation), r.method, p, n)
            return 0
        if flag != 1:
            return self.refuse(s, CODE_INTERNAL, b"grpc: received unexpected payload format %d"
                               % flag)
        if not s.gzip:
            return self.refuse(s, CODE_INTERNAL,
                               b"grpc: compressed flag set with identity or empty encoding")
        inflate = zlib.decompressobj(wbits=31)
        try:
            whole = inflate.decompress(p[:n], self.max_message_bytes + 1)
        except zlib.error as error:
            return self.refuse(s, CODE_INTERNAL, b"grpc: failed to decompress the received message:"
                               b" %s" % str(error).encode())
        if <uint64_t> len(whole) > self.max_message_bytes:
            return self.refuse(
                s, CODE_EXHAUSTED, b"grpc: received message after decompression larger than max %d"
                % self.max_message_bytes)
        if not inflate.eof:
            return self.refuse(s, CODE_INTERNAL, b"grpc: failed to decompress the received message:"
                               b" unexpected EOF")
        p = whole
        (<Methods> r.methods).on_message(Call(s.number, s.generation), r.method, p, len(whole))
        return 0

    cdef int gone(self, Stream *s) except -1:
        """Reset by its client, or its connection is lost."""
        cdef Route *r
        if s.finished or s.reset:
            return 0
        s.reset = True
        self.unset_deadline(s)
        if not s.opened:
            return 0
        self.count_end(s, CODE_CANCELLED)
        r = &self.routes[s.route]
        (<Methods> r.methods).on_gone(Call(s.number, s.generation), r.method)
        return 0

    cdef int refuse(self, Stream *s, int status, bytes text) except -1:
        """Ends a call from this side of its methods."""
        cdef const uint8_t *p = text
        cdef Route *r
        if s.finished or s.reset:
            return 0
        self.end_call(s, status, p, len(text))
        if s.opened:
            r = &self.routes[s.route]
            (<Methods> r.methods).on_gone(Call(s.number, s.generation), r.method)
        return 0

    # --- what goes ------------------------------------------------------------------------------

    cdef bint alive(self, Call call) noexcept nogil:
        return self.find(call) != NULL

    cdef int64_t room(self, Call call) noexcept nogil:
        cdef Stream *s = self.find(call)
        cdef int64_t free_
        if s == NULL:
            return 0
        free_ = self.owner_room(s)
        if self.crowded(OUT_BYTES_SOFT):
            self.starved = True
            free_ = 0 if self.crowded(OUT_BYTES_HARD) else min(free_, <int64_t> RESERVE_BYTES)
        free_ -= <int64_t> s.queued
        if free_ <= 0:
            s.full = True
        return free_

    cdef bint crowded(self, int64_t bytes_max) noexcept nogil:
        """All streams together have too much. What is shared counts for less: it is there once."""
        return self.out_bytes + self.shared_bytes // SHARED_PART > bytes_max

    cdef kv_buf *begin_message(self, Call call) except NULL:
        cdef Stream *s = self.find(call)
        if s == NULL:
            # Harmless: nobody reads this buffer.
            kv_buf_trim(&self.nowhere, KEEP_BYTES)
            return &self.nowhere
        assert not s.open_message and s.long_left == 0
        if s.out_at and s.out_at >= s.out.n // 2:
            memmove(s.out.p, s.out.p + s.out_at, s.out.n - s.out_at)
            s.out.n -= s.out_at
            s.out_at = 0
        s.open_message = True
        s.open_at = s.out.n
        if kv_buf_grow(&s.out, PREFIX_BYTES) == NULL:
            raise MemoryError
        return &s.out

    cdef int end_message(self, Call call) except -1:
        cdef Stream *s = self.find(call)
        cdef size_t n
        if s == NULL:
            return 0
        assert s.open_message
        s.open_message = False
        if s.out.err:
            raise MemoryError
        n = s.out.n - s.open_at
        if n - PREFIX_BYTES > 0xffffffff:
            raise OverflowError("a message of 4 GiB or more")
        s.out.p[s.open_at] = 0
        kv_store_be32(s.out.p + s.open_at + 1, <uint32_t> (n - PREFIX_BYTES))
        self.count_sent(s, n - PREFIX_BYTES)
        return self.own_bytes(s, n)

    cdef int own_bytes(self, Stream *s, size_t n) except -1:
        """n bytes more of its own stand at the end of its buffer."""
        s.tail += n
        s.queued += n
        s.messages = True
        self.out_bytes += n
        self.owner_count(s, <int64_t> n)
        self.touch(s)
        return self.work()

    cdef void count_sent(self, Stream *s, uint64_t n) noexcept nogil:
        cdef Counts *c = &self.counts[s.route]
        c.sent += 1
        c.sent_bytes += n

    cdef int undo_message(self, Call call) except -1:
        cdef Stream *s = self.find(call)
        if s == NULL:
            return 0
        assert s.open_message
        s.open_message = False
        s.out.n = s.open_at
        s.out.err = 0
        return 0

    cdef int add_item(self, Stream *s, Shared *m, size_t at) except -1:
        """What others send too, from `at` on; own bytes before it get their item first."""
        cdef Item *items
        if s.items_at and s.items_at == s.items_n:
            s.items_at = s.items_n = 0
        if s.items_n + 2 > s.items_cap:
            if s.items_at >= 16 and s.items_at >= s.items_n // 2:
                memmove(s.items, s.items + s.items_at,
                        (s.items_n - s.items_at) * sizeof(Item))
                s.items_n -= s.items_at
                s.items_at = 0
            else:
                items = <Item *> realloc(
                    s.items, (s.items_cap * 2 if s.items_cap else 8) * sizeof(Item))
                if items == NULL:
                    raise MemoryError
                s.items = items
                s.items_cap = s.items_cap * 2 if s.items_cap else 8
        if s.tail:
            s.items[s.items_n] = Item(NULL, 0, s.tail)
            s.items_n += 1
            s.tail = 0
        shared_hold(m)
        s.items[s.items_n] = Item(m, at, m.n - at)
        s.items_n += 1
        s.queued += m.n - at
        s.messages = True
        self.shared_bytes += m.n - at
        self.owner_count(s, <int64_t> (m.n - at))
        self.touch(s)
        return self.work()

    cdef int send(self, Call call, Shared *m) except -1:
        cdef Stream *s = self.find(call)
        if s == NULL:
            return 0
        self.count_sent(s, m.n - PREFIX_BYTES)
        return self.add_item(s, m, 0)

    cdef int send_tail(self, Call call, const uint8_t *head, size_t n, Shared *tail) except -1:
        cdef Stream *s = self.find(call)
        cdef uint8_t *d
        if s == NULL:
            return 0
        d = kv_buf_grow(&s.out, PREFIX_BYTES + n)
        if d == NULL:
            raise MemoryError
        d[0] = 0
        kv_store_be32(d + 1, <uint32_t> (n + tail.n - PREFIX_BYTES))
        memcpy(d + PREFIX_BYTES, head, n)
        self.own_bytes(s, PREFIX_BYTES + n)
        self.count_sent(s, n + tail.n - PREFIX_BYTES)
        if tail.n > PREFIX_BYTES:
            self.add_item(s, tail, PREFIX_BYTES)
        return 0

    cdef int begin_long(self, Call call, uint64_t n) except -1:
        cdef Stream *s = self.find(call)
        cdef uint8_t *d
        if s == NULL:
            return 0
        assert not s.open_message and s.long_left == 0
        if n > 0xffffffff:
            raise OverflowError("a message of 4 GiB or more")
        d = kv_buf_grow(&s.out, PREFIX_BYTES)
        if d == NULL:
            raise MemoryError
        d[0] = 0
        kv_store_be32(d + 1, <uint32_t> n)
        s.long_left = n
        self.count_sent(s, n)
        return self.own_bytes(s, PREFIX_BYTES)

    cdef int add_long(self, Call call, const uint8_t *p, size_t n) except -1:
        cdef Stream *s = self.find(call)
        if s == NULL:
            return 0
        assert n <= s.long_left
        if s.out_at and s.out_at >= s.out.n // 2:
            memmove(s.out.p, s.out.p + s.out_at, s.out.n - s.out_at)
            s.out.n -= s.out_at
            s.out_at = 0
        kv_put_bytes(&s.out, p, n)
        if s.out.err:
            raise MemoryError
        s.long_left -= n
        return self.own_bytes(s, n)

    cdef void take_out(self, Stream *s, uint8_t *to, size_t n) noexcept:
        """Takes the first n bytes of what it has to send; n <= queued."""
        cdef Item *item
        cdef size_t part
        s.queued -= n
        self.owner_count(s, -<int64_t> n)
        while n:
            if s.items_at < s.items_n:
                item = &s.items[s.items_at]
                part = min(n, item.n)
                if item.m != NULL:
                    memcpy(to, item.m.data + item.at, part)
                    item.at += part
                    self.shared_bytes -= part
                else:
                    memcpy(to, s.out.p + s.out_at, part)
                    s.out_at += part
                    self.out_bytes -= part
                item.n -= part
                if item.n == 0:
                    if item.m != NULL:
                        shared_drop(item.m)
                    s.items_at += 1
            else:
                part = n
                memcpy(to, s.out.p + s.out_at, part)
                s.out_at += part
                s.tail -= part
                self.out_bytes -= part
            to += part
            n -= part
        if s.queued == 0 and not s.open_message:
            s.out_at = 0
            s.items_at = s.items_n = 0
            kv_buf_trim(&s.out, HIGH_BYTES if s.long_left else 65536)
        if s.full and not s.roomy and s.queued <= RESERVE_BYTES // 2 or s.full and (
                not s.roomy and s.queued <= LOW_BYTES and not self.crowded(OUT_BYTES_SOFT)):
            s.roomy = True
            self.roomy.push_back(s.number)

    cdef void drop_out(self, Stream *s) noexcept:
        """Forgets what it had to send."""
        cdef size_t i
        for i in range(s.items_at, s.items_n):
            if s.items[i].m != NULL:
                self.shared_bytes -= s.items[i].n
                shared_drop(s.items[i].m)
            else:
                self.out_bytes -= s.items[i].n
        s.items_at = s.items_n = 0
        self.out_bytes -= s.tail
        if s.queued:
            self.owner_count(s, -<int64_t> s.queued)
        s.queued = s.tail = s.out_at = 0
        kv_buf_clear(&s.out)
        s.open_message = False

    cdef int finish(self, Call call, int grpc_status, const uint8_t *text, size_t n) except -1:
        cdef Stream *s = self.find(call)
        if s == NULL:
            return 0
        assert not s.open_message
        if s.long_left:
            # It promised bytes that do not come: the client must not take them for a message.
            s.long_left = 0
            s.broken = True
        return self.end_call(s, grpc_status, text, n)

    cdef int end_call(self, Stream *s, int status, const uint8_t *text, size_t n) except -1:
        """Trailers, after what it has to send."""
        s.finished = True
        s.status = status
        kv_buf_clear(&s.text)
        if n:
            if s.local:
                kv_put_bytes(&s.text, text, n)
            else:
                percent_encode(&s.text, text, n)
        self.unset_deadline(s)
        if s.opened:
            self.count_end(s, status)
        if not s.delivering:
            self.drop_in(s)
        self.touch(s)
        return self.work()

    def set_slow(self, uint64_t us) -> None:
        """Unary calls that take longer than `us` are noted for take_slow; 0: none."""
        self.slow_us = us

    def take_slow(self) -> tuple:
        """([(path, us, status)] of the first SLOW_MAX slow calls since the last time, how many
        there were)."""
        cdef size_t i
        cdef uint64_t n = self.slow_n
        out = []
        for i in range(min(n, SLOW_MAX)):
            out.append((self.paths[self.slow[i].route], self.slow[i].us, self.slow[i].status))
        self.slow_n = 0
        return out, n

    cdef void count_end(self, Stream *s, int status) noexcept nogil:
        cdef Counts *c = &self.counts[s.route]
        cdef Route *r = &self.routes[s.route]
        cdef uint64_t us = self.now() - s.began_us
        cdef int k = 0
        if self.slow_us and us > self.slow_us and not (r.client_streams or r.server_streams):
            if self.slow_n < SLOW_MAX:
                self.slow[self.slow_n] = Slow(s.route, status, us)
            self.slow_n += 1
        c.handled[status if 0 <= status < CODES else 2] += 1
        c.handling_us += us
        while k < BUCKETS and us > BUCKET_US[k]:
            k += 1
        c.seconds[k] += 1

    cdef void feed_starved(self) noexcept:
        """Streams have room again that waited for what all had together."""
        cdef size_t i
        cdef Stream *s
        self.starved = False
        for i in range(self.streams.size()):
            s = self.streams[i]
            if s.used and s.full and not s.roomy and s.queued <= LOW_BYTES:
                s.roomy = True
                self.roomy.push_back(s.number)

    cdef int give_room(self) except -1:
        """on_room for those that have room again."""
        cdef vector[uint32_t] todo
        cdef size_t i
        cdef Stream *s
        cdef Route *r
        todo.swap(self.roomy)
        for i in range(todo.size()):
            s = self.streams[todo[i]]
            s.roomy = False
            if not s.used or s.finished or s.reset or not s.full:
                continue
            s.full = False
            r = &self.routes[s.route]
            (<Methods> r.methods).on_room(Call(s.number, s.generation), r.method)
        return 0

    # --- deadlines: a wheel of lists, one slot per WHEEL_US ---------------------------------------

    cdef void set_deadline(self, Stream *s, uint64_t at_us) noexcept nogil:
        cdef Stream **slot
        cdef uint64_t tick = (at_us + WHEEL_US - 1) // WHEEL_US
        if tick <= self.wheel_at:
            tick = self.wheel_at + 1
        slot = &self.wheel[tick % WHEEL_SLOTS]
        s.deadline_us = at_us
        s.later = slot[0]
        s.before = slot
        if s.later != NULL:
            s.later.before = &s.later
        slot[0] = s

    cdef void unset_deadline(self, Stream *s) noexcept nogil:
        if s.before == NULL:
            return
        s.before[0] = s.later
        if s.later != NULL:
            s.later.before = s.before
        s.before = NULL
        s.later = NULL

    cdef int expire(self, uint64_t now_us) except -1:
        """Ends the calls whose deadline has passed."""
        cdef uint64_t tick = now_us // WHEEL_US
        cdef Stream *s
        cdef vector[Call] due
        cdef size_t i
        if tick > self.wheel_at + WHEEL_SLOTS:
            self.wheel_at = tick - WHEEL_SLOTS
        while self.wheel_at < tick:
            self.wheel_at += 1
            s = self.wheel[self.wheel_at % WHEEL_SLOTS]
            while s != NULL:
                if s.deadline_us <= now_us:
                    due.push_back(Call(s.number, s.generation))
                s = s.later
        for i in range(due.size()):
            s = self.find(due[i])
            if s != NULL:
                self.refuse(s, CODE_DEADLINE, b"context deadline exceeded")
        return 0
