"""Range: etcd 3.7's answers over the revision index and the records, whole or in slices.

Called by the state machine inside its write transaction (range_execute), and by the gateways on
read snapshots (RangeReader, reader_serve; LongRange for what takes longer than a slice). The
answer is appended as a RangeResponse to the caller's buffer; KeyValue messages are copied raw.

What etcd does (server/etcdserver/txn/range.go, server/storage/mvcc), and this does equally:
1. Revision <= 0 reads at the current one; first FUTURE_REV is checked, then COMPACTED.
2. `count` is all keys of the range at that revision, whatever limit and filters leave.
3. Filters by revision go over all keys, before the limit. `more`: the limit cut something off.
4. Order NONE with a target other than KEY sorts ascending, but when there are no filters it has
   taken only the first limit + 1 keys in key order before.
5. Ties stay where Go's sort.Sort puts them (gosort.pyx).
6. keys_only leaves out the lease too, unless the target is VALUE.
7. count_only wins over everything else.

Invariants:
1. A sliced Range answers from one revision; its count and keys equal those of the whole one.
   Keys written since are resolved through their history, keys created since are skipped.
2. A slice begins only if freeing has not passed the revision in its snapshot; a missing record
   is then corruption, never a hole.
3. Memory beside the response: sizeof(RangeItem) for each key of a sorted Range, none otherwise.

Absent on purpose: permissions, read barriers, clocks (a budget counts work).
"""

from libc.stdlib cimport realloc, free as c_free
from libc.stdint cimport INT64_MAX
from libc.string cimport memcmp, memcpy, memset

from kvnode._core.buf cimport (
    kv_buf_clear,
    kv_buf_free,
    kv_buf_grow,
    kv_buf_init,
    kv_buf_trim,
    kv_get_bytes,
    kv_get_varint,
    kv_load_be64,
    kv_load_u64,
    kv_put_bytes,
    kv_rd,
    kv_rd_init,
    kv_slice_cmp,
    kv_varint_size,
    kv_varint_write,
)
from kvnode._core.codes cimport (
    CODE_COMPACTED,
    CODE_CORRUPT,
    CODE_FUTURE_REV,
    CODE_OK,
    CODE_UNAVAILABLE,
    CODE_UNKNOWN_KIND,
    KIND_RANGE,
)
from kvnode._core.etcdpb cimport (
    SORT_ASCEND,
    SORT_BY_CREATE,
    SORT_BY_KEY,
    SORT_BY_MOD,
    SORT_BY_VALUE,
    SORT_BY_VERSION,
    SORT_DESCEND,
    SORT_NONE,
    KeyValue,
    check_range,
    decode_kv,
    decode_range,
    kv_size,
    kv_write,
    range_add,
    range_add_keys_only,
    range_begin,
    range_finish,
)
from kvnode._core.gosort cimport go_sort
from kvnode._core.records cimport (
    REC_CORRUPT,
    REC_FAILED,
    REC_NOMEM,
    REC_NONE,
    REC_OK,
    Record,
    read_head,
    read_record,
)
from kvnode._core.revindex cimport (
    META_TOMBSTONE,
    IndexIter,
    Meta,
    index_at,
    index_get,
    iter_close,
    iter_init,
    iter_next,
    meta_kv_bytes,
)
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_META
from kvnode._core.storetxn cimport ReadTxn

from kvnode.base.errors import CorruptionError, DiskError

cdef enum:
    KEYS_NO = 0
    KEYS_BARE = 1         # key, create, mod, version: from the index, no record is read
    KEYS_LEASE = 2        # everything but the value

    PHASE_DONE = 0
    PHASE_STREAM = 1      # answers in key order while walking
    PHASE_COUNT = 2
    PHASE_COLLECT = 3     # gathers items to sort
    PHASE_EMIT = 4        # answers the sorted items

    WORK_RECORD = 4       # a record's read, in budget units
    WORK_BYTES = 512      # bytes copied in one unit
    LEAD_BYTES = 16


# What a Range sees of a key.
ctypedef struct Seen:
    uint64_t main
    uint32_t sub
    int64_t create
    int64_t version
    size_t kv_bytes       # of its message, when the index tells; else 0


# --- the request's meaning ----------------------------------------------------------------------

cdef inline bint has_filters(const RangeReq *r) noexcept nogil:
    return (r.min_mod_revision != 0 or r.max_mod_revision != 0
            or r.min_create_revision != 0 or r.max_create_revision != 0)


