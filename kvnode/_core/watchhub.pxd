"""The hub: events out of TREE_REVS to all watchers of a gateway. See watchhub.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_slice
from kvnode._core.calls cimport Call, Calls
from kvnode._core.etcdpb cimport RespHeader
from kvnode._core.ranges cimport RangeReader
from kvnode._core.watchgroup cimport Group, Heap, Ids, Stream, Watcher
from kvnode._core.watchindex cimport Found, Index, Node
from kvnode._core.watchpb cimport WatchReq
from kvnode._core.watchslice cimport Slice

cdef enum:
    MADE = 0                 # hub_create's verdicts
    MADE_EMPTY_RANGE = 1
    MADE_DUPLICATE = 2
    MADE_TOO_MANY = 3

cdef class WatchHub:
    cdef Calls calls
    cdef Index index
    cdef RangeReader reader
    cdef RespHeader identity
    # the snapshot of this turn
    cdef int64_t revision
    cdef int64_t compacted
    cdef int64_t freed
    cdef uint64_t now_us
    cdef uint64_t progress_us
    cdef uint64_t next_due
    cdef uint64_t dice
    # watchers
    cdef Group head
    cdef Heap lagging
    cdef Ids ids
    cdef Stream *streams
    cdef size_t streams_n
    cdef size_t alive
    cdef size_t watchers_max
    cdef size_t interest_bytes
    cdef size_t interest_bytes_max
    # the slice under way
    cdef int phase
    cdef int side
    cdef int turn_side
    cdef int64_t begin
    cdef int64_t limit       # it ends at or before this revision
    cdef int64_t end         # it ended before this one
    cdef int64_t scan_main
    cdef uint32_t scan_sub
    cdef uint64_t slice_work
    cdef size_t slice_bytes
    cdef uint64_t slice_spent
    cdef uint64_t stamp
    cdef Group *taken
    cdef Slice slice
    cdef Found found
    cdef Node *node          # being answered
    cdef Watcher *at         # whose turn is next
    cdef uint8_t header[64]
    cdef size_t header_n
    # figures
    cdef readonly unsigned long long events_sent
    cdef readonly unsigned long long events_read
    cdef readonly unsigned long long slices
    cdef readonly unsigned long long responses
    cdef readonly unsigned long long compacted_away
    cdef readonly unsigned long long damaged

    # for watchcalls
    cdef int look(self, RangeReader reader, uint64_t now_us) except -1
    cdef Stream *open(self, Call call) except NULL
    cdef int close(self, Stream *s) except -1
    cdef int create(self, Stream *s, const WatchReq *q, int64_t *id) except -1
    cdef bint cancel(self, Stream *s, int64_t id) except -1
    cdef int on_room(self, Stream *s) except -1
    cdef int control(self, Stream *s, int64_t revision, int64_t id, bint created, bint canceled,
                     int64_t compact_revision, bytes reason) except -1
    cdef bint run(self) except -1

    # membership
    cdef void enter_node(self, Watcher *w, int side) noexcept nogil
    cdef void leave_node(self, Watcher *w) noexcept nogil
    cdef void release_node(self, Watcher *w) noexcept nogil
    cdef void leave(self, Watcher *w) noexcept nogil
    cdef int lag_from(self, Watcher *w, int64_t cursor) except -1
    cdef void join_head(self, Watcher *w) noexcept nogil
    cdef int64_t open_limit(self) noexcept nogil
    cdef void park(self, Watcher *w, int64_t cursor) noexcept nogil
    cdef void kill(self, Watcher *w) noexcept nogil
    cdef int end_group(self, Group *g, int64_t compact_revision, bytes reason) except -1
    cdef void group_to_head(self, Group *g) noexcept nogil
    # slices
    cdef bint begin_head(self) except -1
    cdef bint begin_lag(self) except -1
    cdef void begin_scan(self, int side, int64_t begin, int64_t limit) noexcept nogil
    cdef int scan(self, uint64_t budget, uint64_t *spent) noexcept nogil
    cdef int take_record(self, kv_slice val, int64_t main, uint32_t sub,
                         uint64_t *spent) noexcept nogil
    cdef int end_scan(self) except -1
    cdef int fail_slice(self) except -1
    cdef void clear_slice(self) noexcept nogil
    cdef int end_slice(self) except -1
    cdef bint deliver(self, uint64_t budget, uint64_t *spent) except -1
    cdef int serve(self, Watcher *w, uint64_t *spent) except -1
    # progress
    cdef bint synced(self) noexcept nogil
    cdef bint answer_asked(self, Stream *s) except -1
    cdef int tick(self) except -1
    cdef int tick_stream(self, Stream *s) except -1
    cdef uint64_t interval(self) noexcept nogil
