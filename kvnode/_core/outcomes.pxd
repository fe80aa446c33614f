"""Answers from stored outcomes. Table of contents of outcomes.pyx."""

from libc.stdint cimport int64_t

from kvnode._core.buf cimport kv_buf, kv_slice
from kvnode._core.etcdpb cimport RespHeader

# How many requests the outcome covers, or -1: these bytes are no outcome.
cdef int64_t outcome_requests(kv_slice outcome) noexcept nogil

# Appends one result for each request to the result group at `group_at`. The header's revision is
# each outcome's own. Call outcome_requests first: the bytes are trusted here.
cdef void answer_outcome(const RespHeader *head, kv_slice outcome, kv_buf *out,
                         size_t group_at) noexcept nogil
