# distutils: language = c++
"""The native front of a gateway: ZeroMQ messages in, proposals out, results to answers.

Role: everything a request meets between the ROUTER socket and the log that would be per-request
Python otherwise: reading messages, packing groups into one proposal a turn, matching results to
requests. Below it stand `conns` (connections, credit, packed answers) and `readqueue` (reads).
Decisions that are rare (HELLO, administration, errors) are handed to Python as events.
Caller: procs/gateway, which owns the socket, the sessions, the links and the clock.

Invariants:
  1. A slot number is used once (they count up): a late or repeated result of an older group finds
     no slot and is dropped.
  2. Every request that entered a proposal gets exactly one answer, or its connection is gone.
  3. Requests without a session share the gateway's own: one group, one sequence, a proposal.

Layouts of the messages: docs/protocol.md; of groups and results: envelope.pyx.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from libcpp.deque cimport deque
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from kvnode._core.buf cimport (
    kv_arena, kv_arena_free, kv_arena_init, kv_arena_reset, kv_buf, kv_buf_free, kv_buf_grow,
    kv_buf_trim, kv_load_u16, kv_load_u32, kv_load_u64, kv_put_bytes, kv_rd, kv_rd_init,
    kv_store_u16, kv_store_u32,
)
from kvnode._core.codes cimport *
from kvnode._core.conns cimport (
    HEADER_BYTES, ITEM_BYTES, NO_CONN, OP_GOODBYE, OP_HELLO, OP_PING, OP_PONG, OP_REQUESTS,
    ZMQ_DONTWAIT_, ZMQ_SRCFD_, Conn, Ref, zmq_msg,
)
from kvnode._core.envelope cimport (
    ENV_ITEM, FLAG_CLIENT_SESSION, STATE_EXECUTED, STATE_REFUSED, Group, Result, ResultGroup,
    env_add_request, env_begin_batch, env_next_group, env_open_group, env_read_head,
    env_set_groups, res_next, res_next_group, res_results,
)
from kvnode._core.etcdpb cimport RangeReq, check_range, check_request, decode_range
from kvnode._core.readqueue cimport ReadQueue

from kvnode.base.errors import DecodeError

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


cdef class Front(ReadQueue):
    """One gateway's native listener; `functions` and `socket` as conns.Conns takes them."""

    cdef:
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
        kv_arena arena
        uint64_t member
        uint64_t incarnation
        uint64_t own_session
        uint64_t own_sequence
        uint64_t proposal_next
        uint64_t max_request
        uint64_t max_batch
        int64_t max_txn_ops
        readonly uint64_t open_bytes
        readonly uint64_t messages
        readonly uint64_t requests
        readonly uint64_t reads

    def __cinit__(self, functions, socket, *, member, incarnation, max_request_bytes,
                  max_batch_bytes, max_txn_ops, **_):
        self.member = member
        self.incarnation = incarnation
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

    def __dealloc__(self):
        cdef size_t i
        if self.slots != NULL:
            for i in range(self.slot_mask + 1):
                free(self.slots[i].many)
            free(self.slots)
        kv_buf_free(&self.batch)
        kv_buf_free(&self.own_body)
        kv_arena_free(&self.arena)

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
            self.add_read(ref, rr.serializable, p, n)
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
