"""HashKV: etcd's CRC over the visible history, a slice at a time.

Called by the gateway for Maintenance.HashKV and Hash, on snapshots of its reader. For the same
history the CRC equals etcd 3.7's, so that members, versions and a restored backup can be compared.

The CRC-32C runs over "key", then over each record that counts, in the order of revisions:

    u64 BE main, '_', u64 BE sub, and 't' if it is a tombstone
    the KeyValue message; of a tombstone its field `key` alone

For HashKV at R with compact revision C (-1: never compacted) a record at (main, sub) counts if

    main > R                no
    C < main <= R           yes
    main <= C, tombstone    no
    main <= C, put          if it is what its key has at R; but when no key lives at R at all,
                            if it is what its key has at C (etcd: an empty set keeps everything
                            that its compaction left)

Whether any key lives at R is known only when a living one was found, so until then both sums run.

Worked example: a store with "a" = "1" at revision 2, R = 2, C = -1: the CRC-32C of

    6b6579 0000000000000002 5f 0000000000000000 0a0161 1002 1802 2001 2a0131

With `whole` the other trees that follow from the log come after it (Hash): name of the tree as
one byte, then each key and value. What only this member has (applied index, how far freeing got)
and the indexes over the records stay out.

Invariants:
1. A record is summed once or not at all, whatever compaction and freeing do between slices: what
   counts is decided by R and C as they were at the start.
2. When freeing has passed C before the last slice, the result is CODE_COMPACTED, never a sum.
3. A slice ends after about work_max units of 100 ns.
4. `lowest` is the lowest revision that freeing must not pass while this runs.

Absent on purpose: the sums that etcd keeps in memory of each compaction; after a restart etcd
answers as this does.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport (
    kv_buf, kv_buf_free, kv_buf_init, kv_load_u64, kv_slice, kv_store_be64,
    kv_varint_write,
)
from kvnode._core.codes cimport (
    CODE_COMPACTED, CODE_CORRUPT, CODE_FUTURE_REV, CODE_UNAVAILABLE,
)
from kvnode._core.crc cimport kv_crc32c, kv_crc_init
from kvnode._core.ranges cimport RangeReader
from kvnode._core.records cimport (
    REC_CORRUPT, REC_FAILED, REC_KEY_BYTES, REC_NONE, REC_OK, REC_TOMBSTONE, Record, decode_record,
    decode_record_key, finish_record, key_of_kv, record_key,
)
from kvnode._core.revindex cimport Meta, index_at, index_get
from kvnode._core.store cimport (
    ST_KEY_MAX, ST_NOTFOUND, ST_OK, TREE_AUTH, TREE_LEASES, TREE_META, TREE_REVS, TREE_SESSIONS,
    kv_store,
)

kv_crc_init()

cdef enum:
    WORK_RECORD = 2
    WORK_LOOK = 15             # an index entry of some key, and a record or two
    WORK_BYTES = 512           # bytes a unit: a CRC twice, and a copy of what is chunked
    REV_BYTES = 18

# The trees behind the history in Hash, in this order.
cdef int OTHERS[4]
OTHERS[:] = [TREE_META, TREE_LEASES, TREE_SESSIONS, TREE_AUTH]


cdef class HashKeys:
    """One HashKV (or with `whole` one Hash) under way.

    revision: 0 for now, negative ones sum nothing, as etcd does. `step` after each refresh of the
    reader; when `done`, `code` is CODE_OK and `crc` holds, or it says why not.
    """

    cdef:
        RangeReader reader
        bint whole, found, split
        uint32_t alive         # counts what lives at R; the result once `found`
        uint32_t left          # counts what lives at C; the result if nothing lives at R
        uint64_t main
        uint32_t sub
        int tree               # place in OTHERS; -1: in the history
        uint8_t name[ST_KEY_MAX]
        size_t name_n          # last key summed in that tree
        kv_buf scratch
        readonly int code
        readonly bint done
        readonly long long revision
        readonly long long compact_revision
        readonly long long current_revision

    def __cinit__(self, RangeReader reader not None, long long revision=0, bint whole=False):
        cdef kv_slice name, value
        cdef int st
        self.reader = reader
        kv_buf_init(&self.scratch)
        assert reader.txn != NULL, "refresh the reader first"
        self.whole = whole
        self.tree = -1
        self.alive = self.left = kv_crc32c(0, b"key", 3)
        self.current_revision = <int64_t>reader.heads.revision
        self.revision = revision or self.current_revision
        self.compact_revision = -1
        name.p = <const uint8_t *>b"compact"
        name.n = 7
        st = reader.store.ops.get(reader.txn, TREE_META, name, &value)
        if st == ST_OK:
            self.compact_revision = <int64_t>kv_load_u64(value.p)
        elif st != ST_NOTFOUND:
            self.refuse(CODE_UNAVAILABLE)
        if 0 < self.revision < self.compact_revision:
            self.refuse(CODE_COMPACTED)
        elif self.revision > self.current_revision:
            self.refuse(CODE_FUTURE_REV)

    def __dealloc__(self):
        kv_buf_free(&self.scratch)

    cdef void refuse(self, int code) noexcept nogil:
        self.code = code
        self.done = True

    @property
    def crc(self):
        return self.alive if self.found or not self.split else self.left

    @property
    def lowest(self):
        """What long reads publish: freeing above it would take what this counts."""
        return max(self.compact_revision, 1)

    def step(self, unsigned long long work_max):
        """One slice on the reader's present snapshot; True when done. Blocking: work_max."""
        cdef int rc
        if self.done:
            return True
        assert self.reader.txn != NULL, "refresh the reader first"
        with nogil:
            if self.reader.heads.freed > <uint64_t>max(self.compact_revision, 1):
                self.refuse(CODE_COMPACTED)
            else:
                rc = self.history(work_max) if self.tree < 0 else self.others(work_max)
                if rc == REC_CORRUPT:
                    self.refuse(CODE_CORRUPT)
                elif rc != REC_OK:
                    self.refuse(CODE_UNAVAILABLE)
        return self.done

    # --- the history ----------------------------------------------------------------------------

    cdef int history(self, uint64_t work_max) noexcept nogil:
        cdef const kv_store *ops = &self.reader.store.ops
        cdef void *txn = self.reader.txn
        cdef uint8_t room[REC_KEY_BYTES]
        cdef kv_slice key, val
        cdef uint64_t main, spent = 0
        cdef uint32_t sub, chunk
        cdef void *cur
        cdef int st, rc = REC_OK
        if self.revision < 0:
            self.end_history()
            return REC_OK
        if ops.cursor_open(txn, TREE_REVS, &cur) != ST_OK:
            return REC_FAILED
        st = ops.cursor_seek(cur, record_key(room, self.main, self.sub, 0), &key, &val)
        while st == ST_OK:
            rc = decode_record_key(key, &main, &sub, &chunk)
            if rc != REC_OK:
                break
            if main > <uint64_t>self.revision:
                st = ST_NOTFOUND
                break
            if chunk == 0:
                self.main = main
                self.sub = sub
                if spent >= work_max:
                    break
                rc = self.record(ops, txn, main, sub, val, &spent)
                if rc != REC_OK:
                    break
            st = ops.cursor_next(cur, &key, &val)
        ops.cursor_close(cur)
        if rc != REC_OK:
            return rc
        if st == ST_NOTFOUND:
            self.end_history()
        return REC_OK if st == ST_OK or st == ST_NOTFOUND else REC_FAILED

    cdef void end_history(self) noexcept nogil:
        if not self.found and self.split:
            self.alive = self.left
        self.found = True
        if self.whole:
            self.tree = 0
            self.name_n = 0
        else:
            self.done = True

    cdef int record(self, const kv_store *ops, void *txn, uint64_t main, uint32_t sub,
                    kv_slice val, uint64_t *spent) noexcept nogil:
        """Sums one record, or passes it."""
        cdef Record rec
        cdef bint now = True, then = True
        cdef int rc = decode_record(val, main, sub, &rec)
        spent[0] += WORK_RECORD + val.n // WORK_BYTES
        if rc != REC_OK:
            return rc
        if <int64_t>main <= self.compact_revision:
            if rec.flags & REC_TOMBSTONE:
                return REC_OK
            spent[0] += WORK_LOOK
            rc = self.lives(ops, txn, &rec, self.revision, &now)
            if rc == REC_OK and not now and not self.found:
                spent[0] += WORK_LOOK
                rc = self.lives(ops, txn, &rec, self.compact_revision, &then)
            else:
                then = now
        elif self.split and not self.found and not rec.flags & REC_TOMBSTONE:
            # Both sums take it; whether a key lives at R decides which of them stands.
            spent[0] += WORK_LOOK
            rc = self.lives(ops, txn, &rec, self.revision, &self.found)
        if rc != REC_OK or not (now or then):
            return rc
        rc = finish_record(ops, txn, &rec, &self.scratch)
        if rc != REC_OK:
            return rc
        spent[0] += rec.kv_bytes // WORK_BYTES
        if <int64_t>main <= self.compact_revision:
            if now:
                self.found = True
            else:
                self.split = True
        if now:
            self.alive = sum_record(self.alive, &rec)
        if then and not self.found:
            self.left = sum_record(self.left, &rec)
        return REC_OK

    cdef int lives(self, const kv_store *ops, void *txn, const Record *rec, int64_t at,
                   bint *yes) noexcept nogil:
        """Whether the record is what its key has at revision `at`."""
        cdef kv_slice key
        cdef Meta meta
        cdef uint64_t main = 0
        cdef uint32_t sub = 0
        cdef int rc = key_of_kv(rec.kv, &key)
        yes[0] = False
        if rc != REC_OK:
            return rc
        rc = index_get(ops, txn, key, &meta)
        if rc == REC_OK:
            rc = index_at(ops, txn, key, &meta, <uint64_t>at, self.reader.heads.freed, &main, &sub,
                          NULL)
        if rc == REC_NONE:
            return REC_OK
        yes[0] = rc == REC_OK and main == rec.main and sub == rec.sub
        return rc

    # --- the other trees ------------------------------------------------------------------------

    cdef int others(self, uint64_t work_max) noexcept nogil:
        cdef const kv_store *ops = &self.reader.store.ops
        cdef uint64_t spent = 0
        cdef kv_slice key, val, name
        cdef uint8_t label
        cdef void *cur
        cdef int st
        if self.tree == 4:
            self.done = True
            return REC_OK
        if ops.cursor_open(self.reader.txn, OTHERS[self.tree], &cur) != ST_OK:
            return REC_FAILED
        name.p = self.name
        name.n = self.name_n
        if name.n:
            st = ops.cursor_seek(cur, name, &key, &val)
            if st == ST_OK and key.n == name.n and same(key.p, name.p, name.n):
                st = ops.cursor_next(cur, &key, &val)
        else:
            label = <uint8_t>OTHERS[self.tree]
            self.alive = kv_crc32c(self.alive, &label, 1)
            st = ops.cursor_first(cur, &key, &val)
        while st == ST_OK and spent < work_max and key.n <= ST_KEY_MAX:
            spent += WORK_RECORD + val.n // WORK_BYTES
            copy(self.name, key.p, key.n)
            self.name_n = key.n
            if OTHERS[self.tree] != TREE_META or not local_name(key):
                self.alive = kv_crc32c(self.alive, key.p, key.n)
                self.alive = kv_crc32c(self.alive, val.p, val.n)
            st = ops.cursor_next(cur, &key, &val)
        ops.cursor_close(cur)
        if st == ST_NOTFOUND:
            self.tree += 1
            self.name_n = 0
            return REC_OK
        return REC_OK if st == ST_OK else REC_FAILED


