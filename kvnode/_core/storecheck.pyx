"""Re-reads what a store holds and says what does not fit: the scrubber's and `verify`'s loops.

Caller: env.scrub. Inputs: any Store. Outputs: findings (tree, key, text), counts, and the place to
go on from. Every call reads one snapshot and stops at its bounds, so that a pass over everything
is made of short read transactions, and writers go on between them.

What is checked, in the snapshot of the call
 1. Every record of TREE_REVS: key length, CRC of all chunks, no chunk missing or left over, the
    message decodes, its mod_revision is the record's, a tombstone holds no more than its key.
 2. Its key is in TREE_KEYS, at this record or a later one; at this one all fields agree.
 3. Its predecessor, when newer than the compact revision, is there, is of the same key, and is
    one version (depth) earlier.
 4. A record of depth 0 is in TREE_HIST; every entry of TREE_HIST names such a record of its key.
 5. Every entry of TREE_KEYS, those in buckets too: its record is there, is of that key, and agrees;
    a live key with a lease stands among that lease's keys.
 6. Every lease's record (CRC); every entry of TREE_LEASE_KEYS: its lease is there, and its record
    is the latest of a live key and names that lease.

Absent on purpose: repair, rates, and LMDB's own pages. A damaged page that no longer parses is
LMDB's error (a finding of the whole tree) or kills the process; its supervisor counts that.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kvnode._core.buf cimport (
    kv_buf,
    kv_buf_free,
    kv_buf_init,
    kv_load_be32,
    kv_load_be64,
    kv_load_u64,
    kv_slice,
    kv_slice_cmp,
    kv_store_be64,
    kv_store_be32,
)
from kvnode._core.crc cimport kv_crc_init
from kvnode._core.etcdpb cimport KeyValue, decode_kv
from kvnode._core.records cimport (
    REC_CHUNK_BYTES,
    REC_CORRUPT,
    REC_FAILED,
    REC_KEY_BYTES,
    REC_NONE,
    REC_OK,
    REC_TOMBSTONE,
    Record,
    decode_record,
    decode_record_key,
    finish_record,
    key_of_kv,
    read_head,
)
from kvnode._core.revindex cimport (
    META_TOMBSTONE,
    IndexIter,
    Meta,
    meta_kv_bytes,
    index_get,
    iter_close,
    iter_init,
    iter_next,
)
from kvnode._core.leases cimport (
    LEASE_KEY_BYTES,
    Lease,
    decode_lease_record,
    lease_entry,
    lease_get,
)
from kvnode._core.store cimport (
    ST_NOTFOUND,
    ST_OK,
    TREE_HIST,
    TREE_KEYS,
    TREE_LEASE_KEYS,
    TREE_LEASES,
    TREE_META,
    TREE_REVS,
    Store,
    kv_store,
)

from kvnode._core.storetxn import StoreError

kv_crc_init()

cdef enum:
    FINDINGS_MAX = 64         # a call stops there; a store that bad needs no longer list
    HIST_KEY_BYTES = 20
    KEY_ROOM = 4100

ctypedef struct finding:
    int tree
    uint32_t key_n
    uint8_t key[600]
    const char *text

ctypedef struct check:
    const kv_store *ops
    void *txn
    uint64_t compact
    uint64_t records
    uint64_t heads
    uint64_t tombstones
    uint64_t sparse
    uint64_t leased
    uint64_t bytes
    int found
    finding findings[FINDINGS_MAX]


cdef void note(check *c, int tree, kv_slice key, const char *text) noexcept nogil:
    cdef finding *f
    if c.found == FINDINGS_MAX:
        return
    f = &c.findings[c.found]
    c.found += 1
    f.tree = tree
    f.key_n = <uint32_t>(key.n if key.n < sizeof(f.key) else sizeof(f.key))
    if f.key_n:
        memcpy(f.key, key.p, f.key_n)
    f.text = text


# The hash of TREE_HIST's keys, written down here a second time: a checker that shared the
# writer's function would not see it change.
cdef uint64_t hist_hash(kv_slice key) noexcept nogil:
    cdef uint64_t h = 0xCBF29CE484222325u
    cdef size_t i
    for i in range(key.n):
        h = (h ^ key.p[i]) * <uint64_t>0x100000001B3u
    h = (h ^ (h >> 33)) * <uint64_t>0xFF51AFD7ED558CCDu
    h = (h ^ (h >> 33)) * <uint64_t>0xC4CEB9FE1A85EC53u
    return h ^ (h >> 33)


cdef const char *compare_head(const Record *rec, const KeyValue *kv, const Meta *m) noexcept nogil:
    """The key tree's entry against the record that it names; NULL: they agree."""
    cdef bint dead = (rec.flags & REC_TOMBSTONE) != 0
    if dead != ((m.flags & META_TOMBSTONE) != 0):
        return b"key tree and record disagree whether the key is deleted"
    if rec.depth != m.depth:
        return b"key tree and record disagree in depth"
    if (<uint64_t>kv.create_revision != m.create or <uint64_t>kv.version != m.version
            or <uint64_t>kv.lease != m.lease):
        return b"key tree and record disagree in create revision, version or lease"
    if m.value_mark and meta_kv_bytes(kv.key.n, m) != rec.kv_bytes:
        return b"key tree and record disagree in the value's length"
    return NULL


