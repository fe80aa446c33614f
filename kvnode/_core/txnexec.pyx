"""Transactions: compares, checks and execution with etcd 3.7's semantics.

Called by requests.pyx with a decoded TxnReq that passed check_txn. A transaction runs in two
steps, so that it is refused before its first write or not at all:

1. txn_prepare evaluates all compares, those of nested transactions included, against the state
   before the transaction, and so fixes every branch; then it checks each operation that will run.
2. txn_run executes the taken branches in order. All writes share one main revision; ranges and
   deletes see what earlier operations wrote; the header of an operation's answer holds only the
   revision at its time, that of a nested transaction is empty.

Compares: each must hold for every key of its range. Without any key it is compared with zeros,
but a value compare then fails. Only the union member that the target names counts.

Invariants:
1. txn_prepare writes nothing; txn_run doesn't refuse.
2. Both walk the taken branches in the same order, depth first, so `path` fits.

Absent on purpose: what needs no state (etcdpb checks it), revisions (the writer takes them).
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from kvnode._core.buf cimport (
    kv_buf_clear,
    kv_buf_free,
    kv_buf_init,
    kv_buf_trim,
    kv_put_bytes,
    kv_put_u8,
    kv_put_varint,
    kv_slice,
    kv_slice_cmp,
)
from kvnode._core.codes cimport (
    CODE_COMPACTED,
    CODE_FUTURE_REV,
    CODE_KEY_NOT_FOUND,
    CODE_LEASE_NOT_FOUND,
    CODE_OK,
    KIND_DELETE_RANGE,
    KIND_PUT,
    KIND_RANGE,
    KIND_TXN,
)
from kvnode._core.etcdpb cimport (
    COMPARE_EQUAL,
    COMPARE_GREATER,
    COMPARE_LESS,
    COMPARE_NOT_EQUAL,
    OP_DELETE_RANGE,
    OP_PUT,
    OP_RANGE,
    OP_TXN,
    TARGET_CREATE,
    TARGET_LEASE,
    TARGET_MOD,
    TARGET_VALUE,
    TARGET_VERSION,
    UNION_VALUE,
    Compare,
    DeleteReq,
    KeyValue,
    Op,
    PutReq,
    RangeReq,
    RespHeader,
    decode_kv,
    op_close,
    op_open,
    put_delete_response,
    put_put_response,
    txn_begin,
)
from kvnode._core.ranges cimport range_execute
from kvnode._core.records cimport REC_CORRUPT, REC_NOMEM, REC_NONE, REC_OK
from kvnode._core.revindex cimport (
    IndexIter,
    Meta,
    index_get,
    iter_close,
    iter_init,
    iter_next,
    meta_live,
)
from kvnode._core.writer cimport (
    find_lease,
    read_entry,
    write_delete,
    write_put,
    writer_seen,
)

cdef enum:
    SCRATCH_KEEP = 1 << 20


cdef void txn_init(TxnRun *t, Writer *w) noexcept nogil:
    memset(t, 0, sizeof(TxnRun))
    t.w = w
    kv_buf_init(&t.path)
    kv_buf_init(&t.deletes)
    kv_buf_init(&t.prevs)
    kv_buf_init(&t.scratch)


cdef void txn_free(TxnRun *t) noexcept nogil:
    kv_buf_free(&t.path)
    kv_buf_free(&t.deletes)
    kv_buf_free(&t.prevs)
    kv_buf_free(&t.scratch)


cdef bint ops_have_put(const Op *ops, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if ops[i].kind == OP_PUT or (ops[i].kind == OP_TXN and txn_has_put(ops[i].body.txn_req)):
            return 1
    return 0


cdef bint txn_has_put(const TxnReq *r) noexcept nogil:
    return ops_have_put(r.success, r.success_n) or ops_have_put(r.failure, r.failure_n)


# --- compares -------------------------------------------------------------------------------------

cdef inline bint verdict(int32_t result, int sign) noexcept nogil:
    if result == COMPARE_EQUAL:
        return sign == 0
    if result == COMPARE_NOT_EQUAL:
        return sign != 0
    if result == COMPARE_GREATER:
        return sign > 0
    if result == COMPARE_LESS:
        return sign < 0
    return 1


cdef bint compare_meta(const Compare *c, const Meta *m) noexcept nogil:
    """Every target but the value; `m` all zeros stands for a key that isn't there."""
    cdef int64_t ours = 0, theirs = 0
    if c.target == TARGET_VERSION:
        ours = <int64_t>m.version
    elif c.target == TARGET_CREATE:
        ours = <int64_t>m.create
    elif c.target == TARGET_MOD:
        ours = <int64_t>m.mod_main
    elif c.target == TARGET_LEASE:
        ours = <int64_t>m.lease
    else:
        return verdict(c.result, 0)
    if c.union_case == c.target + 4:        # UNION_VERSION... stand in the order of TARGET_...
        theirs = c.number
    return verdict(c.result, (ours > theirs) - (ours < theirs))


