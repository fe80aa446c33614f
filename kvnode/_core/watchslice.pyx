"""A slice of the watch hub: events read in one pass, whom they concern, and the answers.

Called by watchhub alone. Reading adds events (encoded once, one behind another in one buffer) and
notes for each node which of them it gets: its *hits*, a chain. Sending asks for the answer to
watchers of one node: the events from some hit on as one Shared tail, kept for the next watcher of
equal wishes; so 1,000 watchers of a prefix cost one copy of the events.

Invariants:
1. Events are in order of (main, sub), and so are a node's hits.
2. prev_kv is the key as a read at mod_revision - 1 sees it, and is left out when that revision is
   below the compact revision.
3. Fragments are cut where etcd cuts them: a part takes events until the whole message, its
   fragment field included, reaches fragment_bytes, but at least one.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from kvnode._core.buf cimport kv_buf_free, kv_buf_init, kv_buf_trim, kv_slice
from kvnode._core.calls cimport PREFIX_BYTES, shared_drop, shared_new
from kvnode._core.records cimport (
    REC_NOMEM,
    REC_NONE,
    REC_OK,
    REC_TOMBSTONE,
    finish_record,
    read_head,
)
from kvnode._core.watchgroup cimport W_FRAGMENT, W_NODELETE, W_NOPUT, W_PREV, W_VARIANTS
from kvnode._core.watchindex cimport node_free
from kvnode._core.watchpb cimport put_watch_event

cdef enum:
    WORK_BYTES = 512
    BYTES_KEPT = 1 << 20     # of buffers, between slices
    ITEMS_KEPT = 16384


cdef inline bint passes(const Event *e, uint8_t flags) noexcept nogil:
    return not (flags & (W_NODELETE if e.deleted else W_NOPUT))


cdef class Slice:
    """fragment_bytes: a response of a `fragment` watcher is split from this size on."""

    def __cinit__(self, size_t fragment_bytes):
        self.fragment_bytes = fragment_bytes
        kv_buf_init(&self.bytes)
        kv_buf_init(&self.scratch)
        kv_buf_init(&self.scratch_prev)

    def __dealloc__(self):
        cdef size_t i
        self.clear()
        for i in range(<size_t> W_VARIANTS):
            free(self.answers[i].parts)
        free(self.events)
        free(self.hits)
        kv_buf_free(&self.bytes)
        kv_buf_free(&self.scratch)
        kv_buf_free(&self.scratch_prev)

    cdef void clear(self) noexcept nogil:
        cdef Node *node
        self.clear_answers()
        while True:
            node = self.take_touched()
            if node == NULL:
                break
            if node.refs == 0:
                node_free(node)
        self.events_n = 0
        self.hits_n = 0
        if self.events_cap > ITEMS_KEPT:
            free(self.events)
            self.events = NULL
            self.events_cap = 0
        if self.hits_cap > ITEMS_KEPT * 4:
            free(self.hits)
            self.hits = NULL
            self.hits_cap = 0
        kv_buf_trim(&self.bytes, BYTES_KEPT)
        kv_buf_trim(&self.scratch, BYTES_KEPT)
        kv_buf_trim(&self.scratch_prev, BYTES_KEPT)

    # --- reading --------------------------------------------------------------------------------

    cdef int add(self, const kv_store *ops, void *txn, Record *rec, bint prevs,
                 int64_t compacted) noexcept nogil:
        """Appends the event to `bytes`, and its form with prev_kv if that differs."""
        cdef Event *e
        cdef Record before
        cdef kv_slice none
        cdef void *wider
        cdef size_t cap
        cdef int rc = finish_record(ops, txn, rec, &self.scratch)
        if rc != REC_OK:
            return rc
        if self.events_n == self.events_cap:
            cap = self.events_cap * 2 if self.events_cap else 256
            wider = realloc(self.events, cap * sizeof(Event))
            if wider == NULL or self.events_n >= 0xFFFFFFF0u:
                return REC_NOMEM
            self.events = <Event *> wider
            self.events_cap = cap
        e = &self.events[self.events_n]
        self.events_n += 1
        none.p = NULL
        none.n = 0
        e.main = <int64_t> rec.main
        e.deleted = (rec.flags & REC_TOMBSTONE) != 0
        e.at = self.bytes.n
        put_watch_event(&self.bytes, e.deleted, rec.kv, none)
        e.n = self.bytes.n - e.at
        e.prev_at = e.at
        e.prev_n = e.n
        if not prevs or <int64_t> rec.main - 1 < compacted:
            return REC_OK
        # as a read at main - 1 sees the key
        before.main = rec.prev_main
        before.sub = rec.prev_sub
        while True:
            if before.main == 0:
                return REC_OK
            rc = read_head(ops, txn, before.main, before.sub, &before)
            if rc == REC_NONE:
                return REC_OK             # a tombstone that was freed
            if rc != REC_OK:
                return rc
            if before.main < rec.main:
                break
            before.main = before.prev_main
            before.sub = before.prev_sub
        if before.flags & REC_TOMBSTONE:
            return REC_OK
        rc = finish_record(ops, txn, &before, &self.scratch_prev)
        if rc != REC_OK:
            return rc
        e.prev_at = self.bytes.n
        put_watch_event(&self.bytes, e.deleted, rec.kv, before.kv)
        e.prev_n = self.bytes.n - e.prev_at
        return REC_OK

    cdef bint touch(self, Node *node) noexcept nogil:
        cdef void *wider
        cdef size_t cap
        cdef uint32_t at
        if self.hits_n == self.hits_cap:
            cap = self.hits_cap * 2 if self.hits_cap else 256
            wider = realloc(self.hits, cap * sizeof(Hit))
            if wider == NULL or self.hits_n >= NO_HIT - 1:
                return False
            self.hits = <Hit *> wider
            self.hits_cap = cap
        at = <uint32_t> self.hits_n
        self.hits_n += 1
        self.hits[at].event = <uint32_t> (self.events_n - 1)
        self.hits[at].next = NO_HIT
        if node.touched:
            self.hits[node.hit_last].next = at
        else:
            node.touched = True
            node.touched_next = NULL
            node.hit_first = at
            if self.touched_last != NULL:
                self.touched_last.touched_next = node
            else:
                self.touched = node
            self.touched_last = node
        node.hit_last = at
        return True

    # --- sending --------------------------------------------------------------------------------

    cdef Node *take_touched(self) noexcept nogil:
        cdef Node *node = self.touched
        if node != NULL:
            self.touched = node.touched_next
            if self.touched == NULL:
                self.touched_last = NULL
            node.touched = False
        return node

    cdef uint32_t hit_from(self, const Node *node, int64_t since, uint32_t *steps) noexcept nogil:
        cdef uint32_t hit = node.hit_first
        steps[0] = 0
        while hit != NO_HIT and self.events[self.hits[hit].event].main < since:
            hit = self.hits[hit].next
            steps[0] += 1
        return hit

    cdef Answer *answer(self, Node *node, uint32_t start, uint8_t flags, size_t header_n,
                        size_t id_n, uint64_t *spent) except NULL:
        cdef uint8_t variant = flags & (W_VARIANTS - 1)
        cdef Answer *a = &self.answers[variant]
        cdef size_t i
        if not variant & W_FRAGMENT:
            id_n = 0                      # only fragments are cut by size
        if a.node == node and a.start == start and a.id_n == id_n:
            return a
        for i in range(a.n):
            shared_drop(a.parts[i])
        a.n = 0
        a.node = node
        a.start = start
        a.id_n = id_n
        self.build(a, variant, header_n + id_n)
        for i in range(a.n):
            spent[0] += a.parts[i].n // WORK_BYTES
        return a

    cdef int build(self, Answer *a, uint8_t flags, size_t head_n) except -1:
        """One part, or with `fragment` as many as etcd would make of it."""
        cdef uint32_t hit = a.start, first = NO_HIT
        cdef size_t total = 0, n = 0, size
        cdef Event *e
        while hit != NO_HIT:
            e = &self.events[self.hits[hit].event]
            if passes(e, flags):
                total += e.prev_n if flags & W_PREV else e.n
                n += 1
                if first == NO_HIT:
                    first = hit
            hit = self.hits[hit].next
        a.events = n
        if n == 0:
            return 0
        if not flags & W_FRAGMENT or n < 2 or head_n + total < self.fragment_bytes:
            return self.add_part(a, first, NO_HIT, total, flags)
        total = 0
        n = 0
        hit = first
        while hit != NO_HIT:
            e = &self.events[self.hits[hit].event]
            if passes(e, flags):
                size = e.prev_n if flags & W_PREV else e.n
                if n and head_n + 2 + total + size >= self.fragment_bytes:
                    self.add_part(a, first, hit, total, flags)
                    first = hit
                    total = 0
                    n = 0
                total += size
                n += 1
            hit = self.hits[hit].next
        return self.add_part(a, first, NO_HIT, total, flags)

    cdef int add_part(self, Answer *a, uint32_t first, uint32_t stop, size_t n,
                      uint8_t flags) except -1:
        cdef Shared **wider
        cdef Shared *m
        cdef uint8_t *d
        cdef Event *e
        cdef size_t cap
        if a.n == a.cap:
            cap = a.cap * 2 if a.cap else 1
            wider = <Shared **> realloc(a.parts, cap * sizeof(Shared *))
            if wider == NULL:
                raise MemoryError
            a.parts = wider
            a.cap = cap
        m = shared_new(n)
        if m == NULL:
            raise MemoryError
        d = m.data + PREFIX_BYTES
        while first != stop:
            e = &self.events[self.hits[first].event]
            if passes(e, flags):
                if flags & W_PREV:
                    memcpy(d, self.bytes.p + e.prev_at, e.prev_n)
                    d += e.prev_n
                else:
                    memcpy(d, self.bytes.p + e.at, e.n)
                    d += e.n
            first = self.hits[first].next
        a.parts[a.n] = m
        a.n += 1
        return 0

    cdef void clear_answers(self) noexcept nogil:
        cdef Answer *a
        cdef size_t i, k
        for i in range(<size_t> W_VARIANTS):
            a = &self.answers[i]
            a.node = NULL
            for k in range(a.n):
                shared_drop(a.parts[k])
            a.n = 0
