"""Words of 64 bits shared by the processes of one node."""

from libc.stdint cimport uint64_t

cdef enum:
    WORD_COMMIT = 0      # bit 63: sole voter, bits 0..62: commit index
    WORD_APPLIED = 1     # applied index of the applier
    WORD_LIFE = 2        # monotonic microseconds of the applier's last turn
    WORD_TERM = 3
    WORD_GENERATION = 4
    WORD_ANSWERED = 6    # index whose results have left, maybe before its commit
    WORD_WAITING = 7     # processes that wait for WORD_APPLIED
    WORD_DAMAGE = 5      # findings of the scrubber since the applier's start
    WORD_READING = 8     # + gateway number: lowest revision it is reading, 0 = none
    # + gateway number: monotonic microseconds of the last sign of life of a gateway that carries
    # keep-alives, 0 = it carries none
    WORD_BEAT = 80
    WORD_LEASES = 160    # LEASES frames that this applier has sent on its link to consensus
    WORD_LEASE_COUNT = 161       # as consensus counts, since its start: leases there,
    WORD_LEASES_GRANTED = 162    # granted,
    WORD_LEASES_REVOKED = 163    # revoked,
    WORD_LEASES_RENEWED = 164    # keep-alives that renewed one,
    WORD_LEASES_EXPIRED = 165    # and revokes proposed because a lease ended
    WORD_COUNT = 256

cdef class SharedWords:
    cdef uint64_t *words
    cdef object _map
    cdef object _view
    cdef uint64_t load(self, int slot) noexcept nogil
    cdef void store(self, int slot, uint64_t value) noexcept nogil
    cdef void store_applied(self, uint64_t index) noexcept nogil
