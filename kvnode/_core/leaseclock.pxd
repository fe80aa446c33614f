"""The table of a lessor's leases and when they end. Table of contents of leaseclock.pyx."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf

# One lease. Times are the lessor's microseconds.
ctypedef struct Slot:
    uint64_t id
    int64_t expiry
    int64_t ttl                # granted, seconds
    int64_t persisted          # remaining seconds in the log; 0: the whole ttl
    uint32_t life              # counts the uses of this slot; odd: in use
    uint32_t flags

ctypedef struct Due:           # an entry of a heap
    int64_t at
    uint32_t slot
    uint32_t life

ctypedef struct Heap:
    Due *dues
    size_t n
    size_t cap

cdef class LeaseClock:
    cdef Slot *slots
    cdef size_t slots_n        # used so far, freed ones included
    cdef size_t slots_cap
    cdef uint32_t *free_list
    cdef size_t free_n
    cdef uint32_t *table       # slot + 1, 0 = empty; linear probing
    cdef size_t mask
    cdef Heap expiries
    cdef Heap points
    cdef readonly size_t count
    cdef readonly uint64_t renewed
    cdef int64_t point_us      # longer leases are checkpointed that often
    cdef int grow_slots(self) except -1
    cdef int grow_table(self, size_t size) except -1
    cdef Slot *find(self, uint64_t id) noexcept nogil
    cdef int add(self, uint64_t id, int64_t ttl, int64_t persisted, int64_t expiry,
                 int64_t now) except -1
    cdef void remove(self, uint64_t id) noexcept nogil
    cdef int sort_ids(self, kv_buf *out) except -1