# ---- records -----------------------------------------------------------------------------------

cdef void check_prev(check *c, kv_slice at, const Record *rec, kv_slice key) noexcept nogil:
    cdef Record prev
    cdef kv_slice other
    cdef int rc
    if rec.prev_main == 0 or rec.prev_main <= c.compact:
        return
    rc = read_head(c.ops, c.txn, rec.prev_main, rec.prev_sub, &prev)
    if rc == REC_NONE:
        note(c, TREE_REVS, at, b"previous record of the key is missing")
    elif rc == REC_OK:
        if key_of_kv(prev.kv, &other) != REC_OK or kv_slice_cmp(other, key) != 0:
            note(c, TREE_REVS, at, b"previous record is of another key")
        elif (prev.depth + 1) % 64 != rec.depth:
            note(c, TREE_REVS, at, b"depth does not follow the previous record's")


cdef void check_hist(check *c, kv_slice at, const Record *rec, kv_slice key) noexcept nogil:
    cdef uint8_t room[HIST_KEY_BYTES]
    cdef kv_slice k
    cdef kv_slice v
    kv_store_be64(room, hist_hash(key))
    kv_store_be64(room + 8, rec.main)
    kv_store_be32(room + 16, rec.sub)
    k.p = room
    k.n = HIST_KEY_BYTES
    c.sparse += 1
    if c.ops.get(c.txn, TREE_HIST, k, &v) != ST_OK:
        note(c, TREE_REVS, at, b"version is missing in the history tree")


cdef void check_record(check *c, kv_slice at, Record *rec, kv_buf *buf) noexcept nogil:
    cdef KeyValue kv
    cdef Meta meta
    cdef const char *text
    cdef int rc = finish_record(c.ops, c.txn, rec, buf)
    if rc != REC_OK:
        note(c, TREE_REVS, at, b"a chunk of the record is missing or damaged (CRC)")
        return
    if decode_kv(rec.kv.p, rec.kv.n, &kv) != 0 or kv.key.n == 0:
        note(c, TREE_REVS, at, b"record holds no KeyValue message")
        return
    if <uint64_t>kv.mod_revision != rec.main:
        note(c, TREE_REVS, at, b"record's message is of another revision")
        return
    if rec.flags & REC_TOMBSTONE:
        c.tombstones += 1
        if kv.value.n or kv.create_revision or kv.version or kv.lease:
            note(c, TREE_REVS, at, b"tombstone holds more than its key")
    rc = index_get(c.ops, c.txn, kv.key, &meta)
    if rc != REC_OK:
        note(c, TREE_REVS, at, b"record's key is not in the key tree")
    elif meta.mod_main < rec.main or (meta.mod_main == rec.main and meta.mod_sub < rec.sub):
        note(c, TREE_REVS, at, b"record is newer than its key's entry in the key tree")
    elif meta.mod_main == rec.main and meta.mod_sub == rec.sub:
        c.heads += 1
        text = compare_head(rec, &kv, &meta)
        if text != NULL:
            note(c, TREE_REVS, at, text)
    check_prev(c, at, rec, kv.key)
    if rec.depth == 0:
        check_hist(c, at, rec, kv.key)


