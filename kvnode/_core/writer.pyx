"""Writes of one main revision: puts and deletes into the trees, and the rolling state hash.

Called by txnexec and requests, inside the apply loop's write transaction. In: checked requests.
Out: records in TREE_REVS, entries in TREE_KEYS and TREE_HIST, the hash.

State hash, a u64: for each crc that is folded in,

    hash = rotl64(hash ^ crc, 23) * 0x9E3779B97F4A7C15

A record's crc covers what the log says, not how it is stored: these 48 bytes, key, value.

    0  u64 main revision     12 u32 1 for a tombstone    24 u64 version      40 u32 key length
    8  u32 sub revision      16 u64 create revision      32 u64 lease        44 u32 value length

Everything else (compactions, sessions, alarms, outcomes) is an event: tag and three numbers, all
u64, then bytes that the tag defines.

Invariants:
1. A record's prev names the key's latest record if that is still stored, tombstones that no
   compaction freed yet included. So prev and depth may differ between members, and the hash
   doesn't cover them; in return a read that began before a compaction keeps its way back.
2. Sub-revisions of a main revision are 0, 1, 2... in the order of writing.
3. Nothing is refused here: what is called was checked whole, and only the store can fail.

4. A record's lease and TREE_LEASE_KEYS agree: what is written here moves the entry (leases.pyx).

Absent on purpose: answers, checks.
"""

from kvnode._core.buf cimport (
    kv_buf_clear,
    kv_buf_free,
    kv_buf_init,
    kv_buf_trim,
    kv_load_u32,
    kv_put_bytes,
    kv_put_u32,
    kv_store_be64,
    kv_store_u32,
    kv_store_u64,
)
from kvnode._core.crc cimport kv_crc32c, kv_crc_init
from kvnode._core.etcdpb cimport KeyValue, add_prev_kv, decode_kv
from kvnode._core.leases cimport lease_attach, lease_detach
from kvnode._core.records cimport (
    REC_CORRUPT,
    REC_FAILED,
    REC_NOMEM,
    REC_NONE,
    REC_OK,
    REC_TOMBSTONE,
    Record,
    append_record,
    read_record,
)
from kvnode._core.revindex cimport (
    IndexIter,
    hist_put,
    index_get,
    index_upsert,
    iter_close,
    iter_init,
    iter_next,
    meta_live,
    value_mark,
)
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_LEASES

kv_crc_init()

cdef enum:
    SCRATCH_KEEP = 1 << 20     # scratch buffers above this are given back after use


cdef void writer_init(Writer *w, const kv_store *ops) noexcept nogil:
    w.ops = ops
    w.txn = NULL
    w.revision = 1
    w.sub = 0
    w.hash = 0
    w.compacted = -1
    w.puts = 0
    w.deletes = 0
    kv_buf_init(&w.keys)
    kv_buf_init(&w.value)


cdef void writer_free(Writer *w) noexcept nogil:
    kv_buf_free(&w.keys)
    kv_buf_free(&w.value)


# --- state hash -----------------------------------------------------------------------------------

cdef void fold(uint64_t *state_hash, uint32_t crc) noexcept nogil:
    cdef uint64_t mixed = state_hash[0] ^ crc
    state_hash[0] = ((mixed << 23) | (mixed >> 41)) * <uint64_t>0x9E3779B97F4A7C15u


cdef void fold_event(uint64_t *state_hash, uint64_t tag, uint64_t a, uint64_t b, uint64_t c,
                     const uint8_t *tail, size_t n) noexcept nogil:
    cdef uint8_t head[32]
    cdef uint32_t crc
    kv_store_u64(head, tag)
    kv_store_u64(head + 8, a)
    kv_store_u64(head + 16, b)
    kv_store_u64(head + 24, c)
    crc = kv_crc32c(0, head, 32)
    fold(state_hash, kv_crc32c(crc, tail, n) if n else crc)


