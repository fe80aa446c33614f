"""Sessions: the windows of outcomes that make a repeated request harmless.

Called by machine.pyx for every group and by requests.pyx for opens and closes. All open sessions
live in memory; one that was touched is written to TREE_SESSIONS once per transaction.

TREE_SESSIONS: key = session id u64 BE, value:

    0  u8  version = 1          8  u64 lowest open sequence     32 u32 n
    1  u8  flags: 1 a client's  16 u64 highest sequence seen    36 n of u64 sequence, u32 length,
    2  u16 zero                 24 u64 log index of last use       outcome, by rising sequence
    4  u32 user

An outcome is the outcomes of the group's requests one after another; requests.pyx has their form.

Example: session 7 of user 1, sequence 1 answered with outcome 00 02 02 (a put at revision 2):

    01 01 0000 01000000 0100000000000000 0100000000000000 0500000000000000 01000000
    0100000000000000 03000000 000202

Invariants:
1. Every stored outcome has lowest <= sequence < lowest + SESSION_WINDOW.
2. What is here follows from the log alone; last_index is a log index, not a time.
3. At most per_user_max sessions of clients a user (the least recently used goes, by last_index,
   then id), and as many gateways' sessions in all (none goes; opening one more is refused).
4. The memory equals the tree after each flush.

Absent on purpose: time. A session ends by CLOSE, or by a newer one of its user.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from kvnode._core.buf cimport (
    kv_buf_clear,
    kv_buf_free,
    kv_buf_init,
    kv_buf_trim,
    kv_get_bytes,
    kv_get_u8,
    kv_get_u16,
    kv_get_u32,
    kv_get_u64,
    kv_load_be64,
    kv_load_u64,
    kv_put_bytes,
    kv_put_u8,
    kv_put_u16,
    kv_put_u32,
    kv_put_u64,
    kv_rd,
    kv_rd_init,
    kv_rd_left,
    kv_store_be64,
)
from kvnode._core.codes cimport (
    CODE_MALFORMED,
    CODE_OK,
    CODE_OUTCOME_UNKNOWN,
    CODE_PERMISSION_DENIED,
    CODE_TOO_MANY_SESSIONS,
    CODE_WINDOW_EXCEEDED,
)
from kvnode._core.records cimport REC_CORRUPT, REC_FAILED, REC_NOMEM, REC_OK
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_SESSIONS
from kvnode._core.writer cimport EVENT_CLOSE, EVENT_EVICT, EVENT_OPEN, fold_event

cdef enum:
    RECORD_VERSION = 1
    RECORD_HEAD = 36
    SLOTS_MIN = 8
    TABLE_MIN = 64
    SCRATCH_KEEP = 1 << 20


cdef int sessions_init(Sessions *s, uint32_t per_user_max) noexcept nogil:
    memset(s, 0, sizeof(Sessions))
    kv_buf_init(&s.dirty)
    kv_buf_init(&s.removed)
    kv_buf_init(&s.record)
    s.per_user_max = per_user_max
    s.table = <Session **>calloc(TABLE_MIN, sizeof(Session *))
    s.mask = TABLE_MIN - 1
    return REC_OK if s.table != NULL else REC_NOMEM


cdef void free_session(Session *s) noexcept nogil:
    cdef uint32_t i
    for i in range(s.cap):
        free(s.slots[i].p)
    free(s.slots)
    free(s)


cdef void sessions_free(Sessions *s) noexcept nogil:
    cdef size_t i
    if s.table != NULL:
        for i in range(s.mask + 1):
            if s.table[i] != NULL:
                free_session(s.table[i])
    free(s.table)
    s.table = NULL
    kv_buf_free(&s.dirty)
    kv_buf_free(&s.removed)
    kv_buf_free(&s.record)


# --- the table ------------------------------------------------------------------------------------

cdef inline size_t home(const Sessions *s, uint64_t id) noexcept nogil:
    id ^= id >> 33
    id *= <uint64_t>0xFF51AFD7ED558CCDu
    id ^= id >> 33
    return <size_t>id & s.mask


cdef Session *session_find(const Sessions *s, uint64_t id) noexcept nogil:
    cdef size_t i = home(s, id)
    while s.table[i] != NULL:
        if s.table[i].id == id:
            return s.table[i]
        i = (i + 1) & s.mask
    return NULL


cdef void place(Sessions *s, Session *one) noexcept nogil:
    cdef size_t i = home(s, one.id)
    while s.table[i] != NULL:
        i = (i + 1) & s.mask
    s.table[i] = one


cdef int add(Sessions *s, Session *one) noexcept nogil:
    cdef Session **old = s.table
    cdef size_t i, n = s.mask + 1
    if (s.count + 1) * 2 > n:
        s.table = <Session **>calloc(n * 2, sizeof(Session *))
        if s.table == NULL:
            s.table = old
            return REC_NOMEM
        s.mask = n * 2 - 1
        for i in range(n):
            if old[i] != NULL:
                place(s, old[i])
        free(old)
    place(s, one)
    s.count += 1
    return REC_OK


cdef void take_out(Sessions *s, uint64_t id) noexcept nogil:
    """Removes the id's entry and moves those behind it up, so that no search ends early."""
    cdef size_t i = home(s, id), j, want
    while s.table[i].id != id:
        i = (i + 1) & s.mask
    free_session(s.table[i])
    s.table[i] = NULL
    s.count -= 1
    j = (i + 1) & s.mask
    while s.table[j] != NULL:
        want = home(s, s.table[j].id)
        if ((j - want) & s.mask) >= ((j - i) & s.mask):
            s.table[i] = s.table[j]
            s.table[j] = NULL
            i = j
        j = (j + 1) & s.mask


