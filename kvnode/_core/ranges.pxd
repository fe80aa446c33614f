"""Range execution with etcd 3.7's semantics, whole or in slices. Table of contents of ranges.pyx.

Returns REC_* of records.pxd where it touches the store, CODE_* of codes.pxd where it says so.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_slice
from kvnode._core.etcdpb cimport RangeReq, RespHeader
from kvnode._core.store cimport Store, kv_store

cdef enum:
    RANGE_MORE = 16           # range_step: the budget is spent, call again
    READ_LONG = 255           # reader_serve: more than a slice; nothing was appended

# One collected key of a sorted Range.
ctypedef struct RangeItem:
    uint64_t main
    uint32_t sub
    uint32_t lead_n           # SORT_BY_VALUE: the value's length up to 16, 17 = longer
    int64_t number            # what the sort compares: version, create or mod revision
    # first 16 bytes of the value, big-endian, zero-padded; other targets: [0] is Seen's kv_bytes
    uint64_t lead[2]

# A Range under way. The request's slices must live until range_free.
ctypedef struct RangeState:
    const RangeReq *req
    int64_t revision          # read at
    int64_t head_revision     # of the response header: current when it began
    int phase
    int keys_mode
    int64_t limit             # kvs to answer at most, 0 = all
    int64_t take              # collect at most, 0 = all
    int64_t count
    int64_t emitted
    bint more
    kv_buf at                 # the key that the next slice begins with
    kv_buf scratch            # chunked values
    kv_buf scratch2
    RangeItem *items
    size_t items_n
    size_t items_cap
    size_t items_at
    size_t items_bytes_max    # 0 = unbounded; beyond it range_step returns REC_NOMEM
    uint64_t steps            # index entries and records read so far
    bint sizing               # count the bytes of what would be appended in `size` instead
    uint64_t size
    int64_t stop_at           # pause when so many were emitted, 0: never; then `stopped` is set
    bint stop_hard            # at once; otherwise only when there is another to emit
    bint stopped

# A place in a Range, to come back to: the same part is sized first and emitted then.
ctypedef struct RangeMark:
    kv_buf at
    size_t items_at
    int phase
    int64_t count
    int64_t emitted

# Checks the revision and returns CODE_OK, or CODE_FUTURE_REV, CODE_COMPACTED (then don't step).
# `h` (NULL: no header) is written into `out` at once, with revision = current.
cdef int range_init(RangeState *st, const RangeReq *req, int64_t current, int64_t compacted,
                    const RespHeader *h, kv_buf *out) noexcept nogil

# Appends to `out` until about work_max units (100 ns each) or bytes_max are spent; 0 = unbounded.
# REC_OK: the response is complete. RANGE_MORE: go on, in this or a newer snapshot. `floor`: how
# far freeing got in *this* snapshot; REC_NONE when it passed the revision (answer CODE_COMPACTED).
cdef int range_step(RangeState *st, const kv_store *ops, void *txn, int64_t floor,
                    uint64_t work_max, size_t bytes_max, kv_buf *out) noexcept nogil
cdef void range_free(RangeState *st) noexcept nogil
# Remembers the place (the caller frees mark.at); goes back to it. The sorted items stay, so a mark
# taken before they were sorted leads to the first of them. 0 or REC_NOMEM.
cdef int range_mark(const RangeState *st, RangeMark *mark) noexcept nogil
cdef int range_back(RangeState *st, const RangeMark *mark) noexcept nogil
# Whether nothing was emitted yet: the slice ended while keys were counted or gathered.
cdef bint range_counts(const RangeState *st) noexcept nogil

# The whole Range at once, appended to `out` as a RangeResponse (RangeStream never). Returns REC_*;
# *code as range_init's; with a code nothing is appended, after REC_CORRUPT, REC_FAILED, REC_NOMEM
# the caller cuts `out` back. In a write transaction `current` is the
# revision that the transaction's own writes have (etcd's beginRev + 1 once it changed something).
# `buf` is scratch for chunked values, kept by the caller between calls.
cdef int range_execute(const kv_store *ops, void *txn, const RangeReq *req, int64_t current,
                       int64_t compacted, int64_t floor, const RespHeader *h, kv_buf *buf,
                       kv_buf *out, int *code) noexcept nogil

# TREE_META "rev", "compact", "applied" of one snapshot.
ctypedef struct Heads:
    uint64_t revision
    uint64_t compacted
    uint64_t freed
    uint64_t applied_index
    uint64_t applied_term

cdef int read_heads(const kv_store *ops, void *txn, Heads *heads) noexcept nogil

# Reads for a gateway: holds one snapshot, renewed by refresh.
cdef class RangeReader:
    cdef Store store
    cdef void *txn
    cdef Heads heads
    cdef unsigned long long slice_work     # budget of one reader_serve, 0 = unbounded
    cdef unsigned long long slice_bytes
    cdef kv_buf scratch
    cdef kv_buf out
    cdef int refresh_c(self) noexcept nogil
    cdef void close_c(self) noexcept nogil

# One request's body on the reader's snapshot: appends the response to `out`, returns CODE_*
# (CODE_MALFORMED, CODE_CORRUPT among them; then nothing is appended). h.revision is set here.
# With reader.slice_work set, READ_LONG for a Range that takes more than one slice: make a
# LongRange of it. Read-only transactions don't come this way: KIND_RANGE only.
cdef int reader_serve(RangeReader reader, int kind, const uint8_t *body, size_t n,
                      RespHeader *h, kv_buf *out) noexcept nogil
