"""Leases in the state machine: stored records, attached keys, and the three requests of the log.

Callers: requests.pyx (requests), writer.pyx (attaching, through the contents' inline functions),
leasecalls.pyx and leaseclock.pyx (reading). No clock: a lease ends when its revoke is applied,
and the time that it has left is only what consensus wrote down last.

TREE_LEASES: key lease id, u64 BE (an int64 as its bits). Value:

    0  u32 crc32c of the key and of bytes 4..   4  u8 version = 1   5  u8[3] zero
    8  i64 granted TTL, seconds
   16  i64 remaining, seconds, as persisted last; 0: the whole TTL

TREE_LEASE_KEYS: key lease id u64 BE, main u64 BE, sub u32 BE; no value. The revision is that of
the attached key's latest record, which holds the key: so keys of any length fit, and a listing
reads one record a key. Every put of an attached key moves its entry, every delete removes it.
Example: lease 7, revision (5, 0): `0000000000000007 0000000000000005 00000000`.

Invariants:
1. (lease, main, sub) is there exactly when the latest record of some key is (main, sub) and names
   that lease, and the lease is there. Freeing never deletes such a record: it is not superseded.
2. A revoke deletes all keys of its lease in byte order in one revision, and takes none without.
3. Grants, revokes and checkpoints are folded into the state hash; attachments follow from records.

Absent on purpose: expiry (state/lessor.py), ids that nobody chose and the least TTL (leasepb.pyx).
"""

from libc.stdlib cimport qsort
from libc.string cimport memset

from kvnode._core.buf cimport (
    kv_buf_clear,
    kv_buf_grow,
    kv_buf_trim,
    kv_load_be32,
    kv_load_be64,
    kv_load_u32,
    kv_load_u64,
    kv_put_bytes,
    kv_put_u32,
    kv_slice_cmp,
    kv_store_u32,
    kv_store_u64,
)
from kvnode._core.codes cimport (
    CODE_LEASE_EXIST,
    CODE_LEASE_NOT_FOUND,
    CODE_LEASE_TTL_TOO_LARGE,
)
from kvnode._core.crc cimport kv_crc32c, kv_crc_init
from kvnode._core.leasepb cimport LeaseCheckpoint, next_checkpoint
from kvnode._core.records cimport (
    REC_CORRUPT,
    REC_NOMEM,
    REC_NONE,
    REC_TOMBSTONE,
    Record,
    key_of_kv,
    read_head,
)
from kvnode._core.revindex cimport Meta
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_LEASES
from kvnode._core.writer cimport (
    EVENT_LEASE_CHECKPOINT,
    EVENT_LEASE_GRANT,
    EVENT_LEASE_REVOKE,
    delete_key,
    fold_event,
)

kv_crc_init()

cdef enum:
    LEASE_VERSION = 1
    SCRATCH_KEEP = 1 << 20


# --- stored leases --------------------------------------------------------------------------------

cdef inline kv_slice lease_name(uint8_t *room, int64_t id) noexcept nogil:
    cdef kv_slice s
    kv_store_be64(room, <uint64_t>id)
    s.p = room
    s.n = 8
    return s


cdef inline uint32_t lease_crc(const uint8_t *name, const uint8_t *value) noexcept nogil:
    return kv_crc32c(kv_crc32c(0, name, 8), value + 4, LEASE_BYTES - 4)


cdef int decode_lease_record(kv_slice key, kv_slice value, int64_t *id,
                             Lease *lease) noexcept nogil:
    if key.n != 8 or value.n != LEASE_BYTES or value.p[4] != LEASE_VERSION:
        return REC_CORRUPT
    if kv_load_u32(value.p) != lease_crc(key.p, value.p):
        return REC_CORRUPT
    id[0] = <int64_t>kv_load_be64(key.p)
    lease.ttl = <int64_t>kv_load_u64(value.p + 8)
    lease.remaining = <int64_t>kv_load_u64(value.p + 16)
    return REC_OK


cdef int lease_get(const kv_store *ops, void *txn, int64_t id, Lease *lease) noexcept nogil:
    cdef uint8_t room[8]
    cdef kv_slice value
    cdef int64_t again
    cdef int st = ops.get(txn, TREE_LEASES, lease_name(room, id), &value)
    if st == ST_NOTFOUND:
        return REC_NONE
    if st != ST_OK:
        return REC_FAILED
    return decode_lease_record(lease_name(room, id), value, &again, lease)


