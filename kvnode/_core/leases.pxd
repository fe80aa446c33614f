"""Leases of the state machine: records, attached keys, grant, revoke, checkpoint.

Table of contents of leases.pyx; layouts stand there. Returns REC_* of records.pxd unless said.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_rd, kv_slice, kv_store_be32, kv_store_be64
from kvnode._core.records cimport REC_FAILED, REC_OK
from kvnode._core.store cimport ST_FAILED, TREE_LEASE_KEYS, kv_store
from kvnode._core.writer cimport Writer

cdef enum:
    LEASE_BYTES = 24           # a stored lease
    LEASE_KEY_BYTES = 20       # an attached key: lease, main, sub

    # what a row of events says
    LEASE_GRANTED = 1
    LEASE_REVOKED = 2
    LEASE_CHECKPOINTED = 3

# etcd's bound (its lease package's MaxLeaseTTL), seconds
cdef inline int64_t lease_ttl_max() noexcept nogil:
    return 9000000000

ctypedef struct Lease:
    int64_t ttl                # granted, seconds
    int64_t remaining          # persisted, seconds; 0: the whole ttl

# One row of what the applier tells consensus, in apply order; 40 bytes as they stand.
ctypedef struct LeaseEvent:
    uint64_t index             # log index
    uint64_t id
    int64_t ttl                # granted
    int64_t remaining          # persisted, 0: the whole ttl
    uint64_t what              # LEASE_GRANTED...


cdef inline kv_slice lease_entry(uint8_t *room, uint64_t lease, uint64_t main,
                                 uint32_t sub) noexcept nogil:
    """The TREE_LEASE_KEYS key of a record, written into room (LEASE_KEY_BYTES)."""
    cdef kv_slice s
    kv_store_be64(room, lease)
    kv_store_be64(room + 8, main)
    kv_store_be32(room + 16, sub)
    s.p = room
    s.n = LEASE_KEY_BYTES
    return s


cdef inline int lease_attach(const kv_store *ops, void *txn, uint64_t lease, uint64_t main,
                             uint32_t sub) noexcept nogil:
    """The key whose latest record is (main, sub) is attached to the lease."""
    cdef uint8_t room[LEASE_KEY_BYTES]
    cdef kv_slice none
    none.p = room
    none.n = 0
    if ops.put(txn, TREE_LEASE_KEYS, lease_entry(room, lease, main, sub), none) == ST_FAILED:
        return REC_FAILED
    return REC_OK


cdef inline int lease_detach(const kv_store *ops, void *txn, uint64_t lease, uint64_t main,
                             uint32_t sub) noexcept nogil:
    """The same entry goes: the key has a newer record, or is deleted."""
    cdef uint8_t room[LEASE_KEY_BYTES]
    if ops.delete(txn, TREE_LEASE_KEYS, lease_entry(room, lease, main, sub)) == ST_FAILED:
        return REC_FAILED
    return REC_OK


# REC_NONE: no such lease.
cdef int lease_get(const kv_store *ops, void *txn, int64_t id, Lease *lease) noexcept nogil
# A stored lease: its id from the tree's key, the rest from the value. REC_OK or REC_CORRUPT.
cdef int decode_lease_record(kv_slice key, kv_slice value, int64_t *id,
                             Lease *lease) noexcept nogil

# Every attached key into `keys`, each u32 length and bytes, in byte order; *count of them.
# `list` is scratch. REC_CORRUPT: an entry that names no live record.
cdef int lease_keys(const kv_store *ops, void *txn, int64_t id, kv_buf *keys, kv_buf *list,
                    uint64_t *count) noexcept nogil

# The requests of the log, inside the machine's write transaction. *code: why it was refused,
# with nothing written. A row goes to `told` for each lease that changed.
cdef int lease_grant(Writer *w, uint64_t index, int64_t id, int64_t *ttl, kv_buf *told,
                     int *code) noexcept nogil
# All attached keys in one revision, which the caller ends (writer_end).
cdef int lease_revoke(Writer *w, uint64_t index, int64_t id, kv_buf *list, kv_buf *told,
                      int *code) noexcept nogil
# `r` over a LeaseCheckpointRequest that was checked. Unknown leases are passed over.
cdef int lease_checkpoint(Writer *w, uint64_t index, kv_rd *r, kv_buf *told) noexcept nogil
