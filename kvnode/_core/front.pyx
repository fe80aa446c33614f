# distutils: language = c++
"""The front of a gateway: requests in, proposals out, results to answers.

Role: what a write meets between a door and the log, whichever door it came through: checked,
packed into one proposal a turn, its result matched to it. Reads go on to `readqueue`; answers go
to the sink that the request's Ref names (`sink`).
Caller: the doors (`nativefront`, `grpckv`) hand in requests; procs/gateway owns the sessions, the
links and the clock.

Invariants:
  1. A slot number is used once (they count up): a late or repeated result of an older group finds
     no slot and is dropped.
  2. Every request that entered a proposal gets exactly one answer, or its client is gone.
  3. Requests without a session share the gateway's own: one group, one sequence, a proposal.
  4. A grant of a lease is completed before it is proposed (`leasepb`): the log names its id.
  5. A proposal is sealed once it is above PROPOSAL_BYTES_SOFT; what follows goes into the next.

Layouts of groups and results: envelope.pyx.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from kvnode._core.buf cimport (
    kv_arena_free, kv_arena_init, kv_arena_reset, kv_buf_clear, kv_buf_free, kv_buf_grow,
    kv_buf_trim, kv_put_bytes, kv_rd, kv_rd_init, kv_store_u16, kv_store_u32,
)
from kvnode._core.codes cimport *
from kvnode._core.envelope cimport (
    ENV_ITEM, FLAG_CLIENT_SESSION, STATE_REFUSED, Group, Result, ResultGroup, env_add_request,
    env_begin_batch, env_next_group, env_open_group, env_read_head, env_set_groups, res_next,
    res_next_group, res_results,
)
from kvnode._core.etcdpb cimport (
    CompactReq, RangeReq, check_range, check_request, decode_compact, decode_range,
)
from kvnode._core.freed cimport FreedSink
from kvnode._core.leasepb cimport lease_grant_complete
from kvnode._core.readqueue cimport READ_SERIALIZABLE, ReadQueue
from kvnode._core.sink cimport OwnSink, Ref, Sink, Sinks

from kvnode.base.errors import DecodeError
from kvnode.base.limits import PROPOSAL_BYTES_SOFT


cdef class Front:
    """Answers go into `sinks`, of which `own` is Python's and `freed` has those of physical
    compactions wait; reads go into `queue`."""

    def __cinit__(self, Sinks sinks not None, OwnSink own not None, FreedSink freed not None,
                  ReadQueue queue not None, *, member, incarnation, max_request_bytes,
                  max_batch_bytes, max_txn_ops):
        self.sinks = sinks
        self.own = own
        self.freed = freed
        self.queue = queue
        self.member = member
        self.incarnation = incarnation
        self.max_request = max_request_bytes
        self.max_batch = max_batch_bytes
        self.max_txn_ops = max_txn_ops
        self.soft_bytes = PROPOSAL_BYTES_SOFT
        self.slot_mask = (1 << 16) - 1
        self.slots = <Slot *> calloc(self.slot_mask + 1, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError
        self.slot_next = 1
        self.proposal_next = 1
        self.own_sequence = 1
        self.sealed = []
        kv_arena_init(&self.arena)

    def __dealloc__(self):
        cdef size_t i
        if self.slots != NULL:
            for i in range(self.slot_mask + 1):
                free(self.slots[i].many)
            free(self.slots)
        kv_buf_free(&self.batch)
        kv_buf_free(&self.own_body)
        kv_buf_free(&self.grant)
        kv_arena_free(&self.arena)

    # --- requests -------------------------------------------------------------------------------

    cdef int take(self, const Ref *ref, int kind, const Origin *origin, const uint8_t *p,
                  size_t n) except -1:
        cdef RangeReq rr
        cdef CompactReq compact
        cdef Ref later
        cdef int code
        cdef bint batch = kind == KIND_PUT_BATCH or kind == KIND_PUT_BATCH_ONE \
            or kind == KIND_TXN_BATCH
        cdef bint large = n > (self.max_batch if batch else self.max_request)
        self.requests += 1
        if kind == KIND_RANGE:
            code = decode_range(p, n, &rr)
            if code == CODE_OK:
                code = check_range(&rr)
            if code:
                return code
            self.reads += 1
            self.queue.add_read(ref, READ_SERIALIZABLE if rr.serializable else 0, p, n)
            return CODE_OK
        if not (batch or KIND_PUT <= kind <= KIND_COMPACT or kind == KIND_LEASE_GRANT
                or kind == KIND_LEASE_REVOKE):
            return CODE_UNKNOWN_KIND
        kv_arena_reset(&self.arena)
        # As etcd: what is wrong with a request is said before that it is too large.
        code = check_request(kind, p, n, self.max_txn_ops, &self.arena)
        if self.arena.err:
            raise MemoryError
        if code or large:
            return code if code else CODE_REQUEST_TOO_LARGE
        if kind == KIND_LEASE_GRANT and self.lease_ttl_min:
            self.complete_grant(&p, &n)
        if kind == KIND_COMPACT:
            decode_compact(p, n, &compact)
            if compact.physical:
                later = self.freed.wrap(ref, compact.revision)
                ref = &later
        if origin != NULL and origin.sequence != 0 and origin.session != 0:
            self.add_client_group(ref, kind, origin, p, n)
        else:
            self.add_own(ref, kind, p, n)
        return CODE_OK

    def complete_grants(self, uint64_t seed, int64_t ttl_min) -> None:
        """Grants without an id get one, and each at least `ttl_min` seconds; `seed` is random."""
        self.lease_seed = seed
        self.lease_ttl_min = ttl_min

    cdef int complete_grant(self, const uint8_t **p, size_t *n) except -1:
        kv_buf_clear(&self.grant)
        kv_put_bytes(&self.grant, p[0], n[0])
        lease_grant_complete(p[0], n[0], self.new_lease(), self.lease_ttl_min, &self.grant)
        if self.grant.err:
            raise MemoryError
        p[0] = self.grant.p
        n[0] = self.grant.n
        return 0

    cdef int64_t new_lease(self) noexcept nogil:
        """A positive number that nobody can have chosen before (splitmix64)."""
        cdef uint64_t z
        while True:
            self.lease_seed += 0x9E3779B97F4A7C15u
            z = self.lease_seed
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBu
            z = (z ^ (z >> 31)) >> 1
            if z:
                return <int64_t> z

    cdef uint64_t held_bytes(self) noexcept nogil:
        return (self.open_bytes + self.own_body.n + self.own_refs.size() * sizeof(Ref)
                + (self.batch.n if self.batch_groups else 0) + self.queue.bytes())

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

    cdef int add_client_group(self, const Ref *ref, int kind, const Origin *origin,
                              const uint8_t *p, size_t n) except -1:
        cdef Slot *s = self.new_slot()
        cdef Group g
        cdef size_t at
        memset(&g, 0, sizeof(Group))
        s.count = 1
        s.one = ref[0]
        g.flags = FLAG_CLIENT_SESSION
        g.session = origin.session
        g.sequence = origin.sequence
        g.lowest = origin.lowest
        g.member = self.member
        g.incarnation = self.incarnation
        g.slot = s.number
        g.user = origin.user
        self.open_batch()
        at = env_open_group(&self.batch, &g)
        env_add_request(&self.batch, at, <uint8_t> kind, 0, p, n)
        if self.batch.n > self.soft_bytes:
            self.seal()
        return 0

    cdef int add_own(self, const Ref *ref, int kind, const uint8_t *p, size_t n) except -1:
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
        if self.own_body.n > self.soft_bytes:
            self.seal()
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

    cdef int seal(self) except -1:
        """What has gathered becomes a proposal."""
        cdef Proposal made
        self.close_own()
        if self.batch_groups == 0:
            return 0
        if self.batch.err:
            raise MemoryError
        env_set_groups(&self.batch, 0, self.batch_groups)
        made.left = self.batch_groups
        made.size = self.batch.n
        self.sealed.append((self.proposal_next, self.batch.p[:self.batch.n]))
        self.proposals[self.proposal_next] = made
        self.open_bytes += made.size
        self.proposal_next += 1
        self.batch_groups = 0
        return 0

    def take_proposals(self) -> list:
        """[(number, batch)] of everything gathered since the last call.

        The caller keeps the bytes until `take_finished` names the number, and proposes them again
        after a death.
        """
        self.seal()
        if not self.sealed:
            return []
        out = self.sealed
        self.sealed = []
        return out

    @property
    def gathered_bytes(self) -> int:
        """Bytes of the proposal being gathered, without what is sealed."""
        return self.batch.n * (self.batch_groups > 0) + self.own_body.n

    @property
    def own_open_count(self) -> int:
        """Sequences of the gateway's own session that are not answered."""
        return self.own_open.size()

    def propose(self, uint32_t token, int kind, const unsigned char[::1] body not None) -> None:
        """A request of Python's own; its result is among the own sink's answers, by `token`."""
        self.propose_for(self.own, 0, 0, token, 0, kind, body)

    def read(self, uint32_t token, const unsigned char[::1] body not None) -> None:
        """A valid RangeRequest of Python's own, answered as `propose` is."""
        cdef Ref ref
        ref.sink = self.own.number
        ref.conn = ref.generation = ref.size = 0
        ref.id = token
        assert self.take(&ref, KIND_RANGE, NULL, &body[0], body.shape[0]) == CODE_OK

    def propose_for(self, Sink sink not None, uint32_t number, uint32_t generation, uint32_t rid,
                    uint32_t size, int kind, const unsigned char[::1] body not None) -> None:
        """A client's request that came to Python and goes into the log after all."""
        cdef Ref ref
        ref.sink = sink.number
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
                self.sinks.of(&refs[i]).answer(
                    &refs[i], g.code if g.state == STATE_REFUSED else q.code, g.state,
                    q.body.p, q.body.n)
                i += 1
            while i < s.count:
                self.sinks.of(&refs[i]).answer(
                    &refs[i], g.code if g.state == STATE_REFUSED else CODE_UNAVAILABLE, g.state,
                    NULL, 0)
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

    def give_up(self, const unsigned char[::1] batch not None, int code,
                Sink sink not None) -> None:
        """Answers those clients of an open proposal that are `sink`'s with `code`. It stays open;
        what becomes of it later finds them gone."""
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
                if refs[i].sink == sink.number:
                    sink.answer(&refs[i], code, STATE_REFUSED, NULL, 0)

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
                self.sinks.of(&refs[i]).answer(&refs[i], code, STATE_REFUSED, NULL, 0)
            self.end_slot(s)