cdef inline bint passes(const RangeReq *r, const Seen *s) noexcept nogil:
    cdef int64_t mod = <int64_t>s.main
    return not ((r.max_mod_revision != 0 and mod > r.max_mod_revision)
                or (r.min_mod_revision != 0 and mod < r.min_mod_revision)
                or (r.max_create_revision != 0 and s.create > r.max_create_revision)
                or (r.min_create_revision != 0 and s.create < r.min_create_revision))


cdef inline int keys_mode_of(const RangeReq *r) noexcept nogil:
    if not r.keys_only:
        return KEYS_NO
    return KEYS_LEASE if r.sort_target == SORT_BY_VALUE else KEYS_BARE


cdef inline int revision_code(const RangeReq *r, int64_t current, int64_t compacted,
                              int64_t *at) noexcept nogil:
    if r.revision > current:
        return CODE_FUTURE_REV
    at[0] = r.revision if r.revision > 0 else current
    return CODE_COMPACTED if at[0] < compacted else CODE_OK


# --- one key ------------------------------------------------------------------------------------

cdef int head_fields(kv_slice kv, KeyValue *out) noexcept nogil:
    """The fields before the value, from a message that may be cut off behind them."""
    cdef kv_rd r
    memset(out, 0, sizeof(KeyValue))
    kv_rd_init(&r, kv.p, kv.n)
    if kv.n == 0 or kv.p[0] != 0x0A:
        return REC_CORRUPT
    r.p += 1
    out.key.n = <size_t>kv_get_varint(&r)
    out.key.p = kv_get_bytes(&r, out.key.n)
    if r.p < r.end and r.p[0] == 0x10:
        r.p += 1
        out.create_revision = <int64_t>kv_get_varint(&r)
    if r.p < r.end and r.p[0] == 0x18:
        r.p += 1
        out.mod_revision = <int64_t>kv_get_varint(&r)
    if r.p < r.end and r.p[0] == 0x20:
        r.p += 1
        out.version = <int64_t>kv_get_varint(&r)
    return REC_CORRUPT if r.bad else REC_OK


cdef int read_fields(const kv_store *ops, void *txn, uint64_t main, uint32_t sub,
                     KeyValue *out) noexcept nogil:
    cdef Record rec
    cdef int rc = read_head(ops, txn, main, sub, &rec)
    if rc == REC_OK:
        rc = head_fields(rec.kv, out)
    return REC_CORRUPT if rc == REC_NONE else rc


cdef int see(const kv_store *ops, void *txn, kv_slice key, const Meta *meta, uint64_t at,
             uint64_t floor, bint fields, Seen *seen, uint32_t *steps) noexcept nogil:
    """The version of the key visible at `at`; create and version only when `fields`."""
    cdef KeyValue kv
    cdef int rc
    seen.kv_bytes = 0
    if meta.mod_main <= at:
        if meta.flags & META_TOMBSTONE:
            return REC_NONE
        seen.main = meta.mod_main
        seen.sub = meta.mod_sub
        seen.create = <int64_t>meta.create
        seen.version = <int64_t>meta.version
        seen.kv_bytes = meta_kv_bytes(key.n, meta)
        return REC_OK
    rc = index_at(ops, txn, key, meta, at, floor, &seen.main, &seen.sub, steps)
    if rc != REC_OK or not fields:
        return rc
    rc = read_fields(ops, txn, seen.main, seen.sub, &kv)
    seen.create = kv.create_revision
    seen.version = kv.version
    return rc


cdef void add_bare(kv_buf *out, kv_slice key, const Seen *s) noexcept nogil:
    cdef KeyValue kv
    cdef size_t n
    cdef uint8_t *d
    memset(&kv, 0, sizeof(kv))
    kv.key = key
    kv.create_revision = s.create
    kv.mod_revision = <int64_t>s.main
    kv.version = s.version
    n = kv_size(&kv)
    d = kv_buf_grow(out, 1 + kv_varint_size(n) + n)
    if d != NULL:
        d[0] = 0x12                       # RangeResponse.kvs
        kv_write(kv_varint_write(d + 1, n), &kv)


cdef inline bint is_key(kv_slice kv, kv_slice key) noexcept nogil:
    """Whether the message is of `key`: an index that points to another key's record is caught."""
    cdef size_t lead = kv_varint_size(key.n) + 1
    return kv.n >= lead + key.n and memcmp(kv.p + lead, key.p, key.n) == 0


