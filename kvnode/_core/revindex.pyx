"""The revision index: from a key to its latest revision, and back through its history.

Called by the state machine (upsert, remove), by Range and the compares of Txn (get, iterate, at),
and by freeing and the scrubber. Everything lies in the store's trees; nothing is cached.

TREE_KEYS: key -> 40 bytes, Meta in revindex.pxd:

    0  u64 mod_main       24 u64 lease       36 u8  flags: 1 tombstone
    8  u64 create         32 u32 mod_sub     37 u8  depth of the latest record
    16 u64 version                           38 u16 length of the value + 1, 0: not told

A key of 1..510 bytes stands as itself. Longer ones (LMDB's limit is 511) share a bucket:
key = first 510 bytes + 0x00, value = Metas sorted by whole key. A bucket sorts right behind the
short key equal to its prefix and before everything larger than that, so the tree's order plus
the order inside buckets is the byte order of whole keys. The whole keys are read from the
records that the Metas point to.

TREE_HIST: hash64(key) BE + main u64 BE + sub u32 BE (20 bytes) -> empty, for records of depth 0,
every 64th version of a key.

Example: "a" put at revision 2:  61 -> 0200000000000000 0200000000000000 0100000000000000
                                       0000000000000000 00000000 00 01 0000

Invariants:
1. A key has an entry from its first put until the freeing of its last tombstone.
2. An entry's (mod_main, mod_sub) is in TREE_REVS whenever a long key is looked up.
3. prev and depth go on across a tombstone that is not freed yet, and start anew after one that
   is. So they may differ between members: no hash covers them, no answer depends on them.
4. index_at reads at most HIST_STRIDE + HIST_AFTER + 1 records of the key, plus those of keys
   with an equal hash64.

Absent on purpose: which revision is current, and the records' values.
"""

from libc.string cimport memcmp, memcpy, memset

from kvnode._core.buf cimport (
    kv_buf_free,
    kv_buf_grow,
    kv_buf_init,
    kv_load_be32,
    kv_load_be64,
    kv_slice_cmp,
    kv_store_be32,
    kv_store_be64,
)
from kvnode._core.etcdpb cimport KeyValue, kv_size
from kvnode._core.records cimport (
    REC_CORRUPT,
    REC_FAILED,
    REC_NOMEM,
    REC_NONE,
    REC_OK,
    REC_TOMBSTONE,
    append_record,
    delete_record,
    key_of_kv,
    read_head,
    read_record,
)
from kvnode._core.store cimport (
    ST_EXISTS,
    ST_NOTFOUND,
    ST_OK,
    TREE_HIST,
    TREE_KEYS,
)
from kvnode._core.storetxn cimport ReadTxn, WriteTxn

from kvnode.base.errors import CorruptionError, DiskError

cdef enum:
    HIST_KEY_BYTES = 20
    HIST_AFTER = 8        # prev steps before the history tree is asked

    ITER_DONE = 0
    ITER_SINGLE = 1
    ITER_RANGE = 2
    ITER_FROM = 3
    ITER_FRESH = 8        # not yet positioned; a bit beside ITER_RANGE and ITER_FROM


cdef inline int meta_load(kv_slice v, Meta *m) noexcept nogil:
    memcpy(m, v.p, META_BYTES)
    if m.mod_main == 0 or (m.flags & ~META_TOMBSTONE) or m.depth >= HIST_STRIDE:
        return REC_CORRUPT
    return REC_OK


cdef inline kv_slice meta_slice(const Meta *m) noexcept nogil:
    cdef kv_slice s
    s.p = <const uint8_t *>m
    s.n = META_BYTES
    return s


cdef inline kv_slice bucket_key(uint8_t *room, kv_slice key) noexcept nogil:
    cdef kv_slice s
    memcpy(room, key.p, SHORT_KEY_MAX)
    room[SHORT_KEY_MAX] = 0
    s.p = room
    s.n = BUCKET_KEY_BYTES
    return s


# --- buckets of long keys -----------------------------------------------------------------------

cdef int key_of_meta(const kv_store *ops, void *txn, const Meta *m, kv_slice *key) noexcept nogil:
    cdef Record rec
    cdef int rc = read_head(ops, txn, m.mod_main, m.mod_sub, &rec)
    if rc == REC_NONE:
        return REC_CORRUPT
    if rc != REC_OK:
        return rc
    if key_of_kv(rec.kv, key) != REC_OK or key.n <= SHORT_KEY_MAX:
        return REC_CORRUPT
    return REC_OK