cdef int mark(Sessions *all, Session *s) noexcept nogil:
    if s.dirty:
        return REC_OK
    s.dirty = 1
    kv_put_u64(&all.dirty, s.id)
    return REC_NOMEM if all.dirty.err else REC_OK


cdef int remove(Sessions *s, uint64_t id) noexcept nogil:
    take_out(s, id)
    kv_put_u64(&s.removed, id)
    return REC_NOMEM if s.removed.err else REC_OK


# --- open and close -------------------------------------------------------------------------------

cdef Session *oldest_peer(const Sessions *s, uint32_t user, bint gateway,
                          size_t *peers) noexcept nogil:
    """Sessions that count towards the same bound, and the one of them used longest ago."""
    cdef Session *found = NULL
    cdef Session *one
    cdef size_t i
    peers[0] = 0
    for i in range(s.mask + 1):
        one = s.table[i]
        if one == NULL or (one.flags & SESSION_CLIENT == 0) != gateway:
            continue
        if not gateway and one.user != user:
            continue
        peers[0] += 1
        if (found == NULL or one.last_index < found.last_index
                or (one.last_index == found.last_index and one.id < found.id)):
            found = one
    return found


cdef int session_open(Sessions *s, uint64_t id, uint32_t user, bint gateway, uint64_t index,
                      uint64_t *state_hash, int *code) noexcept nogil:
    cdef Session *one = session_find(s, id)
    cdef size_t peers
    cdef int rc
    if id == 0:
        code[0] = CODE_MALFORMED
        return REC_OK
    if one != NULL:
        if one.user != user or (one.flags & SESSION_CLIENT == 0) != gateway:
            code[0] = CODE_PERMISSION_DENIED
        return REC_OK
    one = oldest_peer(s, user, gateway, &peers)
    if peers >= s.per_user_max:
        if gateway:
            code[0] = CODE_TOO_MANY_SESSIONS
            return REC_OK
        fold_event(state_hash, EVENT_EVICT, one.id, 0, 0, NULL, 0)
        rc = remove(s, one.id)
        if rc != REC_OK:
            return rc
    one = <Session *>calloc(1, sizeof(Session))
    if one == NULL:
        return REC_NOMEM
    one.id = id
    one.user = user
    one.flags = 0 if gateway else SESSION_CLIENT
    one.lowest = 1
    one.last_index = index
    rc = add(s, one)
    if rc != REC_OK:
        free(one)
        return rc
    fold_event(state_hash, EVENT_OPEN, id, user, gateway, NULL, 0)
    return mark(s, one)


cdef int session_close(Sessions *s, uint64_t id, uint32_t user, uint64_t *state_hash,
                       int *code) noexcept nogil:
    cdef Session *one = session_find(s, id)
    if one == NULL:
        return REC_OK
    if one.user != user:
        code[0] = CODE_PERMISSION_DENIED
        return REC_OK
    fold_event(state_hash, EVENT_CLOSE, id, 0, 0, NULL, 0)
    return remove(s, id)


