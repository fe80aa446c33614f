"""Sessions and their windows of outcomes. Table of contents of sessions.pyx.

Functions that touch the store or memory return REC_* of records.pxd.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_slice
from kvnode._core.store cimport kv_store

cdef enum:
    SESSION_WINDOW = 4096         # W of limits.py
    SESSION_CLIENT = 1            # record flags: a client's; else a gateway incarnation's

ctypedef struct Slot:
    uint64_t sequence
    uint8_t *p                    # outcome; NULL: none
    uint32_t n

ctypedef struct Session:
    uint64_t id
    uint32_t user
    uint8_t flags
    bint dirty
    uint64_t lowest
    uint64_t highest
    uint64_t last_index           # log index of the last use
    Slot *slots                   # ring, indexed by sequence & (cap - 1)
    uint32_t cap                  # a power of two, at most SESSION_WINDOW
    uint32_t used

ctypedef struct Sessions:
    Session **table               # open addressing by hashed id
    size_t mask
    size_t count
    kv_buf dirty                  # u64 ids touched since the last flush
    kv_buf removed                # u64 ids whose record is to be deleted
    kv_buf record                 # scratch of flush
    uint32_t per_user_max

cdef int sessions_init(Sessions *s, uint32_t per_user_max) noexcept nogil
cdef void sessions_free(Sessions *s) noexcept nogil
cdef int sessions_load(Sessions *s, const kv_store *ops, void *txn) noexcept nogil
# Writes every touched session's record, and takes the removed ones away.
cdef int sessions_flush(Sessions *s, const kv_store *ops, void *txn) noexcept nogil

cdef Session *session_find(const Sessions *s, uint64_t id) noexcept nogil
# KIND_SESSION_OPEN and KIND_SESSION_CLOSE: *code as the answer's.
cdef int session_open(Sessions *s, uint64_t id, uint32_t user, bint gateway, uint64_t index,
                      uint64_t *state_hash, int *code) noexcept nogil
cdef int session_close(Sessions *s, uint64_t id, uint32_t user, uint64_t *state_hash,
                       int *code) noexcept nogil

# CODE_OK: the sequence lies in the window. CODE_OUTCOME_UNKNOWN: below; CODE_WINDOW_EXCEEDED.
cdef int session_admits(const Session *s, uint64_t sequence, uint64_t lowest) noexcept nogil
# The outcome stored for `sequence`; 0: none.
cdef bint session_outcome(const Session *s, uint64_t sequence, kv_slice *outcome) noexcept nogil
# Marks a use: drops outcomes below the lowest open sequence.
cdef int session_touch(Sessions *all, Session *s, uint64_t lowest, uint64_t index) noexcept nogil
# session_touch, and keeps a copy of the outcome.
cdef int session_keep(Sessions *all, Session *s, uint64_t sequence, uint64_t lowest,
                      uint64_t index, kv_slice outcome) noexcept nogil
