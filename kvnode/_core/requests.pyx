"""Execution of one request of the log: checks in etcd's order, writes, answer, outcome.

Called by machine.pyx for each request of a group; txnexec and writer do the work below. In: the
client's own bytes. Out: the etcd response with its header, appended to the result buffer if this
member answers the origin, and the outcome, which every member keeps alike.

Order of checks: what needs no state (etcdpb), then CORRUPT, then NOSPACE (puts and transactions
with puts, grants of leases), then leases and previous keys, then, for compactions, the revision. A
request that is refused has written nothing and takes no revision.

Outcome of one request, all varints:

    code, kind << 1 | partial, header revision; nothing more if code != 0 or partial; else by kind
    DELETE_RANGE    deleted
    LEASE_GRANT     id, TTL
    TXN             succeeded, n, then n times the kind of the operation followed by
                    DELETE_RANGE: deleted; TXN: succeeded, n, ... again
    the batches     first revision (0: none taken), applied, n, then n times index, code

`partial`: the outcome isn't the whole answer (ranges, prev_kv, lists of alarms, or what would
take more than OUTCOME_BYTES_MAX).
Example: a put at revision 5 without prev_kv: 00 02 05.

Invariants:
1. Outcomes and the state hash don't depend on whether `out` is NULL.
2. A returned REC_* other than REC_OK means that the transaction must be aborted.

Absent on purpose: permission and sessions' windows (machine.pyx looks before it calls).
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memmove, memset

from kvnode._core.buf cimport (
    kv_arena_free,
    kv_arena_init,
    kv_arena_reset,
    kv_buf_clear,
    kv_buf_free,
    kv_buf_grow,
    kv_buf_trim,
    kv_load_u32,
    kv_put_bytes,
    kv_put_u32,
    kv_put_varint,
    kv_rd,
    kv_rd_init,
    kv_slice,
)
from kvnode._core.codes cimport (
    CODE_COMPACTED,
    CODE_CORRUPT,
    CODE_FUTURE_REV,
    CODE_MALFORMED,
    CODE_NO_SPACE,
    CODE_OK,
    CODE_TOO_MANY_REQUESTS,
    CODE_UNKNOWN_KIND,
    KIND_ALARM,
    KIND_COMPACT,
    KIND_DELETE_RANGE,
    KIND_LEASE_CHECKPOINT,
    KIND_LEASE_GRANT,
    KIND_LEASE_REVOKE,
    KIND_PUT,
    KIND_PUT_BATCH,
    KIND_PUT_BATCH_ONE,
    KIND_RANGE,
    KIND_SESSION_CLOSE,
    KIND_SESSION_OPEN,
    KIND_TXN,
    KIND_TXN_BATCH,
)
from kvnode._core.etcdpb cimport (
    AlarmReq,
    BatchIter,
    CompactReq,
    DeleteReq,
    PutReq,
    RangeReq,
    RespHeader,
    SessionReq,
    TxnReq,
    alarm_add,
    batch_begin,
    batch_finish,
    batch_iter,
    batch_refuse,
    check_delete_range,
    check_put,
    check_range,
    check_request,
    check_txn,
    decode_alarm,
    decode_compact,
    decode_delete_range,
    decode_put,
    decode_range,
    decode_session,
    decode_txn,
    insert_header,
    next_in_batch,
    put_compact_response,
    put_delete_response,
    put_put_response,
)
from kvnode._core.leasepb cimport (
    LeaseReq,
    check_lease_request,
    decode_lease,
    decode_lease_grant,
    put_lease_response,
)
from kvnode._core.leases cimport lease_checkpoint, lease_grant, lease_revoke
from kvnode._core.ranges cimport range_execute
from kvnode._core.records cimport REC_CORRUPT, REC_NOMEM, REC_NONE, REC_OK
from kvnode._core.revindex cimport Meta
from kvnode._core.sessions cimport (
    session_close,
    session_open,
    sessions_free,
    sessions_init,
)
from kvnode._core.txnexec cimport (
    put_prepare,
    txn_free,
    txn_has_put,
    txn_init,
    txn_prepare,
    txn_run,
)
from kvnode._core.writer cimport (
    EVENT_ALARM_CLEAR,
    EVENT_ALARM_SET,
    EVENT_COMPACT,
    fold_event,
    read_entry,
    write_delete,
    write_put,
    writer_end,
    writer_free,
    writer_init,
)

cdef enum:
    SCRATCH_KEEP = 1 << 20

# --max-txn-ops is each gateway's own setting; what stands in the log is executed.
cdef int64_t TXN_OPS_UNBOUNDED = <int64_t>1 << 40


cdef int exec_init(Exec *x, const kv_store *ops, uint32_t sessions_per_user) noexcept nogil:
    memset(x, 0, sizeof(Exec))
    writer_init(&x.w, ops)
    txn_init(&x.txn, &x.w)
    kv_arena_init(&x.arena)
    return sessions_init(&x.sessions, sessions_per_user)


cdef void exec_free(Exec *x) noexcept nogil:
    writer_free(&x.w)
    txn_free(&x.txn)
    sessions_free(&x.sessions)
    kv_arena_free(&x.arena)
    kv_buf_free(&x.tail)
    kv_buf_free(&x.prevs)
    kv_buf_free(&x.refused)
    kv_buf_free(&x.scratch)
    kv_buf_free(&x.leases)
    kv_buf_free(&x.alarms)


cdef inline RespHeader head(const Exec *x, int64_t revision) noexcept nogil:
    cdef RespHeader h
    h.cluster_id = x.cluster
    h.member_id = x.member
    h.revision = revision
    h.raft_term = x.term
    return h


cdef inline int alarm_code(const Exec *x, bint writes) noexcept nogil:
    if x.corrupt:
        return CODE_CORRUPT
    return CODE_NO_SPACE if writes and x.no_space else CODE_OK


# --- single requests: *partial and x.tail are the outcome's ---------------------------------------

cdef int put_decoded(Exec *x, const PutReq *r, kv_buf *out, int *code) noexcept nogil:
    """Checks against the state, writes, answers; alarms and check_put were the caller's."""
    cdef RespHeader h
    cdef kv_slice prev
    cdef Meta old
    cdef int rc
    if r.lease != 0 or r.ignore_value or r.ignore_lease:
        rc = put_prepare(&x.w, r, code)
        if rc != REC_OK or code[0] != CODE_OK:
            return rc
    rc = write_put(&x.w, r, &old)
    if rc != REC_OK:
        return rc
    writer_end(&x.w)
    if out == NULL:
        return REC_OK
    prev.p = NULL
    prev.n = 0
    if r.prev_kv:
        rc = read_entry(x.w.ops, x.w.txn, &old, &prev, &x.scratch)
        if rc != REC_OK and rc != REC_NONE:
            return rc
    h = head(x, x.w.revision)
    put_put_response(out, &h, prev)
    kv_buf_trim(&x.scratch, SCRATCH_KEEP)
    return REC_OK


