"""Watchers, their groups and streams, and where the hub keeps them. See watchgroup.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf
from kvnode._core.calls cimport Call
from kvnode._core.watchindex cimport Node

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

cdef void group_add(Group *g, Watcher *w) noexcept nogil
cdef void group_drop(Group *g, Watcher *w) noexcept nogil
# all of g behind those of `to`; g is empty then
cdef void group_append(Group *to, Group *g) noexcept nogil
cdef void stream_add(Stream *s, Watcher *w) noexcept nogil
cdef void stream_drop(Stream *s, Watcher *w) noexcept nogil

# Groups by cursor, the lowest first.
cdef class Heap:
    cdef Group **groups
    cdef size_t n
    cdef size_t cap
    cdef int room(self) except -1        # for one more; push itself can't fail
    cdef void push(self, Group *g) noexcept nogil
    cdef Group *pop(self) noexcept nogil

# Watchers by (stream, id).
cdef class Ids:
    cdef Watcher **buckets
    cdef size_t mask
    cdef size_t n
    cdef Watcher *find(self, const Stream *s, int64_t id) noexcept nogil
    cdef int add(self, Watcher *w) except -1
    cdef void drop(self, Watcher *w) noexcept nogil
