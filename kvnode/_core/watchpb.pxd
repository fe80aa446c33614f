"""WatchRequest and WatchResponse over bytes. Table of contents of watchpb.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_slice
from kvnode._core.etcdpb cimport RespHeader

cdef enum:
    # WatchRequest's oneof: field number of the set member
    WATCH_NONE = 0
    WATCH_CREATE = 1
    WATCH_CANCEL = 2
    WATCH_PROGRESS = 3

    FILTER_NOPUT = 1         # bits of WatchReq.filters; other numbers of the enum mean nothing
    FILTER_NODELETE = 2

# Slices point into the body that was decoded.
cdef struct WatchReq:
    int kind                 # WATCH_*
    kv_slice key             # CREATE from here on
    kv_slice range_end
    int64_t start_revision
    int64_t watch_id         # CANCEL's too
    uint32_t filters
    bint progress_notify
    bint prev_kv
    bint fragment

# CODE_OK or CODE_MALFORMED.
cdef int decode_watch(const uint8_t *p, size_t n, WatchReq *out) noexcept nogil

# What stands before the events of a WatchResponse. reason: p = NULL for none.
cdef struct WatchHead:
    int64_t watch_id
    bint created
    bint canceled
    int64_t compact_revision
    kv_slice reason
    bint fragment

cdef void put_watch_head(kv_buf *b, const RespHeader *h, const WatchHead *w) noexcept nogil

# One event as a field of WatchResponse. prev: p = NULL for none.
cdef void put_watch_event(kv_buf *b, bint deleted, kv_slice kv, kv_slice prev) noexcept nogil
