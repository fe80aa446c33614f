"""The revision index: TREE_KEYS (key -> latest revision) and TREE_HIST. Contents of revindex.pyx.

Returns REC_* of records.pxd. `key` may be of any length; only keys of 1..4096 bytes are stored.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_slice
from kvnode._core.records cimport Record
from kvnode._core.store cimport kv_store

cdef enum:
    META_BYTES = 40
    META_TOMBSTONE = 1
    SHORT_KEY_MAX = 510       # longer keys live in buckets
    BUCKET_KEY_BYTES = 511
    HIST_STRIDE = 64

# The stored 40 bytes. mod_main = 0 stands for "no entry".
ctypedef struct Meta:
    uint64_t mod_main
    uint64_t create
    uint64_t version          # 0 in a tombstone, as are create and lease
    uint64_t lease
    uint32_t mod_sub
    uint8_t flags
    uint8_t depth
    uint16_t value_mark       # length of the value + 1; 0: look into the record

# What index_upsert is to be given for a value of n bytes.
cdef inline uint16_t value_mark(size_t n) noexcept nogil:
    return <uint16_t> (n + 1) if n < 65535 else 0

# Bytes of the record's KeyValue message; 0: the entry does not tell.
cdef size_t meta_kv_bytes(size_t key_n, const Meta *m) noexcept nogil

cdef inline bint meta_live(const Meta *m) noexcept nogil:
    return m.mod_main != 0 and (m.flags & META_TOMBSTONE) == 0

# The key's entry, tombstones included.
cdef int index_get(const kv_store *ops, void *txn, kv_slice key, Meta *meta) noexcept nogil

# Put (tombstone = 0) or delete (1) of `key` at revision (main, sub), in one descent.
# *old: the entry before, also of a tombstone; mod_main = 0 when there was none. *new: the entry
# now, with `mark` (see value_mark); the record to append has depth new.depth and prev
# (old.mod_main, old.mod_sub). Delete:
# REC_NONE, nothing written, when no live key was there. The caller appends the record before its
# next call on a long key, since buckets read whole keys from records; and calls hist_put when
# new.depth is 0. floor: tombstones below it count as no entry. The state machine passes 0: with
# the compact revision a read that began before the compaction would lose its way back.
cdef int index_upsert(const kv_store *ops, void *txn, kv_slice key, uint64_t main, uint32_t sub,
                      int tombstone, uint64_t lease, uint16_t mark, uint64_t floor,
                      Meta *old, Meta *new) noexcept nogil

# Removes the key's entry, before its latest record is deleted. REC_NONE: there was none.
cdef int index_remove(const kv_store *ops, void *txn, kv_slice key) noexcept nogil
# The same, only if (main, sub) is still the key's latest (freeing of a tombstone); else REC_NONE.
cdef int index_remove_if(const kv_store *ops, void *txn, kv_slice key, uint64_t main,
                         uint32_t sub) noexcept nogil

# --- history of a key --------------------------------------------------------------------------

# For records with depth 0 (every HIST_STRIDE-th version of a key), written and deleted with them.
cdef int hist_put(const kv_store *ops, void *txn, kv_slice key, uint64_t main,
                  uint32_t sub) noexcept nogil
cdef int hist_delete(const kv_store *ops, void *txn, kv_slice key, uint64_t main,
                     uint32_t sub) noexcept nogil

# The key's record visible at revision `at` (>= floor), given its entry: REC_OK and *main, *sub,
# or REC_NONE: it did not exist then. floor: how far freeing may have got (the compact revision,
# or "freed" of the snapshot); a missing record is none at or below it, damage above. *steps (may
# be NULL) counts records and history entries read.
cdef int index_at(const kv_store *ops, void *txn, kv_slice key, const Meta *meta, uint64_t at,
                  uint64_t floor, uint64_t *main, uint32_t *sub, uint32_t *steps) noexcept nogil

# --- ordered iteration -------------------------------------------------------------------------

# Keys of [start, end) in byte order, tombstones included. end: empty = only the key `start`,
# "\0" = all keys from `start` on. The slices given to iter_init must live as long as the
# iterator; `key` and `meta` hold until the next iter_next. No writes between iter_init and
# iter_close: gather keys first.
ctypedef struct IndexIter:
    kv_slice key              # current
    Meta meta
    const kv_store *ops
    void *txn
    void *cursor
    kv_slice start
    kv_slice end
    int mode
    kv_slice bucket           # not yet yielded part of a bucket
    uint8_t seek[512]

cdef int iter_init(IndexIter *it, const kv_store *ops, void *txn, kv_slice start,
                   kv_slice end) noexcept nogil
cdef int iter_next(IndexIter *it) noexcept nogil     # REC_NONE: the end
cdef void iter_close(IndexIter *it) noexcept nogil   # also after a failed iter_init
