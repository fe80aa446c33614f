# distutils: language = c++
"""The native front of a gateway: ZeroMQ messages in, proposals and reads out, answers back.

Role: everything a request meets between the ROUTER socket and the log that would be per-request
Python otherwise: reading messages, the connections' table, credit, packing groups into one
proposal a turn, matching results to requests, packing answers into one message a connection a
turn. Decisions that are rare (HELLO, administration, errors) are handed to Python as events.
Caller: procs/gateway, which owns the socket, the sessions, the links and the clock.

The socket is pyzmq's: its libzmq's functions are looked up by address (`env/zmqlib`) and called
without the GIL. One thread only.

Invariants:
  1. A slot number is used once (they count up): a late or repeated result of an older group finds
     no slot and is dropped.
  2. Every request that entered a proposal gets exactly one answer, or its connection is gone.
  3. A connection never has more unanswered request bytes than its credit: it is ended instead.
  4. Reads wait in two sets: `waiting` has its barrier, `gathering` came after that barrier began
     and gets the next one. A read is never answered from a barrier begun before it arrived.
  5. Requests without a session share the gateway's own: one group, one sequence, a proposal.
  6. A connection has at most about OUT_BYTES_MAX of answers that its client has not taken: reads
     wait above that, answers to writes above OUT_BYTES_END end the connection.

Layouts of the messages: docs/protocol.md; of groups and results: envelope.pyx.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from libcpp.deque cimport deque
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from kvnode._core.buf cimport (
    kv_arena, kv_arena_free, kv_arena_init, kv_arena_reset, kv_buf, kv_buf_clear, kv_buf_free,
    kv_buf_grow, kv_buf_init, kv_buf_trim, kv_load_u16, kv_load_u32, kv_load_u64,
    kv_put_bytes, kv_rd, kv_rd_init, kv_store_u16, kv_store_u32,
)
from kvnode._core.codes cimport *
from kvnode._core.envelope cimport (
    ENV_ITEM, FLAG_CLIENT_SESSION, STATE_EXECUTED, STATE_REFUSED, Group, Result, ResultGroup,
    env_add_request, env_begin_batch, env_next_group, env_open_group, env_read_head,
    env_set_groups, res_next, res_next_group, res_results,
)
from kvnode._core.etcdpb cimport RangeReq, RespHeader, check_range, check_request, decode_range
from kvnode._core.ranges cimport (
    RANGE_MORE, RangeReader, RangeState, range_free, range_init, range_step, reader_serve,
)
from kvnode._core.records cimport REC_CORRUPT, REC_NOMEM, REC_NONE, REC_OK

from kvnode.base.errors import DecodeError

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
    ZMQ_SRCFD_ = 2
    EAGAIN_ = 11
    EHOSTUNREACH_ = 113
    ZMQ_DONTWAIT_ = 1
    ZMQ_SNDMORE_ = 2

    HEADER_BYTES = 32
    ITEM_BYTES = 24
    ANSWER_BYTES = 16

    OP_HELLO = 1
    OP_HELLO_OK = 2
    OP_REQUESTS = 3
    OP_ANSWERS = 4
    OP_PING = 5
    OP_PONG = 6
    OP_GOODBYE = 7
    OP_ERROR = 8

    NO_CONN = 0xffffffff
    ZERO_COPY_BYTES = 16384
    OUT_KEEP_BYTES = 65536
    SLICE_WORK = 10000           # units of 100 ns: a slice of a long read lasts about 1 ms
    SLICE_BYTES = 262144
    SORT_BYTES_MAX = 268435456   # what a sorted read may remember of the keys it sorts
    OUT_BYTES_MAX = 33554432     # answers not taken by a client: its reads wait
    OUT_BYTES_END = 268435456    # its connection ends
    LONGS_MAX = 8                # long reads under way of one connection

cdef struct zmq_msg:
    uint64_t opaque[8]

ctypedef int (*fn_msg)(zmq_msg *) noexcept nogil
ctypedef int (*fn_msg_size)(zmq_msg *, size_t) noexcept nogil
ctypedef int (*fn_msg_data)(zmq_msg *, void *, size_t, void (*)(void *, void *) noexcept nogil,
                            void *) noexcept nogil
ctypedef void *(*fn_data)(zmq_msg *) noexcept nogil
ctypedef size_t (*fn_size)(zmq_msg *) noexcept nogil
ctypedef int (*fn_io)(zmq_msg *, void *, int) noexcept nogil
ctypedef int (*fn_get)(zmq_msg *, int) noexcept nogil
ctypedef int (*fn_errno)() noexcept nogil

cdef struct Zmq:
    fn_msg init
    fn_msg_size init_size
    fn_msg_data init_data
    fn_msg close
    fn_msg more
    fn_data data
    fn_size size
    fn_io recv
    fn_io send
    fn_get get
    fn_errno err

cdef struct Conn:
    bint used
    bint greeted
    bint blocked           # the socket did not take its answers: tried again each turn
    bint held              # some of its reads wait in `held`
    int fd                 # of its TCP connection, -1 when not known
    uint32_t longs
    int64_t queued         # bytes of large answers that libzmq holds
    uint64_t blocked_us
    bint dirty
    uint32_t rid
    uint32_t generation
    uint32_t user
    uint64_t session
    uint64_t lowest
    uint64_t inflight
    uint64_t credit
    uint64_t seen_us
    uint32_t answers
    kv_buf out

cdef struct Ref:
    uint32_t conn          # NO_CONN: Python's own request, id is its token
    uint32_t generation
    uint32_t id
    uint32_t size

cdef struct Slot:
    uint32_t number
    bint used
    uint32_t count
    uint64_t proposal
    uint64_t sequence      # of the gateway's own session, 0: a client's
    Ref one
    Ref *many

cdef struct Proposal:
    uint32_t left
    uint64_t size

cdef struct ReadItem:
    Ref ref
    bint serializable
    size_t at
    size_t n

# A TCP connection as the kernel and libzmq see it. libzmq keeps the frames of an unfinished
# multipart message without a bound; what it received and did not deliver is that memory.
cdef struct Flow:
    int64_t received       # by the kernel, when the watch began
    int64_t delivered      # by libzmq, since then

# A Range that did not end within its first slice: it goes on, one slice a turn, each in a newer
# snapshot at the same revision.
cdef struct LongRead:
    Ref ref
    RangeReq req
    RangeState state
    kv_buf body            # what req's slices point into
    kv_buf out

cdef struct ReadSet:
    kv_buf bodies
    size_t n
    size_t cap
    ReadItem *items


cdef struct Sent:
    int64_t *queued
    int64_t n


cdef void free_data(void *data, void *hint) noexcept nogil:
    cdef Sent *sent = <Sent *> hint
    kv_count(sent.queued, -sent.n)
    free(sent)
    free(data)


cdef int read_add(
    ReadSet *s, Ref ref, bint serializable, const uint8_t *p, size_t n,
) noexcept nogil:
    cdef ReadItem *grown
    cdef size_t cap
    if s.n == s.cap:
        cap = s.cap * 2 if s.cap else 64
        grown = <ReadItem *> malloc(cap * sizeof(ReadItem))
        if grown == NULL:
            return -1
        if s.n:
            memcpy(grown, s.items, s.n * sizeof(ReadItem))
        free(s.items)
        s.items = grown
        s.cap = cap
    s.items[s.n].ref = ref
    s.items[s.n].serializable = serializable
    s.items[s.n].at = s.bodies.n
    s.items[s.n].n = n
    kv_put_bytes(&s.bodies, p, n)
    s.n += 1
    return 0 if not s.bodies.err else -1


cdef class Front:
    """One gateway's native listener. `functions` are libzmq's addresses by name, `socket` is the
    address of a bound ROUTER socket (pyzmq's `underlying`)."""

    cdef:
        Zmq z
        void *sock
        vector[Conn *] conns
        vector[uint32_t] free_conns
        unordered_map[uint32_t, uint32_t] by_rid
        vector[uint32_t] dirty
        Slot *slots
        uint32_t slot_mask
        uint32_t slot_next
        uint32_t slots_used
        unordered_map[uint64_t, Proposal] proposals
        vector[uint64_t] finished
        deque[uint64_t] own_open
        unordered_map[uint64_t, bint] own_done
        kv_buf batch
        uint32_t batch_groups
        vector[Ref] own_refs
        kv_buf own_body
        vector[uint32_t] own_kinds
        kv_arena arena
        ReadSet waiting
        ReadSet gathering
        ReadSet serial
        ReadSet held
        vector[uint32_t] holders
        vector[LongRead *] longs
        unordered_map[int, Flow] flows
        uint64_t member
        uint64_t incarnation
        uint64_t own_session
        uint64_t own_sequence
        uint64_t proposal_next
        uint64_t max_request
        uint64_t max_batch
        int64_t max_txn_ops
        uint64_t now_us
        readonly uint64_t open_bytes
        readonly uint64_t messages
        readonly uint64_t requests
        readonly uint64_t reads
        readonly uint64_t malformed
        RespHeader head
        list events

    def __cinit__(self, dict functions, uintptr_t socket, *, member, cluster, incarnation,
                  max_request_bytes, max_batch_bytes, max_txn_ops):
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
        self.member = member
        self.incarnation = incarnation
        self.head.member_id = member
        self.head.cluster_id = cluster
        self.max_request = max_request_bytes
        self.max_batch = max_batch_bytes
        self.max_txn_ops = max_txn_ops
        self.slot_mask = (1 << 16) - 1
        self.slots = <Slot *> calloc(self.slot_mask + 1, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError
        self.slot_next = 1
        self.proposal_next = 1
        self.own_sequence = 1
        kv_arena_init(&self.arena)
        self.events = []

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.longs.size()):
            self.free_long(self.longs[i])
        for i in range(self.conns.size()):
            kv_buf_free(&self.conns[i].out)
            free(self.conns[i])
        if self.slots != NULL:
            for i in range(self.slot_mask + 1):
                free(self.slots[i].many)
            free(self.slots)
        kv_buf_free(&self.batch)
        kv_buf_free(&self.own_body)
        kv_arena_free(&self.arena)
        kv_buf_free(&self.waiting.bodies)
        kv_buf_free(&self.gathering.bodies)
        kv_buf_free(&self.serial.bodies)
        kv_buf_free(&self.held.bodies)
        free(self.held.items)
        free(self.waiting.items)
        free(self.gathering.items)
        free(self.serial.items)

    # --- receiving ------------------------------------------------------------------------------

    def drain(self, uint64_t now_us, int most=4096) -> int:
        """Takes up to `most` messages from the socket; returns how many there were.

        Afterwards: `take_proposal()` for the writes, `reads_gathering` for the reads,
        `take_events()` for what Python must decide.
        """
        cdef zmq_msg ident, body
        cdef int taken = 0, bad
        cdef uint32_t conn
        self.now_us = now_us
        while taken < most:
            self.z.init(&ident)
            if self.z.recv(&ident, self.sock, ZMQ_DONTWAIT_) < 0:
                self.z.close(&ident)
                break
            taken += 1
            self.z.init(&body)
            bad = 0
            if not self.z.more(&ident) or self.z.recv(&body, self.sock, ZMQ_DONTWAIT_) < 0:
                bad = 1
            while self.z.more(&body):
                # More than one frame: not this protocol. Read it out, end the connection.
                bad = 1
                self.count_flow(&body)
                self.z.close(&body)
                self.z.init(&body)
                if self.z.recv(&body, self.sock, ZMQ_DONTWAIT_) < 0:
                    break
            self.count_flow(&body)
            conn = self.conn_of(<const uint8_t *> self.z.data(&ident), self.z.size(&ident))
            if conn != NO_CONN:
                self.conns[conn].seen_us = now_us
                if self.conns[conn].fd < 0:
                    self.conns[conn].fd = self.z.get(&body, ZMQ_SRCFD_)
                if bad:
                    self.fail(conn, CODE_MALFORMED, b"one message is one frame")
                else:
                    self.on_message(conn, <const uint8_t *> self.z.data(&body),
                                    self.z.size(&body))
            else:
                self.malformed += 1
            self.z.close(&body)
            self.z.close(&ident)
        self.messages += taken
        return taken

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

    cdef int on_message(self, uint32_t number, const uint8_t *p, size_t n) except -1:
        cdef Conn *c = self.conns[number]
        cdef int op
        cdef uint32_t count
        if n < HEADER_BYTES or p[0] != 75 or p[1] != 86 or p[2] != 78 or p[3] != 49:
            return self.fail(number, CODE_MALFORMED, b"not a KVN1 message")
        op = p[4]
        if p[5] != 0 or kv_load_u16(p + 6) != 0 or kv_load_u32(p + 12) != 0:
            return self.fail(number, CODE_UNKNOWN_FLAGS, b"message header")
        count = kv_load_u32(p + 8)
        if op == OP_HELLO:
            self.events.append(("hello", number, c.generation, p[HEADER_BYTES:n]))
            return 0
        if not c.greeted:
            return self.fail(number, CODE_MALFORMED, b"HELLO comes first")
        if op == OP_REQUESTS:
            return self.on_requests(number, count, kv_load_u64(p + 16), kv_load_u64(p + 24),
                                    p + HEADER_BYTES, n - HEADER_BYTES)
        if op == OP_PING:
            self.send_plain(number, OP_PONG, p + HEADER_BYTES, n - HEADER_BYTES)
            return 0
        if op == OP_GOODBYE:
            self.events.append(("goodbye", number, c.generation, p[HEADER_BYTES:n]))
            self.drop(number)
            return 0
        return self.fail(number, CODE_MALFORMED, b"unknown opcode")

    cdef int on_requests(self, uint32_t number, uint32_t count, uint64_t session, uint64_t lowest,
                         const uint8_t *p, size_t n) except -1:
        cdef Conn *c = self.conns[number]
        cdef size_t at = 0
        cdef uint32_t size, left = count
        cdef uint64_t sequence
        cdef int kind, code
        cdef Ref ref
        if session != 0 and session != c.session:
            return self.fail(number, CODE_OUTCOME_UNKNOWN, b"the session is another connection's")
        ref.conn = number
        ref.generation = c.generation
        while left:
            if n - at < ITEM_BYTES:
                return self.fail(number, CODE_MALFORMED, b"item header is cut short")
            ref.id = kv_load_u32(p + at)
            size = kv_load_u32(p + at + 4)
            kind = p[at + 8]
            sequence = kv_load_u64(p + at + 16)
            if p[at + 9] != 0 or kv_load_u16(p + at + 10) != 0 or kv_load_u32(p + at + 12) != 0:
                return self.fail(number, CODE_UNKNOWN_FLAGS, b"item header")
            at += ITEM_BYTES
            if n - at < size:
                return self.fail(number, CODE_MALFORMED, b"item body is cut short")
            ref.size = size + ITEM_BYTES
            c.inflight += ref.size
            if c.inflight > c.credit:
                return self.fail(number, CODE_TOO_MANY_REQUESTS, b"credit exceeded")
            self.requests += 1
            code = self.on_request(&ref, kind, session, sequence, lowest, p + at, size)
            if code:
                self.answer_ref(&ref, code, STATE_EXECUTED, NULL, 0)
            at += size
            left -= 1
        if at != n:
            return self.fail(number, CODE_MALFORMED, b"bytes after the last item")
        return 0

    cdef int on_request(self, Ref *ref, int kind, uint64_t session, uint64_t sequence,
                        uint64_t lowest, const uint8_t *p, size_t n) except -1:
        """Queues one request; a CODE_ other than 0 refuses it here."""
        cdef RangeReq rr
        cdef int code
        cdef bint batch = kind == KIND_PUT_BATCH or kind == KIND_PUT_BATCH_ONE \
            or kind == KIND_TXN_BATCH
        cdef bint large = n > (self.max_batch if batch else self.max_request)
        if kind == KIND_RANGE:
            code = decode_range(p, n, &rr)
            if code == CODE_OK:
                code = check_range(&rr)
            if code:
                return code
            self.reads += 1
            if read_add(&self.serial if rr.serializable else &self.gathering, ref[0],
                        rr.serializable, p, n) < 0:
                raise MemoryError
            return CODE_OK
        if batch or (KIND_PUT <= kind <= KIND_COMPACT):
            kv_arena_reset(&self.arena)
            # As etcd: what is wrong with a request is said before that it is too large.
            code = check_request(kind, p, n, self.max_txn_ops, &self.arena)
            if self.arena.err:
                raise MemoryError
            if code or large:
                return code if code else CODE_REQUEST_TOO_LARGE
            if sequence != 0 and session != 0:
                self.add_client_group(ref, kind, session, sequence, lowest, p, n)
            else:
                self.add_own(ref, kind, p, n)
            return CODE_OK
        if large:
            return CODE_REQUEST_TOO_LARGE
        self.events.append(("request", ref.conn, ref.generation, ref.id, ref.size, kind, p[:n]))
        return CODE_OK

    # --- proposals ------------------------------------------------------------------------------

    cdef Slot *new_slot(self) except NULL:
        cdef Slot *s
        cdef Slot *grown
        cdef uint32_t i, mask
        if self.slots_used * 2 > self.slot_mask:
            mask = self.slot_mask * 2 + 1
            grown = <Slot *> calloc(<size_t> mask + 1, sizeof(Slot))
            if grown == NULL:
                raise MemoryError
            for i in range(self.slot_mask + 1):
                if self.slots[i].used:
                    grown[self.slots[i].number & mask] = self.slots[i]
            free(self.slots)
            self.slots = grown
            self.slot_mask = mask
        while True:
            s = &self.slots[self.slot_next & self.slot_mask]
            if not s.used:
                break
            self.slot_next += 1
        memset(s, 0, sizeof(Slot))
        s.used = True
        s.number = self.slot_next
        s.proposal = self.proposal_next
        self.slot_next += 1
        self.slots_used += 1
        return s

    cdef int open_batch(self) except -1:
        if self.batch_groups == 0:
            kv_buf_trim(&self.batch, 1 << 20)
            env_begin_batch(&self.batch, 0)
        self.batch_groups += 1
        return 0

    cdef int add_client_group(self, Ref *ref, int kind, uint64_t session, uint64_t sequence,
                              uint64_t lowest, const uint8_t *p, size_t n) except -1:
        cdef Slot *s = self.new_slot()
        cdef Group g
        cdef size_t at
        memset(&g, 0, sizeof(Group))
        s.count = 1
        s.one = ref[0]
        g.flags = FLAG_CLIENT_SESSION
        g.session = session
        g.sequence = sequence
        g.lowest = lowest
        g.member = self.member
        g.incarnation = self.incarnation
        g.slot = s.number
        g.user = self.conns[ref.conn].user
        self.open_batch()
        at = env_open_group(&self.batch, &g)
        env_add_request(&self.batch, at, <uint8_t> kind, 0, p, n)
        return 0

    cdef int add_own(self, Ref *ref, int kind, const uint8_t *p, size_t n) except -1:
        cdef uint8_t *d = kv_buf_grow(&self.own_body, 8 + n)
        if d == NULL:
            raise MemoryError
        d[0] = <uint8_t> kind
        d[1] = 0
        kv_store_u16(d + 2, 0)
        kv_store_u32(d + 4, <uint32_t> n)
        if n:
            memcpy(d + 8, p, n)
        self.own_refs.push_back(ref[0])
        return 0

    cdef int close_own(self) except -1:
        """The requests without a session become one group of the gateway's own session."""
        cdef Slot *s
        cdef Group g
        cdef size_t count = self.own_refs.size(), at
        if count == 0:
            return 0
        s = self.new_slot()
        s.count = <uint32_t> count
        if count == 1:
            s.one = self.own_refs[0]
        else:
            s.many = <Ref *> malloc(count * sizeof(Ref))
            if s.many == NULL:
                raise MemoryError
            memcpy(s.many, self.own_refs.data(), count * sizeof(Ref))
        memset(&g, 0, sizeof(Group))
        g.session = self.own_session
        if self.own_session:
            g.sequence = self.own_sequence
            s.sequence = g.sequence
            self.own_open.push_back(g.sequence)
            self.own_sequence += 1
            g.lowest = self.own_open.front()
        g.member = self.member
        g.incarnation = self.incarnation
        g.slot = s.number
        g.count = <uint32_t> count
        self.open_batch()
        at = env_open_group(&self.batch, &g)
        # The requests stand already in the envelope's form.
        kv_put_bytes(&self.batch, self.own_body.p, self.own_body.n)
        kv_store_u32(self.batch.p + at + 4, <uint32_t> count)
        kv_store_u32(self.batch.p + at + 8, <uint32_t> self.own_body.n)
        self.own_refs.clear()
        kv_buf_trim(&self.own_body, 1 << 20)
        return 0

    def take_proposal(self):
        """(number, batch) of everything gathered since the last call, or None.

        The caller keeps the bytes until `take_finished` names the number, and proposes them again
        after a death.
        """
        cdef Proposal made
        self.close_own()
        if self.batch_groups == 0:
            return None
        if self.batch.err:
            raise MemoryError
        env_set_groups(&self.batch, 0, self.batch_groups)
        made.left = self.batch_groups
        made.size = self.batch.n
        data = self.batch.p[:self.batch.n]
        number = self.proposal_next
        self.proposals[self.proposal_next] = made
        self.open_bytes += made.size
        self.proposal_next += 1
        self.batch_groups = 0
        return number, data

    @property
    def gathered_bytes(self) -> int:
        """Bytes of the proposal being gathered."""
        return self.batch.n * (self.batch_groups > 0) + self.own_body.n

    @property
    def own_open_count(self) -> int:
        """Sequences of the gateway's own session that are not answered."""
        return self.own_open.size()

    def propose(self, uint32_t token, int kind, const unsigned char[::1] body not None) -> None:
        """A request of Python's own; its result comes as the event ("own", token, code, body)."""
        cdef Ref ref
        ref.conn = NO_CONN
        ref.generation = 0
        ref.id = token
        ref.size = 0
        self.add_own(&ref, kind, &body[0] if body.shape[0] else NULL, body.shape[0])

    def propose_for(self, uint32_t number, uint32_t generation, uint32_t rid, uint32_t size,
                    int kind, const unsigned char[::1] body not None) -> None:
        """A connection's request that came as an event and goes into the log after all."""
        cdef Ref ref
        ref.conn = number
        ref.generation = generation
        ref.id = rid
        ref.size = size
        self.add_own(&ref, kind, &body[0] if body.shape[0] else NULL, body.shape[0])

    def set_term(self, uint64_t term) -> None:
        """The Raft term that answers to reads carry."""
        self.head.raft_term = term

    def set_session(self, uint64_t session) -> None:
        """The gateway's own session is registered; its sequences begin at 1."""
        self.own_session = session
        self.own_sequence = 1

    # --- results --------------------------------------------------------------------------------

    def on_results(self, const unsigned char[::1] data not None) -> None:
        """Result groups from the applier; answers are packed and leave with `flush`."""
        cdef kv_rd r, rr
        cdef ResultGroup g
        cdef Result q
        cdef uint32_t left, i
        cdef int verdict
        cdef Slot *s
        cdef Ref *refs
        if data.shape[0] == 0:
            return
        kv_rd_init(&r, &data[0], data.shape[0])
        while True:
            verdict = res_next_group(&r, &g)
            if verdict != ENV_ITEM:
                break
            if g.incarnation != self.incarnation:
                continue
            s = &self.slots[g.slot & self.slot_mask]
            if not s.used or s.number != g.slot:
                continue
            refs = s.many if s.many != NULL else &s.one
            i = 0
            res_results(&g, &rr, &left)
            while res_next(&rr, &left, &q) == ENV_ITEM and i < s.count:
                self.answer_ref(&refs[i], g.code if g.state == STATE_REFUSED else q.code,
                                g.state, q.body.p, q.body.n)
                i += 1
            while i < s.count:
                self.answer_ref(&refs[i], g.code if g.state == STATE_REFUSED
                                else CODE_UNAVAILABLE, g.state, NULL, 0)
                i += 1
            self.end_slot(s)
        if verdict < 0:
            raise DecodeError("results are not well-formed")

    cdef int end_slot(self, Slot *s) except -1:
        cdef Proposal *made
        if s.sequence:
            self.own_done[s.sequence] = True
            while self.own_open.size() and self.own_done.count(self.own_open.front()):
                self.own_done.erase(self.own_open.front())
                self.own_open.pop_front()
        it = self.proposals.find(s.proposal)
        if it != self.proposals.end():
            made = &self.proposals[s.proposal]
            made.left -= 1
            if made.left == 0:
                self.open_bytes -= made.size
                self.finished.push_back(s.proposal)
                self.proposals.erase(s.proposal)
        free(s.many)
        s.many = NULL
        s.used = False
        self.slots_used -= 1
        return 0

    def take_finished(self) -> list:
        """Numbers of proposals whose groups are all answered since the last call."""
        out = [self.finished[i] for i in range(self.finished.size())]
        self.finished.clear()
        return out

    def refuse(self, const unsigned char[::1] batch not None, int code) -> None:
        """Answers every group of a proposal that consensus did not take with `code`."""
        cdef kv_rd r
        cdef uint32_t left, i
        cdef Group g
        cdef Slot *s
        cdef Ref *refs
        kv_rd_init(&r, &batch[0], batch.shape[0])
        if env_read_head(&r, &left) != ENV_ITEM:
            raise DecodeError("not a batch")
        while env_next_group(&r, &left, &g) == ENV_ITEM:
            s = &self.slots[g.slot & self.slot_mask]
            if not s.used or s.number != g.slot:
                continue
            refs = s.many if s.many != NULL else &s.one
            for i in range(s.count):
                self.answer_ref(&refs[i], code, STATE_REFUSED, NULL, 0)
            self.end_slot(s)

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

    cdef int answer_ref(self, Ref *ref, int code, int state, const uint8_t *p, size_t n) except -1:
        cdef Conn *c
        cdef uint8_t *d
        if ref.conn == NO_CONN:
            self.events.append(("own", ref.id, code, p[:n] if n else b""))
            return 0
        c = self.conns[ref.conn]
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

    def answer(self, uint32_t number, uint32_t generation, uint32_t rid, uint32_t size, int code,
               bytes body=b"") -> None:
        """Answers one request that came as an event."""
        cdef Ref ref
        ref.conn = number
        ref.generation = generation
        ref.id = rid
        ref.size = size
        cdef const uint8_t *p = body
        self.answer_ref(&ref, code, STATE_EXECUTED, p, len(body))

    def flush(self) -> bool:
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
        return self.release_held() or self.dirty.size() > 0

    cdef bint full(self, Conn *c) noexcept nogil:
        """Its client has not taken enough of its answers for more reads."""
        return <int64_t> c.out.n + kv_count(&c.queued, 0) > OUT_BYTES_MAX or c.longs >= LONGS_MAX

    cdef int hold(self, ReadItem *item, const uint8_t *p) except -1:
        """A read waits until its client has taken answers."""
        cdef Conn *c = self.conns[item.ref.conn]
        if not c.held:
            c.held = True
            self.holders.push_back(item.ref.conn)
        if read_add(&self.held, item.ref, item.serializable, p, item.n) < 0:
            raise MemoryError
        return 0

    cdef bint release_held(self) except? True:
        """Held reads gather again once a client has taken answers; True while there are any."""
        cdef size_t i
        cdef ReadItem *item
        cdef Conn *c
        cdef bint some = False
        if self.held.n == 0:
            return False
        for i in range(self.holders.size()):
            c = self.conns[self.holders[i]]
            some = some or not c.used or not self.full(c)
        if not some:
            return True
        for i in range(self.holders.size()):
            self.conns[self.holders[i]].held = False
        self.holders.clear()
        for i in range(self.held.n):
            item = &self.held.items[i]
            c = self.conns[item.ref.conn]
            if c.used and c.generation == item.ref.generation:
                if read_add(&self.gathering, item.ref, item.serializable,
                            self.held.bodies.p + item.at, item.n) < 0:
                    raise MemoryError
        self.held.n = 0
        kv_buf_trim(&self.held.bodies, 1 << 20)
        return True

    cdef bint send_ident(self, Conn *c) noexcept nogil:
        cdef zmq_msg m
        cdef uint8_t *d
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
        """What happened that Python decides: hello, goodbye, request, own."""
        if not self.events:
            return []
        out = self.events
        self.events = []
        return out

    # --- reads ----------------------------------------------------------------------------------

    @property
    def reads_gathering(self) -> int:
        """Reads that arrived and have no barrier yet."""
        return self.gathering.n

    @property
    def reads_waiting(self) -> int:
        """Reads whose barrier is under way or reached but not applied here."""
        return self.waiting.n

    @property
    def reads_serializable(self) -> int:
        """Reads that need no barrier."""
        return self.serial.n

    def begin_barrier(self) -> None:
        """The gathered reads become the waiting ones: ask for the barrier after this."""
        cdef ReadSet t
        assert self.waiting.n == 0
        t = self.waiting
        self.waiting = self.gathering
        self.gathering = t

    def serve_waiting(self, RangeReader reader) -> None:
        """Answers the waiting reads from the reader's snapshot."""
        self.serve(reader, &self.waiting)

    def serve_serializable(self, RangeReader reader) -> None:
        """Answers the reads that asked for whatever this member has."""
        self.serve(reader, &self.serial)

    def refuse_waiting(self, int code) -> None:
        """Answers the waiting reads with a refusal (no leader, stopping)."""
        cdef size_t i
        for i in range(self.waiting.n):
            self.answer_ref(&self.waiting.items[i].ref, code, STATE_EXECUTED, NULL, 0)
        self.waiting.n = 0
        kv_buf_trim(&self.waiting.bodies, 1 << 20)

    cdef int serve(self, RangeReader reader, ReadSet *s) except -1:
        cdef size_t i, at, body_at
        cdef ReadItem *item
        cdef Conn *c
        cdef const uint8_t *p
        cdef RangeReq req
        cdef int code
        for i in range(s.n):
            item = &s.items[i]
            if item.ref.conn == NO_CONN:
                continue
            c = self.conns[item.ref.conn]
            if not c.used or c.generation != item.ref.generation:
                continue
            p = s.bodies.p + item.at
            if self.full(c):
                self.hold(item, p)
                continue
            if decode_range(p, item.n, &req) == CODE_OK and req.range_end.n:
                self.begin_long(reader, item, p)
                continue
            at = self.open_answer(c, &item.ref)
            body_at = c.out.n
            code = reader_serve(reader, KIND_RANGE, p, item.n, &self.head, &c.out)
            self.close_answer(c, &item.ref, at, body_at, code)
        s.n = 0
        kv_buf_trim(&s.bodies, 1 << 20)
        return 0

    cdef size_t open_answer(self, Conn *c, Ref *ref) except? 0:
        """Room for an answer's header; its body is appended to c.out next."""
        cdef size_t at
        self.open_answers(c, ref.conn)
        at = c.out.n
        if kv_buf_grow(&c.out, ANSWER_BYTES) == NULL:
            raise MemoryError
        return at

    cdef void close_answer(self, Conn *c, Ref *ref, size_t at, size_t body_at,
                           int code) noexcept nogil:
        cdef uint8_t *d
        if code:
            c.out.n = body_at
        d = c.out.p + at
        kv_store_u32(d, ref.id)
        kv_store_u32(d + 4, <uint32_t> (c.out.n - body_at))
        d[8] = <uint8_t> code
        d[9] = 0
        kv_store_u16(d + 10, 0)
        kv_store_u32(d + 12, 0)
        c.answers += 1
        c.inflight -= ref.size

    # --- long reads -----------------------------------------------------------------------------

    cdef int begin_long(self, RangeReader reader, ReadItem *item, const uint8_t *p) except -1:
        """A Range over several keys: its first slice now, the others one a turn."""
        cdef LongRead *r = <LongRead *> calloc(1, sizeof(LongRead))
        cdef int code
        if r == NULL:
            raise MemoryError
        r.ref = item.ref
        self.conns[r.ref.conn].longs += 1
        kv_put_bytes(&r.body, p, item.n)
        if r.body.err:
            free(r)
            raise MemoryError
        decode_range(r.body.p, r.body.n, &r.req)
        self.head.revision = <int64_t> reader.heads.revision
        code = range_init(&r.state, &r.req, <int64_t> reader.heads.revision,
                          <int64_t> reader.heads.compacted, &self.head, &r.out)
        if code != CODE_OK:
            self.end_long(r, code)
            return 0
        r.state.items_bytes_max = SORT_BYTES_MAX
        if not self.step_one(reader, r):
            self.longs.push_back(r)
        return 0

    cdef bint step_one(self, RangeReader reader, LongRead *r) except? True:
        """One slice; True when the read is answered (and freed)."""
        cdef int code = range_step(&r.state, &reader.store.ops, reader.txn,
                                   <int64_t> reader.heads.freed, SLICE_WORK, SLICE_BYTES, &r.out)
        if code == RANGE_MORE:
            return False
        if code == REC_OK:
            self.end_long(r, CODE_OK)
        elif code == REC_NONE:
            self.end_long(r, CODE_COMPACTED)
        elif code == REC_NOMEM:
            self.end_long(r, CODE_TOO_MANY_REQUESTS)
        elif code == REC_CORRUPT:
            self.end_long(r, CODE_CORRUPT)
        else:
            self.end_long(r, CODE_UNAVAILABLE)
        return True

    cdef int end_long(self, LongRead *r, int code) except -1:
        self.answer_ref(&r.ref, code, STATE_EXECUTED, r.out.p if code == CODE_OK else NULL,
                        r.out.n if code == CODE_OK else 0)
        self.free_long(r)
        return 0

    cdef void free_long(self, LongRead *r) noexcept nogil:
        cdef Conn *c = self.conns[r.ref.conn]
        if c.generation == r.ref.generation and c.longs:
            c.longs -= 1
        range_free(&r.state)
        kv_buf_free(&r.body)
        kv_buf_free(&r.out)
        free(r)

    def step_long(self, RangeReader reader) -> bool:
        """One slice of every long read on the reader's snapshot; True while some are left."""
        cdef vector[LongRead *] todo
        cdef size_t i
        cdef LongRead *r
        cdef Conn *c
        todo.swap(self.longs)
        for i in range(todo.size()):
            r = todo[i]
            c = self.conns[r.ref.conn]
            if not c.used or c.generation != r.ref.generation:
                self.free_long(r)
            elif not self.step_one(reader, r):
                self.longs.push_back(r)
        return self.longs.size() > 0

    def lowest_reading(self) -> int:
        """The lowest revision that a long read reads at, 0 when there is none."""
        cdef size_t i
        cdef int64_t lowest = 0
        for i in range(self.longs.size()):
            if lowest == 0 or self.longs[i].state.revision < lowest:
                lowest = self.longs[i].state.revision
        return lowest

    @property
    def long_reads(self) -> int:
        """Long reads under way."""
        return self.longs.size()