cdef int run_records(check *c, kv_slice start, uint64_t bytes_max, kv_buf *buf, uint8_t *after,
                     int *more) noexcept nogil:
    """From the first key >= start; *more: 1 when `after` (16 bytes) is where to go on."""
    cdef void *cur
    cdef kv_slice k
    cdef kv_slice v
    cdef Record rec
    cdef uint64_t main = 0
    cdef uint64_t bytes_end = c.bytes + bytes_max
    cdef uint32_t sub = 0
    cdef uint32_t chunk = 0
    cdef uint32_t chunks = 1
    cdef bint known = False
    cdef int rc
    more[0] = 0
    if c.ops.cursor_open(c.txn, TREE_REVS, &cur) != ST_OK:
        return REC_FAILED
    rc = c.ops.cursor_seek(cur, start, &k, &v)
    while rc == ST_OK:
        if decode_record_key(k, &main, &sub, &chunk) != REC_OK:
            note(c, TREE_REVS, k, b"key is not a revision")
            rc = c.ops.cursor_next(cur, &k, &v)
            continue
        if chunk == 0 and (c.bytes >= bytes_end or c.found == FINDINGS_MAX):
            more[0] = 1
            memcpy(after, k.p, REC_KEY_BYTES)
            break
        c.bytes += k.n + v.n
        if chunk == 0:
            c.records += 1
            known = decode_record(v, main, sub, &rec) == REC_OK
            if known:
                chunks = (rec.kv_bytes + REC_CHUNK_BYTES - 1) // REC_CHUNK_BYTES
                check_record(c, k, &rec, buf)
            else:
                note(c, TREE_REVS, k, b"record is damaged (CRC or head)")
        elif known and (main != rec.main or sub != rec.sub or chunk >= chunks):
            note(c, TREE_REVS, k, b"chunk belongs to no record")
        rc = c.ops.cursor_next(cur, &k, &v)
    c.ops.cursor_close(cur)
    return REC_OK if rc == ST_OK or rc == ST_NOTFOUND else REC_FAILED


# ---- keys --------------------------------------------------------------------------------------

cdef void check_leased(check *c, kv_slice key, const Meta *m) noexcept nogil:
    cdef uint8_t room[LEASE_KEY_BYTES]
    cdef kv_slice v
    c.leased += 1
    if c.ops.get(c.txn, TREE_LEASE_KEYS, lease_entry(room, m.lease, m.mod_main, m.mod_sub),
                 &v) != ST_OK:
        note(c, TREE_KEYS, key, b"the key is missing among its lease's keys")


cdef void check_entry(check *c, kv_slice key, const Meta *m) noexcept nogil:
    cdef Record rec
    cdef KeyValue kv
    cdef kv_slice other
    cdef int rc = read_head(c.ops, c.txn, m.mod_main, m.mod_sub, &rec)
    c.records += 1
    c.bytes += key.n + 40
    if m.flags & META_TOMBSTONE:
        c.tombstones += 1
    elif m.lease:
        check_leased(c, key, m)
    if rc == REC_NONE:
        note(c, TREE_KEYS, key, b"the record that the key's entry names is missing")
    elif rc != REC_OK:
        note(c, TREE_KEYS, key, b"the record that the key's entry names is damaged (CRC or head)")
    elif key_of_kv(rec.kv, &other) != REC_OK or kv_slice_cmp(other, key) != 0:
        note(c, TREE_KEYS, key, b"the record that the key's entry names is of another key")
    elif rec.kv_bytes == rec.kv.n:
        if decode_kv(rec.kv.p, rec.kv.n, &kv) != 0:
            note(c, TREE_KEYS, key, b"the record that the key's entry names is no KeyValue message")
        elif compare_head(&rec, &kv, m) != NULL:
            note(c, TREE_KEYS, key, compare_head(&rec, &kv, m))


cdef int run_keys(check *c, kv_slice start, uint64_t count_max, uint8_t *after, size_t *after_n,
                  int *more) noexcept nogil:
    cdef IndexIter it
    cdef kv_slice all_keys
    cdef uint64_t n = 0
    cdef int rc
    more[0] = 0
    all_keys.p = <const uint8_t *>b"\0"
    all_keys.n = 1
    rc = iter_init(&it, c.ops, c.txn, start, all_keys)
    it.key.n = 0
    while rc == REC_OK:
        rc = iter_next(&it)
        if rc != REC_OK:
            break
        if n >= count_max or c.found == FINDINGS_MAX:
            more[0] = 1
            after_n[0] = it.key.n
            memcpy(after, it.key.p, it.key.n)
            break
        n += 1
        check_entry(c, it.key, &it.meta)
    if rc == REC_CORRUPT:
        # A bucket reads its keys from their records, so the walk can't pass a damaged one.
        note(c, TREE_KEYS, it.key, b"an entry is damaged, the walk of the key tree ends here")
        rc = REC_NONE
    iter_close(&it)
    return REC_OK if rc == REC_OK or rc == REC_NONE else REC_FAILED


# ---- history -----------------------------------------------------------------------------------