cdef inline void fold_record(Writer *w, uint64_t main, const KeyValue *kv,
                             bint tombstone) noexcept nogil:
    cdef uint8_t head[48]
    cdef uint32_t crc
    kv_store_u64(head, main)
    kv_store_u32(head + 8, w.sub)
    kv_store_u32(head + 12, tombstone)
    kv_store_u64(head + 16, <uint64_t>kv.create_revision)
    kv_store_u64(head + 24, <uint64_t>kv.version)
    kv_store_u64(head + 32, <uint64_t>kv.lease)
    kv_store_u32(head + 40, <uint32_t>kv.key.n)
    kv_store_u32(head + 44, <uint32_t>kv.value.n)
    crc = kv_crc32c(0, head, 48)
    crc = kv_crc32c(crc, kv.key.p, kv.key.n)
    if kv.value.n:
        crc = kv_crc32c(crc, kv.value.p, kv.value.n)
    fold(&w.hash, crc)


# --- reading --------------------------------------------------------------------------------------

cdef int read_entry(const kv_store *ops, void *txn, const Meta *meta, kv_slice *kv,
                    kv_buf *buf) noexcept nogil:
    cdef Record rec
    cdef int rc
    if not meta_live(meta):
        return REC_NONE
    rc = read_record(ops, txn, meta.mod_main, meta.mod_sub, &rec, buf)
    if rc != REC_OK:
        return REC_CORRUPT if rc == REC_NONE else rc
    if rec.flags & REC_TOMBSTONE:
        return REC_CORRUPT
    kv[0] = rec.kv
    return REC_OK


cdef int find_lease(const kv_store *ops, void *txn, int64_t lease) noexcept nogil:
    cdef uint8_t room[8]
    cdef kv_slice key, val
    cdef int st
    kv_store_be64(room, <uint64_t>lease)
    key.p = room
    key.n = 8
    st = ops.get(txn, TREE_LEASES, key, &val)
    if st == ST_OK:
        return REC_OK
    return REC_NONE if st == ST_NOTFOUND else REC_FAILED


# --- put ------------------------------------------------------------------------------------------

cdef int append_version(Writer *w, const KeyValue *kv, bint tombstone, const Meta *old,
                        const Meta *new) noexcept nogil:
    """The record of an index entry that was just written, its history mark, and the hash."""
    cdef uint64_t main = <uint64_t>w.revision + 1
    cdef uint32_t crc
    cdef int rc = append_record(w.ops, w.txn, main, w.sub, REC_TOMBSTONE if tombstone else 0,
                                new.depth, old.mod_main, old.mod_sub, kv, &crc)
    if rc != REC_OK:
        return rc
    if new.depth == 0:
        rc = hist_put(w.ops, w.txn, kv.key, main, w.sub)
        if rc != REC_OK:
            return rc
    fold_record(w, main, kv, tombstone)
    w.sub += 1
    return REC_OK


cdef int keep_old(Writer *w, const PutReq *r, kv_slice *value, int64_t *lease) noexcept nogil:
    """What ignore_value and ignore_lease take over from the key as it is now."""
    cdef KeyValue old
    cdef kv_slice raw
    cdef Meta meta
    cdef int rc = index_get(w.ops, w.txn, r.key, &meta)
    if rc == REC_OK:
        rc = read_entry(w.ops, w.txn, &meta, &raw, &w.value)
    if rc != REC_OK:
        return REC_CORRUPT if rc == REC_NONE else rc    # the caller checked that the key is there
    if r.ignore_lease:
        lease[0] = <int64_t>meta.lease
    if not r.ignore_value:
        return REC_OK
    if decode_kv(raw.p, raw.n, &old) != 0:
        return REC_CORRUPT
    if raw.p != w.value.p:          # copied out of the store, which the put is about to change
        kv_buf_clear(&w.value)
        kv_put_bytes(&w.value, old.value.p, old.value.n)
        if w.value.err:
            return REC_NOMEM
        value.p = w.value.p
        value.n = w.value.n
    else:
        value[0] = old.value
    return REC_OK


cdef int move_lease(Writer *w, const Meta *old, int64_t lease) noexcept nogil:
    """The key leaves its old lease's keys and comes to those of `lease`, by its new revision."""
    cdef int rc = REC_OK
    if old.mod_main and old.lease:
        rc = lease_detach(w.ops, w.txn, old.lease, old.mod_main, old.mod_sub)
    if rc == REC_OK and lease:
        rc = lease_attach(w.ops, w.txn, <uint64_t>lease, <uint64_t>w.revision + 1, w.sub)
    return rc


