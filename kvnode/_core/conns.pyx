# distutils: language = c++
"""Connections of a gateway's native listener: the table, credit, packed answers, sending.

Role: the sink of the native door; `nativefront` reads the messages. A connection is a routing id of
the ROUTER socket; answers to it are packed into one message a turn. The socket is pyzmq's: its
libzmq's functions are looked up by address (`env/zmqlib`) and called without the GIL. One thread
only.

Invariants:
  1. A connection never has more unanswered request bytes than its credit: it is ended instead.
  2. A Ref is a connection's number and generation, and the client's own id of the request.
  3. A connection has at most about OUT_BYTES_MAX of answers that its client has not taken: reads
     wait above that (`full`), answers to writes above OUT_BYTES_END end the connection.
  4. What libzmq holds of a message without an end is bounded: `end_hoarders` compares what the
     kernel received with what libzmq delivered.

Layouts of the messages: docs/protocol.md.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from libcpp.vector cimport vector

from kvnode._core.buf cimport (
    kv_buf_clear, kv_buf_free, kv_buf_grow, kv_buf_init, kv_buf_trim, kv_load_u32, kv_put_bytes,
    kv_store_u16, kv_store_u32,
)
from kvnode._core.envelope cimport STATE_EXECUTED
from kvnode._core.sink cimport Ref, Sink

cdef extern from *:
    """
    #include <string.h>
    #include <netinet/in.h>
    #include <linux/tcp.h>
    #include <sys/socket.h>
    /* Bytes that the kernel has received on a TCP socket; -1 when it is none (any more). */
    static inline int64_t kv_tcp_received(int fd) {
      struct tcp_info info;
      socklen_t n = sizeof(info);
      memset(&info, 0, sizeof(info));
      if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) < 0) return -1;
      return (int64_t)info.tcpi_bytes_received;
    }
    static inline void kv_tcp_end(int fd) { shutdown(fd, SHUT_RDWR); }
    /* Bytes of a connection's answers that libzmq holds; its I/O thread subtracts. */
    static inline int64_t kv_count(int64_t *p, int64_t n) {
      return __atomic_add_fetch(p, n, __ATOMIC_RELAXED);
    }
    """
    int64_t kv_count(int64_t *p, int64_t n) noexcept nogil
    int64_t kv_tcp_received(int fd) noexcept nogil
    void kv_tcp_end(int fd) noexcept nogil

cdef enum:
    EAGAIN_ = 11
    ZMQ_SNDMORE_ = 2

    ZERO_COPY_BYTES = 16384
    OUT_KEEP_BYTES = 65536
    OUT_BYTES_MAX = 33554432     # answers not taken by a client: its reads wait
    OUT_BYTES_END = 268435456    # its connection ends
    LONGS_MAX = 8                # long reads under way of one connection

cdef struct Sent:
    int64_t *queued
    int64_t n


cdef void free_data(void *data, void *hint) noexcept nogil:
    cdef Sent *sent = <Sent *> hint
    kv_count(sent.queued, -sent.n)
    free(sent)
    free(data)


cdef class Conns(Sink):
    """`functions` are libzmq's addresses by name, `socket` is the address of a bound ROUTER socket
    (pyzmq's `underlying`)."""

    def __cinit__(self, dict functions, uintptr_t socket):
        self.z.init = <fn_msg> <uintptr_t> functions["zmq_msg_init"]
        self.z.init_size = <fn_msg_size> <uintptr_t> functions["zmq_msg_init_size"]
        self.z.init_data = <fn_msg_data> <uintptr_t> functions["zmq_msg_init_data"]
        self.z.close = <fn_msg> <uintptr_t> functions["zmq_msg_close"]
        self.z.more = <fn_msg> <uintptr_t> functions["zmq_msg_more"]
        self.z.data = <fn_data> <uintptr_t> functions["zmq_msg_data"]
        self.z.size = <fn_size> <uintptr_t> functions["zmq_msg_size"]
        self.z.recv = <fn_io> <uintptr_t> functions["zmq_msg_recv"]
        self.z.send = <fn_io> <uintptr_t> functions["zmq_msg_send"]
        self.z.get = <fn_get> <uintptr_t> functions["zmq_msg_get"]
        self.z.err = <fn_errno> <uintptr_t> functions["zmq_errno"]
        self.sock = <void *> socket
        self.events = []

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.conns.size()):
            kv_buf_free(&self.conns[i].out)
            free(self.conns[i])

    cdef uint32_t conn_of(self, const uint8_t *p, size_t n) except? 0xfffffffe:
        """The connection with this routing id; a new one for a new id. Ids that clients chose
        themselves (not 0 and four bytes) have none."""
        cdef uint32_t rid, number
        cdef Conn *c
        if n != 5 or p[0] != 0:
            return NO_CONN
        rid = kv_load_u32(p + 1)
        it = self.by_rid.find(rid)
        if it != self.by_rid.end():
            return self.by_rid[rid]
        if self.free_conns.size():
            number = self.free_conns.back()
            self.free_conns.pop_back()
            c = self.conns[number]
        else:
            c = <Conn *> calloc(1, sizeof(Conn))
            if c == NULL:
                raise MemoryError
            number = <uint32_t> self.conns.size()
            self.conns.push_back(c)
        c.used = True
        c.greeted = False
        c.blocked = False
        c.held = False
        c.fd = -1
        c.longs = 0
        c.dirty = False
        c.rid = rid
        c.generation += 1
        c.session = 0
        c.inflight = 0
        c.credit = 0
        c.answers = 0
        c.lowest = 0
        kv_buf_trim(&c.out, 0)
        self.by_rid[rid] = number
        return number

    # --- answers --------------------------------------------------------------------------------

    cdef uint8_t *open_answers(self, Conn *c, uint32_t number) except NULL:
        cdef uint8_t *d
        if c.answers == 0:
            kv_buf_clear(&c.out)
            d = kv_buf_grow(&c.out, HEADER_BYTES)
            if d == NULL:
                raise MemoryError
            memset(d, 0, HEADER_BYTES)
            memcpy(d, b"KVN1", 4)
            d[4] = OP_ANSWERS
        if not c.dirty:
            c.dirty = True
            self.dirty.push_back(number)
        return c.out.p

    cdef bint alive(self, const Ref *ref) noexcept nogil:
        cdef Conn *c = self.conns[ref.conn]
        return c.used and c.generation == ref.generation

    cdef bint full(self, const Ref *ref) noexcept nogil:
        cdef Conn *c = self.conns[ref.conn]
        return <int64_t> c.out.n + kv_count(&c.queued, 0) > OUT_BYTES_MAX or c.longs >= LONGS_MAX

    cdef bint mark_held(self, const Ref *ref) noexcept nogil:
        cdef Conn *c = self.conns[ref.conn]
        cdef bint first = not c.held
        c.held = True
        return first

    cdef void unmark_held(self, const Ref *ref) noexcept nogil:
        self.conns[ref.conn].held = False

    cdef void count_long(self, const Ref *ref, int change) noexcept nogil:
        cdef Conn *c = self.conns[ref.conn]
        if c.generation == ref.generation:
            c.longs += change

    cdef int answer(self, const Ref *ref, int code, int state, const uint8_t *p,
                    size_t n) except -1:
        cdef Conn *c = self.conns[ref.conn]
        cdef uint8_t *d
        if not c.used or c.generation != ref.generation:
            return 0
        self.open_answers(c, ref.conn)
        d = kv_buf_grow(&c.out, ANSWER_BYTES)
        if d == NULL:
            raise MemoryError
        kv_store_u32(d, ref.id)
        kv_store_u32(d + 4, <uint32_t> n)
        d[8] = <uint8_t> code
        d[9] = <uint8_t> (1 if state == 1 else 0)
        kv_store_u16(d + 10, 0)
        kv_store_u32(d + 12, 0)
        kv_put_bytes(&c.out, p, n)
        c.answers += 1
        c.inflight -= ref.size
        if c.out.n > OUT_BYTES_END:
            self.end_blocked(ref.conn)
        return 0

    def answer_request(self, uint32_t number, uint32_t generation, uint32_t rid, uint32_t size,
                       int code, bytes body=b"") -> None:
        """Answers one request that came as an event."""
        cdef Ref ref
        ref.sink = self.number
        ref.conn = number
        ref.generation = generation
        ref.id = rid
        ref.size = size
        cdef const uint8_t *p = body
        self.answer(&ref, code, STATE_EXECUTED, p, len(body))

    cdef kv_buf *open_answer(self, const Ref *ref) except NULL:
        cdef Conn *c = self.conns[ref.conn]
        self.open_answers(c, ref.conn)
        self.open_at = c.out.n
        if kv_buf_grow(&c.out, ANSWER_BYTES) == NULL:
            raise MemoryError
        return &c.out

    cdef int close_answer(self, const Ref *ref, int code) except -1:
        cdef Conn *c = self.conns[ref.conn]
        cdef size_t body_at = self.open_at + ANSWER_BYTES
        cdef uint8_t *d
        if code:
            c.out.n = body_at
        d = c.out.p + self.open_at
        kv_store_u32(d, ref.id)
        kv_store_u32(d + 4, <uint32_t> (c.out.n - body_at))
        d[8] = <uint8_t> code
        d[9] = 0
        kv_store_u16(d + 10, 0)
        kv_store_u32(d + 12, 0)
        c.answers += 1
        c.inflight -= ref.size
        return 0

    cdef int undo_answer(self, const Ref *ref) except -1:
        self.conns[ref.conn].out.n = self.open_at
        return 0

    cdef bint flush(self) except? True:
        """Sends what is packed; True while a socket did not take everything."""
        cdef vector[uint32_t] todo
        cdef size_t i
        cdef uint32_t number
        cdef Conn *c
        todo.swap(self.dirty)
        for i in range(todo.size()):
            number = todo[i]
            c = self.conns[number]
            if not c.used or not c.dirty:
                continue
            c.dirty = False
            if c.answers == 0:
                continue
            kv_store_u32(c.out.p + 8, c.answers)
            if self.send_buf(c):
                c.answers = 0
                c.blocked = False
            elif c.used:
                c.dirty = True
                self.dirty.push_back(number)
                if not c.blocked:
                    c.blocked = True
                    c.blocked_us = self.now_us
        return self.dirty.size() > 0

    cdef bint send_ident(self, Conn *c) noexcept nogil:
        cdef zmq_msg m
        cdef uint8_t *d
        self.sends += 1
        self.z.init_size(&m, 5)
        d = <uint8_t *> self.z.data(&m)
        d[0] = 0
        kv_store_u32(d + 1, c.rid)
        if self.z.send(&m, self.sock, ZMQ_DONTWAIT_ | ZMQ_SNDMORE_) < 0:
            self.z.close(&m)
            return False
        return True

    cdef bint send_buf(self, Conn *c) noexcept nogil:
        """One message with the packed answers; False when the socket is full or the peer gone."""
        cdef zmq_msg m
        cdef Sent *sent = NULL
        cdef int64_t queued = kv_count(&c.queued, 0)
        if c.out.err:
            self.drop_conn(c)
            return False
        if queued and queued + <int64_t> c.out.n > OUT_BYTES_MAX:
            return False
        if c.out.n >= ZERO_COPY_BYTES:
            sent = <Sent *> malloc(sizeof(Sent))
        if not self.send_ident(c):
            free(sent)
            if self.z.err() != EAGAIN_:
                self.drop_conn(c)
            return False
        if sent != NULL:
            sent.queued = &c.queued
            sent.n = <int64_t> c.out.n
            kv_count(&c.queued, sent.n)
            self.z.init_data(&m, c.out.p, c.out.n, free_data, sent)
            kv_buf_init(&c.out)
        else:
            self.z.init_size(&m, c.out.n)
            memcpy(self.z.data(&m), c.out.p, c.out.n)
            kv_buf_trim(&c.out, OUT_KEEP_BYTES)
        if self.z.send(&m, self.sock, ZMQ_DONTWAIT_) < 0:
            self.z.close(&m)
            self.drop_conn(c)
            return False
        return True

    cdef void send_plain(self, uint32_t number, int op, const uint8_t *p, size_t n) noexcept nogil:
        """One message without items, sent at once; what the socket does not take is lost."""
        cdef zmq_msg m
        cdef uint8_t *d
        cdef Conn *c = self.conns[number]
        if not self.send_ident(c):
            return
        self.z.init_size(&m, HEADER_BYTES + n)
        d = <uint8_t *> self.z.data(&m)
        memset(d, 0, HEADER_BYTES)
        memcpy(d, b"KVN1", 4)
        d[4] = <uint8_t> op
        if n:
            memcpy(d + HEADER_BYTES, p, n)
        if self.z.send(&m, self.sock, ZMQ_DONTWAIT_) < 0:
            self.z.close(&m)

    # --- connections ----------------------------------------------------------------------------

    def greet(self, uint32_t number, uint32_t generation, uint64_t session, uint32_t user,
              uint64_t credit, bytes body) -> None:
        """Accepts a HELLO: `body` is the HELLO_OK's, `credit` the bytes of unanswered requests
        that the connection may have."""
        cdef Conn *c = self.conns[number]
        if not c.used or c.generation != generation:
            return
        c.greeted = True
        c.session = session
        c.user = user
        c.credit = credit
        cdef const uint8_t *p = body
        self.send_plain(number, OP_HELLO_OK, p, len(body))

    def reject(self, uint32_t number, uint32_t generation, int code, bytes text) -> None:
        """Ends a connection with an ERROR message."""
        cdef Conn *c = self.conns[number]
        if c.used and c.generation == generation:
            self.fail(number, code, text)

    cdef int fail(self, uint32_t number, int code, bytes text) except -1:
        cdef bytes body = int(code).to_bytes(4, "little") + text
        cdef const uint8_t *p = body
        self.malformed += 1
        self.send_plain(number, OP_ERROR, p, len(body))
        self.drop(number)
        return 0

    cdef void drop_conn(self, Conn *c) noexcept nogil:
        it = self.by_rid.find(c.rid)
        if it == self.by_rid.end():
            return
        self.drop(self.by_rid[c.rid])

    cdef void drop(self, uint32_t number) noexcept nogil:
        cdef Conn *c = self.conns[number]
        if not c.used:
            return
        c.used = False
        self.by_rid.erase(c.rid)
        self.free_conns.push_back(number)
        kv_buf_free(&c.out)
        c.answers = 0

    cdef void end_blocked(self, uint32_t number) noexcept nogil:
        """Ends a connection whose client does not read: also its TCP, for what libzmq holds."""
        cdef Conn *c = self.conns[number]
        if c.used and c.fd >= 0 and self.flows.count(c.fd):
            kv_tcp_end(c.fd)
        self.drop(number)

    def expire(self, uint64_t now_us, uint64_t hello_us, uint64_t silent_us) -> int:
        """Ends connections without a HELLO for `hello_us` or silent for `silent_us`."""
        cdef size_t i
        cdef Conn *c
        cdef uint64_t limit
        cdef int ended = 0
        for i in range(self.conns.size()):
            c = self.conns[i]
            if c.used and c.blocked and now_us > c.blocked_us + silent_us:
                self.end_blocked(<uint32_t> i)
                ended += 1
            if not c.used or c.inflight:
                continue
            limit = silent_us if c.greeted else hello_us
            if now_us > c.seen_us and now_us - c.seen_us > limit:
                self.drop(<uint32_t> i)
                ended += 1
        return ended

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return self.by_rid.size()

    cdef void count_flow(self, zmq_msg *m) noexcept nogil:
        cdef size_t n = self.z.size(m)
        it = self.flows.find(self.z.get(m, ZMQ_SRCFD_))
        if it != self.flows.end():
            # A ZMTP frame's head is 2 bytes, 9 for a long frame.
            self.flows[self.z.get(m, ZMQ_SRCFD_)].delivered += n + (2 if n < 256 else 9)

    def watch(self, int fd) -> None:
        """A TCP connection was accepted on `fd`."""
        cdef Flow flow
        flow.received = kv_tcp_received(fd)
        flow.delivered = 0
        if flow.received >= 0:
            self.flows[fd] = flow

    def unwatch(self, int fd) -> None:
        """The connection on `fd` is closed."""
        self.flows.erase(fd)

    def end_hoarders(self, int64_t limit) -> int:
        """Ends TCP connections whose bytes libzmq holds without delivering them, above `limit`;
        returns how many."""
        cdef vector[int] ended
        cdef int64_t received
        cdef size_t i
        for pair in self.flows:
            received = kv_tcp_received(pair.first)
            if received < 0 or received - pair.second.received - pair.second.delivered > limit:
                ended.push_back(pair.first)
        for i in range(ended.size()):
            kv_tcp_end(ended[i])
            self.flows.erase(ended[i])
        return <int> ended.size()

    def take_events(self) -> list:
        """What happened that Python decides: hello, goodbye, request."""
        if not self.events:
            return []
        out = self.events
        self.events = []
        return out