# --- the window -----------------------------------------------------------------------------------

cdef int session_admits(const Session *s, uint64_t sequence, uint64_t lowest) noexcept nogil:
    if lowest < s.lowest:
        lowest = s.lowest
    if sequence < lowest:
        return CODE_OUTCOME_UNKNOWN
    return CODE_OK if sequence - lowest < SESSION_WINDOW else CODE_WINDOW_EXCEEDED


cdef bint session_outcome(const Session *s, uint64_t sequence, kv_slice *outcome) noexcept nogil:
    cdef const Slot *slot
    if s.cap == 0:
        return 0
    slot = &s.slots[sequence & (s.cap - 1)]
    if slot.p == NULL or slot.sequence != sequence:
        return 0
    outcome.p = slot.p
    outcome.n = slot.n
    return 1


cdef void drop(Session *s, Slot *slot) noexcept nogil:
    free(slot.p)
    slot.p = NULL
    s.used -= 1


cdef void drop_below(Session *s, uint64_t lowest) noexcept nogil:
    cdef uint64_t sequence = s.lowest
    cdef Slot *slot
    cdef uint32_t i
    s.lowest = lowest
    if s.used == 0:
        return
    if lowest - sequence >= s.cap:
        for i in range(s.cap):
            if s.slots[i].p != NULL and s.slots[i].sequence < lowest:
                drop(s, &s.slots[i])
        return
    while sequence < lowest:
        slot = &s.slots[sequence & (s.cap - 1)]
        if slot.p != NULL and slot.sequence == sequence:
            drop(s, slot)
        sequence += 1


cdef int widen(Session *s, uint64_t sequence) noexcept nogil:
    """Makes the ring long enough to hold both the lowest open sequence and this one."""
    cdef uint64_t cap = s.cap if s.cap else SLOTS_MIN
    cdef Slot *slots
    cdef uint32_t i
    while cap < sequence - s.lowest + 1:
        cap *= 2
    if cap == s.cap:
        return REC_OK
    slots = <Slot *>calloc(cap, sizeof(Slot))
    if slots == NULL:
        return REC_NOMEM
    for i in range(s.cap):
        if s.slots[i].p != NULL:
            slots[s.slots[i].sequence & (cap - 1)] = s.slots[i]
    free(s.slots)
    s.slots = slots
    s.cap = <uint32_t>cap
    return REC_OK


cdef int session_touch(Sessions *all, Session *s, uint64_t lowest, uint64_t index) noexcept nogil:
    s.last_index = index
    if lowest > s.lowest:
        drop_below(s, lowest)
    return mark(all, s)


cdef int put_slot(Session *s, uint64_t sequence, kv_slice outcome) noexcept nogil:
    cdef Slot *slot
    cdef uint8_t *copy
    cdef int rc = widen(s, sequence)
    if rc != REC_OK:
        return rc
    copy = <uint8_t *>malloc(outcome.n + 1)
    if copy == NULL:
        return REC_NOMEM
    if outcome.n:
        memcpy(copy, outcome.p, outcome.n)
    slot = &s.slots[sequence & (s.cap - 1)]
    if slot.p != NULL:                  # only with the window switched off
        drop(s, slot)
    slot.sequence = sequence
    slot.p = copy
    slot.n = <uint32_t>outcome.n
    s.used += 1
    if sequence > s.highest:
        s.highest = sequence
    return REC_OK


cdef int session_keep(Sessions *all, Session *s, uint64_t sequence, uint64_t lowest,
                      uint64_t index, kv_slice outcome) noexcept nogil:
    cdef int rc = session_touch(all, s, lowest, index)
    return put_slot(s, sequence, outcome) if rc == REC_OK else rc


# --- the tree -------------------------------------------------------------------------------------

cdef int encode(kv_buf *b, const Session *s) noexcept nogil:
    cdef uint64_t sequence = s.lowest
    cdef const Slot *slot
    cdef uint32_t left = s.used
    kv_buf_clear(b)
    kv_put_u8(b, RECORD_VERSION)
    kv_put_u8(b, s.flags)
    kv_put_u16(b, 0)
    kv_put_u32(b, s.user)
    kv_put_u64(b, s.lowest)
    kv_put_u64(b, s.highest)
    kv_put_u64(b, s.last_index)
    kv_put_u32(b, s.used)
    while left:
        slot = &s.slots[sequence & (s.cap - 1)]
        if slot.p != NULL and slot.sequence == sequence:
            kv_put_u64(b, sequence)
            kv_put_u32(b, slot.n)
            kv_put_bytes(b, slot.p, slot.n)
            left -= 1
        sequence += 1
    return REC_NOMEM if b.err else REC_OK


