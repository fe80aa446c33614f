# distutils: language = c++
"""etcd's KV service, and grants and revokes of leases, over gRPC streams.

Role: a message of a stream becomes a request of the front or of the reads; its answer goes
straight into the stream's message. No Python object per request.
Caller: procs/gateway puts it between `h2` (the Calls) and the front; METHODS are the routes.

What is checked before anything else is checked here: a RangeStream's request, bodies that are no
messages (grpc-go's words). The rest is front's, the reads' and the state machine's; `grpcstatus`
has the texts.

Invariants:
  1. Each call is finished exactly once, unless it went first.
  2. Above `held_bytes_max` of requests that are not answered a call is refused, not queued.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_put_bytes
from kvnode._core.calls cimport Call, Calls, Methods
from kvnode._core.codes cimport *
from kvnode._core.etcdpb cimport RangeReq, check_range, decode_range
from kvnode._core.front cimport Front
from kvnode._core.grpcstatus cimport (
    GRPC_INTERNAL, GRPC_OK, GRPC_RESOURCE_EXHAUSTED, Status, status_of,
)
from kvnode._core.readqueue cimport READ_SERIALIZABLE, READ_STREAM
from kvnode._core.sink cimport Ref, Sink

cdef enum:
    RANGE_STREAM = 64            # a method's number; the others are their requests' KIND_*

METHODS = (
    (b"/etcdserverpb.KV/Range", KIND_RANGE, False),
    (b"/etcdserverpb.KV/RangeStream", RANGE_STREAM, True),
    (b"/etcdserverpb.KV/Put", KIND_PUT, False),
    (b"/etcdserverpb.KV/DeleteRange", KIND_DELETE_RANGE, False),
    (b"/etcdserverpb.KV/Txn", KIND_TXN, False),
    (b"/etcdserverpb.KV/Compact", KIND_COMPACT, False),
    (b"/etcdserverpb.Lease/LeaseGrant", KIND_LEASE_GRANT, False),
    (b"/etcdserverpb.Lease/LeaseRevoke", KIND_LEASE_REVOKE, False),
)
"""(path, number, whether the server streams)."""

cdef bytes MALFORMED_TEXT = (
    b"grpc: error unmarshalling request: proto: cannot parse invalid wire-format data")
cdef bytes MALFORMED_STREAM_TEXT = (
    b"grpc: failed to unmarshal the received message: "
    b"proto: cannot parse invalid wire-format data")


cdef inline Call call_of(const Ref *ref) noexcept nogil:
    cdef Call call
    call.number = ref.conn
    call.generation = ref.generation
    return call


cdef class GrpcSink(Sink):
    """Answers into streams. A Ref is a Call; its id is the method's number."""

    cdef Calls calls
    cdef bint awake              # a turn was asked for

    def __cinit__(self, Calls calls not None):
        self.calls = calls
        self.wakes = True
        self.pieces = True

    cdef bint alive(self, const Ref *ref) noexcept nogil:
        return self.calls.alive(call_of(ref))

    cdef bint full(self, const Ref *ref) noexcept nogil:
        return self.calls.room(call_of(ref)) <= 0

    cdef int64_t room(self, const Ref *ref) noexcept nogil:
        return self.calls.room(call_of(ref))

    cdef int refuse(self, Call call, int method, int code) except -1:
        cdef Status s
        cdef const uint8_t *text
        if code == CODE_MALFORMED:
            if method == RANGE_STREAM:
                text = MALFORMED_STREAM_TEXT
                return self.calls.finish(call, GRPC_INTERNAL, text, len(MALFORMED_STREAM_TEXT))
            text = MALFORMED_TEXT
            return self.calls.finish(call, GRPC_INTERNAL, text, len(MALFORMED_TEXT))
        s = status_of(code)
        return self.calls.finish(call, s.grpc, s.text, s.n)

    cdef int answer(self, const Ref *ref, int code, int state, const uint8_t *p,
                    size_t n) except -1:
        cdef Call call = call_of(ref)
        if not self.calls.alive(call):
            return 0
        if code != CODE_OK:
            return self.refuse(call, <int> ref.id, code)
        kv_put_bytes(self.calls.begin_message(call), p, n)
        self.calls.end_message(call)
        return self.calls.finish(call, GRPC_OK, NULL, 0)

    cdef kv_buf *open_answer(self, const Ref *ref) except NULL:
        return self.calls.begin_message(call_of(ref))

    cdef int close_answer(self, const Ref *ref, int code) except -1:
        cdef Call call = call_of(ref)
        if code != CODE_OK:
            self.calls.undo_message(call)
            return self.refuse(call, <int> ref.id, code)
        self.calls.end_message(call)
        return self.calls.finish(call, GRPC_OK, NULL, 0)

    cdef int undo_answer(self, const Ref *ref) except -1:
        return self.calls.undo_message(call_of(ref))

    cdef int begin_long(self, const Ref *ref, uint64_t n) except -1:
        return self.calls.begin_long(call_of(ref), n)

    cdef int add_long(self, const Ref *ref, const uint8_t *p, size_t n) except -1:
        return self.calls.add_long(call_of(ref), p, n)

    cdef int end_long(self, const Ref *ref, int code) except -1:
        if code != CODE_OK:
            return self.refuse(call_of(ref), <int> ref.id, code)
        return self.calls.finish(call_of(ref), GRPC_OK, NULL, 0)

    cdef int refuse_size(self, const Ref *ref, uint64_t n, uint64_t most) except -1:
        cdef bytes words = (
            b"grpc: trying to send message larger than max (%d vs. %d)" % (n, most))
        cdef const uint8_t *text = words
        return self.calls.finish(call_of(ref), GRPC_RESOURCE_EXHAUSTED, text, len(words))

    cdef bint flush(self) except? True:
        # What waits for the transport is tried again when it says so.
        self.awake = False
        self.calls.flush()
        return False