cdef int emit(const kv_store *ops, void *txn, int keys_mode, const kv_slice *key,
              const Seen *s, kv_buf *scratch, kv_buf *out) noexcept nogil:
    """Appends one kvs field. key: NULL when only the record has it (a sorted item)."""
    cdef Record rec
    cdef KeyValue kv
    cdef Seen whole
    cdef int rc
    if keys_mode == KEYS_BARE:
        if key != NULL:
            add_bare(out, key[0], s)
            return REC_OK
        rc = read_fields(ops, txn, s.main, s.sub, &kv)
        if rc == REC_OK:
            whole.main = s.main
            whole.create = kv.create_revision
            whole.version = kv.version
            add_bare(out, kv.key, &whole)
        return rc
    rc = read_record(ops, txn, s.main, s.sub, &rec, scratch)
    if rc != REC_OK:
        return REC_CORRUPT if rc == REC_NONE else rc
    if key != NULL and not is_key(rec.kv, key[0]):
        return REC_CORRUPT
    if keys_mode == KEYS_NO:
        range_add(out, rec.kv)
    elif range_add_keys_only(out, rec.kv) != 0:
        return REC_CORRUPT
    return REC_OK


cdef int measure(const kv_store *ops, void *txn, int keys_mode, const kv_slice *key,
                 const Seen *s, kv_buf *scratch, uint64_t *size) noexcept nogil:
    """The size of what emit would append, without reading the value."""
    cdef Record rec
    cdef kv_buf one
    cdef int rc
    if keys_mode == KEYS_NO and s.kv_bytes:
        size[0] += 1 + kv_varint_size(s.kv_bytes) + s.kv_bytes
        return REC_OK
    if keys_mode == KEYS_NO:
        rc = read_head(ops, txn, s.main, s.sub, &rec)
        if rc == REC_OK:
            size[0] += 1 + kv_varint_size(rec.kv_bytes) + rec.kv_bytes
        return REC_CORRUPT if rc == REC_NONE else rc
    kv_buf_init(&one)
    rc = emit(ops, txn, keys_mode, key, s, scratch, &one)
    size[0] += one.n
    if one.err:
        rc = REC_NOMEM
    kv_buf_free(&one)
    return rc


# --- slices -------------------------------------------------------------------------------------

cdef int range_init(RangeState *st, const RangeReq *req, int64_t current, int64_t compacted,
                    const RespHeader *h, kv_buf *out) noexcept nogil:
    cdef RespHeader head
    cdef int code
    cdef bint sorted_, plain
    memset(st, 0, sizeof(RangeState))
    st.req = req
    st.head_revision = current
    code = revision_code(req, current, compacted, &st.revision)
    if code != CODE_OK:
        return code
    if h != NULL:
        head = h[0]
        head.revision = current
        range_begin(out, &head)
    st.keys_mode = keys_mode_of(req)
    st.limit = req.limit if req.limit > 0 else 0
    plain = (req.sort_order == SORT_NONE
             or (req.sort_target == SORT_BY_KEY and req.sort_order == SORT_ASCEND))
    sorted_ = req.sort_target != SORT_BY_KEY or req.sort_order == SORT_DESCEND
    if req.count_only:
        st.phase = PHASE_COUNT
    elif sorted_:
        st.phase = PHASE_COLLECT
        if plain and st.limit and not has_filters(req):
            st.take = st.limit + 1 if st.limit < INT64_MAX else st.limit
    else:
        st.phase = PHASE_STREAM
    return CODE_OK


cdef void range_free(RangeState *st) noexcept nogil:
    kv_buf_free(&st.at)
    kv_buf_free(&st.scratch)
    kv_buf_free(&st.scratch2)
    c_free(st.items)
    st.items = NULL
    st.items_n = st.items_cap = 0


cdef int collect(RangeState *st, const kv_store *ops, void *txn, const Seen *s) noexcept nogil:
    cdef RangeItem *item
    cdef void *grown
    cdef size_t cap
    if st.items_n == st.items_cap:
        cap = st.items_cap * 2 if st.items_cap else 64
        if st.items_bytes_max and cap * sizeof(RangeItem) > st.items_bytes_max:
            cap = st.items_bytes_max // sizeof(RangeItem)
            if cap <= st.items_n:
                return REC_NOMEM
        grown = realloc(st.items, cap * sizeof(RangeItem))
        if grown == NULL:
            return REC_NOMEM
        st.items = <RangeItem *>grown
        st.items_cap = cap
    item = &st.items[st.items_n]
    item.main = s.main
    item.sub = s.sub
    item.lead[0] = s.kv_bytes
    st.items_n += 1
    if st.req.sort_target == SORT_BY_VERSION:
        item.number = s.version
    elif st.req.sort_target == SORT_BY_CREATE:
        item.number = s.create
    elif st.req.sort_target == SORT_BY_MOD:
        item.number = <int64_t>s.main
    elif st.req.sort_target == SORT_BY_VALUE:
        return collect_value(st, ops, txn, item)
    return REC_OK


