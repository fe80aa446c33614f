"""Answers from stored outcomes: what a repeated request gets.

Called by machine.pyx when a (session, sequence) comes again; requests.pyx wrote the outcome and
has its layout. A refused request gets its code again. Where the outcome is the whole answer the
same response is encoded anew, from the stored revision and the present term. Otherwise (prev_kv,
ranges, lists) the code is CODE_APPLIED and the body holds only the header, with the revision at
which the request was applied.

Invariant: outcome_requests accepts exactly what answer_outcome can read without passing the end.

Absent on purpose: any look into the store. What was answered once is never computed again.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from kvnode._core.buf cimport (
    kv_get_varint,
    kv_rd,
    kv_rd_init,
    kv_rd_left,
)
from kvnode._core.codes cimport (
    CODE_APPLIED,
    CODE_OK,
    KIND_DELETE_RANGE,
    KIND_LEASE_GRANT,
    KIND_PUT,
    KIND_PUT_BATCH,
    KIND_PUT_BATCH_ONE,
    KIND_TXN,
    KIND_TXN_BATCH,
)
from kvnode._core.envelope cimport res_close, res_open
from kvnode._core.etcdpb cimport (
    OP_DELETE_RANGE,
    OP_PUT,
    OP_TXN,
    batch_begin,
    batch_finish,
    batch_refuse,
    op_close,
    op_open,
    put_compact_response,
    put_delete_response,
    put_put_response,
    txn_begin,
)
from kvnode._core.leasepb cimport put_lease_response

cdef enum:
    TXN_DEPTH_BOUND = 256      # far above what etcdpb lets pass


cdef inline bint is_batch(uint64_t kind) noexcept nogil:
    return kind == KIND_PUT_BATCH or kind == KIND_PUT_BATCH_ONE or kind == KIND_TXN_BATCH


# --- reading over ---------------------------------------------------------------------------------

cdef bint skip_txn(kv_rd *r, int depth, bint *changed) noexcept nogil:
    """Reads over a transaction's part; *changed: it wrote. 0: malformed."""
    cdef uint64_t _i, n, kind
    if depth > TXN_DEPTH_BOUND:
        return 0
    kv_get_varint(r)
    n = kv_get_varint(r)
    for _i in range(n):
        kind = kv_get_varint(r)
        if r.bad:
            return 0
        if kind == KIND_PUT:
            changed[0] = 1
        elif kind == KIND_DELETE_RANGE:
            if kv_get_varint(r):
                changed[0] = 1
        elif kind != KIND_TXN or not skip_txn(r, depth + 1, changed):
            return 0
    return not r.bad


cdef bint skip_request(kv_rd *r) noexcept nogil:
    cdef uint64_t code = kv_get_varint(r)
    cdef uint64_t kind = kv_get_varint(r)
    cdef bint partial = kind & 1
    cdef bint changed = 0
    cdef uint64_t _i, n
    kind >>= 1
    kv_get_varint(r)
    if r.bad:
        return 0
    if code != CODE_OK or partial:
        return 1
    if kind == KIND_DELETE_RANGE:
        kv_get_varint(r)
    elif kind == KIND_LEASE_GRANT:
        kv_get_varint(r)
        kv_get_varint(r)
    elif kind == KIND_TXN:
        return skip_txn(r, 0, &changed)
    elif is_batch(kind):
        kv_get_varint(r)
        kv_get_varint(r)
        n = kv_get_varint(r)
        for _i in range(n):
            kv_get_varint(r)
            kv_get_varint(r)
            if r.bad:
                return 0
    return not r.bad


cdef int64_t outcome_requests(kv_slice outcome) noexcept nogil:
    cdef int64_t n = 0
    cdef kv_rd r
    kv_rd_init(&r, outcome.p, outcome.n)
    while kv_rd_left(&r):
        if not skip_request(&r):
            return -1
        n += 1
    return n


# --- answering ------------------------------------------------------------------------------------

