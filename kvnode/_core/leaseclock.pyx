"""When leases end: the hot part of state/lessor.py, without a clock of its own.

Caller: state/lessor.py, which hands in microseconds of its own time. Inputs: rows of events and
stored leases (leases.pyx), keep-alives as arrays of ids. Outputs: times, and what is due.

A lease is a slot, found by a hash table, with one entry in a heap of expiries. Keep-alives only
move the slot's expiry: the heap's entry is looked at when its old time has come, and goes back in
with the new one. So a keep-alive costs a look-up and no heap work (0.03 us a lease of 100,000),
and each lease is touched in the heap once a TTL. Long leases have an entry in a second heap for
their checkpoints. Entries of leases that are gone are dropped when their time comes: a slot's
`life` counts its uses.

Arrays that go in and out are little-endian int64 or uint64 in bytes.

Invariants:
1. A lease that isn't being revoked has exactly one live entry in `expiries`, not later than its
   expiry.
2. A lease that is being revoked is not renewed: its keep-alives are answered with 0.
3. Before a keep-alive of a lease with a persisted remaining time is answered, that is cleared
   through the log: otherwise a crash would shorten the lease (`clears`).

Absent on purpose: pacing, pauses, proposals (state/lessor.py).
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memset

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from kvnode._core.buf cimport (
    kv_buf_free,
    kv_buf_grow,
    kv_buf_init,
    kv_load_u64,
    kv_slice,
    kv_store_u64,
)
from kvnode._core.leases cimport (
    LEASE_CHECKPOINTED,
    LEASE_GRANTED,
    LEASE_REVOKED,
    Lease,
    LeaseEvent,
    decode_lease_record,
)
from kvnode._core.records cimport REC_OK
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_LEASES
from kvnode._core.storetxn cimport ReadTxn

from kvnode.base.errors import CorruptionError, DiskError

cdef enum:
    REVOKING = 1          # flags: its revoke is proposed
    CLEARING = 2          # a checkpoint that clears `persisted` is proposed
    US = 1000000


# --- heaps ----------------------------------------------------------------------------------------

cdef int heap_push(Heap *h, int64_t at, uint32_t slot, uint32_t life) except -1:
    cdef size_t i, up, cap
    cdef Due *grown
    if h.n == h.cap:
        cap = h.cap * 2 if h.cap else 64
        grown = <Due *>realloc(h.dues, cap * sizeof(Due))
        if grown == NULL:
            raise MemoryError
        h.dues = grown
        h.cap = cap
    i = h.n
    h.n += 1
    while i > 0:
        up = (i - 1) // 2
        if h.dues[up].at <= at:
            break
        h.dues[i] = h.dues[up]
        i = up
    h.dues[i].at = at
    h.dues[i].slot = slot
    h.dues[i].life = life
    return 0


cdef Due heap_pop(Heap *h) noexcept nogil:
    cdef Due top = h.dues[0]
    cdef Due last
    cdef size_t i = 0, down
    h.n -= 1
    last = h.dues[h.n]
    while True:
        down = 2 * i + 1
        if down >= h.n:
            break
        if down + 1 < h.n and h.dues[down + 1].at < h.dues[down].at:
            down += 1
        if h.dues[down].at >= last.at:
            break
        h.dues[i] = h.dues[down]
        i = down
    h.dues[i] = last
    return top


# --- small helpers --------------------------------------------------------------------------------

cdef inline uint64_t mix(uint64_t id) noexcept nogil:
    """Ids come from clients: a multiplication and a fold spread even consecutive ones."""
    id = (id ^ (id >> 32)) * <uint64_t>0x9E3779B97F4A7C15u
    return id ^ (id >> 29)


cdef inline const uint8_t *bytes_at(bytes b) noexcept:
    return <const uint8_t *>PyBytes_AS_STRING(b)


cdef inline int64_t seconds_up(int64_t us) noexcept nogil:
    return (us + US - 1) // US if us > 0 else 0


ctypedef struct Ending:
    int64_t expiry
    uint64_t id


cdef int compare_endings(const void *a, const void *b) noexcept nogil:
    cdef const Ending *x = <const Ending *>a
    cdef const Ending *y = <const Ending *>b
    if x.expiry != y.expiry:
        return -1 if x.expiry < y.expiry else 1
    return -1 if x.id < y.id else 1


cdef class LeaseClock:
    """Leases by id. `checkpoint_seconds`: leases with more left are written down that often."""

    def __cinit__(self, long long checkpoint_seconds=300):
        self.point_us = checkpoint_seconds * US
        self.grow_table(64)

    def __dealloc__(self):
        free(self.slots)
        free(self.free_list)
        free(self.table)
        free(self.expiries.dues)
        free(self.points.dues)

    # --- the table

    cdef int grow_slots(self) except -1:
        cdef size_t cap = self.slots_cap * 2 if self.slots_cap else 64
        cdef Slot *slots = <Slot *>realloc(self.slots, cap * sizeof(Slot))
        cdef uint32_t *list
        if slots == NULL:
            raise MemoryError
        memset(&slots[self.slots_cap], 0, (cap - self.slots_cap) * sizeof(Slot))
        self.slots = slots
        list = <uint32_t *>realloc(self.free_list, cap * sizeof(uint32_t))
        if list == NULL:
            raise MemoryError
        self.free_list = list
        self.slots_cap = cap
        return 0

    cdef int grow_table(self, size_t size) except -1:
        cdef uint32_t *table = <uint32_t *>calloc(size, sizeof(uint32_t))
        cdef size_t i, at
        if table == NULL:
            raise MemoryError
        for i in range(self.slots_n):
            if self.slots[i].life & 1:
                at = mix(self.slots[i].id) & (size - 1)
                while table[at]:
                    at = (at + 1) & (size - 1)
                table[at] = <uint32_t>i + 1
        free(self.table)
        self.table = table
        self.mask = size - 1
        return 0

    cdef Slot *find(self, uint64_t id) noexcept nogil:
        cdef size_t at = mix(id) & self.mask
        cdef Slot *s
        while self.table[at]:
            s = &self.slots[self.table[at] - 1]
            if s.id == id:
                return s
            at = (at + 1) & self.mask
        return NULL

    cdef int add(self, uint64_t id, int64_t ttl, int64_t persisted, int64_t expiry,
                 int64_t now) except -1:
        """A new lease, or another one under the same id."""
        cdef size_t at
        cdef uint32_t i
        cdef Slot *s
        self.remove(id)
        if 2 * (self.count + 1) > self.mask + 1:
            self.grow_table(2 * (self.mask + 1))
        if self.free_n:
            self.free_n -= 1
            i = self.free_list[self.free_n]
        else:
            if self.slots_n == self.slots_cap:
                self.grow_slots()
            i = <uint32_t>self.slots_n
            self.slots_n += 1
        s = &self.slots[i]
        s.id = id
        s.expiry = expiry
        s.ttl = ttl
        s.persisted = persisted
        s.life += 1
        s.flags = 0
        at = mix(id) & self.mask
        while self.table[at]:
            at = (at + 1) & self.mask
        self.table[at] = i + 1
        self.count += 1
        heap_push(&self.expiries, expiry, i, s.life)
        if expiry - now > self.point_us:
            heap_push(&self.points, now + self.point_us, i, s.life)
        return 0

    cdef void remove(self, uint64_t id) noexcept nogil:
        cdef size_t at = mix(id) & self.mask, hole, home
        cdef uint32_t i
        while self.table[at] and self.slots[self.table[at] - 1].id != id:
            at = (at + 1) & self.mask
        if self.table[at] == 0:
            return
        i = self.table[at] - 1
        self.slots[i].life += 1
        self.free_list[self.free_n] = i
        self.free_n += 1
        self.count -= 1
        hole = at                    # what was pushed past the hole moves back into it
        while True:
            at = (at + 1) & self.mask
            if self.table[at] == 0:
                break
            home = mix(self.slots[self.table[at] - 1].id) & self.mask
            if ((at - home) & self.mask) >= ((at - hole) & self.mask):
                self.table[hole] = self.table[at]
                hole = at
        self.table[hole] = 0

    def clear(self):
        """No leases."""
        memset(self.table, 0, (self.mask + 1) * sizeof(uint32_t))
        if self.slots_n:
            memset(self.slots, 0, self.slots_n * sizeof(Slot))
        self.slots_n = self.free_n = self.count = 0
        self.expiries.n = self.points.n = 0

    # --- what is there

    def load(self, ReadTxn txn not None, bytes start not None, size_t count_max, int64_t now):
        """Stored leases from key `start` on, each with its remaining time from `now`.

        Returns where to go on, or None at the end. CorruptionError for a damaged lease.
        """
        cdef kv_slice key, val, at
        cdef Lease lease
        cdef int64_t id
        cdef size_t n = 0
        cdef void *cur
        cdef int st
        cdef object after = None
        txn.need()
        if txn.ops.cursor_open(txn.txn, TREE_LEASES, &cur) != ST_OK:
            raise DiskError("the leases could not be read")
        try:
            at.p = bytes_at(start)
            at.n = <size_t>PyBytes_GET_SIZE(start)
            st = txn.ops.cursor_seek(cur, at, &key, &val)
            while st == ST_OK:
                if n == count_max:
                    after = (<char *>key.p)[:key.n]
                    break
                if decode_lease_record(key, val, &id, &lease) != REC_OK:
                    raise CorruptionError("a stored lease is damaged (CRC or head)")
                self.add(<uint64_t>id, lease.ttl, lease.remaining,
                         now + (lease.remaining if lease.remaining else lease.ttl) * US, now)
                n += 1
                st = txn.ops.cursor_next(cur, &key, &val)
            if st != ST_OK and st != ST_NOTFOUND:
                raise DiskError("the leases could not be read")
        finally:
            txn.ops.cursor_close(cur)
        return after

    def told(self, bytes rows not None, size_t at, unsigned long long after_index, int64_t now):
        """Rows of LeaseEvent from offset `at` on; those up to `after_index` are known already.

        Returns how many leases were granted and how many revoked.
        """
        cdef const LeaseEvent *e = <const LeaseEvent *>(bytes_at(rows) + at)
        cdef size_t i, n = (<size_t>PyBytes_GET_SIZE(rows) - at) // sizeof(LeaseEvent)
        cdef size_t granted = 0, revoked = 0
        cdef Slot *s
        for i in range(n):
            if e[i].index <= after_index:
                continue
            if e[i].what == LEASE_GRANTED:
                self.add(e[i].id, e[i].ttl, e[i].remaining, now + e[i].ttl * US, now)
                granted += 1
            elif e[i].what == LEASE_REVOKED:
                self.remove(e[i].id)
                revoked += 1
            elif e[i].what == LEASE_CHECKPOINTED:
                s = self.find(e[i].id)
                if s != NULL:
                    s.persisted = e[i].remaining
                    s.flags &= ~<uint32_t>CLEARING
        return granted, revoked

    # --- keep-alives and questions

    def renew(self, bytes ids not None, size_t at, int64_t now, bint count=True):
        """Gives each lease its whole TTL from `now`: (granted TTLs, whether some must be cleared).

        0 stands for a lease that is gone or being revoked. See `clears`. `count`: in `renewed`.
        """
        cdef const uint8_t *p = bytes_at(ids) + at
        cdef size_t i, n = (<size_t>PyBytes_GET_SIZE(ids) - at) // 8
        cdef bytes out = PyBytes_FromStringAndSize(NULL, n * 8)
        cdef uint8_t *d = <uint8_t *>PyBytes_AS_STRING(out)
        cdef bint clear = False
        cdef uint64_t renewed = 0
        cdef Slot *s
        with nogil:
            for i in range(n):
                s = self.find(kv_load_u64(p + 8 * i))
                if s == NULL or s.flags & REVOKING:
                    kv_store_u64(d + 8 * i, 0)
                    continue
                if now + s.ttl * US > s.expiry:
                    s.expiry = now + s.ttl * US
                renewed += 1
                if s.persisted:
                    clear = True
                kv_store_u64(d + 8 * i, <uint64_t>s.ttl)
        if count:
            self.renewed += renewed
        return out, clear

    def clears(self, bytes ids not None, size_t at):
        """The leases among them whose persisted time must go and isn't on its way out yet."""
        cdef const uint8_t *p = bytes_at(ids) + at
        cdef size_t i, n = (<size_t>PyBytes_GET_SIZE(ids) - at) // 8
        cdef Slot *s
        found = []
        for i in range(n):
            s = self.find(kv_load_u64(p + 8 * i))
            if s != NULL and s.persisted and not s.flags & (REVOKING | CLEARING):
                s.flags |= CLEARING
                found.append(<int64_t>s.id)
        return found

    def times(self, bytes ids not None, size_t at, int64_t now):
        """(remaining, granted) seconds of each, as two int64; (-1, 0) for a lease that is gone."""
        cdef const uint8_t *p = bytes_at(ids) + at
        cdef size_t i, n = (<size_t>PyBytes_GET_SIZE(ids) - at) // 8
        cdef bytes out = PyBytes_FromStringAndSize(NULL, n * 16)
        cdef uint8_t *d = <uint8_t *>PyBytes_AS_STRING(out)
        cdef int64_t left
        cdef Slot *s
        for i in range(n):
            s = self.find(kv_load_u64(p + 8 * i))
            left = -1
            if s != NULL:
                left = (s.expiry - now) // US if s.expiry > now else 0
            kv_store_u64(d + 16 * i, <uint64_t>left)
            kv_store_u64(d + 16 * i + 8, <uint64_t>s.ttl if s != NULL else 0)
        return out

    cdef int sort_ids(self, kv_buf *out) except -1:
        cdef Ending *endings
        cdef size_t i, n = 0
        if kv_buf_grow(out, (self.count + 1) * sizeof(Ending)) == NULL:
            raise MemoryError
        endings = <Ending *>out.p
        for i in range(self.slots_n):
            if self.slots[i].life & 1:
                endings[n].expiry = self.slots[i].expiry
                endings[n].id = self.slots[i].id
                n += 1
        qsort(endings, n, sizeof(Ending), compare_endings)
        for i in range(n):
            kv_store_u64(out.p + 8 * i, endings[i].id)
        out.n = 8 * n
        return 0

    def ids(self):
        """All leases, those that end first before the others."""
        cdef kv_buf b
        kv_buf_init(&b)
        try:
            self.sort_ids(&b)
            return PyBytes_FromStringAndSize(<char *>b.p, b.n)
        finally:
            kv_buf_free(&b)

    # --- what is due

    def due(self, int64_t now, Py_ssize_t count_max):
        """Leases whose time is over: their revokes are taken as proposed from here on."""
        cdef Due top
        cdef Slot *s
        found = []
        while self.expiries.n and self.expiries.dues[0].at <= now and len(found) < count_max:
            top = heap_pop(&self.expiries)
            s = &self.slots[top.slot]
            if s.life != top.life:
                continue
            if s.expiry > now:
                heap_push(&self.expiries, s.expiry, top.slot, top.life)
                continue
            s.flags |= REVOKING
            found.append(<int64_t>s.id)
        return found

    def not_proposed(self, ids):
        """Revokes or clearing checkpoints of these leases were not taken: they are due again."""
        cdef Slot *s
        for id in ids:
            s = self.find(<uint64_t><int64_t>id)
            if s == NULL:
                continue
            s.flags &= ~<uint32_t>CLEARING
            if s.flags & REVOKING:
                s.flags &= ~<uint32_t>REVOKING
                heap_push(&self.expiries, s.expiry, <uint32_t>(s - self.slots), s.life)

    def checkpoints(self, int64_t now, Py_ssize_t count_max):
        """(id, remaining seconds) of long leases whose turn it is to be written down."""
        cdef int64_t left
        cdef Due top
        cdef Slot *s
        found = []
        while self.points.n and self.points.dues[0].at <= now and len(found) < count_max:
            top = heap_pop(&self.points)
            s = &self.slots[top.slot]
            if s.life != top.life or s.flags & REVOKING:
                continue
            left = seconds_up(s.expiry - now)
            if 0 < left < (s.persisted if s.persisted else s.ttl):
                # From here on, not only once it is applied: a keep-alive in between must clear it.
                s.persisted = left
                found.append((<int64_t>s.id, left))
            if s.ttl * US > self.point_us:
                heap_push(&self.points, now + self.point_us, top.slot, top.life)
        return found

    def all_checkpoints(self, int64_t now):
        """The same of every lease that has lost a second or more: for an orderly end."""
        cdef int64_t left
        cdef size_t i
        cdef Slot *s
        found = []
        for i in range(self.slots_n):
            s = &self.slots[i]
            if s.life & 1 and not s.flags & REVOKING:
                left = max(seconds_up(s.expiry - now), 1)
                if left < (s.persisted if s.persisted else s.ttl):
                    found.append((<int64_t>s.id, left))
        return found

    def next_due(self):
        """When to look again; None: nothing will be due."""
        at = self.expiries.dues[0].at if self.expiries.n else None
        if self.points.n and (at is None or self.points.dues[0].at < at):
            at = self.points.dues[0].at
        return at

    def check(self):
        """Invariant 1, for tests. AssertionError."""
        cdef size_t i, live = 0
        cdef Slot *s
        for i in range(self.slots_n):
            s = &self.slots[i]
            if s.life & 1:
                live += 1
                assert self.find(s.id) == s
        assert live == self.count
        seen = {}
        for i in range(self.expiries.n):
            s = &self.slots[self.expiries.dues[i].slot]
            if s.life == self.expiries.dues[i].life:
                assert self.expiries.dues[i].at <= s.expiry
                seen[s.id] = seen.get(s.id, 0) + 1
        for i in range(self.slots_n):
            s = &self.slots[i]
            if s.life & 1:
                assert seen.get(s.id, 0) == (0 if s.flags & REVOKING else 1)