cdef int value_of(const kv_store *ops, void *txn, const RangeItem *item, kv_buf *scratch,
                  kv_slice *value) noexcept nogil:
    cdef Record rec
    cdef KeyValue kv
    cdef int rc = read_record(ops, txn, item.main, item.sub, &rec, scratch)
    if rc != REC_OK:
        return REC_CORRUPT if rc == REC_NONE else rc
    if decode_kv(rec.kv.p, rec.kv.n, &kv) != CODE_OK:
        return REC_CORRUPT
    value[0] = kv.value
    return REC_OK


cdef int collect_value(RangeState *st, const kv_store *ops, void *txn,
                       RangeItem *item) noexcept nogil:
    cdef kv_slice value
    cdef uint8_t room[LEAD_BYTES]
    cdef int rc = value_of(ops, txn, item, &st.scratch, &value)
    if rc != REC_OK:
        return rc
    memset(room, 0, LEAD_BYTES)
    if value.n:
        memcpy(room, value.p, value.n if value.n < LEAD_BYTES else LEAD_BYTES)
    item.lead[0] = kv_load_be64(room)
    item.lead[1] = kv_load_be64(room + 8)
    item.lead_n = <uint32_t>value.n if value.n <= LEAD_BYTES else LEAD_BYTES + 1
    return REC_OK


cdef int emit_or_measure(RangeState *st, const kv_store *ops, void *txn, const kv_slice *key,
                         const Seen *seen, kv_buf *out) noexcept nogil:
    st.emitted += 1
    if st.sizing:
        return measure(ops, txn, st.keys_mode, key, seen, &st.scratch, &st.size)
    return emit(ops, txn, st.keys_mode, key, seen, &st.scratch, out)


cdef int scan(RangeState *st, const kv_store *ops, void *txn, uint64_t floor, uint64_t work_max,
              size_t bytes_max, kv_buf *out) noexcept nogil:
    """Walks the index until the end of the range (REC_OK) or of the budget (RANGE_MORE)."""
    cdef const RangeReq *req = st.req
    cdef IndexIter it
    cdef Seen seen
    cdef kv_slice start = req.key
    cdef size_t base = out.n, before
    cdef uint64_t work = 0
    cdef uint32_t steps
    cdef bint filters = has_filters(req) and st.phase != PHASE_COUNT
    cdef bint fields = (filters or st.keys_mode == KEYS_BARE
                        or (st.phase == PHASE_COLLECT and req.sort_target != SORT_BY_VALUE))
    cdef int rc
    if st.at.n:
        start.p = st.at.p
        start.n = st.at.n
    rc = iter_init(&it, ops, txn, start, req.range_end)
    while rc == REC_OK:
        rc = iter_next(&it)
        if rc != REC_OK:
            break
        st.stopped = st.stop_hard and st.emitted >= st.stop_at
        if (st.stopped or (work_max and work >= work_max)
                or (bytes_max and out.n - base >= bytes_max)):
            rc = RANGE_MORE
            break
        steps = 0
        rc = see(ops, txn, it.key, &it.meta, <uint64_t>st.revision, floor, fields, &seen, &steps)
        work += 1 + WORK_RECORD * steps
        st.steps += 1 + steps
        if rc == REC_NONE:
            rc = REC_OK
            continue
        if rc != REC_OK:
            break
        st.count += 1
        if st.phase == PHASE_COUNT or (filters and not passes(req, &seen)):
            continue
        if st.phase == PHASE_COLLECT:
            if not st.take or <int64_t>st.items_n < st.take:
                work += WORK_RECORD
                rc = collect(st, ops, txn, &seen)
        elif st.limit and st.emitted >= st.limit:
            st.more = True
        elif st.stop_at and st.emitted >= st.stop_at:
            st.stopped = True
            st.count -= 1
            rc = RANGE_MORE
        else:
            before = out.n
            rc = emit_or_measure(st, ops, txn, &it.key, &seen, out)
            work += WORK_RECORD + (out.n - before) // WORK_BYTES
    if rc == RANGE_MORE:
        # The entry just read is not used up: the next slice begins with it.
        kv_buf_clear(&st.at)
        kv_put_bytes(&st.at, it.key.p, it.key.n)
        if st.at.err:
            rc = REC_NOMEM
    iter_close(&it)
    return REC_OK if rc == REC_NONE else rc


# --- sorting ------------------------------------------------------------------------------------

ctypedef struct SortCtx:
    RangeState *st
    const kv_store *ops
    void *txn
    int rc


cdef inline void swap_items(void *ctx, size_t i, size_t j) noexcept nogil:
    cdef RangeItem *items = (<SortCtx *>ctx).st.items
    cdef RangeItem t = items[i]
    items[i] = items[j]
    items[j] = t


