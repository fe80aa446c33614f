"""Freeing of what a compaction made invisible, in slices. Table of contents of freeing.pyx."""

from libc.stdint cimport uint64_t

from kvnode._core.requests cimport Exec

# Whether anything is left to free up to `limit`.
cdef bint freeing_pending(const Exec *x, uint64_t limit) noexcept nogil

# One slice in the transaction x.w.txn: looks at about `budget` records and deletes what they
# supersede. The caller stores the cursor (x.cursor_*, x.freed) and commits. Returns REC_*.
cdef int free_slice(Exec *x, uint64_t limit, uint64_t budget) noexcept nogil