cdef void answer_txn(kv_rd *r, kv_buf *out, bint nested, int64_t *seen,
                     int64_t last) noexcept nogil:
    """The response without its header; *seen is the revision that operations show by now."""
    cdef bint succeeded = kv_get_varint(r)
    cdef uint64_t _i, kind, deleted, n = kv_get_varint(r)
    cdef RespHeader h
    cdef kv_slice none
    cdef size_t mark
    none.p = NULL
    none.n = 0
    memset(&h, 0, sizeof(h))
    txn_begin(out, &h if nested else NULL, succeeded)
    for _i in range(n):
        kind = kv_get_varint(r)
        if kind == KIND_PUT:
            seen[0] = last
            h.revision = last
            mark = op_open(out, OP_PUT)
            put_put_response(out, &h, none)
            op_close(out, OP_PUT, mark)
        elif kind == KIND_DELETE_RANGE:
            deleted = kv_get_varint(r)
            if deleted:
                seen[0] = last
            h.revision = seen[0]
            mark = op_open(out, OP_DELETE_RANGE)
            put_delete_response(out, &h, <int64_t>deleted, NULL, 0)
            op_close(out, OP_DELETE_RANGE, mark)
        else:
            mark = op_open(out, OP_TXN)
            answer_txn(r, out, 1, seen, last)
            op_close(out, OP_TXN, mark)


cdef void answer_batch(kv_rd *r, const RespHeader *h, kv_buf *out) noexcept nogil:
    cdef int64_t first = <int64_t>kv_get_varint(r)
    cdef uint64_t applied = kv_get_varint(r)
    cdef uint64_t _i, index, n = kv_get_varint(r)
    batch_begin(out, h)
    for _i in range(n):
        index = kv_get_varint(r)
        batch_refuse(out, <uint32_t>index, <uint32_t>kv_get_varint(r))
    batch_finish(out, first, h.revision if first else 0, applied)


cdef void answer_whole(kv_rd *r, uint64_t kind, RespHeader *h, kv_buf *out) noexcept nogil:
    cdef int64_t seen, id
    cdef bint changed = 0
    cdef kv_slice none
    cdef kv_rd ahead
    if kind == KIND_TXN:
        ahead = r[0]
        skip_txn(&ahead, 0, &changed)
        seen = h.revision - (1 if changed else 0)
        put_compact_response(out, h)            # the header field, which comes first
        answer_txn(r, out, 0, &seen, h.revision)
    elif kind == KIND_DELETE_RANGE:
        put_delete_response(out, h, <int64_t>kv_get_varint(r), NULL, 0)
    elif is_batch(kind):
        answer_batch(r, h, out)
    elif kind == KIND_LEASE_GRANT:
        id = <int64_t>kv_get_varint(r)
        put_compact_response(out, h)
        put_lease_response(out, id, <int64_t>kv_get_varint(r))
    elif kind == KIND_PUT:
        none.p = NULL
        none.n = 0
        put_put_response(out, h, none)
    else:
        # COMPACT, LEASE_REVOKE, LEASE_CHECKPOINT, sessions: a message of the header alone
        put_compact_response(out, h)


cdef void answer_outcome(const RespHeader *head, kv_slice outcome, kv_buf *out,
                         size_t group_at) noexcept nogil:
    cdef RespHeader h = head[0]
    cdef uint64_t code, kind
    cdef size_t mark
    cdef kv_rd r, ahead
    kv_rd_init(&r, outcome.p, outcome.n)
    while kv_rd_left(&r):
        ahead = r
        skip_request(&ahead)
        code = kv_get_varint(&r)
        kind = kv_get_varint(&r)
        h.revision = <int64_t>kv_get_varint(&r)
        mark = res_open(out, group_at, <uint8_t>(kind >> 1))
        if code == CODE_OK and kind & 1:
            code = CODE_APPLIED
            put_compact_response(out, &h)
        elif code == CODE_OK:
            answer_whole(&r, kind >> 1, &h, out)
        res_close(out, group_at, mark, <uint8_t>code)
        r = ahead
