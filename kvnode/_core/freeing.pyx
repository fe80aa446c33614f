"""Freeing: records that a compaction made invisible leave the trees, a slice at a time.

Called by machine.pyx between batches, each slice in a write transaction of its own. A pass goes
over TREE_REVS from the cursor up to `limit` (the compact revision, or less while someone still
reads below it):

    a record at r <= limit with a prev   its prev is superseded: deleted, with its history mark
    a tombstone at r < limit             deleted too, and its key's entry if it is still the latest

A tombstone exactly at `limit` stays (a watch from there is owed it). So the next pass begins at
the old limit, all of it again. What a slice looks at is gathered first and deleted afterwards.

Invariants:
1. After a slice, reads at revisions >= x.freed find everything; x.freed never passes `limit`.
2. Nothing here changes the state hash, or an answer at a revision that is still readable.
3. A pass is linear in the records up to its limit, however long a key's chain is.
4. A slice that was done twice (a crash, a restart inside a main revision) does no harm: deleting
   what is gone is no error.

Absent on purpose: when to run and how much (the process paces it), and who still reads.
"""

from libc.stdint cimport uint8_t, uint32_t

from kvnode._core.buf cimport (
    kv_buf,
    kv_buf_free,
    kv_buf_init,
    kv_put_bytes,
    kv_slice,
)
from kvnode._core.records cimport (
    REC_CORRUPT,
    REC_FAILED,
    REC_KEY_BYTES,
    REC_NOMEM,
    REC_NONE,
    REC_OK,
    REC_TOMBSTONE,
    Record,
    decode_record,
    decode_record_key,
    delete_record,
    key_of_kv,
    record_key,
)
from kvnode._core.revindex cimport hist_delete, index_remove_if
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_REVS
from kvnode._core.writer cimport Writer

cdef enum:
    BYTES_PER_UNIT = 16384     # a large record counts as several

# One record looked at, with the bytes of its key behind it.
ctypedef struct Found:
    uint64_t main
    uint64_t prev_main
    uint32_t sub
    uint32_t prev_sub
    uint32_t key_n
    uint8_t depth
    bint tombstone


cdef bint freeing_pending(const Exec *x, uint64_t limit) noexcept nogil:
    if x.freed < limit or x.cursor_main < limit:
        return 1
    return x.cursor_main == limit and x.cursor_sub > 0


cdef int note(kv_buf *found, const Record *rec, uint64_t limit) noexcept nogil:
    """Remembers a record whose prev or itself is to go."""
    cdef uint64_t zeros = 0
    cdef Found f
    cdef kv_slice key
    f.tombstone = (rec.flags & REC_TOMBSTONE) != 0 and rec.main < limit
    if rec.prev_main == 0 and not f.tombstone:
        return REC_OK
    if key_of_kv(rec.kv, &key) != REC_OK:
        return REC_CORRUPT
    f.main = rec.main
    f.sub = rec.sub
    f.prev_main = rec.prev_main
    f.prev_sub = rec.prev_sub
    f.depth = rec.depth
    f.key_n = <uint32_t>key.n
    kv_put_bytes(found, &f, sizeof(Found))
    kv_put_bytes(found, key.p, key.n)
    kv_put_bytes(found, &zeros, (8 - key.n % 8) % 8)      # keeps the next Found aligned
    return REC_OK


cdef int look(Exec *x, uint64_t limit, uint64_t budget, kv_buf *found) noexcept nogil:
    """Gathers from the cursor on, and moves it."""
    cdef const Writer *w = &x.w
    cdef uint8_t room[REC_KEY_BYTES]
    cdef kv_slice key, val
    cdef uint64_t main, spent = 0
    cdef uint32_t sub, chunk
    cdef Record rec
    cdef void *cur
    cdef int st, rc = REC_OK
    if w.ops.cursor_open(w.txn, TREE_REVS, &cur) != ST_OK:
        return REC_FAILED
    st = w.ops.cursor_seek(cur, record_key(room, x.cursor_main, x.cursor_sub, 0), &key, &val)
    while st == ST_OK:
        rc = decode_record_key(key, &main, &sub, &chunk)
        if rc != REC_OK or main > limit:
            break
        if chunk == 0:
            x.cursor_main = main
            x.cursor_sub = sub
            # never before the first record at the limit itself: (limit, 0) means done
            if spent >= budget and (main < limit or sub > 0):
                break
            rc = decode_record(val, main, sub, &rec)
            if rc == REC_OK:
                rc = note(found, &rec, limit)
            if rc != REC_OK:
                break
            # a freed tombstone may be the prev of a newer record: reads must not follow it
            x.freed = main + 1 if rec.flags & REC_TOMBSTONE and main < limit else main
        spent += 1 + val.n // BYTES_PER_UNIT
        st = w.ops.cursor_next(cur, &key, &val)
    w.ops.cursor_close(cur)
    if rc != REC_OK:
        return rc
    if st == ST_NOTFOUND or (st == ST_OK and main > limit):
        x.cursor_main = limit
        x.cursor_sub = 0
        x.freed = limit
    elif st != ST_OK:
        return REC_FAILED
    return REC_NOMEM if found.err else REC_OK


cdef int delete_prev(const Writer *w, const Found *f, kv_slice key) noexcept nogil:
    cdef Record gone
    cdef int rc = delete_record(w.ops, w.txn, f.prev_main, f.prev_sub, &gone)
    if rc == REC_OK and gone.depth == 0:
        rc = hist_delete(w.ops, w.txn, key, f.prev_main, f.prev_sub)
    return REC_OK if rc == REC_NONE else rc


cdef int delete_tombstone(const Writer *w, const Found *f, kv_slice key) noexcept nogil:
    cdef int rc = index_remove_if(w.ops, w.txn, key, f.main, f.sub)
    if rc == REC_OK or rc == REC_NONE:
        rc = delete_record(w.ops, w.txn, f.main, f.sub, NULL)
    if (rc == REC_OK or rc == REC_NONE) and f.depth == 0:
        rc = hist_delete(w.ops, w.txn, key, f.main, f.sub)
    return REC_OK if rc == REC_NONE else rc


cdef int sweep(const Writer *w, const kv_buf *found) noexcept nogil:
    cdef const Found *f
    cdef kv_slice key
    cdef size_t at = 0
    cdef int rc = REC_OK
    while at < found.n and rc == REC_OK:
        f = <const Found *>(found.p + at)
        key.p = found.p + at + sizeof(Found)
        key.n = f.key_n
        at += sizeof(Found) + ((f.key_n + 7) & ~<size_t>7)
        if f.prev_main:
            rc = delete_prev(w, f, key)
        if rc == REC_OK and f.tombstone:
            rc = delete_tombstone(w, f, key)
    return rc


cdef int free_slice(Exec *x, uint64_t limit, uint64_t budget) noexcept nogil:
    cdef kv_buf found
    cdef int rc
    if limit != x.pass_limit:
        # tombstones exactly at the former limit were kept: look at that revision again
        if x.cursor_main == x.pass_limit:
            x.cursor_sub = 0
        x.pass_limit = limit
    kv_buf_init(&found)
    rc = look(x, limit, budget, &found)
    if rc == REC_OK:
        rc = sweep(&x.w, &found)
    kv_buf_free(&found)
    return rc
