# distutils: language = c++
"""Writes of a gateway: requests to proposals, results to answers. See front.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.deque cimport deque
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from kvnode._core.buf cimport kv_arena, kv_buf
from kvnode._core.freed cimport FreedSink
from kvnode._core.readqueue cimport ReadQueue
from kvnode._core.sink cimport OwnSink, Ref, Sinks

# The client's session of a request; sequence 0: it has none.
cdef struct Origin:
    uint64_t session
    uint64_t sequence
    uint64_t lowest
    uint32_t user

cdef struct Slot:
    uint32_t number
    bint used
    uint32_t count
    uint64_t proposal
    uint64_t sequence      # of the gateway's own session, 0: a client's
    Ref one
    Ref *many

cdef struct Proposal:
    uint32_t left
    uint64_t size


cdef class Front:
    cdef:
        Sinks sinks
        ReadQueue queue
        OwnSink own
        FreedSink freed
        Slot *slots
        uint32_t slot_mask
        uint32_t slot_next
        uint32_t slots_used
        unordered_map[uint64_t, Proposal] proposals
        vector[uint64_t] finished
        deque[uint64_t] own_open
        unordered_map[uint64_t, bint] own_done
        list sealed            # (number, bytes) of proposals that became large
        kv_buf batch
        uint32_t batch_groups
        vector[Ref] own_refs
        kv_buf own_body
        kv_arena arena
        kv_buf grant           # a LeaseGrantRequest with what was added to it
        uint64_t lease_seed
        int64_t lease_ttl_min
        uint64_t member
        uint64_t incarnation
        uint64_t own_session
        uint64_t own_sequence
        uint64_t proposal_next
        uint64_t max_request
        uint64_t max_batch
        uint64_t soft_bytes
        int64_t max_txn_ops
        readonly uint64_t open_bytes
        readonly uint64_t requests
        readonly uint64_t reads

    # Queues one key-value request; a CODE_ other than 0 refuses it here, and it is not kept.
    # Bodies of other kinds are refused with CODE_UNKNOWN_KIND.
    cdef int take(self, const Ref *ref, int kind, const Origin *origin, const uint8_t *p,
                  size_t n) except -1
    # A request that was checked elsewhere, as the gateway's own.
    cdef int add_own(self, const Ref *ref, int kind, const uint8_t *p, size_t n) except -1
    # Bytes of requests that are not answered: proposed, gathered, reads.
    cdef uint64_t held_bytes(self) noexcept nogil
    cdef int complete_grant(self, const uint8_t **p, size_t *n) except -1
    cdef int64_t new_lease(self) noexcept nogil
    cdef Slot *new_slot(self) except NULL
    cdef int open_batch(self) except -1
    cdef int add_client_group(self, const Ref *ref, int kind, const Origin *origin,
                              const uint8_t *p, size_t n) except -1
    cdef int close_own(self) except -1
    cdef int seal(self) except -1
    cdef int end_slot(self, Slot *s) except -1