cdef int bucket_find(const kv_store *ops, void *txn, kv_slice bucket, kv_slice key, size_t *at,
                     bint *found) noexcept nogil:
    """*at: bytes offset of the first Meta whose key is >= `key`."""
    cdef size_t low = 0, high = bucket.n // META_BYTES, mid
    cdef kv_slice one, other
    cdef Meta m
    cdef int rc, c
    found[0] = False
    if bucket.n == 0 or bucket.n % META_BYTES:
        return REC_CORRUPT
    while low < high:
        mid = (low + high) // 2
        one.p = bucket.p + mid * META_BYTES
        one.n = META_BYTES
        rc = meta_load(one, &m)
        if rc == REC_OK:
            rc = key_of_meta(ops, txn, &m, &other)
        if rc != REC_OK:
            return rc
        c = kv_slice_cmp(other, key)
        if c < 0:
            low = mid + 1
        else:
            high = mid
            if c == 0:
                found[0] = True
                low = mid
                break
    at[0] = low * META_BYTES
    return REC_OK


cdef int bucket_get(const kv_store *ops, void *txn, kv_slice key, Meta *meta) noexcept nogil:
    cdef uint8_t room[BUCKET_KEY_BYTES]
    cdef kv_slice bucket
    cdef size_t at
    cdef bint found
    cdef int rc, st = ops.get(txn, TREE_KEYS, bucket_key(room, key), &bucket)
    if st != ST_OK:
        return REC_NONE if st == ST_NOTFOUND else REC_FAILED
    rc = bucket_find(ops, txn, bucket, key, &at, &found)
    if rc != REC_OK:
        return rc
    if not found:
        return REC_NONE
    bucket.p += at
    return meta_load(bucket, meta)


cdef int bucket_splice(const kv_store *ops, void *txn, kv_slice name, kv_slice bucket, size_t at,
                       size_t skip, const Meta *m) noexcept nogil:
    """Writes the bucket with `skip` bytes at `at` replaced by *m (nothing when NULL)."""
    cdef kv_buf b
    cdef kv_slice v
    cdef size_t add = META_BYTES if m != NULL else 0
    cdef uint8_t *d
    cdef int st
    v.n = bucket.n - skip + add
    if v.n == 0:
        st = ops.delete(txn, TREE_KEYS, name)
        return REC_OK if st == ST_OK else REC_FAILED
    kv_buf_init(&b)
    d = kv_buf_grow(&b, v.n)
    if d == NULL:
        return REC_NOMEM
    if at:
        memcpy(d, bucket.p, at)
    if add:
        memcpy(d + at, m, META_BYTES)
    if bucket.n > at + skip:
        memcpy(d + at + add, bucket.p + at + skip, bucket.n - at - skip)
    v.p = d
    st = ops.put(txn, TREE_KEYS, name, v)
    kv_buf_free(&b)
    return REC_OK if st == ST_OK else REC_FAILED


# --- get, upsert, remove ------------------------------------------------------------------------

cdef int index_get(const kv_store *ops, void *txn, kv_slice key, Meta *meta) noexcept nogil:
    cdef kv_slice v
    cdef int st
    if key.n == 0:
        return REC_NONE
    if key.n > SHORT_KEY_MAX:
        return bucket_get(ops, txn, key, meta)
    st = ops.get(txn, TREE_KEYS, key, &v)
    if st != ST_OK:
        return REC_NONE if st == ST_NOTFOUND else REC_FAILED
    if v.n != META_BYTES:
        return REC_CORRUPT
    return meta_load(v, meta)


cdef size_t meta_kv_bytes(size_t key_n, const Meta *m) noexcept nogil:
    cdef KeyValue kv
    if m.value_mark == 0:
        return 0
    kv.key.n = key_n
    kv.create_revision = <int64_t>m.create
    kv.mod_revision = <int64_t>m.mod_main
    kv.version = <int64_t>m.version
    kv.value.n = m.value_mark - 1
    kv.lease = <int64_t>m.lease
    return kv_size(&kv)


