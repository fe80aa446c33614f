"""The envelope: batches of request groups, and results. Table of contents of envelope.pyx.

Byte layouts stand in envelope.pyx. Readers yield slices of the bytes they read and check every
length first; they return ENV_ITEM, ENV_END or one of the negative verdicts. Writers append to a
kv_buf, whose owner checks `err` once at the end. Nothing here touches Python objects.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_rd, kv_slice

cdef enum:
    ENV_VERSION = 1
    ENV_HEAD_BYTES = 8         # batch head
    ENV_GROUP_BYTES = 80       # group header
    ENV_REQUEST_BYTES = 8      # request header
    RES_GROUP_BYTES = 24
    RES_REQUEST_BYTES = 8

    FLAG_CLIENT_SESSION = 1    # the group's session is a client's, not its gateway's
    ENV_GROUP_FLAGS = 1        # all known group flags
    ENV_REQUEST_FLAGS = 0      # all known request flags

    STATE_EXECUTED = 0
    STATE_REPEATED = 1         # answered from the stored outcome
    STATE_REFUSED = 2          # refused whole, nothing consumed; the group's code says why

    # verdicts of readers
    ENV_ITEM = 1
    ENV_END = 0
    ENV_BAD = -1               # CODE_MALFORMED
    ENV_BAD_FLAGS = -2         # CODE_UNKNOWN_FLAGS
    ENV_BAD_VERSION = -3       # CODE_MALFORMED: written by a newer version

cdef struct Group:
    uint8_t flags
    uint32_t count             # requests
    uint32_t user
    uint64_t session
    uint64_t sequence
    uint64_t lowest
    uint64_t member
    uint64_t incarnation
    uint32_t slot
    uint64_t auth_revision
    kv_slice body              # all requests: headers and bodies
    kv_slice whole             # group header and body, as they stand (set by readers)

cdef struct Request:
    uint8_t kind
    uint8_t flags
    kv_slice body

cdef struct ResultGroup:
    uint32_t slot
    uint32_t count
    uint64_t incarnation
    uint8_t state              # STATE_*
    uint8_t code               # for STATE_REFUSED
    kv_slice body              # all results: headers and bodies

cdef struct Result:
    uint8_t code
    uint8_t kind
    kv_slice body

# --- batches ------------------------------------------------------------------------------------

# Batch head for `groups` groups; returns its offset, for env_set_groups when the number comes late.
cdef size_t env_begin_batch(kv_buf *b, uint32_t groups) noexcept nogil
cdef void env_set_groups(kv_buf *b, size_t at, uint32_t groups) noexcept nogil
# Group header (count, body, whole of *g are ignored), to be followed by env_add_request;
# returns the group's offset. Count and bytes are kept up to date by each env_add_request.
cdef size_t env_open_group(kv_buf *b, const Group *g) noexcept nogil
cdef void env_add_request(kv_buf *b, size_t group_at, uint8_t kind, uint8_t flags,
                          const uint8_t *p, size_t n) noexcept nogil
# Whole group at once: header from *g, then g.body verbatim (g.count requests).
cdef void env_write_group(kv_buf *b, const Group *g) noexcept nogil

# r over a whole batch: env_read_head first, then env_next_group until ENV_END; ENV_END only when
# exactly the announced groups were read (the caller's *left counts down) and nothing is left over.
cdef int env_read_head(kv_rd *r, uint32_t *left) noexcept nogil      # ENV_ITEM or a verdict
cdef int env_next_group(kv_rd *r, uint32_t *left, Group *g) noexcept nogil
# r over g.body, left = g.count.
cdef void env_requests(const Group *g, kv_rd *r, uint32_t *left) noexcept nogil
cdef int env_next_request(kv_rd *r, uint32_t *left, Request *q) noexcept nogil
# Walks the whole batch down to the last request: ENV_ITEM (good) or the verdict.
cdef int env_check_batch(const uint8_t *p, size_t n, uint32_t *groups,
                         uint64_t *requests) noexcept nogil
# CODE_* of a verdict
cdef int env_code(int verdict) noexcept nogil

# --- results ------------------------------------------------------------------------------------

cdef size_t res_open_group(kv_buf *b, uint32_t slot, uint64_t incarnation, uint8_t state,
                           uint8_t code) noexcept nogil
cdef void res_add(kv_buf *b, size_t group_at, uint8_t code, uint8_t kind,
                  const uint8_t *p, size_t n) noexcept nogil
# A result whose body is encoded in place: m = res_open(), append the body, res_close(m).
cdef size_t res_open(kv_buf *b, size_t group_at, uint8_t kind) noexcept nogil
cdef void res_close(kv_buf *b, size_t group_at, size_t mark, uint8_t code) noexcept nogil
# A group refused whole: no results follow, `code` stands for each of its `count` requests.
cdef void res_refuse_group(kv_buf *b, uint32_t slot, uint64_t incarnation, uint32_t count,
                           uint8_t code) noexcept nogil

cdef int res_next_group(kv_rd *r, ResultGroup *g) noexcept nogil
cdef void res_results(const ResultGroup *g, kv_rd *r, uint32_t *left) noexcept nogil
cdef int res_next(kv_rd *r, uint32_t *left, Result *q) noexcept nogil