cdef bint number_less(void *ctx, size_t i, size_t j) noexcept nogil:
    cdef RangeItem *items = (<SortCtx *>ctx).st.items
    return items[i].number < items[j].number


cdef bint number_greater(void *ctx, size_t i, size_t j) noexcept nogil:
    cdef RangeItem *items = (<SortCtx *>ctx).st.items
    return items[j].number < items[i].number


cdef bint value_less(void *ctx, size_t i, size_t j) noexcept nogil:
    cdef SortCtx *c = <SortCtx *>ctx
    cdef RangeItem *a = &c.st.items[i]
    cdef RangeItem *b = &c.st.items[j]
    cdef kv_slice va, vb
    if a.lead[0] != b.lead[0]:
        return a.lead[0] < b.lead[0]
    if a.lead[1] != b.lead[1]:
        return a.lead[1] < b.lead[1]
    if a.lead_n <= LEAD_BYTES or b.lead_n <= LEAD_BYTES:
        return a.lead_n < b.lead_n        # one is the other's prefix
    if c.rc == REC_OK:
        c.rc = value_of(c.ops, c.txn, a, &c.st.scratch, &va)
    if c.rc == REC_OK:
        c.rc = value_of(c.ops, c.txn, b, &c.st.scratch2, &vb)
    return c.rc == REC_OK and kv_slice_cmp(va, vb) < 0


cdef bint value_greater(void *ctx, size_t i, size_t j) noexcept nogil:
    return value_less(ctx, j, i)


