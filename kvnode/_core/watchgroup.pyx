"""Lists, the heap and the table in which the hub keeps its watchers.

Called by watchhub alone, which owns what is in them. A watcher is in up to four lists: its node's
(watchindex, the hub keeps it), its group's, its stream's, and a bucket of ids.

Invariants:
1. A watcher is in one group, or in none while it is parked (then the group's links are its
   stream's list of parked ones) or dead.
2. heap[i] is not above heap[2i + 1] and heap[2i + 2].
"""

from libc.stdlib cimport calloc, free, realloc

cdef enum:
    BUCKETS_MIN = 64


cdef void group_add(Group *g, Watcher *w) noexcept nogil:
    w.group = g
    w.group_prev = g.last
    w.group_next = NULL
    if g.last != NULL:
        g.last.group_next = w
    else:
        g.first = w
    g.last = w
    g.n += 1


cdef void group_drop(Group *g, Watcher *w) noexcept nogil:
    if w.group_prev != NULL:
        w.group_prev.group_next = w.group_next
    else:
        g.first = w.group_next
    if w.group_next != NULL:
        w.group_next.group_prev = w.group_prev
    else:
        g.last = w.group_prev
    w.group = NULL
    g.n -= 1


cdef void group_append(Group *to, Group *g) noexcept nogil:
    cdef Watcher *w = g.first
    if w == NULL:
        return
    while w != NULL:
        w.group = to
        w = w.group_next
    g.first.group_prev = to.last
    if to.last != NULL:
        to.last.group_next = g.first
    else:
        to.first = g.first
    to.last = g.last
    to.n += g.n
    g.first = NULL
    g.last = NULL
    g.n = 0


cdef void stream_add(Stream *s, Watcher *w) noexcept nogil:
    w.stream_prev = s.last
    if s.last != NULL:
        s.last.stream_next = w
    else:
        s.first = w
    s.last = w


cdef void stream_drop(Stream *s, Watcher *w) noexcept nogil:
    if w.stream_prev != NULL:
        w.stream_prev.stream_next = w.stream_next
    else:
        s.first = w.stream_next
    if w.stream_next != NULL:
        w.stream_next.stream_prev = w.stream_prev
    else:
        s.last = w.stream_prev


cdef class Heap:
    """Owns the groups that are in it."""

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.n):
            free(self.groups[i])
        free(self.groups)

    cdef int room(self) except -1:
        cdef Group **wider
        cdef size_t cap
        if self.n >= self.cap:
            cap = self.cap * 2 if self.cap else 64
            wider = <Group **> realloc(self.groups, cap * sizeof(Group *))
            if wider == NULL:
                raise MemoryError
            self.groups = wider
            self.cap = cap
        return 0

    cdef void push(self, Group *g) noexcept nogil:
        cdef size_t at = self.n, up
        self.n += 1
        while at:
            up = (at - 1) // 2
            if self.groups[up].cursor <= g.cursor:
                break
            self.groups[at] = self.groups[up]
            at = up
        self.groups[at] = g

    cdef Group *pop(self) noexcept nogil:
        cdef Group *top = self.groups[0]
        cdef Group *g
        cdef size_t at = 0, down
        self.n -= 1
        if self.n:
            g = self.groups[self.n]
            while True:
                down = 2 * at + 1
                if down >= self.n:
                    break
                if down + 1 < self.n and self.groups[down + 1].cursor < self.groups[down].cursor:
                    down += 1
                if self.groups[down].cursor >= g.cursor:
                    break
                self.groups[at] = self.groups[down]
                at = down
            self.groups[at] = g
        return top


cdef inline size_t id_slot(const Stream *s, int64_t id, size_t mask) noexcept nogil:
    cdef uint64_t h = (<uint64_t> <size_t> s >> 4) * <uint64_t>0x9E3779B97F4A7C15
    h = (h ^ <uint64_t> id) * <uint64_t>0xD6E8FEB86659FD93
    return <size_t> (h ^ (h >> 32)) & mask


cdef class Ids:
    """A chained hash table; the watchers are the hub's."""

    def __cinit__(self):
        self.buckets = <Watcher **> calloc(BUCKETS_MIN, sizeof(Watcher *))
        if self.buckets == NULL:
            raise MemoryError
        self.mask = BUCKETS_MIN - 1

    def __dealloc__(self):
        free(self.buckets)

    cdef Watcher *find(self, const Stream *s, int64_t id) noexcept nogil:
        cdef Watcher *w = self.buckets[id_slot(s, id, self.mask)]
        while w != NULL and not (w.id == id and w.stream == s):
            w = w.id_next
        return w

    cdef int add(self, Watcher *w) except -1:
        cdef Watcher **old = self.buckets
        cdef Watcher **wider
        cdef Watcher *item
        cdef Watcher *rest
        cdef size_t i, at, buckets = self.mask + 1
        if self.n > self.mask:
            wider = <Watcher **> calloc(buckets * 2, sizeof(Watcher *))
            if wider == NULL:
                raise MemoryError
            self.buckets = wider
            self.mask = buckets * 2 - 1
            for i in range(buckets):
                item = old[i]
                while item != NULL:
                    rest = item.id_next
                    at = id_slot(item.stream, item.id, self.mask)
                    item.id_next = self.buckets[at]
                    self.buckets[at] = item
                    item = rest
            free(old)
        at = id_slot(w.stream, w.id, self.mask)
        w.id_next = self.buckets[at]
        self.buckets[at] = w
        self.n += 1
        return 0

    cdef void drop(self, Watcher *w) noexcept nogil:
        cdef Watcher **link = &self.buckets[id_slot(w.stream, w.id, self.mask)]
        while link[0] != w:
            link = &link[0].id_next
        link[0] = w.id_next
        self.n -= 1
