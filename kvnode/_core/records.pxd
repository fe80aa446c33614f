"""Storage records of TREE_REVS: append, read, delete. Table of contents of records.pyx.

Every function here and in revindex.pxd and ranges.pxd returns REC_*: REC_OK, REC_NONE (there is
no such thing), REC_CORRUPT (stored bytes are wrong: the caller stops or alarms, it never answers),
REC_FAILED (the store can't go on; its last_error has the text), REC_NOMEM.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_slice, kv_store_be32, kv_store_be64
from kvnode._core.etcdpb cimport KeyValue
from kvnode._core.store cimport kv_store

cdef enum:
    REC_OK = 0
    REC_NONE = 1
    REC_CORRUPT = 2
    REC_NOMEM = 3
    REC_FAILED = -1

    REC_VERSION = 1
    REC_KEY_BYTES = 16
    REC_HEAD_BYTES = 24
    REC_CHUNK_BYTES = 65536
    REC_TOMBSTONE = 1        # flags
    REC_CHUNKED = 2

# One record as read. kv is the whole KeyValue message, or after read_head and decode_record of a
# chunked record its first REC_CHUNK_BYTES. It points into the store (valid until the next write
# of the transaction or its end), or into the kv_buf that read_record was given (chunked).
ctypedef struct Record:
    uint64_t main
    uint32_t sub
    uint8_t flags
    uint8_t depth
    uint64_t prev_main       # 0: none
    uint32_t prev_sub
    uint32_t kv_bytes
    uint32_t crc             # of chunk 0
    kv_slice kv

cdef inline kv_slice record_key(uint8_t *room, uint64_t main, uint32_t sub,
                                uint32_t chunk) noexcept nogil:
    """The TREE_REVS key of a chunk, written into room (REC_KEY_BYTES)."""
    cdef kv_slice s
    kv_store_be64(room, main)
    kv_store_be32(room + 8, sub)
    kv_store_be32(room + 12, chunk)
    s.p = room
    s.n = REC_KEY_BYTES
    return s

# Appends the record of `kv` at (main, sub), filling the store's own page. flags: REC_TOMBSTONE or
# 0; *crc is what the state hash folds in: it covers every byte of the record, all chunks.
cdef int append_record(const kv_store *ops, void *txn, uint64_t main, uint32_t sub, uint8_t flags,
                       uint8_t depth, uint64_t prev_main, uint32_t prev_sub,
                       const KeyValue *kv, uint32_t *crc) noexcept nogil

# The whole record; `buf` is overwritten with the message of a chunked one, else untouched.
cdef int read_record(const kv_store *ops, void *txn, uint64_t main, uint32_t sub, Record *rec,
                     kv_buf *buf) noexcept nogil
# Chunk 0 alone: enough for the key, the revisions and prev, which stand before the value.
cdef int read_head(const kv_store *ops, void *txn, uint64_t main, uint32_t sub,
                   Record *rec) noexcept nogil

# For walks with a cursor over TREE_REVS (hub, freeing, scrubber). A key's parts: REC_OK, or
# REC_CORRUPT when it isn't 16 bytes. A walk skips keys whose chunk is not 0.
cdef int decode_record_key(kv_slice key, uint64_t *main, uint32_t *sub,
                           uint32_t *chunk) noexcept nogil
cdef int decode_record(kv_slice value, uint64_t main, uint32_t sub, Record *rec) noexcept nogil
# Completes a chunked record from decode_record or read_head: rec.kv becomes the whole, in `buf`.
cdef int finish_record(const kv_store *ops, void *txn, Record *rec, kv_buf *buf) noexcept nogil

# Deletes all chunks. *gone (may be NULL) gets the record's head; its kv is no longer valid.
cdef int delete_record(const kv_store *ops, void *txn, uint64_t main, uint32_t sub,
                       Record *gone) noexcept nogil

# The key of a KeyValue message, without decoding the rest. REC_OK or REC_CORRUPT.
cdef int key_of_kv(kv_slice kv, kv_slice *key) noexcept nogil