cdef int write_put(Writer *w, const PutReq *r, Meta *old) noexcept nogil:
    cdef uint64_t main = <uint64_t>w.revision + 1
    cdef KeyValue kv
    cdef Meta new
    cdef int rc
    kv.key = r.key
    kv.value = r.value
    kv.lease = r.lease
    if r.ignore_value or r.ignore_lease:
        rc = keep_old(w, r, &kv.value, &kv.lease)
        if rc != REC_OK:
            return rc
    rc = index_upsert(w.ops, w.txn, r.key, main, w.sub, 0, <uint64_t>kv.lease,
                      value_mark(kv.value.n), 0, old, &new)
    if rc != REC_OK:
        return rc
    kv.create_revision = <int64_t>new.create
    kv.mod_revision = <int64_t>main
    kv.version = <int64_t>new.version
    w.puts += 1
    if kv.lease != 0 or old.lease != 0:
        rc = move_lease(w, old, kv.lease)
        if rc != REC_OK:
            return rc
    rc = append_version(w, &kv, 0, old, &new)
    kv_buf_trim(&w.value, SCRATCH_KEEP)
    return rc


# --- delete ---------------------------------------------------------------------------------------

cdef int delete_key(Writer *w, kv_slice key, Meta *old) noexcept nogil:
    cdef uint64_t main = <uint64_t>w.revision + 1
    cdef KeyValue kv
    cdef Meta new
    cdef int rc = index_upsert(w.ops, w.txn, key, main, w.sub, 1, 0, 0, 0, old, &new)
    if rc != REC_OK:
        return rc
    kv.key = key
    kv.create_revision = 0
    kv.mod_revision = <int64_t>main
    kv.version = 0
    kv.value.p = NULL
    kv.value.n = 0
    kv.lease = 0
    w.deletes += 1
    if old.lease:
        rc = move_lease(w, old, 0)
        if rc != REC_OK:
            return rc
    return append_version(w, &kv, 1, old, &new)


cdef int gather_keys(Writer *w, const DeleteReq *r, kv_buf *prevs) noexcept nogil:
    """Fills w.keys with length and bytes of every live key of the range, before any write."""
    cdef IndexIter it
    cdef kv_slice kv
    cdef int rc = iter_init(&it, w.ops, w.txn, r.key, r.range_end)
    kv_buf_clear(&w.keys)
    if rc == REC_OK:
        rc = iter_next(&it)
    while rc == REC_OK:
        if meta_live(&it.meta):
            kv_put_u32(&w.keys, <uint32_t>it.key.n)
            kv_put_bytes(&w.keys, it.key.p, it.key.n)
            if prevs != NULL:
                rc = read_entry(w.ops, w.txn, &it.meta, &kv, &w.value)
                if rc != REC_OK:
                    rc = REC_CORRUPT if rc == REC_NONE else rc
                    break
                add_prev_kv(prevs, kv)
        rc = iter_next(&it)
    iter_close(&it)
    if rc != REC_NONE:
        return rc
    return REC_NOMEM if w.keys.err or (prevs != NULL and prevs.err) else REC_OK


cdef int write_delete(Writer *w, const DeleteReq *r, int64_t *deleted,
                      kv_buf *prevs) noexcept nogil:
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef kv_slice key
    cdef Meta old
    cdef int rc
    deleted[0] = 0
    if r.range_end.n == 0:
        rc = delete_key(w, r.key, &old)
        if rc == REC_NONE:
            return REC_OK
        if rc != REC_OK:
            return rc
        deleted[0] = 1
        if prevs == NULL:
            return REC_OK
        rc = read_entry(w.ops, w.txn, &old, &key, &w.value)
        if rc == REC_OK:
            add_prev_kv(prevs, key)
        return REC_CORRUPT if rc == REC_NONE else rc
    rc = gather_keys(w, r, prevs)
    p = w.keys.p
    end = p + w.keys.n
    while rc == REC_OK and p < end:
        key.n = kv_load_u32(p)
        key.p = p + 4
        p = key.p + key.n
        rc = delete_key(w, key, &old)
        deleted[0] += 1
    kv_buf_trim(&w.keys, SCRATCH_KEEP)
    kv_buf_trim(&w.value, SCRATCH_KEEP)
    # every gathered key was live, so REC_NONE here means that index and iterator disagree
    return REC_CORRUPT if rc == REC_NONE else rc
