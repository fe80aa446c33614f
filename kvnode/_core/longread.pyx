# distutils: language = c++
"""Ranges that take more than one slice: they go on, one slice a turn, at the same revision.

Role: `readqueue` hands over what did not end within its first slice, and every RangeStream. Each
slice is read in a newer snapshot, so that no pages stay pinned. How the answer leaves depends on
the sink:

    LONG_WHOLE   it is gathered, then answered (native connections; counts)
    LONG_PIECES  one message of any size (a unary Range over gRPC): a first pass sums up its size
                 without reading values, a second one sends it in pieces as the client takes them
    LONG_STREAM  RangeStream: several messages, each in these two passes. As etcd: 10 keys first,
                 then twice as many or half as many while a message is below half or above twice
                 stream_bytes; header, more and count are in the last one

Invariants:
  1. Memory of a read in pieces is a slice and, when sorted, its items; never the answer.
  2. Both passes read at one revision, so their sizes are equal; a difference is corruption.
  3. A client that does not take its answer costs nothing but its place in the list. Freeing waits
     for the lowest revision read, for a bounded time: then the read ends with an error status.
  4. At most TURN_SLICES slices are read in a turn, in rotation.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from libcpp.vector cimport vector

from kvnode._core.buf cimport (
    kv_buf_clear, kv_buf_free, kv_buf_trim, kv_put_bytes, kv_put_varint, kv_varint_size,
)
from kvnode._core.codes cimport *
from kvnode._core.envelope cimport STATE_EXECUTED
from kvnode._core.etcdpb cimport RespHeader, decode_range, header_size, range_begin, range_finish
from kvnode._core.meters cimport meter_long_range, meter_now_ns
from kvnode._core.ranges cimport (
    RANGE_MORE, RangeReader, RangeState, range_back, range_free, range_init, range_mark,
    range_step,
)
from kvnode._core.records cimport REC_CORRUPT, REC_NOMEM, REC_NONE, REC_OK
from kvnode._core.sink cimport Ref, Sink, Sinks

cdef enum:
    SORT_BYTES_MAX = 268435456   # what sorted reads may remember of the keys they sort, together
    TURN_SLICES = 2              # about as many ms that others wait
    FIRST_CHUNK = 10


cdef int read_code(int rc) noexcept nogil:
    """CODE_* of a slice's end."""
    if rc == REC_OK:
        return CODE_OK
    if rc == REC_NONE:
        return CODE_COMPACTED
    if rc == REC_NOMEM:
        return CODE_TOO_MANY_REQUESTS
    return CODE_CORRUPT if rc == REC_CORRUPT else CODE_UNAVAILABLE


cdef void long_free(LongRead *r) noexcept nogil:
    range_free(&r.state)
    kv_buf_free(&r.mark.at)
    kv_buf_free(&r.body)
    kv_buf_free(&r.out)
    free(r)


