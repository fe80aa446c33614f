"""Words of 64 bits shared by the processes of one node."""

from libc.stdint cimport uint64_t

cdef enum:
    WORD_COMMIT = 0      # bit 63: sole voter, bits 0..62: commit index
    WORD_APPLIED = 1     # applied index of the applier
    WORD_LIFE = 2        # monotonic microseconds of the applier's last turn
    WORD_TERM = 3
    WORD_GENERATION = 4
    WORD_DAMAGE = 5      # findings of the scrubber since the applier's start
    WORD_READING = 8     # + gateway number: lowest revision it is reading, 0 = none
    WORD_COUNT = 64

cdef class SharedWords:
    cdef uint64_t *words
    cdef object _map
    cdef object _view
    cdef uint64_t load(self, int slot) noexcept nogil
    cdef void store(self, int slot, uint64_t value) noexcept nogil