cdef bint same(const uint8_t *a, const uint8_t *b, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if a[i] != b[i]:
            return False
    return True


cdef void copy(uint8_t *to, const uint8_t *p, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        to[i] = p[i]


cdef bint local_name(kv_slice key) noexcept nogil:
    """Of TREE_META: what differs between members of equal state."""
    return key.n == 7 and (same(key.p, b"applied", 7) or same(key.p, b"compact", 7))


cdef uint32_t sum_record(uint32_t crc, const Record *rec) noexcept nogil:
    cdef uint8_t head[REV_BYTES]
    cdef uint8_t field[11]
    cdef uint8_t *end
    cdef kv_slice key
    kv_store_be64(head, rec.main)
    head[8] = 95               # _
    kv_store_be64(head + 9, rec.sub)
    head[17] = 116             # t
    if not rec.flags & REC_TOMBSTONE:
        return kv_crc32c(kv_crc32c(crc, head, REV_BYTES - 1), rec.kv.p, rec.kv.n)
    if key_of_kv(rec.kv, &key) != REC_OK:
        return crc             # decode_record has checked it
    field[0] = 0x0A
    end = kv_varint_write(field + 1, key.n)
    crc = kv_crc32c(kv_crc32c(crc, head, REV_BYTES), field, <size_t>(end - field))
    return kv_crc32c(crc, key.p, key.n)