cdef inline void first_meta(Meta *new, uint64_t main, uint32_t sub, uint64_t lease,
                            uint16_t mark) noexcept nogil:
    memset(new, 0, sizeof(Meta))
    new.mod_main = main
    new.mod_sub = sub
    new.create = main
    new.version = 1
    new.lease = lease
    new.depth = 1
    new.value_mark = mark


cdef int next_meta(Meta *old, int tombstone, uint64_t floor, Meta *new) noexcept nogil:
    """Turns *new (as first_meta made it) into the successor of *old. REC_NONE: nothing to do."""
    if old.mod_main > new.mod_main or (old.mod_main == new.mod_main
                                       and old.mod_sub >= new.mod_sub):
        return REC_CORRUPT                  # revisions of a key only grow
    if old.flags & META_TOMBSTONE:
        if tombstone:
            return REC_NONE
        if old.mod_main < floor:
            memset(old, 0, sizeof(Meta))
            return REC_OK
    elif not tombstone:
        new.create = old.create
        new.version = old.version + 1
    new.depth = (old.depth + 1) % HIST_STRIDE
    if tombstone:
        new.flags = META_TOMBSTONE
        new.create = 0
        new.version = 0
        new.lease = 0
        new.value_mark = 0
    return REC_OK


cdef int upsert_long(const kv_store *ops, void *txn, kv_slice key, int tombstone, uint64_t floor,
                     Meta *old, Meta *new) noexcept nogil:
    cdef uint8_t room[BUCKET_KEY_BYTES]
    cdef kv_slice bucket, one, name = bucket_key(room, key)
    cdef size_t at = 0
    cdef bint found = False
    cdef int rc, st = ops.get(txn, TREE_KEYS, name, &bucket)
    if st == ST_OK:
        rc = bucket_find(ops, txn, bucket, key, &at, &found)
        if rc != REC_OK:
            return rc
    elif st == ST_NOTFOUND:
        bucket.p = NULL
        bucket.n = 0
    else:
        return REC_FAILED
    if found:
        one.p = bucket.p + at
        one.n = META_BYTES
        rc = meta_load(one, old)
        if rc == REC_OK:
            rc = next_meta(old, tombstone, floor, new)
        if rc != REC_OK:
            return rc
    elif tombstone:
        return REC_NONE
    return bucket_splice(ops, txn, name, bucket, at, META_BYTES if found else 0, new)


cdef int index_upsert(const kv_store *ops, void *txn, kv_slice key, uint64_t main, uint32_t sub,
                      int tombstone, uint64_t lease, uint16_t mark, uint64_t floor,
                      Meta *old, Meta *new) noexcept nogil:
    cdef kv_slice existing
    cdef int st, rc
    memset(old, 0, sizeof(Meta))
    first_meta(new, main, sub, lease, mark)
    if key.n == 0:
        return REC_NONE if tombstone else REC_FAILED
    if key.n > SHORT_KEY_MAX:
        return upsert_long(ops, txn, key, tombstone, floor, old, new)
    st = ops.put_new(txn, TREE_KEYS, key, meta_slice(new), &existing)
    if st == ST_OK:
        if not tombstone:
            return REC_OK
        # A delete of nothing: rare enough that taking the entry out again costs less than a get
        # in front of every delete.
        st = ops.delete(txn, TREE_KEYS, key)
        return REC_NONE if st == ST_OK else REC_FAILED
    if st != ST_EXISTS:
        return REC_FAILED
    if existing.n != META_BYTES:
        return REC_CORRUPT
    rc = meta_load(existing, old)
    if rc == REC_OK:
        rc = next_meta(old, tombstone, floor, new)
    if rc != REC_OK:
        return rc
    st = ops.put_over(txn, TREE_KEYS, key, meta_slice(new))
    return REC_OK if st == ST_OK else REC_FAILED


cdef int remove_long(const kv_store *ops, void *txn, kv_slice key, uint64_t main,
                     uint32_t sub) noexcept nogil:
    cdef uint8_t room[BUCKET_KEY_BYTES]
    cdef kv_slice bucket, one, name = bucket_key(room, key)
    cdef size_t at
    cdef bint found
    cdef Meta m
    cdef int rc, st = ops.get(txn, TREE_KEYS, name, &bucket)
    if st != ST_OK:
        return REC_NONE if st == ST_NOTFOUND else REC_FAILED
    rc = bucket_find(ops, txn, bucket, key, &at, &found)
    if rc != REC_OK:
        return rc
    if not found:
        return REC_NONE
    one.p = bucket.p + at
    one.n = META_BYTES
    rc = meta_load(one, &m)
    if rc != REC_OK:
        return rc
    if main and (m.mod_main != main or m.mod_sub != sub):
        return REC_NONE
    return bucket_splice(ops, txn, name, bucket, at, META_BYTES, NULL)


