"""One request of the log executed, its answer and its outcome. Table of contents of requests.pyx.

Functions return REC_* of records.pxd unless said.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_arena, kv_buf
from kvnode._core.envelope cimport Request
from kvnode._core.sessions cimport Sessions
from kvnode._core.store cimport kv_store
from kvnode._core.txnexec cimport TxnRun
from kvnode._core.writer cimport Writer

cdef enum:
    OUTCOME_BYTES_MAX = 4096      # what follows the revision; longer: kept as partial
    ALARMS_MAX = 256

    ALARM_NOSPACE = 1
    ALARM_CORRUPT = 2

ctypedef struct Alarm:            # as stored, TREE_META "alarms"
    uint64_t member
    int32_t alarm
    uint32_t zero

# What requests act on; owned by the machine. Holds pointers into itself: never copied.
ctypedef struct Exec:
    Writer w
    TxnRun txn
    Sessions sessions
    kv_arena arena                # one request decoded
    kv_buf tail                   # the outcome's part after the revision
    kv_buf prevs                  # prev_kv fields
    kv_buf refused                # u32 index, u32 code of a batch's refused items
    kv_buf scratch                # chunked records
    kv_buf leases                 # LeaseEvent of leases.pxd, since the machine cleared it
    kv_buf alarms                 # Alarm, sorted by (alarm, member)
    bint alarms_dirty
    bint compact_dirty
    bint no_space
    bint corrupt
    uint64_t cluster
    uint64_t member
    uint64_t term                 # of the entry under way
    uint64_t index                # likewise
    uint64_t cursor_main          # freeing: next record to look at
    uint32_t cursor_sub
    uint64_t freed                # freeing: reads below this revision may miss records
    uint64_t pass_limit           # freeing: the revision that the pass under way goes up to

cdef int exec_init(Exec *x, const kv_store *ops, uint32_t sessions_per_user) noexcept nogil
cdef void exec_free(Exec *x) noexcept nogil
# Sets no_space and corrupt from x.alarms.
cdef void alarms_changed(Exec *x) noexcept nogil

# Executes one request. Appends its outcome to `outcome`, and to `out` (unless NULL) the response,
# nothing when *code isn't CODE_OK.
cdef int exec_request(Exec *x, const Request *q, uint32_t user, kv_buf *out, kv_buf *outcome,
                      int *code) noexcept nogil