cdef int compare_key(TxnRun *t, const Compare *c, const Meta *m, bint *holds) noexcept nogil:
    """One live key."""
    cdef kv_slice raw, theirs
    cdef KeyValue kv
    cdef int rc
    if c.target != TARGET_VALUE:
        holds[0] = compare_meta(c, m)
        return REC_OK
    rc = read_entry(t.w.ops, t.w.txn, m, &raw, &t.scratch)
    if rc != REC_OK:
        return REC_CORRUPT if rc == REC_NONE else rc
    if decode_kv(raw.p, raw.n, &kv) != 0:
        return REC_CORRUPT
    theirs.p = NULL
    theirs.n = 0
    if c.union_case == UNION_VALUE:
        theirs = c.value
    holds[0] = verdict(c.result, kv_slice_cmp(kv.value, theirs))
    return REC_OK


cdef bint compare_nothing(const Compare *c) noexcept nogil:
    cdef Meta none
    if c.target == TARGET_VALUE:
        return 0
    memset(&none, 0, sizeof(none))
    return compare_meta(c, &none)


cdef int compare_range(TxnRun *t, const Compare *c, bint *holds) noexcept nogil:
    cdef IndexIter it
    cdef bint any_key = 0
    cdef int rc = iter_init(&it, t.w.ops, t.w.txn, c.key, c.range_end)
    holds[0] = 1
    if rc == REC_OK:
        rc = iter_next(&it)
    while rc == REC_OK and holds[0]:
        if meta_live(&it.meta):
            any_key = 1
            rc = compare_key(t, c, &it.meta, holds)
            if rc != REC_OK:
                break
        if holds[0]:
            rc = iter_next(&it)
    iter_close(&it)
    if rc == REC_NONE:
        rc = REC_OK
    if rc == REC_OK and not any_key:
        holds[0] = compare_nothing(c)
    return rc


cdef int compare_one(TxnRun *t, const Compare *c, bint *holds) noexcept nogil:
    cdef Meta meta
    cdef int rc
    if c.range_end.n:
        return compare_range(t, c, holds)
    rc = index_get(t.w.ops, t.w.txn, c.key, &meta)
    if rc == REC_NONE or (rc == REC_OK and not meta_live(&meta)):
        holds[0] = compare_nothing(c)
        return REC_OK
    if rc != REC_OK:
        return rc
    return compare_key(t, c, &meta, holds)


cdef int decide(TxnRun *t, const TxnReq *r) noexcept nogil:
    """Appends the branch of `r`, then those of the transactions in it, to t.path."""
    cdef bint holds = 1
    cdef const Op *ops
    cdef size_t i, n
    cdef int rc
    for i in range(r.compare_n):
        rc = compare_one(t, &r.compare[i], &holds)
        if rc != REC_OK:
            return rc
        if not holds:
            break
    kv_put_u8(&t.path, holds)
    ops = r.success if holds else r.failure
    n = r.success_n if holds else r.failure_n
    for i in range(n):
        if ops[i].kind == OP_TXN:
            rc = decide(t, ops[i].body.txn_req)
            if rc != REC_OK:
                return rc
    return REC_OK