cdef int lease_put(const Writer *w, int64_t id, const Lease *lease) noexcept nogil:
    cdef uint8_t value[LEASE_BYTES]
    cdef uint8_t room[8]
    cdef kv_slice key = lease_name(room, id)
    cdef kv_slice val
    memset(value, 0, LEASE_BYTES)
    value[4] = LEASE_VERSION
    kv_store_u64(value + 8, <uint64_t>lease.ttl)
    kv_store_u64(value + 16, <uint64_t>lease.remaining)
    kv_store_u32(value, lease_crc(room, value))
    val.p = value
    val.n = LEASE_BYTES
    return REC_OK if w.ops.put(w.txn, TREE_LEASES, key, val) == ST_OK else REC_FAILED


cdef int tell(kv_buf *told, uint64_t index, int64_t id, const Lease *lease,
              uint64_t what) noexcept nogil:
    cdef LeaseEvent e
    e.index = index
    e.id = <uint64_t>id
    e.ttl = lease.ttl
    e.remaining = lease.remaining
    e.what = what
    kv_put_bytes(told, &e, sizeof(e))
    return REC_NOMEM if told.err else REC_OK


# --- attached keys --------------------------------------------------------------------------------

cdef int compare_slices(const void *a, const void *b) noexcept nogil:
    return kv_slice_cmp((<const kv_slice *>a)[0], (<const kv_slice *>b)[0])


cdef int add_key(const kv_store *ops, void *txn, uint64_t main, uint32_t sub,
                 kv_buf *keys) noexcept nogil:
    cdef kv_slice key
    cdef Record rec
    cdef int rc = read_head(ops, txn, main, sub, &rec)
    if rc == REC_NONE or (rc == REC_OK and rec.flags & REC_TOMBSTONE):
        return REC_CORRUPT
    if rc == REC_OK:
        rc = key_of_kv(rec.kv, &key)
    if rc == REC_OK:
        kv_put_u32(keys, <uint32_t>key.n)
        kv_put_bytes(keys, key.p, key.n)
    return rc


cdef int gather(const kv_store *ops, void *txn, uint64_t lease, kv_buf *keys,
                uint64_t *count) noexcept nogil:
    """Attached keys in the order of their revisions."""
    cdef uint8_t room[LEASE_KEY_BYTES]
    cdef kv_slice key, val
    cdef void *cur
    cdef int rc = REC_OK
    cdef int st
    if ops.cursor_open(txn, TREE_LEASE_KEYS, &cur) != ST_OK:
        return REC_FAILED
    st = ops.cursor_seek(cur, lease_entry(room, lease, 0, 0), &key, &val)
    while st == ST_OK:
        if key.n != LEASE_KEY_BYTES:
            rc = REC_CORRUPT
            break
        if kv_load_be64(key.p) != lease:
            break
        rc = add_key(ops, txn, kv_load_be64(key.p + 8), kv_load_be32(key.p + 16), keys)
        if rc != REC_OK:
            break
        count[0] += 1
        st = ops.cursor_next(cur, &key, &val)
    ops.cursor_close(cur)
    if rc != REC_OK:
        return rc
    return REC_FAILED if st != ST_OK and st != ST_NOTFOUND else REC_OK


cdef int lease_keys(const kv_store *ops, void *txn, int64_t id, kv_buf *keys, kv_buf *list,
                    uint64_t *count) noexcept nogil:
    cdef const uint8_t *p
    cdef kv_slice *slices
    cdef size_t i, at, n
    cdef int rc
    count[0] = 0
    kv_buf_clear(list)
    at = keys.n
    rc = gather(ops, txn, <uint64_t>id, keys, count)
    if rc != REC_OK:
        return rc
    if keys.err:
        return REC_NOMEM
    n = count[0]
    if n < 2:
        return REC_OK
    # `list` gets the slices and, behind them, a copy that they point into
    if kv_buf_grow(list, n * sizeof(kv_slice) + keys.n - at) == NULL:
        return REC_NOMEM
    slices = <kv_slice *>list.p
    list.n = n * sizeof(kv_slice)
    kv_put_bytes(list, keys.p + at, keys.n - at)
    p = list.p + n * sizeof(kv_slice)
    for i in range(n):
        slices[i].n = kv_load_u32(p)
        slices[i].p = p + 4
        p += 4 + slices[i].n
    qsort(slices, n, sizeof(kv_slice), compare_slices)
    keys.n = at
    for i in range(n):
        kv_put_u32(keys, <uint32_t>slices[i].n)
        kv_put_bytes(keys, slices[i].p, slices[i].n)
    return REC_OK