cdef int do_put(Exec *x, kv_slice body, kv_buf *out, bint *partial, int *code) noexcept nogil:
    cdef PutReq r
    code[0] = decode_put(body.p, body.n, &r)
    if code[0] == CODE_OK:
        code[0] = check_put(&r)
    if code[0] == CODE_OK:
        code[0] = alarm_code(x, 1)
    if code[0] != CODE_OK:
        return REC_OK
    partial[0] = r.prev_kv
    return put_decoded(x, &r, out, code)


cdef int do_delete(Exec *x, kv_slice body, kv_buf *out, bint *partial, int *code) noexcept nogil:
    cdef int64_t deleted = 0
    cdef RespHeader h
    cdef DeleteReq r
    cdef bint wanted
    cdef int rc
    code[0] = decode_delete_range(body.p, body.n, &r)
    if code[0] == CODE_OK:
        code[0] = check_delete_range(&r)
    if code[0] == CODE_OK:
        code[0] = alarm_code(x, 0)
    if code[0] != CODE_OK:
        return REC_OK
    kv_buf_clear(&x.prevs)
    wanted = r.prev_kv and out != NULL
    rc = write_delete(&x.w, &r, &deleted, &x.prevs if wanted else NULL)
    if rc != REC_OK:
        return rc
    writer_end(&x.w)
    kv_put_varint(&x.tail, <uint64_t>deleted)
    partial[0] = r.prev_kv and deleted > 0
    if out != NULL:
        h = head(x, x.w.revision)
        put_delete_response(out, &h, deleted, x.prevs.p, x.prevs.n)
    kv_buf_trim(&x.prevs, SCRATCH_KEEP)
    return REC_OK


