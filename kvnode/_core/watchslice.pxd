"""The events of one slice and the answers made of them. See watchslice.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_buf
from kvnode._core.calls cimport Shared
from kvnode._core.records cimport Record
from kvnode._core.store cimport kv_store
from kvnode._core.watchindex cimport Node

cdef enum:
    NO_HIT = 0xFFFFFFFF

cdef struct Event:
    int64_t main
    size_t at                # in the slice's bytes
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

cdef class Slice:
    cdef Event *events
    cdef size_t events_n
    cdef size_t events_cap
    cdef Hit *hits
    cdef size_t hits_n
    cdef size_t hits_cap
    cdef kv_buf bytes
    cdef kv_buf scratch
    cdef kv_buf scratch_prev
    cdef Node *touched       # nodes with hits, in the order of their first
    cdef Node *touched_last
    cdef Answer answers[16]  # by the flags that make answers differ
    cdef size_t fragment_bytes
    # an event out of a record, with prev_kv if `prevs`; REC_*
    cdef int add(self, const kv_store *ops, void *txn, Record *rec, bint prevs,
                 int64_t compacted) noexcept nogil
    # the last event concerns this node; False without memory
    cdef bint touch(self, Node *node) noexcept nogil
    # the next node with hits, NULL at the end; its hits stay valid until clear
    cdef Node *take_touched(self) noexcept nogil
    # the first hit of a node at or above a revision, NO_HIT without any; *steps: hits passed over
    cdef uint32_t hit_from(self, const Node *node, int64_t since, uint32_t *steps) noexcept nogil
    # What watchers of `node` with these flags get from hit `start` on, behind a header of header_n
    # bytes and an id field of id_n: parts to send (none: all is filtered out), which hold until
    # the next call with other arguments. *spent: work units.
    cdef Answer *answer(self, Node *node, uint32_t start, uint8_t flags, size_t header_n,
                        size_t id_n, uint64_t *spent) except NULL
    cdef int build(self, Answer *a, uint8_t flags, size_t head_n) except -1
    cdef int add_part(self, Answer *a, uint32_t first, uint32_t stop, size_t n,
                      uint8_t flags) except -1
    cdef void clear_answers(self) noexcept nogil
    # drops everything; nodes that nobody names any more are freed
    cdef void clear(self) noexcept nogil
