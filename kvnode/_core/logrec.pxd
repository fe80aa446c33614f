"""Log records: constants, the table of entries, the encoder, the scanner. Layout: logrec.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from kvnode._core.buf cimport kv_buf

cdef enum:
    HEADER = 48
    MAGIC = 0x4c4b
    KIND_SEGMENT_HEAD = 1
    KIND_ENTRY = 2
    KIND_HARD_STATE = 3
    KIND_CONFIGURATION = 4
    KIND_SNAPSHOT = 5
    KIND_MARK = 6

cdef enum:
    END_SPACE = 0       # no room for a header, or the header's bytes are no header
    END_CHAIN = 1       # a whole header that does not follow the record before
    END_DATA = 2        # header whole, data damaged or not all there
    END_MARK = 3        # the durable mark that closes what was synced
    END_GAP = 4         # whole record, impossible index: never a torn tail
    END_FLOOR = 5
    END_UNKNOWN = 6     # whole record of a kind this version does not know
    END_MEMORY = 7
    END_COMMITTED = 8

ctypedef struct row_t:
    uint64_t term
    uint32_t segment
    uint32_t offset8
    uint32_t length
    uint32_t kind

cdef class Chunk:
    cdef kv_buf buf
    cdef Py_ssize_t exports

cdef class EntryTable:
    cdef row_t *rows
    cdef size_t start, count, cap
    cdef readonly uint64_t first, floor, before_term
    cdef int put(self, uint64_t index, const row_t *row) noexcept nogil
    cdef row_t *at(self, uint64_t index) noexcept nogil

cdef class Encoder:
    cdef kv_buf buf
    cdef uint32_t seed
    cdef readonly uint32_t crc
    cdef uint64_t base
    cdef public uint64_t durable_offset
    cdef int put(self, int kind, int entry_type, uint64_t index, uint64_t term,
                 const uint8_t *data, size_t n) except -1
    cdef size_t seal(self) except? 0
    cdef size_t lone(self, EntryTable table, const row_t *like, uint64_t index,
                     const uint8_t *data, size_t n, bint commits, uint64_t vote) except 0
    cdef void lone_durable(self, size_t n) noexcept

cdef class Scanner:
    cdef const uint8_t[::1] view
    cdef const uint8_t *p
    cdef size_t n
    cdef EntryTable table
    cdef uint32_t segment, seed
    cdef bint chained
    cdef readonly uint32_t crc
    cdef readonly uint64_t offset, durable_offset, term, vote, commit
    cdef readonly uint64_t record_offset, record_index, record_term
    cdef readonly uint32_t record_length, record_prev, records
    cdef readonly int reason
    cdef int step(self) noexcept nogil
