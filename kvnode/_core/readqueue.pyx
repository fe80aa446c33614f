# distutils: language = c++
"""Reads of a gateway: they gather, get a barrier, are answered in slices.

Role: what a Range meets behind the front, whichever door it came through. Python (procs/gateway)
asks for barriers and hands in snapshots; which read is answered when is decided here.

Invariants:
  1. Reads wait in two sets: `waiting` has its barrier, `gathering` came after that barrier began
     and gets the next one. A read is never answered from a barrier begun before it arrived.
  2. A Range that takes more than a slice goes on elsewhere (longread), and holds up nobody.
  3. A read of a client that does not take its answers is held until it does.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from kvnode._core.buf cimport kv_buf, kv_buf_free, kv_buf_trim, kv_put_bytes
from kvnode._core.codes cimport *
from kvnode._core.envelope cimport STATE_EXECUTED
from kvnode._core.etcdpb cimport RangeReq, decode_range
from kvnode._core.longread cimport SLICE_BYTES, SLICE_WORK, LongReads, read_code
from kvnode._core.meters cimport meter_now_ns, meter_range, meter_ranges
from kvnode._core.ranges cimport (
    RANGE_MORE, RangeReader, RangeState, range_counts, range_free, range_init, range_step,
    reader_serve,
)
from kvnode._core.sink cimport Ref, Sink, Sinks


cdef int read_add(
    ReadSet *s, Ref ref, int flags, const uint8_t *p, size_t n,
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
    s.items[s.n].flags = flags
    s.items[s.n].at = s.bodies.n
    s.items[s.n].n = n
    kv_put_bytes(&s.bodies, p, n)
    s.n += 1
    return 0 if not s.bodies.err else -1


cdef void read_clear(ReadSet *s) noexcept nogil:
    s.n = 0
    kv_buf_trim(&s.bodies, 1 << 20)


cdef class ReadQueue:
    """Reads that are answered into `sinks`; `member` and `cluster` are ids that answers carry,
    `stream_bytes` is near what one message of a RangeStream has; above `message_bytes_max` (of a
    grpc-go server) no message goes out."""

    def __cinit__(self, Sinks sinks not None, *, member, cluster, stream_bytes,
                  message_bytes_max=0x7fffffff):
        self.sinks = sinks
        self.longs = LongReads(sinks, stream_bytes, message_bytes_max)
        self.head.member_id = member
        self.head.cluster_id = cluster

    def __dealloc__(self):
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

    cdef int add_read(self, const Ref *ref, int flags, const uint8_t *p, size_t n) except -1:
        if read_add(&self.serial if flags & READ_SERIALIZABLE else &self.gathering, ref[0], flags,
                    p, n) < 0:
            raise MemoryError
        return 0

    cdef size_t bytes(self) noexcept nogil:
        return (self.waiting.bodies.n + self.gathering.bodies.n + self.serial.bodies.n
                + self.held.bodies.n + sizeof(ReadItem)
                * (self.waiting.n + self.gathering.n + self.serial.n + self.held.n))

    cdef int hold(self, ReadItem *item, const uint8_t *p) except -1:
        """A read waits until its client has taken answers."""
        if self.sinks.of(&item.ref).mark_held(&item.ref):
            self.holders.push_back(item.ref)
        if read_add(&self.held, item.ref, item.flags, p, item.n) < 0:
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
            elif read_add(&self.gathering, item.ref, item.flags,
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
        cdef uint64_t began = meter_now_ns() if s.n else 0
        for i in range(s.n):
            item = &s.items[i]
            sink = self.sinks.of(&item.ref)
            if not sink.alive(&item.ref):
                continue
            p = s.bodies.p + item.at
            if sink.full(&item.ref):
                self.hold(item, p)
                continue
            if item.flags & READ_STREAM:
                self.longs.begin_stream(&item.ref, p, item.n, &self.head, reader)
                continue
            if decode_range(p, item.n, &req) == CODE_OK and req.range_end.n:
                self.serve_short(reader, sink, item, &req, p)
                continue
            out = sink.open_answer(&item.ref)
            code = reader_serve(reader, KIND_RANGE, p, item.n, &self.head, out)
            sink.close_answer(&item.ref, code)
            meter_range(code)
        if s.n:
            meter_ranges(meter_now_ns() - began)
        read_clear(s)
        return 0

    cdef int serve_short(self, RangeReader reader, Sink sink, ReadItem *item, const RangeReq *req,
                         const uint8_t *p) except -1:
        """A Range over several keys: most end within a slice, the others go on later."""
        cdef RangeState st
        cdef kv_buf *out = sink.open_answer(&item.ref)
        cdef size_t base = out.n
        cdef int phase, rc, code
        self.head.revision = <int64_t> reader.heads.revision
        code = range_init(&st, req, <int64_t> reader.heads.revision,
                          <int64_t> reader.heads.compacted, &self.head, out)
        if code == CODE_OK:
            phase = st.phase
            st.items_bytes_max = self.longs.sort_room()
            rc = range_step(&st, &reader.store.ops, reader.txn, <int64_t> reader.heads.freed,
                            SLICE_WORK, SLICE_BYTES, out)
            if rc == RANGE_MORE and range_counts(&st):
                # A short sorted one: its sort ended the slice.
                rc = range_step(&st, &reader.store.ops, reader.txn, <int64_t> reader.heads.freed,
                                SLICE_WORK, SLICE_BYTES, out)
            if rc == RANGE_MORE:
                self.longs.take(&item.ref, p, item.n, &st, phase, &self.head, out.p + base,
                                out.n - base)
                sink.undo_answer(&item.ref)
                return 0
            range_free(&st)
            code = read_code(rc)
        sink.close_answer(&item.ref, code)
        meter_range(code)
        return 0

    # --- long reads -----------------------------------------------------------------------------

    def step_long(self, RangeReader reader not None) -> bool:
        """A slice of long reads on the reader's snapshot; True: there is more to do at once."""
        return self.longs.step(reader)

    def lowest_reading(self) -> int:
        """The lowest revision that a long read reads at, 0 when there is none."""
        return self.longs.lowest()

    @property
    def long_reads(self) -> int:
        """Long reads under way."""
        return self.longs.reads.size()
