"""The apply loop. Table of contents of machine.pyx."""

from libc.stdint cimport uint8_t, uint64_t

from kvnode._core.buf cimport kv_buf
from kvnode._core.envelope cimport Group
from kvnode._core.requests cimport Exec
from kvnode._core.store cimport Store

# Results for one gateway incarnation.
ctypedef struct Outbox:
    uint64_t incarnation
    kv_buf buf

ctypedef struct Loop:
    Exec x
    uint64_t applied_index
    uint64_t applied_term
    uint64_t auth_revision
    bint window               # off only in tests
    bint answering
    kv_buf outcome            # of the group under way
    Outbox *outs
    size_t outs_n
    size_t outs_cap
    uint64_t entries          # counters
    uint64_t groups
    uint64_t repeated
    uint64_t malformed

cdef class Machine:
    cdef Store store
    cdef Loop *loop
    cdef bint dead
    cdef int why              # of a lone entry's failure, not yet told
    cdef uint64_t began, puts, deletes, index, term     # before the transaction under way
    cdef int check(self) except -1
    cdef int fail(self, int rc, str doing) except -1
    cdef int run(self, const uint8_t *p, size_t n) noexcept nogil
    cdef int run_open(self, const uint8_t *p, size_t n) noexcept nogil
    cdef int run_close(self) noexcept nogil
    cdef int lone_open(self, const uint8_t *p, size_t n) noexcept nogil
    cdef int lone_close(self) noexcept nogil
    cdef void lone_abort(self) noexcept nogil
    cdef int lone_verdict(self, int rc) noexcept nogil
