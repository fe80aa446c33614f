# distutils: language = c++
"""Reads of a gateway: they gather, get a barrier, are answered in slices.

Role: what a Range meets behind the front, whichever door it came through. Python (procs/gateway)
asks for barriers and hands in snapshots; which read is answered when is decided here.

Invariants:
  1. Reads wait in two sets: `waiting` has its barrier, `gathering` came after that barrier began
     and gets the next one. A read is never answered from a barrier begun before it arrived.
  2. A Range over several keys goes on in slices, each in a newer snapshot at the same revision.
  3. A read of a client that does not take its answers is held until it does.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_buf_free, kv_buf_trim, kv_put_bytes
from kvnode._core.codes cimport *
from kvnode._core.envelope cimport STATE_EXECUTED
from kvnode._core.etcdpb cimport RangeReq, decode_range
from kvnode._core.ranges cimport (
    RANGE_MORE, RangeReader, range_free, range_init, range_step, reader_serve,
)
from kvnode._core.records cimport REC_CORRUPT, REC_NOMEM, REC_NONE, REC_OK
from kvnode._core.sink cimport Ref, Sink, Sinks

cdef enum:
    SLICE_WORK = 10000           # units of 100 ns: a slice of a long read lasts about 1 ms
    SLICE_BYTES = 262144
    SORT_BYTES_MAX = 268435456   # what a sorted read may remember of the keys it sorts


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


cdef void read_clear(ReadSet *s) noexcept nogil:
    s.n = 0
    kv_buf_trim(&s.bodies, 1 << 20)


cdef class ReadQueue:
    """Reads that are answered into `sinks`; `member` and `cluster` are ids that answers carry."""

    def __cinit__(self, Sinks sinks not None, *, member, cluster):
        self.sinks = sinks
        self.head.member_id = member
        self.head.cluster_id = cluster

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.longs.size()):
            self.free_long(self.longs[i])
        kv_buf_free(&self.waiting.bodies)
        kv_buf_free(&self.gathering.bodies)
        kv_buf_free(&self.serial.bodies)
        kv_buf_free(&self.held.bodies)
        free(self.held.items)
        free(self.waiting.items)
        free(self.gathering.items)
        free(self.serial.items)

    def set_term(self, unsigned long long term) -> None:
        """The Raft term that answers to reads carry."""
        self.head.raft_term = term

    cdef int add_read(self, const Ref *ref, bint serializable, const uint8_t *p,
                      size_t n) except -1:
        if read_add(&self.serial if serializable else &self.gathering, ref[0], serializable,
                    p, n) < 0:
            raise MemoryError
        return 0

    cdef size_t bytes(self) noexcept nogil:
        return (self.waiting.bodies.n + self.gathering.bodies.n + self.serial.bodies.n
                + self.held.bodies.n)

    cdef int hold(self, ReadItem *item, const uint8_t *p) except -1:
        """A read waits until its client has taken answers."""
        if self.sinks.of(&item.ref).mark_held(&item.ref):
            self.holders.push_back(item.ref)
        if read_add(&self.held, item.ref, item.serializable, p, item.n) < 0:
            raise MemoryError
        return 0

    def release_held(self) -> bool:
        """Held reads gather again once a client has taken answers. True: try again soon."""
        cdef size_t i
        cdef ReadItem *item
        cdef ReadSet old
        cdef Sink sink
        cdef bint some = False, soon = False
        for i in range(self.holders.size()):
            sink = self.sinks.of(&self.holders[i])
            if not sink.alive(&self.holders[i]) or not sink.full(&self.holders[i]):
                some = True
                break
            soon = soon or not sink.wakes
        if not some:
            return soon
        for i in range(self.holders.size()):
            self.sinks.of(&self.holders[i]).unmark_held(&self.holders[i])
        self.holders.clear()
        old = self.held
        memset(&self.held, 0, sizeof(ReadSet))
        for i in range(old.n):
            item = &old.items[i]
            sink = self.sinks.of(&item.ref)
            if not sink.alive(&item.ref):
                continue
            if sink.full(&item.ref):
                self.hold(item, old.bodies.p + item.at)
            elif read_add(&self.gathering, item.ref, item.serializable,
                          old.bodies.p + item.at, item.n) < 0:
                raise MemoryError
        kv_buf_free(&old.bodies)
        free(old.items)
        return True

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
        cdef Ref *ref
        for i in range(self.waiting.n):
            ref = &self.waiting.items[i].ref
            self.sinks.of(ref).answer(ref, code, STATE_EXECUTED, NULL, 0)
        read_clear(&self.waiting)

    cdef int serve(self, RangeReader reader, ReadSet *s) except -1:
        cdef size_t i
        cdef ReadItem *item
        cdef Sink sink
        cdef kv_buf *out
        cdef const uint8_t *p
        cdef RangeReq req
        cdef int code
        for i in range(s.n):
            item = &s.items[i]
            sink = self.sinks.of(&item.ref)
            if not sink.alive(&item.ref):
                continue
            p = s.bodies.p + item.at
            if sink.full(&item.ref):
                self.hold(item, p)
                continue
            if decode_range(p, item.n, &req) == CODE_OK and req.range_end.n:
                self.begin_long(reader, item, p)
                continue
            out = sink.open_answer(&item.ref)
            code = reader_serve(reader, KIND_RANGE, p, item.n, &self.head, out)
            sink.close_answer(&item.ref, code)
        read_clear(s)
        return 0

    # --- long reads -----------------------------------------------------------------------------

    cdef int begin_long(self, RangeReader reader, ReadItem *item, const uint8_t *p) except -1:
        """A Range over several keys: its first slice now, the others one a turn."""
        cdef LongRead *r = <LongRead *> calloc(1, sizeof(LongRead))
        cdef int code
        if r == NULL:
            raise MemoryError
        r.ref = item.ref
        self.sinks.of(&r.ref).count_long(&r.ref, 1)
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
        self.sinks.of(&r.ref).answer(&r.ref, code, STATE_EXECUTED,
                                     r.out.p if code == CODE_OK else NULL,
                                     r.out.n if code == CODE_OK else 0)
        self.drop_long(r)
        return 0

    cdef int drop_long(self, LongRead *r) except -1:
        self.sinks.of(&r.ref).count_long(&r.ref, -1)
        self.free_long(r)
        return 0

    cdef void free_long(self, LongRead *r) noexcept nogil:
        range_free(&r.state)
        kv_buf_free(&r.body)
        kv_buf_free(&r.out)
        free(r)

    def step_long(self, RangeReader reader) -> bool:
        """One slice of every long read on the reader's snapshot; True while some are left."""
        cdef vector[LongRead *] todo
        cdef size_t i
        cdef LongRead *r
        todo.swap(self.longs)
        for i in range(todo.size()):
            r = todo[i]
            if not self.sinks.of(&r.ref).alive(&r.ref):
                self.drop_long(r)
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