cdef int do_range(Exec *x, kv_slice body, kv_buf *out, bint *partial, int *code) noexcept nogil:
    """A Range that someone put into the log: answered at the entry's own place in it."""
    cdef int64_t floor = x.w.compacted if x.w.compacted > 0 else 0
    cdef RespHeader h
    cdef RangeReq r
    cdef int rc
    code[0] = decode_range(body.p, body.n, &r)
    if code[0] == CODE_OK:
        code[0] = check_range(&r)
    if code[0] == CODE_OK:
        code[0] = alarm_code(x, 0)
    if code[0] == CODE_OK and r.revision > x.w.revision:
        code[0] = CODE_FUTURE_REV
    if code[0] == CODE_OK and r.revision > 0 and r.revision < x.w.compacted:
        code[0] = CODE_COMPACTED
    partial[0] = 1
    if code[0] != CODE_OK or out == NULL:
        return REC_OK
    h = head(x, x.w.revision)
    rc = range_execute(x.w.ops, x.w.txn, &r, x.w.revision, x.w.compacted, floor, &h, &x.scratch,
                       out, code)
    kv_buf_trim(&x.scratch, SCRATCH_KEEP)
    return REC_CORRUPT if rc == REC_NONE or code[0] != CODE_OK else rc


cdef int txn_decoded(Exec *x, const TxnReq *r, kv_buf *out, kv_buf *tail, bint *partial,
                     int *code) noexcept nogil:
    """A transaction that passed check_txn."""
    cdef size_t at = 0
    cdef RespHeader h
    cdef int rc
    code[0] = alarm_code(x, x.no_space and txn_has_put(r))
    if code[0] != CODE_OK:
        return REC_OK
    rc = txn_prepare(&x.txn, r, code)
    if rc != REC_OK or code[0] != CODE_OK:
        return rc
    if out != NULL:
        at = out.n
    rc = txn_run(&x.txn, r, out, tail)
    if rc != REC_OK:
        return rc
    writer_end(&x.w)
    partial[0] = x.txn.partial
    if out != NULL:
        h = head(x, x.w.revision)
        insert_header(out, at, &h)
    return REC_OK


cdef int do_txn(Exec *x, kv_slice body, kv_buf *out, bint *partial, int *code) noexcept nogil:
    cdef TxnReq r
    code[0] = decode_txn(body.p, body.n, &r, &x.arena)
    if code[0] == CODE_OK:
        code[0] = check_txn(&r, TXN_OPS_UNBOUNDED, &x.arena)
    if x.arena.err:
        return REC_NOMEM
    if code[0] != CODE_OK:
        return REC_OK
    return txn_decoded(x, &r, out, &x.tail, partial, code)