cdef int index_remove(const kv_store *ops, void *txn, kv_slice key) noexcept nogil:
    return index_remove_if(ops, txn, key, 0, 0)


cdef int index_remove_if(const kv_store *ops, void *txn, kv_slice key, uint64_t main,
                         uint32_t sub) noexcept nogil:
    cdef Meta m
    cdef int st, rc
    if key.n > SHORT_KEY_MAX:
        return remove_long(ops, txn, key, main, sub)
    if main:
        rc = index_get(ops, txn, key, &m)
        if rc != REC_OK:
            return rc
        if m.mod_main != main or m.mod_sub != sub:
            return REC_NONE
    st = ops.delete(txn, TREE_KEYS, key)
    if st == ST_OK:
        return REC_OK
    return REC_NONE if st == ST_NOTFOUND else REC_FAILED


# --- history ------------------------------------------------------------------------------------

cdef uint64_t hash64(kv_slice key) noexcept nogil:
    # FNV-1a with murmur3's finalizer. On disk: it never changes. Colliding keys cost reads of
    # old revisions a step each, nothing else.
    cdef uint64_t h = 0xCBF29CE484222325u
    cdef size_t i
    for i in range(key.n):
        h = (h ^ key.p[i]) * <uint64_t>0x100000001B3u
    h = (h ^ (h >> 33)) * <uint64_t>0xFF51AFD7ED558CCDu
    h = (h ^ (h >> 33)) * <uint64_t>0xC4CEB9FE1A85EC53u
    return h ^ (h >> 33)


cdef inline kv_slice hist_key(uint8_t *room, uint64_t h, uint64_t main,
                              uint32_t sub) noexcept nogil:
    cdef kv_slice s
    kv_store_be64(room, h)
    kv_store_be64(room + 8, main)
    kv_store_be32(room + 16, sub)
    s.p = room
    s.n = HIST_KEY_BYTES
    return s


cdef int hist_put(const kv_store *ops, void *txn, kv_slice key, uint64_t main,
                  uint32_t sub) noexcept nogil:
    cdef uint8_t room[HIST_KEY_BYTES]
    cdef kv_slice empty
    empty.p = room
    empty.n = 0
    if ops.put(txn, TREE_HIST, hist_key(room, hash64(key), main, sub), empty) != ST_OK:
        return REC_FAILED
    return REC_OK


cdef int hist_delete(const kv_store *ops, void *txn, kv_slice key, uint64_t main,
                     uint32_t sub) noexcept nogil:
    cdef uint8_t room[HIST_KEY_BYTES]
    cdef int st = ops.delete(txn, TREE_HIST, hist_key(room, hash64(key), main, sub))
    if st == ST_OK:
        return REC_OK
    return REC_NONE if st == ST_NOTFOUND else REC_FAILED


cdef int hist_after(const kv_store *ops, void *txn, kv_slice key, uint64_t at, uint64_t before,
                    uint64_t *main, uint32_t *sub, uint32_t *steps) noexcept nogil:
    """The key's first indexed version > `at`, if it is older than `before`."""
    cdef uint8_t room[HIST_KEY_BYTES]
    cdef void *cur
    cdef kv_slice k, v, whole
    cdef Record rec
    cdef int st, rc = REC_NONE
    cdef kv_slice sought = hist_key(room, hash64(key), at + 1, 0)
    if ops.cursor_open(txn, TREE_HIST, &cur) != ST_OK:
        return REC_FAILED
    st = ops.cursor_seek(cur, sought, &k, &v)
    while st == ST_OK:
        if k.n != HIST_KEY_BYTES:
            rc = REC_CORRUPT
            break
        if memcmp(k.p, room, 8) != 0:
            break
        main[0] = kv_load_be64(k.p + 8)
        sub[0] = kv_load_be32(k.p + 16)
        if main[0] >= before:
            break
        steps[0] += 1
        rc = read_head(ops, txn, main[0], sub[0], &rec)
        if rc == REC_NONE:
            rc = REC_CORRUPT
        if rc == REC_OK:
            rc = key_of_kv(rec.kv, &whole)
        if rc != REC_OK or kv_slice_cmp(whole, key) == 0:
            break
        rc = REC_NONE
        st = ops.cursor_next(cur, &k, &v)
    if st != ST_OK and st != ST_NOTFOUND:
        rc = REC_FAILED
    ops.cursor_close(cur)
    return rc