# --- requests -------------------------------------------------------------------------------------

cdef int lease_grant(Writer *w, uint64_t index, int64_t id, int64_t *ttl, kv_buf *told,
                     int *code) noexcept nogil:
    cdef Lease lease
    cdef int rc
    if id == 0:
        code[0] = CODE_LEASE_NOT_FOUND      # etcd's word for "no lease"
        return REC_OK
    if ttl[0] > lease_ttl_max():
        code[0] = CODE_LEASE_TTL_TOO_LARGE
        return REC_OK
    rc = lease_get(w.ops, w.txn, id, &lease)
    if rc != REC_NONE:
        code[0] = CODE_LEASE_EXIST
        return rc
    if ttl[0] < 1:
        ttl[0] = 1
    lease.ttl = ttl[0]
    lease.remaining = 0
    rc = lease_put(w, id, &lease)
    if rc != REC_OK:
        return rc
    fold_event(&w.hash, EVENT_LEASE_GRANT, <uint64_t>id, <uint64_t>lease.ttl, 0, NULL, 0)
    return tell(told, index, id, &lease, LEASE_GRANTED)


cdef int delete_keys(Writer *w, const kv_buf *keys) noexcept nogil:
    cdef const uint8_t *p = keys.p
    cdef const uint8_t *end = p + keys.n
    cdef kv_slice key
    cdef Meta old
    cdef int rc
    while p < end:
        key.n = kv_load_u32(p)
        key.p = p + 4
        p = key.p + key.n
        rc = delete_key(w, key, &old)
        if rc != REC_OK:                    # REC_NONE: invariant 1 is broken
            return REC_CORRUPT if rc == REC_NONE else rc
    return REC_OK


cdef int lease_revoke(Writer *w, uint64_t index, int64_t id, kv_buf *list, kv_buf *told,
                      int *code) noexcept nogil:
    cdef uint8_t room[8]
    cdef uint64_t count
    cdef Lease lease
    cdef int rc = lease_get(w.ops, w.txn, id, &lease)
    if rc == REC_NONE:
        code[0] = CODE_LEASE_NOT_FOUND
        return REC_OK
    if rc != REC_OK:
        return rc
    kv_buf_clear(&w.keys)
    rc = lease_keys(w.ops, w.txn, id, &w.keys, list, &count)
    if rc == REC_OK:
        rc = delete_keys(w, &w.keys)
    if rc != REC_OK:
        return rc
    if w.ops.delete(w.txn, TREE_LEASES, lease_name(room, id)) != ST_OK:
        return REC_FAILED
    fold_event(&w.hash, EVENT_LEASE_REVOKE, <uint64_t>id, count, 0, NULL, 0)
    kv_buf_trim(&w.keys, SCRATCH_KEEP)
    kv_buf_trim(list, SCRATCH_KEEP)
    return tell(told, index, id, &lease, LEASE_REVOKED)


cdef int lease_checkpoint(Writer *w, uint64_t index, kv_rd *r, kv_buf *told) noexcept nogil:
    cdef LeaseCheckpoint point
    cdef Lease lease
    cdef int rc
    while next_checkpoint(r, &point) == 1:
        rc = lease_get(w.ops, w.txn, point.id, &lease)
        if rc == REC_NONE:
            continue
        if rc != REC_OK:
            return rc
        lease.remaining = point.remaining
        if lease.remaining < 0 or lease.remaining >= lease.ttl:
            lease.remaining = 0
        rc = lease_put(w, point.id, &lease)
        if rc == REC_OK:
            fold_event(&w.hash, EVENT_LEASE_CHECKPOINT, <uint64_t>point.id,
                       <uint64_t>lease.remaining, 0, NULL, 0)
            rc = tell(told, index, point.id, &lease, LEASE_CHECKPOINTED)
        if rc != REC_OK:
            return rc
    return REC_OK