cdef int run_hist(check *c, kv_slice start, uint64_t count_max, uint8_t *after,
                  int *more) noexcept nogil:
    cdef void *cur
    cdef kv_slice k
    cdef kv_slice v
    cdef kv_slice key
    cdef Record rec
    cdef uint64_t n = 0
    cdef int rc
    more[0] = 0
    if c.ops.cursor_open(c.txn, TREE_HIST, &cur) != ST_OK:
        return REC_FAILED
    rc = c.ops.cursor_seek(cur, start, &k, &v)
    while rc == ST_OK:
        if k.n != HIST_KEY_BYTES:
            note(c, TREE_HIST, k, b"key is not (hash, revision)")
        elif n >= count_max or c.found == FINDINGS_MAX:
            more[0] = 1
            memcpy(after, k.p, HIST_KEY_BYTES)
            break
        elif read_head(c.ops, c.txn, kv_load_be64(k.p + 8), kv_load_be32(k.p + 16),
                       &rec) != REC_OK:
            note(c, TREE_HIST, k, b"names a record that is missing or damaged")
        elif key_of_kv(rec.kv, &key) != REC_OK or hist_hash(key) != kv_load_be64(k.p):
            note(c, TREE_HIST, k, b"names a record of another key")
        elif rec.depth != 0:
            note(c, TREE_HIST, k, b"names a record that is no 64th version")
        c.records += 1
        n += 1
        rc = c.ops.cursor_next(cur, &k, &v)
    c.ops.cursor_close(cur)
    return REC_OK if rc == ST_OK or rc == ST_NOTFOUND else REC_FAILED


# ---- leases ------------------------------------------------------------------------------------

cdef void check_lease(check *c, kv_slice k, kv_slice v) noexcept nogil:
    cdef int64_t id
    cdef Lease lease
    if decode_lease_record(k, v, &id, &lease) != REC_OK:
        note(c, TREE_LEASES, k, b"lease is damaged (CRC or head)")
    elif id == 0 or lease.ttl < 1 or lease.remaining < 0 or lease.remaining > lease.ttl:
        note(c, TREE_LEASES, k, b"lease has an id or a time that none can have")


cdef void check_attached(check *c, kv_slice k) noexcept nogil:
    cdef Record rec
    cdef Lease lease
    cdef Meta meta
    cdef kv_slice key
    cdef uint64_t id, main
    cdef uint32_t sub
    if k.n != LEASE_KEY_BYTES:
        note(c, TREE_LEASE_KEYS, k, b"key is not (lease, revision)")
        return
    id = kv_load_be64(k.p)
    main = kv_load_be64(k.p + 8)
    sub = kv_load_be32(k.p + 16)
    if lease_get(c.ops, c.txn, <int64_t>id, &lease) == REC_NONE:
        note(c, TREE_LEASE_KEYS, k, b"names a lease that is not there")
    if read_head(c.ops, c.txn, main, sub, &rec) != REC_OK or key_of_kv(rec.kv, &key) != REC_OK:
        note(c, TREE_LEASE_KEYS, k, b"names a record that is missing or damaged")
    elif (index_get(c.ops, c.txn, key, &meta) != REC_OK or meta.mod_main != main
            or meta.mod_sub != sub or meta.flags & META_TOMBSTONE):
        note(c, TREE_LEASE_KEYS, k, b"names a record that is not its key's latest")
    elif meta.lease != id:
        note(c, TREE_LEASE_KEYS, k, b"names a record of another lease")


cdef int run_small(check *c, int tree, kv_slice start, uint64_t count_max, uint8_t *after,
                   size_t *after_n, int *more) noexcept nogil:
    """Either of the lease trees."""
    cdef void *cur
    cdef kv_slice k
    cdef kv_slice v
    cdef int rc
    more[0] = 0
    if c.ops.cursor_open(c.txn, tree, &cur) != ST_OK:
        return REC_FAILED
    rc = c.ops.cursor_seek(cur, start, &k, &v)
    while rc == ST_OK:
        if c.records >= count_max or c.found == FINDINGS_MAX:
            more[0] = 1
            after_n[0] = k.n
            memcpy(after, k.p, k.n)
            break
        if tree == TREE_LEASES:
            check_lease(c, k, v)
        else:
            check_attached(c, k)
        c.records += 1
        rc = c.ops.cursor_next(cur, &k, &v)
    c.ops.cursor_close(cur)
    return REC_OK if rc == ST_OK or rc == ST_NOTFOUND else REC_FAILED


# ---- for Python --------------------------------------------------------------------------------