cdef class KvMethods(Methods):
    """Calls to requests of `front`. `wake()` asks for a turn."""

    cdef:
        GrpcSink sink
        Calls calls
        Front front
        object wake
        uint64_t held_bytes_max
        readonly uint64_t refused

    def __cinit__(self, GrpcSink sink not None, Front front not None, wake, *, held_bytes_max):
        self.sink = sink
        self.calls = sink.calls
        self.front = front
        self.wake = wake
        self.held_bytes_max = held_bytes_max

    cdef int on_message(self, Call call, int method, const uint8_t *p, size_t n) except -1:
        cdef Ref ref
        cdef int code
        if not self.sink.awake:
            self.sink.awake = True
            self.wake()
        ref.sink = self.sink.number
        ref.conn = call.number
        ref.generation = call.generation
        ref.id = <uint32_t> method
        ref.size = <uint32_t> n
        if self.front.held_bytes() + n > self.held_bytes_max:
            self.refused += 1
            code = CODE_TOO_MANY_REQUESTS
        elif method == RANGE_STREAM:
            return self.on_stream(&ref, p, n)
        else:
            code = self.front.take(&ref, method, NULL, p, n)
        if code != CODE_OK:
            self.sink.refuse(call, method, code)
        return 0

    cdef int on_stream(self, const Ref *ref, const uint8_t *p, size_t n) except -1:
        cdef Call call = call_of(ref)
        cdef RangeReq rr
        cdef int code = decode_range(p, n, &rr)
        if code == CODE_OK:
            code = check_range(&rr)
        if code != CODE_OK:
            return self.sink.refuse(call, RANGE_STREAM, code)
        self.front.reads += 1
        self.front.queue.add_read(
            ref, READ_STREAM | (READ_SERIALIZABLE if rr.serializable else 0), p, n)
        return 0

    cdef int on_gone(self, Call call, int method) except -1:
        if self.front.queue.longs.reads.size() or self.front.queue.held.n:
            self.wake()
        return 0

    cdef int on_room(self, Call call, int method) except -1:
        self.wake()
        return 0
