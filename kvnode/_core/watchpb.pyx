"""WatchRequest and WatchResponse over bytes, as etcdpb.pyx does it for the KV service.

Called by watchcalls (requests, control responses) and watchhub (events).

    WatchRequest   oneof { create_request=1  cancel_request=2  progress_request=3 }
    create         key=1 range_end=2 start_revision=3 progress_notify=4 filters=5 prev_kv=6
                   watch_id=7 fragment=8
    cancel         watch_id=1
    WatchResponse  header=1 watch_id=2 created=3 canceled=4 compact_revision=5 cancel_reason=6
                   fragment=7 events=11
    Event          type=1 (0 put, 1 delete) kv=2 prev_kv=3

    0a 05  0a 01 61  18 02        WatchRequest{create_request{key: "a", start_revision: 2}}

1. Decoding follows protobuf as etcdpb.pyx says it (its 1, 2, 3, 4): parts of one member of the
   oneof merge, another member discards what was there; filters come packed or not.
2. What is written equals what Go's marshaller writes.
"""

from libc.string cimport memset

from kvnode._core.buf cimport (
    kv_buf_free,
    kv_buf_init,
    kv_get_varint,
    kv_put_u8,
    kv_put_varint,
    kv_rd,
    kv_rd_init,
    kv_varint_size,
)
from kvnode._core.codes cimport CODE_MALFORMED, CODE_OK
from kvnode._core.etcdpb cimport put_header
from kvnode._core.pbfield cimport (
    next_bool,
    next_slice,
    next_tag,
    put_bytes_field,
    put_int_field,
    put_message_field,
    skip_field,
)


cdef inline void add_filter(WatchReq *out, uint64_t number) noexcept nogil:
    # An enum is the low 32 bits of its varint.
    if <uint32_t>number == 0:
        out.filters |= FILTER_NOPUT
    elif <uint32_t>number == 1:
        out.filters |= FILTER_NODELETE


cdef bint merge_create(kv_slice s, WatchReq *out) noexcept nogil:
    cdef kv_rd r, packed
    cdef kv_slice part
    cdef uint32_t tag
    kv_rd_init(&r, s.p, s.n)
    while r.p < r.end:
        tag = next_tag(&r)
        if tag == 0x0A:
            next_slice(&r, &out.key)
        elif tag == 0x12:
            next_slice(&r, &out.range_end)
        elif tag == 0x18:
            out.start_revision = <int64_t>kv_get_varint(&r)
        elif tag == 0x20:
            out.progress_notify = next_bool(&r)
        elif tag == 0x28:
            add_filter(out, kv_get_varint(&r))
        elif tag == 0x2A:
            next_slice(&r, &part)
            kv_rd_init(&packed, part.p, part.n)
            while packed.p < packed.end:
                add_filter(out, kv_get_varint(&packed))
            if packed.bad:
                r.bad = 1
        elif tag == 0x30:
            out.prev_kv = next_bool(&r)
        elif tag == 0x38:
            out.watch_id = <int64_t>kv_get_varint(&r)
        elif tag == 0x40:
            out.fragment = next_bool(&r)
        else:
            skip_field(&r, tag)
    return not r.bad


cdef bint merge_cancel(kv_slice s, WatchReq *out) noexcept nogil:
    cdef kv_rd r
    cdef uint32_t tag
    kv_rd_init(&r, s.p, s.n)
    while r.p < r.end:
        tag = next_tag(&r)
        if tag == 0x08 and out.kind == WATCH_CANCEL:
            out.watch_id = <int64_t>kv_get_varint(&r)
        else:
            skip_field(&r, tag)
    return not r.bad