cdef int walk_back(const kv_store *ops, void *txn, kv_slice key, const Meta *meta, uint64_t at,
                   Record *rec, uint32_t *steps) noexcept nogil:
    """*rec: the key's oldest record newer than `at`; its prev is what `at` sees."""
    cdef uint64_t main = meta.mod_main
    cdef uint32_t sub = meta.mod_sub, hops = 0
    cdef int rc
    while True:
        steps[0] += 1
        rc = read_head(ops, txn, main, sub, rec)
        if rc != REC_OK:
            return REC_CORRUPT if rc == REC_NONE else rc
        if rec.prev_main <= at:
            return REC_OK
        main = rec.prev_main
        sub = rec.prev_sub
        hops += 1
        if hops == HIST_AFTER:
            rc = hist_after(ops, txn, key, at, rec.prev_main, &main, &sub, steps)
            if rc == REC_NONE:
                main = rec.prev_main
                sub = rec.prev_sub
            elif rc != REC_OK:
                return rc


cdef int index_at(const kv_store *ops, void *txn, kv_slice key, const Meta *meta, uint64_t at,
                  uint64_t floor, uint64_t *main, uint32_t *sub, uint32_t *steps) noexcept nogil:
    cdef Record rec
    cdef uint32_t n = 0
    cdef int rc
    if meta.mod_main <= at:
        if meta.flags & META_TOMBSTONE:
            return REC_NONE
        main[0] = meta.mod_main
        sub[0] = meta.mod_sub
        return REC_OK
    rc = walk_back(ops, txn, key, meta, at, &rec, &n)
    if rc == REC_OK and rec.prev_main == 0:
        rc = REC_NONE
    elif rc == REC_OK:
        main[0] = rec.prev_main
        sub[0] = rec.prev_sub
        n += 1
        rc = read_head(ops, txn, main[0], sub[0], &rec)
        if rc == REC_OK and rec.flags & REC_TOMBSTONE:
            rc = REC_NONE
        elif rc == REC_NONE and main[0] > floor:
            rc = REC_CORRUPT               # only a tombstone at or below the floor may be gone
    if steps != NULL:
        steps[0] += n
    return rc


# --- iteration ----------------------------------------------------------------------------------

cdef int iter_init(IndexIter *it, const kv_store *ops, void *txn, kv_slice start,
                   kv_slice end) noexcept nogil:
    it.ops = ops
    it.txn = txn
    it.cursor = NULL
    it.start = start
    it.end = end
    it.bucket.n = 0
    if end.n == 0:
        it.mode = ITER_SINGLE
        return REC_OK
    if end.n == 1 and end.p[0] == 0:
        it.mode = ITER_FROM | ITER_FRESH
    elif kv_slice_cmp(start, end) >= 0:
        it.mode = ITER_DONE
        return REC_OK
    else:
        it.mode = ITER_RANGE | ITER_FRESH
    if ops.cursor_open(txn, TREE_KEYS, &it.cursor) != ST_OK:
        it.cursor = NULL
        it.mode = ITER_DONE
        return REC_FAILED
    return REC_OK


cdef void iter_close(IndexIter *it) noexcept nogil:
    if it.cursor != NULL:
        it.ops.cursor_close(it.cursor)
        it.cursor = NULL
    it.mode = ITER_DONE


cdef int iter_seek(IndexIter *it, kv_slice *k, kv_slice *v) noexcept nogil:
    """First position. A start of more than 510 bytes begins inside its bucket, if there is one."""
    cdef kv_slice name
    cdef size_t at
    cdef bint found
    cdef int st, rc
    it.mode &= ~ITER_FRESH
    if it.start.n == 0:
        return it.ops.cursor_first(it.cursor, k, v)
    if it.start.n <= SHORT_KEY_MAX:
        return it.ops.cursor_seek(it.cursor, it.start, k, v)
    name = bucket_key(it.seek, it.start)
    st = it.ops.cursor_seek(it.cursor, name, k, v)
    if st != ST_OK or kv_slice_cmp(k[0], name) != 0:
        return st
    rc = bucket_find(it.ops, it.txn, v[0], it.start, &at, &found)
    if rc != REC_OK:
        v.n = 1                            # not a bucket's size: iter_next says REC_CORRUPT
        return st
    v.p += at
    v.n -= at
    if v.n == 0:
        return it.ops.cursor_next(it.cursor, k, v)
    return st


