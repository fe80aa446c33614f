"""Writes of one main revision, and the rolling state hash. Table of contents of writer.pyx.

Functions return REC_* of records.pxd; refusals are the business of the callers, who check first.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_slice
from kvnode._core.etcdpb cimport DeleteReq, PutReq
from kvnode._core.revindex cimport Meta
from kvnode._core.store cimport kv_store

cdef enum:
    # tags of what the state hash folds in besides records
    EVENT_COMPACT = 1
    EVENT_OPEN = 2
    EVENT_CLOSE = 3
    EVENT_EVICT = 4
    EVENT_ALARM_SET = 5
    EVENT_ALARM_CLEAR = 6
    EVENT_MALFORMED = 7
    EVENT_REPEATED = 8
    EVENT_OUTCOME = 9
    EVENT_LEASE_GRANT = 10
    EVENT_LEASE_REVOKE = 11
    EVENT_LEASE_CHECKPOINT = 12

ctypedef struct Writer:
    const kv_store *ops
    void *txn
    int64_t revision          # current: of the last request that wrote
    uint32_t sub              # sub-revisions that the request under way has written
    uint64_t hash             # state hash
    int64_t compacted         # compact revision, -1: never compacted
    uint64_t puts             # records written since the machine was opened
    uint64_t deletes
    kv_buf keys               # scratch: keys to delete
    kv_buf value              # scratch: value kept by ignore_value, chunked records

cdef void writer_init(Writer *w, const kv_store *ops) noexcept nogil
cdef void writer_free(Writer *w) noexcept nogil

# The revision that reads of the request under way see, and that its answers show.
cdef inline int64_t writer_seen(const Writer *w) noexcept nogil:
    return w.revision + (1 if w.sub else 0)

# Ends the request under way: its revision is taken if it wrote.
cdef inline void writer_end(Writer *w) noexcept nogil:
    if w.sub:
        w.revision += 1
        w.sub = 0

# A put that was checked; *old is the entry before (mod_main = 0: the key was never there).
cdef int write_put(Writer *w, const PutReq *r, Meta *old) noexcept nogil

# Deletes every live key of the range. prevs: NULL, or gets the response's prev_kv fields.
cdef int write_delete(Writer *w, const DeleteReq *r, int64_t *deleted, kv_buf *prevs) noexcept nogil

# One tombstone; REC_NONE when no live key was there. *old: the entry before.
cdef int delete_key(Writer *w, kv_slice key, Meta *old) noexcept nogil

# The KeyValue at an entry of the index: REC_NONE for a tombstone or no entry. Valid until the
# next write; `buf` backs chunked records.
cdef int read_entry(const kv_store *ops, void *txn, const Meta *meta, kv_slice *kv,
                    kv_buf *buf) noexcept nogil

# Whether `lease` exists: REC_OK or REC_NONE.
cdef int find_lease(const kv_store *ops, void *txn, int64_t lease) noexcept nogil

cdef void fold(uint64_t *state_hash, uint32_t crc) noexcept nogil
cdef void fold_event(uint64_t *state_hash, uint64_t tag, uint64_t a, uint64_t b, uint64_t c,
                     const uint8_t *tail, size_t n) noexcept nogil
