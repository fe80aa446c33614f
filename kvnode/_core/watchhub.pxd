"""The hub: events out of TREE_REVS to all watchers of a gateway. Table of contents of watchhub.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf, kv_slice
from kvnode._core.calls cimport Call, Calls, Shared
from kvnode._core.etcdpb cimport RespHeader
from kvnode._core.ranges cimport RangeReader
from kvnode._core.watchindex cimport Found, Index, Node
from kvnode._core.watchpb cimport WatchReq

cdef enum:
    W_PREV = 1               # Watcher.flags; the first four make answers differ
    W_NOPUT = 2
    W_NODELETE = 4
    W_FRAGMENT = 8
    W_VARIANTS = 16
    W_PROGRESS = 16
    W_QUIET = 32             # no event since the last tick: the next one sends progress

    AT_HEAD = 0              # Watcher.state; the first two are sides of a node
    AT_LAG = 1
    PARKED = 2               # its stream is full
    DEAD = 3                 # ended by us; its id is in use until the client cancels it

    MADE = 0                 # hub_create's verdicts
    MADE_EMPTY_RANGE = 1
    MADE_DUPLICATE = 2
    MADE_TOO_MANY = 3

cdef struct Watcher:
    Stream *stream
    Node *node
    Group *group             # AT_HEAD, AT_LAG
    Watcher *node_prev
    Watcher *node_next
    Watcher *group_prev      # PARKED: of its stream's parked ones
    Watcher *group_next
    Watcher *stream_prev
    Watcher *stream_next
    Watcher *id_next         # next in its bucket
    int64_t id
    int64_t start            # as asked for; 0: from now on
    int64_t first            # no event below it
    int64_t cursor           # PARKED: where it goes on
    uint8_t flags
    uint8_t state

# Watchers of one cursor.
cdef struct Group:
    int64_t cursor           # the next main revision that they are owed
    size_t n
    Watcher *first
    Watcher *last
    Group *next_taken
    uint64_t stamp           # slices begun before it was made
    bint taken               # the present slice serves it

# One Watch call.
cdef struct Stream:
    Call call
    Stream *prev
    Stream *next
    Watcher *first
    Watcher *last
    uint32_t alive           # watchers that are not DEAD
    uint32_t at_head
    uint32_t progress_n
    Watcher *parked_first
    Watcher *parked_last
    int64_t next_id
    int64_t start_max        # greatest start asked for
    uint64_t due_us          # of its next progress tick; 0: none
    bint asked               # a WatchProgressRequest waits
    # watchcalls': requests that wait for a turn, each u32 length and its bytes
    kv_buf inbox
    size_t inbox_at
    Stream *ready_next
    bint ready

cdef struct Event:
    int64_t main
    size_t at                # in the hub's bytes
    size_t n
    size_t prev_at           # with prev_kv; the same place when there is none
    size_t prev_n
    bint deleted

cdef struct Hit:
    uint32_t event
    uint32_t next

# What some watchers of one node are sent: one part, or several for fragments.
cdef struct Answer:
    Node *node               # NULL: nothing built
    uint32_t start           # first hit
    size_t id_n
    size_t events
    Shared **parts
    size_t n
    size_t cap

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
    cdef Group **heap        # lagging ones by cursor
    cdef size_t heap_n
    cdef size_t heap_cap
    cdef Watcher **ids       # by (stream, id)
    cdef size_t ids_mask
    cdef size_t ids_n
    cdef Stream *streams
    cdef size_t streams_n
    cdef size_t alive
    cdef size_t watchers_max
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
    cdef Event *events
    cdef size_t events_n
    cdef size_t events_cap
    cdef Hit *hits
    cdef size_t hits_n
    cdef size_t hits_cap
    cdef kv_buf bytes
    cdef kv_buf scratch
    cdef kv_buf scratch_prev
    cdef Found found
    cdef Node *touched
    cdef Node *touched_last
    cdef Node *node          # being answered
    cdef Watcher *at         # whose turn is next
    cdef Answer answers[16]
    cdef size_t fragment_bytes
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

    # ids
    cdef Watcher *find_id(self, Stream *s, int64_t id) noexcept nogil
    cdef int add_id(self, Watcher *w) except -1
    cdef void drop_id(self, Watcher *w) noexcept nogil
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
    cdef void push(self, Group *g) noexcept nogil
    cdef Group *pop(self) noexcept nogil
    cdef int heap_room(self) except -1
    # slices
    cdef bint begin_head(self) except -1
    cdef bint begin_lag(self) except -1
    cdef void begin_scan(self, int side, int64_t begin, int64_t limit) noexcept nogil
    cdef int scan(self, uint64_t budget, uint64_t *spent) noexcept nogil
    cdef int take_record(self, kv_slice val, int64_t main, uint32_t sub,
                         uint64_t *spent) noexcept nogil
    cdef int encode_event(self, void *record, bint prevs) noexcept nogil
    cdef bint touch(self, Node *node, uint32_t event) noexcept nogil
    cdef int end_scan(self) except -1
    cdef int fail_slice(self) except -1
    cdef void clear_slice(self) noexcept nogil
    cdef int end_slice(self) except -1
    cdef bint deliver(self, uint64_t budget, uint64_t *spent) except -1
    cdef int serve(self, Watcher *w, uint64_t *spent) except -1
    cdef Answer *answer_for(self, Watcher *w, uint32_t start, uint64_t *spent) except NULL
    cdef int build(self, Answer *a, uint8_t flags, size_t head_n) except -1
    cdef int add_part(self, Answer *a, uint32_t first, uint32_t stop, size_t n,
                      uint8_t flags) except -1
    cdef void clear_answers(self) noexcept nogil
    # progress
    cdef bint synced(self) noexcept nogil
    cdef bint answer_asked(self, Stream *s) except -1
    cdef int tick(self) except -1
    cdef int tick_stream(self, Stream *s) except -1
    cdef uint64_t interval(self) noexcept nogil