cdef int flush_one(Sessions *s, const kv_store *ops, void *txn, uint64_t id) noexcept nogil:
    cdef Session *one = session_find(s, id)
    cdef uint8_t room[8]
    cdef kv_slice key, val
    cdef int rc
    if one == NULL or not one.dirty:
        return REC_OK
    rc = encode(&s.record, one)
    if rc != REC_OK:
        return rc
    one.dirty = 0
    kv_store_be64(room, id)
    key.p = room
    key.n = 8
    val.p = s.record.p
    val.n = s.record.n
    return REC_OK if ops.put(txn, TREE_SESSIONS, key, val) == ST_OK else REC_FAILED


cdef int sessions_flush(Sessions *s, const kv_store *ops, void *txn) noexcept nogil:
    cdef uint8_t room[8]
    cdef kv_slice key
    cdef size_t at
    cdef int rc
    key.p = room
    key.n = 8
    for at in range(0, s.removed.n, 8):
        kv_store_be64(room, kv_load_u64(s.removed.p + at))
        rc = ops.delete(txn, TREE_SESSIONS, key)
        if rc != ST_OK and rc != ST_NOTFOUND:
            return REC_FAILED
    for at in range(0, s.dirty.n, 8):
        rc = flush_one(s, ops, txn, kv_load_u64(s.dirty.p + at))
        if rc != REC_OK:
            return rc
    kv_buf_clear(&s.removed)
    kv_buf_clear(&s.dirty)
    kv_buf_trim(&s.record, SCRATCH_KEEP)
    return REC_OK


cdef int decode(Session *s, kv_slice val) noexcept nogil:
    cdef kv_slice outcome
    cdef uint64_t sequence
    cdef uint32_t n, _i
    cdef kv_rd r
    cdef int rc
    kv_rd_init(&r, val.p, val.n)
    if kv_get_u8(&r) != RECORD_VERSION:
        return REC_CORRUPT
    s.flags = kv_get_u8(&r)
    kv_get_u16(&r)
    s.user = kv_get_u32(&r)
    s.lowest = kv_get_u64(&r)
    s.highest = kv_get_u64(&r)
    s.last_index = kv_get_u64(&r)
    n = kv_get_u32(&r)
    if r.bad or n > SESSION_WINDOW or s.flags & ~SESSION_CLIENT:
        return REC_CORRUPT
    for _i in range(n):
        sequence = kv_get_u64(&r)
        outcome.n = kv_get_u32(&r)
        outcome.p = kv_get_bytes(&r, outcome.n)
        if r.bad or sequence < s.lowest or sequence - s.lowest >= SESSION_WINDOW:
            return REC_CORRUPT
        rc = put_slot(s, sequence, outcome)
        if rc != REC_OK:
            return rc
    return REC_OK if kv_rd_left(&r) == 0 and s.used == n else REC_CORRUPT


cdef int sessions_load(Sessions *s, const kv_store *ops, void *txn) noexcept nogil:
    cdef void *cur
    cdef kv_slice key, val
    cdef Session *one
    cdef int st, rc = REC_OK
    if ops.cursor_open(txn, TREE_SESSIONS, &cur) != ST_OK:
        return REC_FAILED
    st = ops.cursor_first(cur, &key, &val)
    while st == ST_OK and rc == REC_OK:
        if key.n != 8:
            rc = REC_CORRUPT
            break
        one = <Session *>calloc(1, sizeof(Session))
        if one == NULL:
            rc = REC_NOMEM
            break
        one.id = kv_load_be64(key.p)
        rc = decode(one, val)
        if rc == REC_OK:
            rc = add(s, one)
        if rc != REC_OK:
            free_session(one)
            break
        st = ops.cursor_next(cur, &key, &val)
    ops.cursor_close(cur)
    if rc == REC_OK and st != ST_NOTFOUND:
        return REC_FAILED
    return rc