cdef class LongReads:
    """Long reads under way, answered into `sinks`; messages of a stream are near `stream_bytes`."""

    def __cinit__(self, Sinks sinks not None, int64_t stream_bytes, uint64_t message_bytes_max):
        self.sinks = sinks
        self.stream_bytes = stream_bytes
        self.message_bytes_max = message_bytes_max

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.reads.size()):
            long_free(self.reads[i])

    def __len__(self):
        return self.reads.size()

    def lowest(self) -> int:
        """The lowest revision that is read at, 0 when there is none."""
        cdef size_t i
        cdef int64_t lowest = 0
        for i in range(self.reads.size()):
            if lowest == 0 or self.reads[i].state.revision < lowest:
                lowest = self.reads[i].state.revision
        return lowest

    cdef size_t sort_room(self) noexcept nogil:
        """Bytes that a sorted read may use; 1 when others use all."""
        cdef size_t i, used = 0
        for i in range(self.reads.size()):
            used += self.reads[i].state.items_cap * sizeof(self.reads[i].state.items[0])
        return SORT_BYTES_MAX - used if used < SORT_BYTES_MAX else 1

    # --- beginning ------------------------------------------------------------------------------

    cdef LongRead *new_read(self, const Ref *ref, const uint8_t *body, size_t n,
                            const RespHeader *head) except NULL:
        cdef LongRead *r = <LongRead *> calloc(1, sizeof(LongRead))
        if r == NULL:
            raise MemoryError
        kv_put_bytes(&r.body, body, n)
        if r.body.err:
            free(r)
            raise MemoryError
        r.ref = ref[0]
        r.head = head[0]
        r.began_ns = meter_now_ns()
        decode_range(r.body.p, r.body.n, &r.req)
        return r

    cdef int take(self, const Ref *ref, const uint8_t *body, size_t body_n, RangeState *state,
                  int phase, const RespHeader *head, const uint8_t *done,
                  size_t done_n) except -1:
        cdef LongRead *r = self.new_read(ref, body, body_n, head)
        cdef Sink sink = self.sinks.of(ref)
        r.state = state[0]
        r.state.req = &r.req
        memset(state, 0, sizeof(RangeState))
        r.head.revision = r.state.head_revision
        if sink.pieces and not r.req.count_only:
            r.mode = LONG_PIECES
            r.mark.phase = phase
            r.state.sizing = True
            r.state.size = done_n
        else:
            kv_put_bytes(&r.out, done, done_n)
        sink.count_long(ref, 1)
        self.reads.push_back(r)
        return 0

    cdef int begin_stream(self, const Ref *ref, const uint8_t *body, size_t body_n,
                          const RespHeader *head, RangeReader reader) except -1:
        cdef LongRead *r = self.new_read(ref, body, body_n, head)
        cdef int code = range_init(&r.state, &r.req, <int64_t> reader.heads.revision,
                                   <int64_t> reader.heads.compacted, NULL, &r.out)
        self.sinks.of(ref).count_long(ref, 1)
        r.mode = LONG_STREAM
        if code != CODE_OK:
            self.end(r, code)
            return 0
        r.state.items_bytes_max = self.sort_room()
        r.head.revision = r.state.head_revision
        r.chunk = FIRST_CHUNK
        if r.state.limit and r.state.limit < r.chunk:
            r.chunk = r.state.limit
        self.next_chunk(r)
        if not self.step_one(reader, r):
            self.reads.push_back(r)
        return 0

    # --- turns ----------------------------------------------------------------------------------

    def step(self, RangeReader reader not None) -> bool:
        """A slice of some of the reads, on the reader's snapshot; True: there is more to do at
        once."""
        cdef vector[LongRead *] todo
        cdef size_t i, n, first
        cdef int slices = 0
        cdef LongRead *r
        cdef Sink sink
        cdef bint ready = False
        todo.swap(self.reads)
        n = todo.size()
        first = self.turn % n if n else 0
        for i in range(n):
            r = todo[(first + i) % n]
            sink = self.sinks.of(&r.ref)
            if not sink.alive(&r.ref):
                self.drop(r)
                continue
            if r.part == PART_SIZE or sink.room(&r.ref) > 0:
                if slices == TURN_SLICES:
                    ready = True
                else:
                    slices += 1
                    if self.step_one(reader, r):
                        continue
                    ready = ready or r.part == PART_SIZE or sink.room(&r.ref) > 0
            self.reads.push_back(r)
        # What got its slice stands at the end of the next turn's order.
        self.turn = slices if slices < <int> self.reads.size() else 0
        return ready

    cdef bint step_one(self, RangeReader reader, LongRead *r) except? True:
        """One slice; True when the read is answered (and freed)."""
        cdef Sink sink = self.sinks.of(&r.ref)
        cdef int rc
        if r.mode == LONG_WHOLE:
            return self.step_whole(sink, reader, r)
        # A small message takes less than a slice for both its passes.
        for _ in range(2):
            if r.part == PART_SIZE:
                rc = self.size_part(reader, r)
                if rc == RANGE_MORE:
                    return False
                if rc != REC_OK:
                    self.end(r, read_code(rc))
                    return True
                if self.begin_send(sink, r):
                    return True
            if sink.room(&r.ref) <= 0:
                break
            rc = self.send_part(sink, reader, r)
            if rc == RANGE_MORE:
                break
            if rc != REC_OK:
                self.end(r, read_code(rc))
                return True
            if r.last:
                self.end(r, CODE_OK)
                return True
            self.next_chunk(r)
        if r.out.n == 0 and sink.room(&r.ref) <= 0:
            kv_buf_trim(&r.out, 0)
        return False

    cdef bint step_whole(self, Sink sink, RangeReader reader, LongRead *r) except? True:
        cdef int rc = range_step(&r.state, &reader.store.ops, reader.txn,
                                 <int64_t> reader.heads.freed, SLICE_WORK, SLICE_BYTES, &r.out)
        if rc == RANGE_MORE:
            return False
        if rc == REC_OK:
            sink.answer(&r.ref, CODE_OK, STATE_EXECUTED, r.out.p, r.out.n)
        else:
            sink.answer(&r.ref, read_code(rc), STATE_EXECUTED, NULL, 0)
        self.drop(r)
        return True

    # --- messages in two passes -----------------------------------------------------------------

    cdef int size_part(self, RangeReader reader, LongRead *r) noexcept nogil:
        """RANGE_MORE: a slice of the sizing is done; REC_OK: all of it."""
        cdef int rc = range_step(&r.state, &reader.store.ops, reader.txn,
                                 <int64_t> reader.heads.freed, SLICE_WORK, SLICE_BYTES, &r.out)
        if rc == RANGE_MORE and not r.state.stopped:
            return RANGE_MORE
        r.last = rc == REC_OK
        if r.last:
            r.more = r.state.more
            r.count = r.state.count
        return REC_OK if rc == RANGE_MORE else rc

    cdef bint begin_send(self, Sink sink, LongRead *r) except? True:
        """Opens the message that was sized. True: it is too large, the read has ended."""
        cdef uint64_t inner = r.state.size
        kv_buf_clear(&r.out)
        if r.mode == LONG_STREAM:
            if r.last:
                inner += 2 + header_size(&r.head)
            kv_put_varint(&r.out, 0x0A)              # RangeStreamResponse.range_response
            kv_put_varint(&r.out, inner)
        r.left = r.out.n + inner
        if r.left > self.message_bytes_max:
            sink.refuse_size(&r.ref, r.left, self.message_bytes_max)
            self.drop(r)
            return True
        if r.last or r.mode == LONG_PIECES:
            range_begin(&r.out, &r.head)
        sink.begin_long(&r.ref, r.left)
        r.state.sizing = False
        r.state.stop_at = r.state.emitted
        r.state.stop_hard = True
        if range_back(&r.state, &r.mark) != REC_OK:
            raise MemoryError
        r.part = PART_SEND
        return False

    cdef int send_part(self, Sink sink, RangeReader reader, LongRead *r) except -100:
        """A slice of the message under way; REC_OK: that was all of it."""
        cdef int rc = range_step(&r.state, &reader.store.ops, reader.txn,
                                 <int64_t> reader.heads.freed, SLICE_WORK, SLICE_BYTES, &r.out)
        if rc == RANGE_MORE and r.state.stopped:
            if r.last:
                range_finish(&r.out, r.more, r.count)
            rc = REC_OK
        if rc != REC_OK and rc != RANGE_MORE:
            return rc
        if r.out.err:
            return REC_NOMEM
        if r.out.n > r.left or (rc == REC_OK and r.out.n != r.left):
            return REC_CORRUPT
        r.left -= r.out.n
        sink.add_long(&r.ref, r.out.p, r.out.n)
        kv_buf_clear(&r.out)
        return rc

    cdef void next_chunk(self, LongRead *r) noexcept nogil:
        """The next message of a stream begins here."""
        cdef uint64_t size
        cdef int64_t rest
        if r.part == PART_SEND:
            # As etcd measures a message: with its header's revision, more and count.
            size = (r.state.size + 5 + kv_varint_size(<uint64_t> r.head.revision)
                    + 1 + kv_varint_size(<uint64_t> r.chunk + 1))
            if <int64_t> size < self.stream_bytes // 2:
                r.chunk *= 2
            elif <int64_t> size > self.stream_bytes * 2:
                r.chunk //= 2
            if r.chunk == 0:
                r.chunk = 1
            rest = r.state.limit - r.state.emitted
            if r.state.limit and rest < r.chunk:
                r.chunk = rest
        range_mark(&r.state, &r.mark)
        r.state.size = 0
        r.state.sizing = True
        r.state.stop_hard = False
        r.state.stop_at = r.state.emitted + r.chunk
        r.part = PART_SIZE

    # --- ends -----------------------------------------------------------------------------------

    cdef int end(self, LongRead *r, int code) except -1:
        self.sinks.of(&r.ref).end_long(&r.ref, code)
        meter_long_range(code, meter_now_ns() - r.began_ns)
        return self.drop(r)

    cdef int drop(self, LongRead *r) except -1:
        self.sinks.of(&r.ref).count_long(&r.ref, -1)
        long_free(r)
        return 0