cdef inline int iter_stop(IndexIter *it, int rc) noexcept nogil:
    it.mode = ITER_DONE
    it.bucket.n = 0
    return rc


cdef int iter_next(IndexIter *it) noexcept nogil:
    cdef kv_slice k, v
    cdef int st, rc
    if it.mode == ITER_SINGLE:
        it.mode = ITER_DONE
        it.key = it.start
        return index_get(it.ops, it.txn, it.start, &it.meta)
    if it.mode == ITER_DONE:
        return REC_NONE
    if it.bucket.n == 0:
        if it.mode & ITER_FRESH:
            st = iter_seek(it, &k, &v)
        else:
            st = it.ops.cursor_next(it.cursor, &k, &v)
        if st != ST_OK:
            return iter_stop(it, REC_NONE if st == ST_NOTFOUND else REC_FAILED)
        if v.n == 0 or v.n % META_BYTES or (k.n != BUCKET_KEY_BYTES and v.n != META_BYTES):
            return iter_stop(it, REC_CORRUPT)
        it.key = k
        if k.n == BUCKET_KEY_BYTES:
            it.bucket = v
        elif meta_load(v, &it.meta) != REC_OK:
            return iter_stop(it, REC_CORRUPT)
    if it.bucket.n:
        rc = meta_load(it.bucket, &it.meta)
        if rc == REC_OK:
            rc = key_of_meta(it.ops, it.txn, &it.meta, &it.key)
        if rc != REC_OK:
            return iter_stop(it, rc)
        it.bucket.p += META_BYTES
        it.bucket.n -= META_BYTES
    if it.mode == ITER_RANGE and kv_slice_cmp(it.key, it.end) >= 0:
        return iter_stop(it, REC_NONE)
    return REC_OK


# --- for Python: tests, benchmarks, `kvnode verify` ----------------------------------------------

cdef int need(int rc, str what) except -2:
    """REC_OK or REC_NONE pass; the rest raise."""
    if rc == REC_CORRUPT:
        raise CorruptionError(f"{what}: stored bytes are damaged")
    if rc == REC_NOMEM:
        raise MemoryError(what)
    if rc == REC_FAILED:
        raise DiskError(f"{what}: the store failed")
    return rc


cdef inline kv_slice as_slice(bytes b) noexcept:
    cdef kv_slice s
    s.p = b
    s.n = len(b)
    return s


cdef tuple as_tuple(const Meta *m):
    return (m.mod_main, m.mod_sub, m.create, m.version, m.lease,
            bool(m.flags & META_TOMBSTONE), m.depth)


def get(ReadTxn txn not None, bytes key not None):
    """The key's entry (main, sub, create, version, lease, tombstone, depth), or None."""
    cdef Meta m
    if need(index_get(txn.ops, txn.txn, as_slice(key), &m), "index_get") == REC_NONE:
        return None
    return as_tuple(&m)


def at(ReadTxn txn not None, bytes key not None, unsigned long long revision,
       unsigned long long floor=0):
    """((main, sub) or None, steps): the key's record visible at `revision`."""
    cdef Meta m
    cdef uint64_t main
    cdef uint32_t sub, steps = 0
    if need(index_get(txn.ops, txn.txn, as_slice(key), &m), "index_get") == REC_NONE:
        return None, 0
    if need(index_at(txn.ops, txn.txn, as_slice(key), &m, revision, floor, &main, &sub, &steps),
            "index_at") == REC_NONE:
        return None, steps
    return (main, sub), steps


def scan(ReadTxn txn not None, bytes start not None, bytes end not None):
    """[(key, entry as in get)] of [start, end), tombstones included; see iter_init for `end`."""
    cdef IndexIter it
    cdef list out = []
    try:
        need(iter_init(&it, txn.ops, txn.txn, as_slice(start), as_slice(end)), "iter_init")
        while need(iter_next(&it), "iter_next") == REC_OK:
            out.append(((<const char *>it.key.p)[:it.key.n], as_tuple(&it.meta)))
    finally:
        iter_close(&it)
    return out