cdef int sort_items(RangeState *st, const kv_store *ops, void *txn) noexcept nogil:
    cdef SortCtx c
    cdef bint down = st.req.sort_order == SORT_DESCEND
    cdef size_t i
    c.st = st
    c.ops = ops
    c.txn = txn
    c.rc = REC_OK
    if st.req.sort_target == SORT_BY_KEY:
        # Collected in key order and no two are equal: descending is the reverse.
        for i in range(st.items_n // 2):
            swap_items(&c, i, st.items_n - 1 - i)
    elif st.req.sort_target == SORT_BY_VALUE:
        go_sort(&c, st.items_n, value_greater if down else value_less, swap_items)
    else:
        go_sort(&c, st.items_n, number_greater if down else number_less, swap_items)
    return c.rc


cdef int emit_items(RangeState *st, const kv_store *ops, void *txn, uint64_t work_max,
                    size_t bytes_max, kv_buf *out) noexcept nogil:
    cdef size_t base = out.n, before
    cdef uint64_t work = 0
    cdef Seen seen
    cdef int rc
    while True:
        st.stopped = st.stop_hard and st.emitted >= st.stop_at
        if st.stopped:
            return RANGE_MORE
        if st.items_at >= st.items_n or (st.limit and st.emitted >= st.limit):
            break
        st.stopped = st.stop_at and st.emitted >= st.stop_at
        if (st.stopped or (work_max and work >= work_max)
                or (bytes_max and out.n - base >= bytes_max)):
            return RANGE_MORE
        seen.main = st.items[st.items_at].main
        seen.sub = st.items[st.items_at].sub
        seen.kv_bytes = 0
        if st.req.sort_target != SORT_BY_VALUE:
            seen.kv_bytes = <size_t>st.items[st.items_at].lead[0]
        before = out.n
        rc = emit_or_measure(st, ops, txn, NULL, &seen, out)
        if rc != REC_OK:
            return rc
        st.items_at += 1
        st.steps += 1
        work += WORK_RECORD + (out.n - before) // WORK_BYTES
    st.more = st.items_at < st.items_n
    return REC_OK


cdef int range_step(RangeState *st, const kv_store *ops, void *txn, int64_t floor,
                    uint64_t work_max, size_t bytes_max, kv_buf *out) noexcept nogil:
    cdef int rc
    if st.phase == PHASE_DONE:
        return REC_OK
    if floor > st.revision:
        return REC_NONE
    if st.phase != PHASE_EMIT:
        rc = scan(st, ops, txn, <uint64_t>floor, work_max, bytes_max, out)
        if rc != REC_OK:
            return rc
        if st.phase == PHASE_COLLECT:
            rc = sort_items(st, ops, txn)
            if rc != REC_OK:
                return rc
            st.phase = PHASE_EMIT
            if work_max:
                return RANGE_MORE         # the sort was a slice of its own
    if st.phase == PHASE_EMIT:
        rc = emit_items(st, ops, txn, work_max, bytes_max, out)
        if rc != REC_OK:
            return rc
    st.phase = PHASE_DONE
    if st.sizing:
        st.size += finish_size(st.more, st.count)
        return REC_OK
    range_finish(out, st.more, st.count)
    return REC_NOMEM if out.err else REC_OK


cdef size_t finish_size(bint more, int64_t count) noexcept nogil:
    """Of what range_finish appends."""
    return (2 if more else 0) + (1 + kv_varint_size(<uint64_t>count) if count else 0)


cdef int range_mark(const RangeState *st, RangeMark *mark) noexcept nogil:
    kv_buf_clear(&mark.at)
    kv_put_bytes(&mark.at, st.at.p, st.at.n)
    mark.items_at = st.items_at
    mark.phase = st.phase
    mark.count = st.count
    mark.emitted = st.emitted
    return REC_NOMEM if mark.at.err else REC_OK


cdef int range_back(RangeState *st, const RangeMark *mark) noexcept nogil:
    st.emitted = mark.emitted
    st.stopped = False
    if st.items != NULL:
        st.phase = PHASE_EMIT             # the items stay sorted, and the count is known
        st.items_at = mark.items_at
        return REC_OK
    kv_buf_clear(&st.at)
    kv_put_bytes(&st.at, mark.at.p, mark.at.n)
    st.phase = mark.phase
    st.count = mark.count
    st.more = False
    return REC_NOMEM if st.at.err else REC_OK


cdef bint range_counts(const RangeState *st) noexcept nogil:
    return st.emitted == 0 and (st.phase == PHASE_COUNT or st.phase == PHASE_COLLECT
                                or (st.phase == PHASE_EMIT and st.items_at == 0))


# --- whole --------------------------------------------------------------------------------------

cdef int range_one(const kv_store *ops, void *txn, const RangeReq *req, int64_t current,
                   int64_t at, int64_t floor, const RespHeader *h, kv_buf *scratch,
                   kv_buf *out) noexcept nogil:
    """A single key: limit and order mean nothing, since one is never cut nor sorted."""
    cdef RespHeader head
    cdef Meta meta
    cdef Seen seen
    cdef uint32_t steps = 0
    cdef int64_t count = 0
    cdef int rc
    if h != NULL:
        head = h[0]
        head.revision = current
        range_begin(out, &head)
    rc = index_get(ops, txn, req.key, &meta)
    if rc == REC_OK:
        rc = see(ops, txn, req.key, &meta, <uint64_t>at, <uint64_t>floor, True, &seen, &steps)
    if rc == REC_OK:
        count = 1
        if not req.count_only and passes(req, &seen):
            rc = emit(ops, txn, keys_mode_of(req), &req.key, &seen, scratch, out)
    if rc != REC_OK and rc != REC_NONE:
        return rc
    range_finish(out, False, count)
    return REC_NOMEM if out.err else REC_OK


cdef int range_execute(const kv_store *ops, void *txn, const RangeReq *req, int64_t current,
                       int64_t compacted, int64_t floor, const RespHeader *h, kv_buf *buf,
                       kv_buf *out, int *code) noexcept nogil:
    cdef RangeState st
    cdef int64_t at
    cdef int rc
    if req.range_end.n == 0:
        code[0] = revision_code(req, current, compacted, &at)
        if code[0] != CODE_OK:
            return REC_OK
        return range_one(ops, txn, req, current, at, floor, h, buf, out)
    code[0] = range_init(&st, req, current, compacted, h, out)
    if code[0] != CODE_OK:
        return REC_OK
    st.scratch = buf[0]
    rc = range_step(&st, ops, txn, floor, 0, 0, out)
    buf[0] = st.scratch
    kv_buf_init(&st.scratch)
    range_free(&st)
    if rc == REC_NONE:
        rc = REC_CORRUPT                  # freeing is never ahead of the compact revision
    return rc


# --- snapshots ----------------------------------------------------------------------------------

cdef int read_heads(const kv_store *ops, void *txn, Heads *heads) noexcept nogil:
    cdef kv_slice name, v
    cdef int st
    memset(heads, 0, sizeof(Heads))
    heads.revision = 1                    # of an empty store
    name.p = <const uint8_t *>b"rev"
    name.n = 3
    st = ops.get(txn, TREE_META, name, &v)
    if st == ST_OK:
        if v.n != 8:
            return REC_CORRUPT
        heads.revision = kv_load_u64(v.p)
    elif st != ST_NOTFOUND:
        return REC_FAILED
    name.p = <const uint8_t *>b"compact"
    name.n = 7
    st = ops.get(txn, TREE_META, name, &v)
    if st == ST_OK:
        if v.n != 32:
            return REC_CORRUPT
        heads.compacted = kv_load_u64(v.p)
        heads.freed = kv_load_u64(v.p + 24)
    elif st != ST_NOTFOUND:
        return REC_FAILED
    name.p = <const uint8_t *>b"applied"
    name.n = 7
    st = ops.get(txn, TREE_META, name, &v)
    if st == ST_OK:
        if v.n != 16:
            return REC_CORRUPT
        heads.applied_index = kv_load_u64(v.p)
        heads.applied_term = kv_load_u64(v.p + 8)
    elif st != ST_NOTFOUND:
        return REC_FAILED
    return REC_OK


cdef int reader_code(int rc) noexcept nogil:
    return CODE_CORRUPT if rc == REC_CORRUPT else CODE_UNAVAILABLE


cdef int reader_serve(RangeReader reader, int kind, const uint8_t *body, size_t n,
                      RespHeader *h, kv_buf *out) noexcept nogil:
    cdef RangeReq req
    cdef size_t base = out.n
    cdef int code, rc
    if kind != KIND_RANGE:
        return CODE_UNKNOWN_KIND
    if reader.txn == NULL:
        return CODE_UNAVAILABLE
    code = decode_range(body, n, &req)
    if code == CODE_OK:
        code = check_range(&req)
    if code != CODE_OK:
        return code
    h.revision = <int64_t>reader.heads.revision
    if reader.slice_work and req.range_end.n:
        return serve_short(reader, &req, h, out)
    rc = range_execute(&reader.store.ops, reader.txn, &req, <int64_t>reader.heads.revision,
                       <int64_t>reader.heads.compacted, <int64_t>reader.heads.freed, h,
                       &reader.scratch, out, &code)
    if rc != REC_OK:
        out.n = base
        return reader_code(rc)
    return code


cdef int serve_short(RangeReader reader, const RangeReq *req, const RespHeader *h,
                     kv_buf *out) noexcept nogil:
    cdef RangeState st
    cdef size_t base = out.n
    cdef int rc, code = range_init(&st, req, <int64_t>reader.heads.revision,
                                   <int64_t>reader.heads.compacted, h, out)
    if code != CODE_OK:
        return code
    rc = range_step(&st, &reader.store.ops, reader.txn, <int64_t>reader.heads.freed,
                    reader.slice_work, reader.slice_bytes, out)
    if rc == RANGE_MORE and st.phase == PHASE_EMIT and st.items_at == 0:
        # A short sorted Range: its sort ended the slice, give it the rest of one.
        rc = range_step(&st, &reader.store.ops, reader.txn, <int64_t>reader.heads.freed,
                        reader.slice_work, reader.slice_bytes, out)
    range_free(&st)
    if rc == REC_OK:
        return CODE_OK
    out.n = base
    return READ_LONG if rc == RANGE_MORE else reader_code(rc)


cdef int need(int rc, str what) except -2:
    if rc == REC_OK or rc == REC_NONE or rc == RANGE_MORE:
        return rc
    if rc == REC_CORRUPT:
        raise CorruptionError(f"{what}: stored bytes are damaged")
    if rc == REC_NOMEM:
        raise MemoryError(what)
    raise DiskError(f"{what}: the store failed")


cdef class RangeReader:
    """Reads over one snapshot of a store, renewed by refresh.

    slice_work and slice_bytes bound what serve does at once (0: nothing is bounded); a Range
    beyond that is answered READ_LONG and goes into a LongRange.
    """

    LONG = READ_LONG

    def __cinit__(self, Store store not None, unsigned long long slice_work=0,
                  unsigned long long slice_bytes=0):
        self.store = store
        self.txn = NULL
        self.slice_work = slice_work
        self.slice_bytes = slice_bytes
        kv_buf_init(&self.scratch)
        kv_buf_init(&self.out)

    def __dealloc__(self):
        self.close_c()
        kv_buf_free(&self.scratch)
        kv_buf_free(&self.out)

    cdef void close_c(self) noexcept nogil:
        if self.txn != NULL:
            self.store.ops.end_read(self.txn)
            self.txn = NULL

    cdef int refresh_c(self) noexcept nogil:
        self.close_c()
        kv_buf_trim(&self.scratch, 1 << 20)
        if self.store.ops.begin_read(self.store.ops.env, &self.txn) != ST_OK:
            self.txn = NULL
            return REC_FAILED
        return read_heads(&self.store.ops, self.txn, &self.heads)

    def refresh(self):
        """Takes the newest snapshot. Blocking: no. Errors: DiskError, CorruptionError."""
        need(self.refresh_c(), "refresh")

    def close(self):
        """Ends the snapshot, so that its pages can be used again."""
        self.close_c()

    @property
    def revision(self):
        return self.heads.revision

    @property
    def compact_revision(self):
        return self.heads.compacted

    @property
    def freed_revision(self):
        return self.heads.freed

    @property
    def applied_index(self):
        return self.heads.applied_index

    @property
    def applied_term(self):
        return self.heads.applied_term

    def serve(self, int kind, bytes body not None, unsigned long long cluster_id=0,
              unsigned long long member_id=0, unsigned long long raft_term=0):
        """(code, response): one request's body on the present snapshot."""
        cdef RespHeader h
        cdef int code
        h.cluster_id = cluster_id
        h.member_id = member_id
        h.raft_term = raft_term
        kv_buf_trim(&self.out, 1 << 20)
        code = reader_serve(self, kind, body, len(body), &h, &self.out)
        return code, (<const char *>self.out.p)[:self.out.n] if self.out.n else b""

    def serve_all(self, int kind, list bodies not None, unsigned long long cluster_id=0,
                  unsigned long long member_id=0, unsigned long long raft_term=0):
        """[(code, end)], blob: a batch of bodies, the responses laid end to end in one blob."""
        cdef RespHeader h
        cdef list answers = []
        cdef int code
        h.cluster_id = cluster_id
        h.member_id = member_id
        h.raft_term = raft_term
        kv_buf_trim(&self.out, 1 << 20)
        for body in bodies:
            code = reader_serve(self, kind, <bytes?>body, len(<bytes>body), &h, &self.out)
            answers.append((code, self.out.n))
        return answers, (<const char *>self.out.p)[:self.out.n] if self.out.n else b""


cdef class LongRange:
    """A Range in slices, for a caller that has others to serve in between.

    One `step` a turn; before each, refresh the reader if pages should not stay pinned. `revision`
    is the one it reads at: freeing must not pass it, or step answers Code.COMPACTED.
    """

    cdef RangeReader reader
    cdef bytes body
    cdef RangeReq req
    cdef RangeState st
    cdef kv_buf out
    cdef readonly int code
    cdef readonly bint done

    def __cinit__(self, RangeReader reader not None, bytes body not None,
                  unsigned long long cluster_id=0, unsigned long long member_id=0,
                  unsigned long long raft_term=0, size_t items_bytes_max=0):
        cdef RespHeader h
        self.reader = reader
        self.body = body
        kv_buf_init(&self.out)
        memset(&self.st, 0, sizeof(RangeState))
        h.cluster_id = cluster_id
        h.member_id = member_id
        h.raft_term = raft_term
        self.code = decode_range(body, len(body), &self.req)
        if self.code == CODE_OK:
            self.code = check_range(&self.req)
        if self.code == CODE_OK:
            self.code = range_init(&self.st, &self.req, <int64_t>reader.heads.revision,
                                   <int64_t>reader.heads.compacted, &h, &self.out)
        self.st.items_bytes_max = items_bytes_max
        self.done = self.code != CODE_OK

    def __dealloc__(self):
        range_free(&self.st)
        kv_buf_free(&self.out)

    @property
    def revision(self):
        return self.st.revision

    @property
    def steps(self):
        """Index entries and records read so far."""
        return self.st.steps

    def step(self, unsigned long long work_max, size_t bytes_max):
        """One slice; True when the answer (or a refusal, `code`) is complete.

        work_max: units of about 100 ns. Errors: CorruptionError, DiskError, MemoryError.
        """
        cdef int rc
        if self.done:
            return True
        if self.reader.txn == NULL:
            raise DiskError("the reader is closed")
        rc = need(range_step(&self.st, &self.reader.store.ops, self.reader.txn,
                             <int64_t>self.reader.heads.freed, work_max, bytes_max, &self.out),
                  "Range")
        if rc == REC_NONE:
            self.code = CODE_COMPACTED
            self.out.n = 0
        self.done = rc != RANGE_MORE
        return self.done

    def take(self):
        """The response bytes so far; a message once `done`. They are handed out once."""
        cdef bytes part = (<const char *>self.out.p)[:self.out.n] if self.out.n else b""
        kv_buf_trim(&self.out, 1 << 16)
        return part


def execute(ReadTxn txn not None, bytes body not None, long long current, long long compacted=0,
            long long floor=0):
    """(code, response without header): range_execute, as the state machine calls it."""
    cdef RangeReq req
    cdef kv_buf scratch, out
    cdef int code = decode_range(body, len(body), &req)
    if code == CODE_OK:
        code = check_range(&req)
    if code != CODE_OK:
        return code, b""
    kv_buf_init(&scratch)
    kv_buf_init(&out)
    try:
        need(range_execute(txn.ops, txn.txn, &req, current, compacted, floor, NULL, &scratch,
                           &out, &code), "Range")
        return code, (<const char *>out.p)[:out.n] if out.n else b""
    finally:
        kv_buf_free(&scratch)
        kv_buf_free(&out)
