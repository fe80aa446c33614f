"""etcd's lease messages over bytes. Table of contents of leasepb.pyx.

Lifetimes and errors as in etcdpb.pxd: slices point into the decoded body, functions return CODE_*
unless said, encoders append to a kv_buf whose owner checks `err`.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_rd, kv_slice

# LeaseGrantRequest {TTL=1, ID=2}, LeaseRevokeRequest, KeepAlive and TimeToLive {ID=1, keys=2}
cdef struct LeaseReq:
    int64_t id
    int64_t ttl
    bint keys

cdef struct LeaseCheckpoint:
    int64_t id
    int64_t remaining

cdef int decode_lease_grant(const uint8_t *p, size_t n, LeaseReq *out) noexcept nogil
# LeaseRevokeRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest
cdef int decode_lease(const uint8_t *p, size_t n, LeaseReq *out) noexcept nogil
# LeaseCheckpointRequest: kv_rd_init over the body, then 1: *out is the next; 0: end; -1: malformed
cdef int next_checkpoint(kv_rd *r, LeaseCheckpoint *out) noexcept nogil
# Decodes a body of one of the KIND_LEASE_* of the log, whole; other kinds: CODE_UNKNOWN_KIND.
cdef int check_lease_request(int kind, const uint8_t *p, size_t n) noexcept nogil

# What a gateway adds behind a client's LeaseGrantRequest before it is proposed: the id where the
# client gave none, the least TTL where it asked for less (in protobuf the last field counts).
# CODE_OK or CODE_MALFORMED; the bytes of the client stay as they are.
cdef int lease_grant_complete(const uint8_t *p, size_t n, int64_t new_id, int64_t ttl_min,
                              kv_buf *added) noexcept nogil

cdef void put_lease_grant(kv_buf *b, int64_t id, int64_t ttl) noexcept nogil
cdef void put_lease_revoke(kv_buf *b, int64_t id) noexcept nogil
cdef void put_checkpoint(kv_buf *b, int64_t id, int64_t remaining) noexcept nogil
# LeaseGrantResponse and LeaseKeepAliveResponse alike behind their header: {ID=2, TTL=3}
cdef void put_lease_response(kv_buf *b, int64_t id, int64_t ttl) noexcept nogil
# LeaseTimeToLiveResponse likewise; its keys follow as put_lease_key
cdef void put_time_to_live(kv_buf *b, int64_t id, int64_t ttl, int64_t granted) noexcept nogil
cdef void put_lease_key(kv_buf *b, kv_slice key) noexcept nogil
# One LeaseStatus of a LeaseLeasesResponse, behind its header
cdef void put_lease_status(kv_buf *b, int64_t id) noexcept nogil
