# distutils: language = c++
"""Keep-alives and questions about leases, over gRPC streams and for Python.

Role: a message of a stream becomes an id in the question that goes to consensus at the end of the
gateway's turn, one frame for all that came; what consensus answers becomes the streams' messages.
Caller: procs/keepalives. Frames: wire/frames (KEEP_ALIVE and KEPT, LEASE_TIMES, LEASE_IDS).

A keep-alive's header shows the revision from before it was asked: a lease that expires later is
never seen kept alive at a revision that lacks its keys. The keys of LeaseTimeToLive are read
through this gateway's map, once the index that consensus named is applied here.

Invariants:
1. Each keep-alive gets one answer, or its stream is gone or ends with a status.
2. A stream whose client half-closed ends with OK when nothing is owed to it.
3. Questions are kept until answered, and asked again of a new consensus: they change nothing but
   a lease's time.
4. At most `most` questions are held; a client that doesn't read its answers loses its stream.

Absent on purpose: time, quorums, grants and revokes (grpckv).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from kvnode._core.buf cimport (
    kv_buf_clear,
    kv_buf_free,
    kv_buf_init,
    kv_buf_trim,
    kv_load_u32,
    kv_load_u64,
    kv_slice,
    kv_store_u64,
)
from kvnode._core.codes cimport (
    CODE_OK,
    CODE_STOPPED,
    CODE_TOO_MANY_REQUESTS,
    CODE_UNKNOWN_KIND,
    KIND_LEASE_KEEP_ALIVE,
    KIND_LEASE_LEASES,
    KIND_LEASE_TIME_TO_LIVE,
)
from kvnode._core.etcdpb cimport put_compact_response
from kvnode._core.grpcstatus cimport GRPC_INTERNAL, GRPC_OK, Status, status_of
from kvnode._core.leasepb cimport (
    LeaseReq,
    decode_lease,
    put_lease_key,
    put_lease_response,
    put_lease_status,
    put_time_to_live,
)
from kvnode._core.leases cimport lease_keys
from kvnode._core.records cimport REC_CORRUPT, REC_NOMEM, REC_OK

from kvnode.base.errors import CorruptionError, DecodeError, DiskError

cdef enum:
    KEEP_ALIVE = 0
    TIME_TO_LIVE = 1
    LEASES = 2
    HEAD_BYTES = 16            # token and index of an answer
    SCRATCH_KEEP = 1 << 20

METHODS = (
    (b"/etcdserverpb.Lease/LeaseKeepAlive", KEEP_ALIVE, True),
    (b"/etcdserverpb.Lease/LeaseTimeToLive", TIME_TO_LIVE, False),
    (b"/etcdserverpb.Lease/LeaseLeases", LEASES, False),
)
"""(path, number, whether both sides stream)."""

cdef bytes MALFORMED_TEXT = (
    b"grpc: error unmarshalling request: proto: cannot parse invalid wire-format data")
cdef bytes MALFORMED_STREAM_TEXT = (
    b"grpc: failed to unmarshal the received message: "
    b"proto: cannot parse invalid wire-format data")

cdef int KIND_OF[3]
KIND_OF[:] = [KIND_LEASE_KEEP_ALIVE, KIND_LEASE_TIME_TO_LIVE, KIND_LEASE_LEASES]


cdef inline uint64_t key_of(Call call) noexcept nogil:
    return <uint64_t>call.number << 32 | call.generation


cdef class Batch:
    """What one frame asked."""


cdef class LeaseCalls(Methods):
    """`wake()` asks for a turn; `most` questions are held."""

    def __cinit__(self, Calls calls not None, wake, *, cluster, member, most=1 << 20):
        self.calls = calls
        self.wake = wake
        self.most = most
        self.head.cluster_id = cluster
        self.head.member_id = member
        self.open = {}
        self.locals = {}
        self.late = []
        self.next_token = 1
        self.next_local = 1
        kv_buf_init(&self.scratch)
        kv_buf_init(&self.list)

    def __dealloc__(self):
        kv_buf_free(&self.scratch)
        kv_buf_free(&self.list)

    # --- from streams

    cdef int on_open(self, Call call, int method) except -1:
        cdef Stream s
        if method == KEEP_ALIVE:
            s.owed = 0
            s.half_closed = False
            self.streams[key_of(call)] = s
        return 0

    cdef int on_message(self, Call call, int method, const uint8_t *p, size_t n) except -1:
        cdef const uint8_t *text
        cdef LeaseReq req
        cdef Asker a
        cdef int code
        code = decode_lease(p, n, &req)
        if code != CODE_OK:
            self.streams.erase(key_of(call))
            if method == KEEP_ALIVE:
                text = MALFORMED_STREAM_TEXT
                return self.calls.finish(call, GRPC_INTERNAL, text, len(MALFORMED_STREAM_TEXT))
            text = MALFORMED_TEXT
            return self.calls.finish(call, GRPC_INTERNAL, text, len(MALFORMED_TEXT))
        a.call = call
        a.id = <uint64_t>req.id
        a.local = 0
        a.keys = req.keys and method == TIME_TO_LIVE
        if self.waiting >= self.most or (method == KEEP_ALIVE and self.calls.room(call) <= 0):
            self.streams.erase(key_of(call))
            return self.refuse(&a, CODE_TOO_MANY_REQUESTS)
        if method == KEEP_ALIVE:
            self.streams[key_of(call)].owed += 1
            self.keep_alives += 1
        self.gathered[method].push_back(a)
        self.waiting += 1
        if not self.awake:
            self.awake = True
            self.wake()
        return 0

    cdef int on_half_close(self, Call call, int method) except -1:
        it = self.streams.find(key_of(call))
        if it == self.streams.end():
            return 0
        if self.streams[key_of(call)].owed:
            self.streams[key_of(call)].half_closed = True
            return 0
        self.streams.erase(key_of(call))
        return self.calls.finish(call, GRPC_OK, NULL, 0)

    cdef int on_gone(self, Call call, int method) except -1:
        self.streams.erase(key_of(call))
        return 0

    cdef int owe_less(self, const Asker *a) except -1:
        """One answer less is owed to a stream, which ends when that was the last."""
        cdef Stream *s
        it = self.streams.find(key_of(a.call))
        if it == self.streams.end():
            return 0
        s = &self.streams[key_of(a.call)]
        s.owed -= 1
        if s.owed == 0 and s.half_closed:
            self.streams.erase(key_of(a.call))
            self.calls.finish(a.call, GRPC_OK, NULL, 0)
        return 0

    # --- from Python

    def ask(self, int kind, bytes body not None, done) -> None:
        """A LeaseKeepAlive, LeaseTimeToLive or LeaseLeases request: `done(code, body)` once."""
        cdef LeaseReq req
        cdef Asker a
        cdef int method
        cdef int code = decode_lease(<const uint8_t *>PyBytes_AS_STRING(body), len(body), &req)
        if kind == KIND_LEASE_KEEP_ALIVE:
            method = KEEP_ALIVE
        elif kind == KIND_LEASE_TIME_TO_LIVE:
            method = TIME_TO_LIVE
        elif kind == KIND_LEASE_LEASES:
            method = LEASES
        else:
            method = -1
            code = CODE_UNKNOWN_KIND
        if code == CODE_OK and self.waiting >= self.most:
            code = CODE_TOO_MANY_REQUESTS
        if code != CODE_OK:
            done(code, b"")
            return
        a.call.number = a.call.generation = 0
        a.id = <uint64_t>req.id
        a.keys = req.keys and method == TIME_TO_LIVE
        a.local = self.next_local
        self.next_local = self.next_local % 0xFFFFFFF0u + 1
        self.locals[a.local] = done
        self.keep_alives += method == KEEP_ALIVE
        self.gathered[method].push_back(a)
        self.waiting += 1
        if not self.awake:
            self.awake = True
            self.wake()

    # --- to consensus

    @property
    def wants_turn(self):
        """Whether something gathered, or waits for this gateway's map."""
        return self.awake or len(self.late) > 0

    @property
    def open_count(self):
        """Questions that are gathered or asked."""
        return self.waiting

    def take_questions(self, int64_t revision, uint64_t term):
        """[(KIND_LEASE_*, payload)] of all that gathered; `revision`: of this gateway's map."""
        cdef Batch batch
        cdef uint8_t *d
        cdef size_t i, n
        cdef int method
        self.awake = False
        self.head.raft_term = term
        out = []
        for method in range(3):
            n = self.gathered[method].size()
            if n == 0:
                continue
            batch = Batch()
            batch.kind = KIND_OF[method]
            batch.revision = revision
            batch.askers.swap(self.gathered[method])
            batch.payload = PyBytes_FromStringAndSize(
                NULL, 8 + (8 * n if method != LEASES else 0))
            d = <uint8_t *>PyBytes_AS_STRING(batch.payload)
            kv_store_u64(d, self.next_token)
            if method != LEASES:
                for i in range(n):
                    kv_store_u64(d + 8 + 8 * i, batch.askers[i].id)
                    if batch.askers[i].keys:
                        batch.keys = True
            self.open[self.next_token] = batch
            self.next_token += 1
            out.append((batch.kind, batch.payload))
        return out

    def questions_again(self):
        """Everything that was asked and not answered, for a new consensus."""
        cdef Batch batch
        return [(batch.kind, batch.payload) for batch in self.open.values()]

    # --- answers

    def on_answer(self, bytes payload not None) -> None:
        """KEPT, LEASE_TIMES_OK or LEASE_IDS_OK. DecodeError when it isn't well-formed."""
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(payload)
        cdef size_t n = <size_t>PyBytes_GET_SIZE(payload), askers
        cdef Batch batch
        if n < HEAD_BYTES:
            raise DecodeError("an answer about leases has no head")
        found = self.open.pop(kv_load_u64(p), None)
        if found is None:
            return                        # asked again of a consensus that had it already
        batch = found
        askers = batch.askers.size()
        if batch.kind == KIND_LEASE_KEEP_ALIVE:
            if n != HEAD_BYTES + 8 * askers:
                raise DecodeError("KEPT has another length than what was asked")
            self.answer_kept(batch, p + HEAD_BYTES)
        elif batch.kind == KIND_LEASE_TIME_TO_LIVE:
            if n != HEAD_BYTES + 16 * askers:
                raise DecodeError("LEASE_TIMES_OK has another length than what was asked")
            batch.answer = payload
            self.late.append(batch)
        else:
            self.answer_ids(batch, p + HEAD_BYTES, n - HEAD_BYTES)
        if batch.kind != KIND_LEASE_TIME_TO_LIVE:
            self.waiting -= askers

    def serve_late(self, RangeReader reader not None):
        """LeaseTimeToLive whose index is applied in the reader's snapshot; whether some are left.

        CorruptionError when an attached key can't be read.
        """
        cdef Batch batch
        late, self.late = self.late, []
        for item in late:
            batch = item
            if kv_load_u64(<const uint8_t *>PyBytes_AS_STRING(batch.answer) + 8) \
                    > reader.heads.applied_index:
                self.late.append(batch)
                continue
            self.waiting -= batch.askers.size()
            self.answer_times(batch, reader)
        return len(self.late) > 0

    cdef kv_buf *open_answer(self, const Asker *a) except NULL:
        if a.local:
            kv_buf_clear(&self.scratch)
            return &self.scratch
        return self.calls.begin_message(a.call)

    cdef int close_answer(self, const Asker *a, int method) except -1:
        if a.local:
            if self.scratch.err:
                raise MemoryError
            done = self.locals.pop(a.local)
            done(CODE_OK, (<char *>self.scratch.p)[:self.scratch.n])
            kv_buf_trim(&self.scratch, SCRATCH_KEEP)
            return 0
        self.calls.end_message(a.call)
        if method != KEEP_ALIVE:
            self.calls.finish(a.call, GRPC_OK, NULL, 0)
        return 0

    cdef int refuse(self, Asker *a, int code) except -1:
        cdef Status s
        if a.local:
            self.locals.pop(a.local)(code, b"")
            return 0
        s = status_of(code)
        return self.calls.finish(a.call, s.grpc, s.text, s.n)

    cdef int answer_kept(self, Batch batch, const uint8_t *p) except -1:
        cdef size_t i
        cdef kv_buf *out
        cdef Asker *a
        self.head.revision = batch.revision
        for i in range(batch.askers.size()):
            a = &batch.askers[i]
            if not a.local and not self.calls.alive(a.call):
                continue
            out = self.open_answer(a)
            put_compact_response(out, &self.head)
            put_lease_response(out, <int64_t>a.id, <int64_t>kv_load_u64(p + 8 * i))
            self.close_answer(a, KEEP_ALIVE)
            if not a.local:
                self.owe_less(a)
        return 0

    cdef int answer_times(self, Batch batch, RangeReader reader) except -1:
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(batch.answer) + HEAD_BYTES
        cdef int64_t left, granted
        cdef size_t i
        cdef kv_buf *out
        cdef Asker *a
        self.head.revision = <int64_t>reader.heads.revision
        for i in range(batch.askers.size()):
            a = &batch.askers[i]
            if not a.local and not self.calls.alive(a.call):
                continue
            left = <int64_t>kv_load_u64(p + 16 * i)
            granted = <int64_t>kv_load_u64(p + 16 * i + 8)
            out = self.open_answer(a)
            put_compact_response(out, &self.head)
            put_time_to_live(out, <int64_t>a.id, left, granted)
            if a.keys and left >= 0:
                self.put_keys(reader, <int64_t>a.id, out)
            self.close_answer(a, TIME_TO_LIVE)
        return 0

    cdef int put_keys(self, RangeReader reader, int64_t id, kv_buf *out) except -1:
        cdef const uint8_t *p
        cdef const uint8_t *end
        cdef uint64_t count
        cdef kv_slice key
        cdef kv_buf keys
        cdef int rc
        kv_buf_init(&keys)
        try:
            rc = lease_keys(&reader.store.ops, reader.txn, id, &keys, &self.list, &count)
            if rc == REC_CORRUPT:
                raise CorruptionError("the keys of a lease do not fit their records")
            if rc == REC_NOMEM:
                raise MemoryError
            if rc != REC_OK:
                raise DiskError("the keys of a lease could not be read")
            p = keys.p
            end = p + keys.n
            while p < end:
                key.n = kv_load_u32(p)
                key.p = p + 4
                p = key.p + key.n
                put_lease_key(out, key)
        finally:
            kv_buf_free(&keys)
            kv_buf_trim(&self.list, SCRATCH_KEEP)
        return 0

    cdef int answer_ids(self, Batch batch, const uint8_t *p, size_t n) except -1:
        cdef size_t i, at
        cdef kv_buf *out
        cdef Asker *a
        self.head.revision = batch.revision
        for i in range(batch.askers.size()):
            a = &batch.askers[i]
            if not a.local and not self.calls.alive(a.call):
                continue
            out = self.open_answer(a)
            put_compact_response(out, &self.head)
            for at in range(0, n - n % 8, 8):
                put_lease_status(out, <int64_t>kv_load_u64(p + at))
            self.close_answer(a, LEASES)
        return 0

    def finish_streams(self) -> None:
        """The gateway drains: keep-alive streams end, their clients go on elsewhere."""
        cdef Status s = status_of(CODE_STOPPED)
        cdef Call call
        cdef vector[uint64_t] keys
        cdef uint64_t key
        for item in self.streams:
            keys.push_back(item.first)
        self.streams.clear()
        for key in keys:
            call.number = <uint32_t>(key >> 32)
            call.generation = <uint32_t>key
            if self.calls.alive(call):
                self.calls.finish(call, s.grpc, s.text, s.n)