# --- checks ---------------------------------------------------------------------------------------

cdef int put_prepare(Writer *w, const void *put_req, int *code) noexcept nogil:
    cdef const PutReq *r = <const PutReq *>put_req
    cdef Meta meta
    cdef int rc
    if r.lease != 0:
        rc = find_lease(w.ops, w.txn, r.lease)
        if rc != REC_OK:
            code[0] = CODE_LEASE_NOT_FOUND
            return REC_OK if rc == REC_NONE else rc
    if r.ignore_value or r.ignore_lease:
        rc = index_get(w.ops, w.txn, r.key, &meta)
        if rc == REC_NONE or (rc == REC_OK and not meta_live(&meta)):
            code[0] = CODE_KEY_NOT_FOUND
            return REC_OK
        return rc
    return REC_OK


cdef bint deleted_before(const TxnRun *t, kv_slice key) noexcept nogil:
    """Whether a delete that runs earlier in the transaction covers `key`."""
    cdef const DeleteReq *d
    cdef size_t i, n = t.deletes.n // sizeof(void *)
    for i in range(n):
        d = (<const DeleteReq **>t.deletes.p)[i]
        if d.range_end.n == 0:
            if kv_slice_cmp(key, d.key) == 0:
                return 1
        elif kv_slice_cmp(key, d.key) >= 0:
            if d.range_end.n == 1 and d.range_end.p[0] == 0:
                return 1
            if kv_slice_cmp(key, d.range_end) < 0:
                return 1
    return 0


cdef int check_put_op(TxnRun *t, const PutReq *r, int *code) noexcept nogil:
    cdef int rc = put_prepare(t.w, r, code)
    if rc == REC_OK and code[0] == CODE_OK and (r.ignore_value or r.ignore_lease):
        if deleted_before(t, r.key):
            code[0] = CODE_KEY_NOT_FOUND
    return rc


cdef inline int check_range_op(const Writer *w, const RangeReq *r) noexcept nogil:
    if r.revision > w.revision:
        return CODE_FUTURE_REV
    if r.revision != 0 and r.revision < w.compacted:
        return CODE_COMPACTED
    return CODE_OK


cdef int check_taken(TxnRun *t, const TxnReq *r, int *code) noexcept nogil:
    cdef bint taken = t.path.p[t.at]
    cdef const Op *ops = r.success if taken else r.failure
    cdef size_t i, n = r.success_n if taken else r.failure_n
    cdef const DeleteReq *d
    cdef int rc = REC_OK
    t.at += 1
    for i in range(n):
        if ops[i].kind == OP_PUT:
            rc = check_put_op(t, ops[i].body.put_req, code)
        elif ops[i].kind == OP_RANGE:
            code[0] = check_range_op(t.w, ops[i].body.range_req)
        elif ops[i].kind == OP_DELETE_RANGE:
            d = ops[i].body.delete_req
            kv_put_bytes(&t.deletes, &d, sizeof(d))
        elif ops[i].kind == OP_TXN:
            rc = check_taken(t, ops[i].body.txn_req, code)
        if rc != REC_OK or code[0] != CODE_OK:
            return rc
    return rc


cdef int txn_prepare(TxnRun *t, const TxnReq *r, int *code) noexcept nogil:
    cdef int rc
    kv_buf_clear(&t.path)
    kv_buf_clear(&t.deletes)
    t.at = 0
    code[0] = CODE_OK
    rc = decide(t, r)
    if rc == REC_OK and t.path.err:
        return REC_NOMEM
    if rc == REC_OK:
        rc = check_taken(t, r, code)
    kv_buf_trim(&t.scratch, SCRATCH_KEEP)
    return REC_NOMEM if rc == REC_OK and t.deletes.err else rc


# --- execution ------------------------------------------------------------------------------------