cdef int do_compact(Exec *x, kv_slice body, kv_buf *out, int *code) noexcept nogil:
    cdef RespHeader h
    cdef CompactReq r
    code[0] = decode_compact(body.p, body.n, &r)
    if code[0] != CODE_OK:
        return REC_OK
    code[0] = alarm_code(x, 0)
    if code[0] != CODE_OK:
        return REC_OK
    if r.revision <= x.w.compacted:
        code[0] = CODE_COMPACTED
    elif r.revision > x.w.revision:
        code[0] = CODE_FUTURE_REV
    if code[0] != CODE_OK:
        return REC_OK
    x.w.compacted = r.revision
    x.compact_dirty = 1
    fold_event(&x.w.hash, EVENT_COMPACT, <uint64_t>r.revision, 0, 0, NULL, 0)
    if out != NULL:
        h = head(x, x.w.revision)
        put_compact_response(out, &h)
    return REC_OK


# --- batches --------------------------------------------------------------------------------------

cdef inline void refuse_item(Exec *x, uint32_t index, int code) noexcept nogil:
    kv_put_u32(&x.refused, index)
    kv_put_u32(&x.refused, <uint32_t>code)


cdef int put_items(Exec *x, kv_slice body, uint64_t *applied) noexcept nogil:
    """PUT_BATCH: each put by itself."""
    cdef uint32_t index = 0
    cdef kv_slice item
    cdef BatchIter it
    cdef PutReq r
    cdef int code, rc
    batch_iter(&it, body.p, body.n)
    while next_in_batch(&it, &item) == 1:
        code = decode_put(item.p, item.n, &r)
        if code == CODE_OK:
            code = check_put(&r)
        if code == CODE_OK:
            rc = put_decoded(x, &r, NULL, &code)
            if rc != REC_OK:
                return rc
        if code == CODE_OK:
            applied[0] += 1
        else:
            refuse_item(x, index, code)
        index += 1
    return REC_OK


cdef int put_items_as_one(Exec *x, kv_slice body, uint64_t *applied, int *code) noexcept nogil:
    """PUT_BATCH_ONE: all or none, in one revision. Keys are distinct: all can be checked first."""
    cdef kv_slice item
    cdef BatchIter it
    cdef PutReq r
    cdef Meta old
    cdef int rc
    batch_iter(&it, body.p, body.n)
    while next_in_batch(&it, &item) == 1:
        decode_put(item.p, item.n, &r)
        if r.lease != 0 or r.ignore_value or r.ignore_lease:
            rc = put_prepare(&x.w, &r, code)
            if rc != REC_OK or code[0] != CODE_OK:
                return rc
    batch_iter(&it, body.p, body.n)
    while next_in_batch(&it, &item) == 1:
        decode_put(item.p, item.n, &r)
        rc = write_put(&x.w, &r, &old)
        if rc != REC_OK:
            return rc
        applied[0] += 1
    writer_end(&x.w)
    return REC_OK


cdef int txn_items(Exec *x, kv_slice body, uint64_t *applied) noexcept nogil:
    """TXN_BATCH: each transaction by itself; its answer is whether it was applied."""
    cdef uint32_t index = 0
    cdef bint partial
    cdef kv_slice item
    cdef BatchIter it
    cdef TxnReq r
    cdef int code, rc
    batch_iter(&it, body.p, body.n)
    while next_in_batch(&it, &item) == 1:
        kv_arena_reset(&x.arena)
        code = decode_txn(item.p, item.n, &r, &x.arena)
        if code == CODE_OK:
            code = check_txn(&r, TXN_OPS_UNBOUNDED, &x.arena)
        if x.arena.err:
            return REC_NOMEM
        if code == CODE_OK:
            kv_buf_clear(&x.tail)
            rc = txn_decoded(x, &r, NULL, &x.tail, &partial, &code)
            if rc != REC_OK:
                return rc
        if code == CODE_OK:
            applied[0] += 1
        else:
            refuse_item(x, index, code)
        index += 1
    kv_buf_clear(&x.tail)
    return REC_OK