cdef int decode_watch(const uint8_t *p, size_t n, WatchReq *out) noexcept nogil:
    cdef kv_rd r
    cdef kv_slice part
    cdef uint32_t tag
    cdef int kind
    memset(out, 0, sizeof(WatchReq))
    kv_rd_init(&r, p, n)
    while r.p < r.end:
        tag = next_tag(&r)
        if tag != 0x0A and tag != 0x12 and tag != 0x1A:
            skip_field(&r, tag)
            continue
        next_slice(&r, &part)
        kind = tag >> 3
        if out.kind != kind:
            memset(out, 0, sizeof(WatchReq))
            out.kind = kind
        if kind == WATCH_CREATE:
            if not merge_create(part, out):
                return CODE_MALFORMED
        elif not merge_cancel(part, out):
            return CODE_MALFORMED
    return CODE_MALFORMED if r.bad else CODE_OK


cdef void put_watch_head(kv_buf *b, const RespHeader *h, const WatchHead *w) noexcept nogil:
    put_header(b, h)
    put_int_field(b, 0x10, <uint64_t>w.watch_id)
    if w.created:
        put_int_field(b, 0x18, 1)
    if w.canceled:
        put_int_field(b, 0x20, 1)
    put_int_field(b, 0x28, <uint64_t>w.compact_revision)
    if w.reason.p != NULL:
        put_bytes_field(b, 0x32, w.reason)
    if w.fragment:
        put_int_field(b, 0x38, 1)


cdef void put_watch_event(kv_buf *b, bint deleted, kv_slice kv, kv_slice prev) noexcept nogil:
    cdef size_t n = 1 + kv_varint_size(kv.n) + kv.n
    if deleted:
        n += 2
    if prev.p != NULL:
        n += 1 + kv_varint_size(prev.n) + prev.n
    kv_put_u8(b, 0x5A)
    kv_put_varint(b, n)
    if deleted:
        kv_put_u8(b, 0x08)
        kv_put_u8(b, 1)
    put_message_field(b, 0x12, kv.p, kv.n)
    if prev.p != NULL:
        put_message_field(b, 0x1A, prev.p, prev.n)


# --- for Python: tests and fuzzing --------------------------------------------------------------

cdef bytes as_bytes(kv_slice s):
    return (<const char *>s.p)[:s.n] if s.n else b""


def decode(bytes body not None):
    """(code, kind, fields): fields by name, those of the set member."""
    cdef WatchReq q
    cdef int code = decode_watch(body, len(body), &q)
    if code != CODE_OK:
        return code, 0, {}
    if q.kind == WATCH_CREATE:
        return code, q.kind, {
            "key": as_bytes(q.key),
            "range_end": as_bytes(q.range_end),
            "start_revision": q.start_revision,
            "progress_notify": bool(q.progress_notify),
            "noput": bool(q.filters & FILTER_NOPUT),
            "nodelete": bool(q.filters & FILTER_NODELETE),
            "prev_kv": bool(q.prev_kv),
            "watch_id": q.watch_id,
            "fragment": bool(q.fragment),
        }
    return code, q.kind, {"watch_id": q.watch_id} if q.kind == WATCH_CANCEL else {}


def encode(tuple header not None, long long watch_id, *, bint created=False, bint canceled=False,
           long long compact_revision=0, bytes reason=None, bint fragment=False, events=()):
    """A WatchResponse. header: (cluster, member, revision, term); events: (deleted, kv, prev)."""
    cdef RespHeader h
    cdef WatchHead w
    cdef kv_buf b
    cdef kv_slice kv, before
    cdef bytes message, prev
    h.cluster_id, h.member_id, h.revision, h.raft_term = header
    w.watch_id = watch_id
    w.created = created
    w.canceled = canceled
    w.compact_revision = compact_revision
    w.reason.p = NULL
    w.reason.n = 0
    if reason is not None:
        w.reason.p = reason
        w.reason.n = len(reason)
    w.fragment = fragment
    kv_buf_init(&b)
    put_watch_head(&b, &h, &w)
    for deleted, message, prev in events:
        kv.p = message
        kv.n = len(message)
        before.p = NULL
        before.n = 0
        if prev is not None:
            before.p = prev
            before.n = len(prev)
        put_watch_event(&b, deleted, kv, before)
    if b.err:
        kv_buf_free(&b)
        raise MemoryError
    try:
        return (<const char *>b.p)[:b.n] if b.n else b""
    finally:
        kv_buf_free(&b)