cdef int run_put(TxnRun *t, const PutReq *r, RespHeader *h) noexcept nogil:
    cdef kv_slice prev
    cdef Meta old
    cdef int rc = write_put(t.w, r, &old)
    kv_put_varint(t.tail, KIND_PUT)
    if r.prev_kv:
        t.partial = 1
    if rc != REC_OK or t.out == NULL:
        return rc
    prev.p = NULL
    prev.n = 0
    if r.prev_kv:
        rc = read_entry(t.w.ops, t.w.txn, &old, &prev, &t.scratch)
        if rc != REC_OK and rc != REC_NONE:
            return rc
    h.revision = writer_seen(t.w)
    put_put_response(t.out, h, prev)
    return REC_OK


cdef int run_delete(TxnRun *t, const DeleteReq *r, RespHeader *h) noexcept nogil:
    cdef int64_t deleted = 0
    cdef bint wanted = r.prev_kv and t.out != NULL
    cdef int rc
    kv_buf_clear(&t.prevs)
    rc = write_delete(t.w, r, &deleted, &t.prevs if wanted else NULL)
    kv_put_varint(t.tail, KIND_DELETE_RANGE)
    kv_put_varint(t.tail, <uint64_t>deleted)
    if r.prev_kv and deleted:
        t.partial = 1
    if rc != REC_OK or t.out == NULL:
        return rc
    h.revision = writer_seen(t.w)
    put_delete_response(t.out, h, deleted, t.prevs.p, t.prevs.n)
    kv_buf_trim(&t.prevs, SCRATCH_KEEP)
    return REC_OK


cdef int run_range(TxnRun *t, const RangeReq *r, RespHeader *h) noexcept nogil:
    cdef int64_t floor = t.w.compacted if t.w.compacted > 0 else 0
    cdef int code = CODE_OK
    cdef int rc
    kv_put_varint(t.tail, KIND_RANGE)
    t.partial = 1
    if t.out == NULL:
        return REC_OK
    h.revision = writer_seen(t.w)
    rc = range_execute(t.w.ops, t.w.txn, r, h.revision, t.w.compacted, floor, h, &t.scratch,
                       t.out, &code)
    if rc == REC_NONE or (rc == REC_OK and code != CODE_OK):
        return REC_CORRUPT              # txn_prepare checked the revision
    return rc


cdef int run_branch(TxnRun *t, const TxnReq *r, bint nested) noexcept nogil:
    cdef bint taken = t.path.p[t.at]
    cdef const Op *ops = r.success if taken else r.failure
    cdef size_t i, n = r.success_n if taken else r.failure_n
    cdef RespHeader h
    cdef size_t mark = 0
    cdef int rc = REC_OK
    t.at += 1
    memset(&h, 0, sizeof(h))
    if t.out != NULL:
        txn_begin(t.out, &h if nested else NULL, taken)
    kv_put_varint(t.tail, taken)
    kv_put_varint(t.tail, n)
    for i in range(n):
        if t.out != NULL:
            mark = op_open(t.out, ops[i].kind)
        if ops[i].kind == OP_PUT:
            rc = run_put(t, ops[i].body.put_req, &h)
        elif ops[i].kind == OP_RANGE:
            rc = run_range(t, ops[i].body.range_req, &h)
        elif ops[i].kind == OP_DELETE_RANGE:
            rc = run_delete(t, ops[i].body.delete_req, &h)
        elif ops[i].kind == OP_TXN:
            kv_put_varint(t.tail, KIND_TXN)
            rc = run_branch(t, ops[i].body.txn_req, 1)
        if rc != REC_OK:
            return rc
        if t.out != NULL:
            op_close(t.out, ops[i].kind, mark)
    return rc


cdef int txn_run(TxnRun *t, const TxnReq *r, kv_buf *out, kv_buf *tail) noexcept nogil:
    cdef int rc
    t.at = 0
    t.out = out
    t.tail = tail
    t.partial = 0
    rc = run_branch(t, r, 0)
    kv_buf_trim(&t.scratch, SCRATCH_KEEP)
    if rc == REC_OK and (tail.err or (out != NULL and out.err)):
        return REC_NOMEM
    return rc