cdef int answer_batch(Exec *x, int64_t before, uint64_t applied, kv_buf *out) noexcept nogil:
    cdef bint changed = x.w.revision > before
    cdef int64_t first = before + 1 if changed else 0
    cdef RespHeader h
    cdef size_t at
    if x.refused.err:
        return REC_NOMEM
    kv_put_varint(&x.tail, <uint64_t>first)
    kv_put_varint(&x.tail, applied)
    kv_put_varint(&x.tail, x.refused.n // 8)
    for at in range(0, x.refused.n, 4):
        kv_put_varint(&x.tail, kv_load_u32(x.refused.p + at))
    if out != NULL:
        h = head(x, x.w.revision)
        batch_begin(out, &h)
        for at in range(0, x.refused.n, 8):
            batch_refuse(out, kv_load_u32(x.refused.p + at), kv_load_u32(x.refused.p + at + 4))
        batch_finish(out, first, x.w.revision if changed else 0, applied)
    kv_buf_trim(&x.refused, SCRATCH_KEEP)
    return REC_OK


cdef int do_batch(Exec *x, int kind, kv_slice body, kv_buf *out, int *code) noexcept nogil:
    cdef int64_t before = x.w.revision
    cdef uint64_t applied = 0
    cdef int rc
    code[0] = check_request(kind, body.p, body.n, TXN_OPS_UNBOUNDED, &x.arena)
    if x.arena.err:
        return REC_NOMEM
    if code[0] == CODE_OK:
        code[0] = alarm_code(x, kind != KIND_TXN_BATCH)
    if code[0] != CODE_OK:
        return REC_OK
    kv_buf_clear(&x.refused)
    if kind == KIND_PUT_BATCH:
        rc = put_items(x, body, &applied)
    elif kind == KIND_PUT_BATCH_ONE:
        rc = put_items_as_one(x, body, &applied, code)
    else:
        rc = txn_items(x, body, &applied)
    if rc != REC_OK or code[0] != CODE_OK:
        return rc
    return answer_batch(x, before, applied, out)


# --- alarms and sessions --------------------------------------------------------------------------

cdef void alarms_changed(Exec *x) noexcept nogil:
    cdef const Alarm *list = <const Alarm *>x.alarms.p
    cdef size_t i
    x.no_space = 0
    x.corrupt = 0
    for i in range(x.alarms.n // sizeof(Alarm)):
        if list[i].alarm == ALARM_NOSPACE:
            x.no_space = 1
        elif list[i].alarm == ALARM_CORRUPT:
            x.corrupt = 1


cdef size_t alarm_place(const Exec *x, const AlarmReq *r, bint *found) noexcept nogil:
    """Where the alarm stands in the sorted list, or belongs."""
    cdef const Alarm *list = <const Alarm *>x.alarms.p
    cdef size_t i, n = x.alarms.n // sizeof(Alarm)
    found[0] = 0
    for i in range(n):
        if list[i].alarm == r.alarm and list[i].member == r.member_id:
            found[0] = 1
            return i
        if list[i].alarm > r.alarm or (list[i].alarm == r.alarm and list[i].member > r.member_id):
            return i
    return n


cdef int set_alarm(Exec *x, const AlarmReq *r, size_t place, int *code) noexcept nogil:
    cdef size_t n = x.alarms.n // sizeof(Alarm)
    cdef Alarm *list
    if n >= ALARMS_MAX:
        code[0] = CODE_TOO_MANY_REQUESTS
        return REC_OK
    if kv_buf_grow(&x.alarms, sizeof(Alarm)) == NULL:
        return REC_NOMEM
    list = <Alarm *>x.alarms.p
    memmove(&list[place + 1], &list[place], (n - place) * sizeof(Alarm))
    list[place].member = r.member_id
    list[place].alarm = r.alarm
    list[place].zero = 0
    fold_event(&x.w.hash, EVENT_ALARM_SET, r.member_id, <uint64_t><int64_t>r.alarm, 0, NULL, 0)
    return REC_OK


cdef void clear_alarm(Exec *x, const AlarmReq *r, size_t place) noexcept nogil:
    cdef Alarm *list = <Alarm *>x.alarms.p
    cdef size_t n = x.alarms.n // sizeof(Alarm)
    memmove(&list[place], &list[place + 1], (n - place - 1) * sizeof(Alarm))
    x.alarms.n -= sizeof(Alarm)
    fold_event(&x.w.hash, EVENT_ALARM_CLEAR, r.member_id, <uint64_t><int64_t>r.alarm, 0, NULL, 0)


cdef int do_alarm(Exec *x, kv_slice body, kv_buf *out, bint *partial, int *code) noexcept nogil:
    cdef const Alarm *list
    cdef RespHeader h
    cdef bint found
    cdef size_t place, i
    cdef AlarmReq r
    cdef int rc = REC_OK
    code[0] = decode_alarm(body.p, body.n, &r)
    if code[0] != CODE_OK:
        return REC_OK
    if r.action < 0 or r.action > 2:
        code[0] = CODE_MALFORMED
        return REC_OK
    h = head(x, x.w.revision)
    if out != NULL:
        put_compact_response(out, &h)       # a message of the header alone
    place = alarm_place(x, &r, &found)
    if r.action == 0:
        list = <const Alarm *>x.alarms.p
        for i in range(x.alarms.n // sizeof(Alarm)):
            if r.alarm == 0 or r.alarm == list[i].alarm:
                partial[0] = 1
                if out != NULL:
                    alarm_add(out, list[i].member, list[i].alarm)
        return REC_OK
    if r.action == 1 and r.alarm == 0 or r.action == 2 and not found:
        return REC_OK
    if r.action == 1 and not found:
        rc = set_alarm(x, &r, place, code)
    elif r.action == 2:
        clear_alarm(x, &r, place)
    if rc != REC_OK or code[0] != CODE_OK:
        return rc
    x.alarms_dirty = 1
    alarms_changed(x)
    partial[0] = 1
    if out != NULL:
        alarm_add(out, r.member_id, r.alarm)
    return REC_OK


cdef int do_session(Exec *x, int kind, uint32_t user, kv_slice body, kv_buf *out,
                    int *code) noexcept nogil:
    cdef RespHeader h
    cdef SessionReq r
    cdef int rc
    code[0] = decode_session(body.p, body.n, &r)
    if code[0] != CODE_OK:
        return REC_OK
    if kind == KIND_SESSION_OPEN:
        rc = session_open(&x.sessions, r.session, user, r.gateway, x.index, &x.w.hash, code)
    else:
        rc = session_close(&x.sessions, r.session, user, &x.w.hash, code)
    if rc == REC_OK and code[0] == CODE_OK and out != NULL:
        h = head(x, x.w.revision)
        put_compact_response(out, &h)
    return rc


# --- leases ---------------------------------------------------------------------------------------

cdef int do_lease_grant(Exec *x, kv_slice body, kv_buf *out, int *code) noexcept nogil:
    cdef RespHeader h
    cdef LeaseReq r
    cdef int rc
    code[0] = decode_lease_grant(body.p, body.n, &r)
    if code[0] == CODE_OK:
        code[0] = alarm_code(x, 1)
    if code[0] != CODE_OK:
        return REC_OK
    rc = lease_grant(&x.w, x.index, r.id, &r.ttl, &x.leases, code)
    if rc != REC_OK or code[0] != CODE_OK:
        return rc
    kv_put_varint(&x.tail, <uint64_t>r.id)
    kv_put_varint(&x.tail, <uint64_t>r.ttl)
    if out != NULL:
        h = head(x, x.w.revision)
        put_compact_response(out, &h)
        put_lease_response(out, r.id, r.ttl)
    return REC_OK


cdef int do_lease_revoke(Exec *x, kv_slice body, kv_buf *out, int *code) noexcept nogil:
    cdef RespHeader h
    cdef LeaseReq r
    cdef int rc
    code[0] = decode_lease(body.p, body.n, &r)
    if code[0] == CODE_OK:
        code[0] = alarm_code(x, 0)
    if code[0] != CODE_OK:
        return REC_OK
    rc = lease_revoke(&x.w, x.index, r.id, &x.scratch, &x.leases, code)
    if rc != REC_OK or code[0] != CODE_OK:
        return rc
    writer_end(&x.w)
    if out != NULL:
        h = head(x, x.w.revision)
        put_compact_response(out, &h)
    return REC_OK


cdef int do_lease_checkpoint(Exec *x, kv_slice body, kv_buf *out, int *code) noexcept nogil:
    """Also under alarms: it writes over what is there."""
    cdef RespHeader h
    cdef kv_rd r
    cdef int rc
    code[0] = check_lease_request(KIND_LEASE_CHECKPOINT, body.p, body.n)
    if code[0] != CODE_OK:
        return REC_OK
    kv_rd_init(&r, body.p, body.n)
    rc = lease_checkpoint(&x.w, x.index, &r, &x.leases)
    if rc == REC_OK and out != NULL:
        h = head(x, x.w.revision)
        put_compact_response(out, &h)
    return rc


# --- one request ----------------------------------------------------------------------------------

cdef int dispatch(Exec *x, const Request *q, uint32_t user, kv_buf *out, bint *partial,
                  int *code) noexcept nogil:
    cdef int kind = q.kind
    if kind == KIND_PUT:
        return do_put(x, q.body, out, partial, code)
    if kind == KIND_TXN:
        return do_txn(x, q.body, out, partial, code)
    if kind == KIND_PUT_BATCH or kind == KIND_PUT_BATCH_ONE or kind == KIND_TXN_BATCH:
        return do_batch(x, kind, q.body, out, code)
    if kind == KIND_DELETE_RANGE:
        return do_delete(x, q.body, out, partial, code)
    if kind == KIND_RANGE:
        return do_range(x, q.body, out, partial, code)
    if kind == KIND_COMPACT:
        return do_compact(x, q.body, out, code)
    if kind == KIND_ALARM:
        return do_alarm(x, q.body, out, partial, code)
    if kind == KIND_SESSION_OPEN or kind == KIND_SESSION_CLOSE:
        return do_session(x, kind, user, q.body, out, code)
    if kind == KIND_LEASE_GRANT:
        return do_lease_grant(x, q.body, out, code)
    if kind == KIND_LEASE_REVOKE:
        return do_lease_revoke(x, q.body, out, code)
    if kind == KIND_LEASE_CHECKPOINT:
        return do_lease_checkpoint(x, q.body, out, code)
    code[0] = CODE_UNKNOWN_KIND
    return REC_OK


cdef int exec_request(Exec *x, const Request *q, uint32_t user, kv_buf *out, kv_buf *outcome,
                      int *code) noexcept nogil:
    cdef size_t at = out.n if out != NULL else 0
    cdef bint partial = 0
    cdef int rc
    code[0] = CODE_OK
    kv_arena_reset(&x.arena)
    kv_buf_clear(&x.tail)
    rc = dispatch(x, q, user, out, &partial, code)
    if rc != REC_OK:
        return rc
    if code[0] != CODE_OK:
        partial = 0
        if not x.tail.err:
            kv_buf_clear(&x.tail)
        if out != NULL:
            out.n = at
    elif x.tail.n > OUTCOME_BYTES_MAX:
        partial = 1
    kv_put_varint(outcome, <uint64_t>code[0])
    kv_put_varint(outcome, (<uint64_t>q.kind << 1) | partial)
    kv_put_varint(outcome, <uint64_t>x.w.revision)
    if not partial:
        kv_put_bytes(outcome, x.tail.p, x.tail.n)
    if x.tail.err or outcome.err or (out != NULL and out.err):
        return REC_NOMEM
    kv_buf_trim(&x.tail, SCRATCH_KEEP)
    return REC_OK