def read(ReadTxn txn not None, unsigned long long main, unsigned int sub=0):
    """(flags, depth, prev_main, prev_sub, KeyValue message) of a record, or None."""
    cdef Record rec
    cdef kv_buf buf
    kv_buf_init(&buf)
    try:
        if need(read_record(txn.ops, txn.txn, main, sub, &rec, &buf), "read_record") == REC_NONE:
            return None
        return (rec.flags, rec.depth, rec.prev_main, rec.prev_sub,
                (<const char *>rec.kv.p)[:rec.kv.n])
    finally:
        kv_buf_free(&buf)


def write(WriteTxn txn not None, unsigned long long main, unsigned int sub, bytes key not None,
          bytes value, unsigned long long lease=0, unsigned long long floor=0):
    """Puts (or with value None deletes) `key` at revision (main, sub): index, record, history.

    Returns the record's crc, or None for a delete of nothing. The state machine's way in small.
    """
    cdef uint32_t crc = 0
    cdef kv_slice k = as_slice(key), v
    v.p = NULL
    v.n = 0
    if value is not None:
        v = as_slice(value)
    if need(write_one(txn.ops, txn.txn, main, sub, k, v, value is None, lease, floor, &crc),
            "write") == REC_NONE:
        return None
    return crc


cdef int write_one(const kv_store *ops, void *txn, uint64_t main, uint32_t sub, kv_slice key,
                   kv_slice value, int dead, uint64_t lease, uint64_t floor,
                   uint32_t *crc) noexcept nogil:
    cdef Meta old, new
    cdef KeyValue kv
    cdef int rc = index_upsert(ops, txn, key, main, sub, dead, lease, 0, floor, &old, &new)
    if rc != REC_OK:
        return rc
    memset(&kv, 0, sizeof(kv))
    kv.key = key
    kv.mod_revision = main
    if not dead:
        kv.value = value
        kv.create_revision = new.create
        kv.version = new.version
        kv.lease = lease
    rc = append_record(ops, txn, main, sub, REC_TOMBSTONE if dead else 0, new.depth,
                       old.mod_main, old.mod_sub, &kv, crc)
    if rc == REC_OK and new.depth == 0:
        rc = hist_put(ops, txn, key, main, sub)
    return rc


def write_all(WriteTxn txn not None, unsigned long long main, list keys not None,
              bytes value, bint index_only=False):
    """Puts each key at a revision of its own from `main` on, without Python in between.

    index_only: no records, for measuring the index by itself.
    """
    cdef Meta old, new
    cdef uint32_t crc
    cdef kv_slice v = as_slice(value)
    for key in keys:
        if index_only:
            need(index_upsert(txn.ops, txn.txn, as_slice(key), main, 0, 0, 0, 0, 0, &old, &new),
                 "index_upsert")
        else:
            need(write_one(txn.ops, txn.txn, main, 0, as_slice(key), v, 0, 0, 0, &crc), "write")
        main += 1


def free(WriteTxn txn not None, unsigned long long main, unsigned int sub,
         unsigned long long compacted):
    """What freeing does with the record (main, sub) at or below the compact revision.

    Its predecessor goes; a tombstone below `compacted` goes too, with its key if still latest.
    """
    cdef Record rec
    cdef kv_slice key
    cdef bytes name
    if need(read_head(txn.ops, txn.txn, main, sub, &rec), "read_head") == REC_NONE:
        return
    need(key_of_kv(rec.kv, &key), "key_of_kv")
    name = (<const char *>key.p)[:key.n]
    if rec.prev_main:
        free_one(txn, rec.prev_main, rec.prev_sub, name)
    if rec.flags & REC_TOMBSTONE and main < compacted:
        need(index_remove_if(txn.ops, txn.txn, as_slice(name), main, sub), "index_remove_if")
        free_one(txn, main, sub, name)


cdef int free_one(WriteTxn txn, uint64_t main, uint32_t sub, bytes name) except -1:
    cdef Record gone
    if need(delete_record(txn.ops, txn.txn, main, sub, &gone), "delete_record") == REC_OK:
        if gone.depth == 0:
            need(hist_delete(txn.ops, txn.txn, as_slice(name), main, sub), "hist_delete")
    return 0