cdef class Slice:
    """What one call read: counts, findings [(tree, key, text)], `after` (None: the tree's end)."""

    cdef readonly object records, heads, tombstones, sparse, leased, size, findings, after

    def __init__(self, counts, findings, after):
        (self.records, self.heads, self.tombstones, self.sparse, self.leased,
         self.size) = counts
        self.findings = findings
        self.after = after


cdef class Checker:
    """Checks one store, a slice a call. Not for two threads at once."""

    cdef Store store
    cdef check c
    cdef kv_buf buf

    def __cinit__(self, Store store not None):
        self.store = store
        kv_buf_init(&self.buf)

    def __dealloc__(self):
        kv_buf_free(&self.buf)

    cdef int begin(self) except -1:
        cdef kv_slice name
        cdef kv_slice val
        cdef kv_store *ops = &self.store.ops
        self.c.ops = ops
        self.c.records = self.c.heads = self.c.tombstones = self.c.sparse = self.c.bytes = 0
        self.c.leased = 0
        self.c.found = 0
        self.c.compact = 0
        if ops.begin_read(ops.env, &self.c.txn) != ST_OK:
            raise StoreError(ops.last_error(ops.env).decode("utf-8", "replace"))
        name.p = <const uint8_t *>b"compact"
        name.n = 7
        if ops.get(self.c.txn, TREE_META, name, &val) == ST_OK and val.n >= 8:
            self.c.compact = kv_load_u64(val.p)
        return 0

    cdef Slice end(self, int rc, object after):
        cdef kv_store *ops = &self.store.ops
        cdef finding *f
        cdef int i
        ops.end_read(self.c.txn)
        found = []
        for i in range(self.c.found):
            f = &self.c.findings[i]
            found.append((f.tree, (<char *>f.key)[:f.key_n], f.text.decode()))
        if rc != REC_OK:
            text = ops.last_error(ops.env).decode("utf-8", "replace")
            found.append((-1, b"", f"the store could not be read: {text}"))
            after = None
        counts = (self.c.records, self.c.heads, self.c.tombstones, self.c.sparse, self.c.leased,
                  self.c.bytes)
        return Slice(counts, found, after)

    def records(self, bytes start not None, unsigned long long bytes_max):
        """Records from TREE_REVS key `start` (b"" is the first) until bytes_max were read."""
        cdef uint8_t after[REC_KEY_BYTES]
        cdef kv_slice at
        cdef int more = 0
        cdef int rc
        at.p = start
        at.n = len(start)
        self.begin()
        with nogil:
            rc = run_records(&self.c, at, bytes_max, &self.buf, after, &more)
        return self.end(rc, (<char *>after)[:REC_KEY_BYTES] if more else None)

    def keys(self, bytes start not None, unsigned long long count_max):
        """Entries of TREE_KEYS from user key `start` (b"\\0" is the first)."""
        cdef uint8_t after[KEY_ROOM]
        cdef size_t after_n = 0
        cdef kv_slice at
        cdef int more = 0
        cdef int rc
        at.p = start
        at.n = len(start)
        self.begin()
        with nogil:
            rc = run_keys(&self.c, at, count_max, after, &after_n, &more)
        return self.end(rc, (<char *>after)[:after_n] if more else None)

    def history(self, bytes start not None, unsigned long long count_max):
        """Entries of TREE_HIST from key `start`."""
        cdef uint8_t after[HIST_KEY_BYTES]
        cdef kv_slice at
        cdef int more = 0
        cdef int rc
        at.p = start
        at.n = len(start)
        self.begin()
        with nogil:
            rc = run_hist(&self.c, at, count_max, after, &more)
        return self.end(rc, (<char *>after)[:HIST_KEY_BYTES] if more else None)

    cdef Slice small(self, int tree, bytes start, unsigned long long count_max):
        cdef uint8_t after[KEY_ROOM]
        cdef size_t after_n = 0
        cdef kv_slice at
        cdef int more = 0
        cdef int rc
        at.p = start
        at.n = len(start)
        self.begin()
        with nogil:
            rc = run_small(&self.c, tree, at, count_max, after, &after_n, &more)
        return self.end(rc, (<char *>after)[:after_n] if more else None)

    def leases(self, bytes start not None, unsigned long long count_max):
        """Entries of TREE_LEASES from key `start`."""
        return self.small(TREE_LEASES, start, count_max)

    def attached(self, bytes start not None, unsigned long long count_max):
        """Entries of TREE_LEASE_KEYS from key `start`."""
        return self.small(TREE_LEASE_KEYS, start, count_max)
