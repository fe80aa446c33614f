"""The apply loop: committed log entries in, results and a changed store out.

Called by state/machine.py, which the applier process drives. One call of apply takes several
committed entries and applies them in one write transaction of the store, together with the
applied index and term, the revision, the state hash, and every session it touched. Requests are
executed by requests.pyx and what lies below it, all of it without the GIL and without a Python
object per request.

Input: entries one after another, each u64 index, u64 term, u32 type, u32 length, data. An entry
of type 0 with data is a batch (layout in envelope.pyx); any other only moves the applied index.

TREE_META of the state machine, all u64 little-endian:

    "applied"  index, term
    "rev"      current revision; no key: 1
    "hash"     state hash
    "compact"  compact revision, cursor main, cursor sub (bit 63: AT_LIMIT), freed; no key: never
               compacted. `freed`: reads below it may miss records. Cursor and freed are local
    "alarms"   16 bytes each: u64 member, i32 alarm, u32 zero; sorted by alarm, member
    "cluster"  cluster id
    "authrev"  revision of users and roles; no key: 0

A group goes: window of its session (executed before: answered from the outcome), then the auth
revision, then its requests in order, then its outcome is kept. Whole-group refusals change
nothing. A batch with a malformed part is refused whole.

Invariants:
1. Entries come without gap: index = applied + 1, terms never fall. Anything else asserts.
2. All or nothing: after an error the transaction is aborted and the machine is dead; the process
   stops and opens anew. Memory is never ahead of the store across an error.
3. The state hash and everything that follows from the log are the same whatever the grouping of
   entries into calls, the freeing, and which member answers.
4. Results leave only for groups whose origin is this member.

Absent on purpose: clocks, randomness, disk, and decisions about when to free or to alarm.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset, strlen

from kvnode._core.buf cimport (
    kv_buf_clear,
    kv_buf_free,
    kv_buf_init,
    kv_buf_trim,
    kv_get_bytes,
    kv_load_u32,
    kv_load_u64,
    kv_put_bytes,
    kv_rd,
    kv_rd_init,
    kv_slice,
)
from kvnode._core.codes cimport (
    CODE_AUTH_OLD_REVISION,
    CODE_MALFORMED,
    CODE_OK,
    CODE_OUTCOME_UNKNOWN,
    CODE_PERMISSION_DENIED,
)
from kvnode._core.envelope cimport (
    ENV_GROUP_BYTES,
    ENV_ITEM,
    FLAG_CLIENT_SESSION,
    STATE_EXECUTED,
    STATE_REPEATED,
    Request,
    env_check_batch,
    env_code,
    env_next_group,
    env_next_request,
    env_read_head,
    env_requests,
    res_close,
    res_open,
    res_open_group,
    res_refuse_group,
)
from kvnode._core.etcdpb cimport RespHeader
from kvnode._core.freeing cimport free_slice, freeing_pending
from kvnode._core.meters cimport (
    M_COMPACT_REVISION,
    M_DELETES,
    M_PUTS,
    M_REVISION,
    meter_add,
    meter_applied,
    meter_forget,
    meter_now_ns,
    meter_request,
    meter_set,
)
from kvnode._core.outcomes cimport answer_outcome, outcome_requests
from kvnode._core.records cimport REC_CORRUPT, REC_FAILED, REC_NOMEM, REC_OK
from kvnode._core.requests cimport Alarm, alarms_changed, exec_free, exec_init, exec_request
from kvnode._core.sessions cimport (
    SESSION_CLIENT,
    SESSION_WINDOW,
    Session,
    session_admits,
    session_find,
    session_keep,
    session_outcome,
    session_touch,
    sessions_flush,
    sessions_load,
)
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_LEASES, TREE_META
from kvnode._core.writer cimport EVENT_MALFORMED, EVENT_OUTCOME, EVENT_REPEATED, fold_event

from kvnode.base.errors import ConfigError, CorruptionError, DiskError
from kvnode.base.limits import SESSIONS_PER_USER_MAX
from kvnode.base.limits import SESSION_WINDOW as WINDOW_OF_LIMITS

assert WINDOW_OF_LIMITS == SESSION_WINDOW

cdef enum:
    ENTRY_HEAD_BYTES = 24
    ENTRY_NORMAL = 0
    OUT_KEEP = 4 << 20         # result buffers above this are given back after use
    OUTS_KEEP = 64


# In the stored cursor sub: the cursor stands in the revision that its pass goes up to, so that
# tombstones there were looked at and kept.
cdef uint64_t AT_LIMIT = <uint64_t>1 << 63


# --- results --------------------------------------------------------------------------------------

cdef kv_buf *out_for(Loop *m, uint64_t incarnation) noexcept nogil:
    """The buffer of a gateway incarnation's results in this call; NULL: out of memory."""
    cdef Outbox *outs
    cdef size_t i, cap
    for i in range(m.outs_n):
        if m.outs[i].incarnation == incarnation:
            return &m.outs[i].buf
    if m.outs_n == m.outs_cap:
        cap = m.outs_cap * 2 if m.outs_cap else 8
        outs = <Outbox *>realloc(m.outs, cap * sizeof(Outbox))
        if outs == NULL:
            return NULL
        memset(&outs[m.outs_cap], 0, (cap - m.outs_cap) * sizeof(Outbox))
        m.outs = outs
        m.outs_cap = cap
    m.outs[m.outs_n].incarnation = incarnation
    m.outs_n += 1
    return &m.outs[m.outs_n - 1].buf


cdef void reset_outs(Loop *m) noexcept nogil:
    cdef size_t i
    for i in range(m.outs_n):
        kv_buf_trim(&m.outs[i].buf, OUT_KEEP if i < OUTS_KEEP else 0)
    m.outs_n = 0


# --- one group ------------------------------------------------------------------------------------

cdef inline void refuse(const Group *g, int code, kv_buf *out) noexcept nogil:
    if out != NULL:
        res_refuse_group(out, g.slot, g.incarnation, g.count, <uint8_t>code)


cdef int repeat(Loop *m, const Group *g, Session *s, kv_slice outcome, kv_buf *out) noexcept nogil:
    """Answers a group that was executed before, from its outcome."""
    cdef int64_t n = outcome_requests(outcome)
    cdef RespHeader h
    cdef size_t at
    cdef int rc
    if n < 0:
        return REC_CORRUPT
    if n != g.count:                    # the sequence was used again for something else
        refuse(g, CODE_MALFORMED, out)
        return REC_OK
    rc = session_touch(&m.x.sessions, s, g.lowest, m.x.index)
    if rc != REC_OK:
        return rc
    m.repeated += 1
    fold_event(&m.x.w.hash, EVENT_REPEATED, g.session, g.sequence, s.lowest, NULL, 0)
    if out != NULL:
        h.cluster_id = m.x.cluster
        h.member_id = m.x.member
        h.revision = 0
        h.raft_term = m.x.term
        at = res_open_group(out, g.slot, g.incarnation, STATE_REPEATED, 0)
        answer_outcome(&h, outcome, out, at)
    return REC_OK


cdef int execute(Loop *m, const Group *g, kv_buf *out) noexcept nogil:
    """The group's requests in order; its outcome is left in m.outcome."""
    cdef size_t at = 0, mark = 0
    cdef uint32_t left
    cdef Request q
    cdef kv_rd r
    cdef int code, rc
    kv_buf_clear(&m.outcome)
    if out != NULL:
        at = res_open_group(out, g.slot, g.incarnation, STATE_EXECUTED, 0)
    env_requests(g, &r, &left)
    while env_next_request(&r, &left, &q) == ENV_ITEM:
        if out != NULL:
            mark = res_open(out, at, q.kind)
        rc = exec_request(&m.x, &q, g.user, out, &m.outcome, &code)
        if rc != REC_OK:
            return rc
        if m.answering:
            meter_request(q.kind, code)
        if out != NULL:
            res_close(out, at, mark, <uint8_t>code)
    return REC_OK


cdef int keep(Loop *m, const Group *g, Session *s) noexcept nogil:
    cdef kv_slice outcome
    cdef int rc
    outcome.p = m.outcome.p
    outcome.n = m.outcome.n
    rc = session_keep(&m.x.sessions, s, g.sequence, g.lowest, m.x.index, outcome)
    fold_event(&m.x.w.hash, EVENT_OUTCOME, g.session, g.sequence, s.lowest, outcome.p, outcome.n)
    return rc


cdef int apply_group(Loop *m, const Group *g) noexcept nogil:
    cdef kv_buf *out = NULL
    cdef Session *s
    cdef kv_slice outcome
    cdef int code, rc
    m.groups += 1
    if m.answering and g.member == m.x.member:
        out = out_for(m, g.incarnation)
        if out == NULL:
            return REC_NOMEM
    if g.session:
        s = session_find(&m.x.sessions, g.session)
        if s == NULL:
            refuse(g, CODE_OUTCOME_UNKNOWN, out)
            return REC_OK
        if s.user != g.user or (s.flags & SESSION_CLIENT) != (g.flags & FLAG_CLIENT_SESSION):
            refuse(g, CODE_PERMISSION_DENIED, out)
            return REC_OK
        code = session_admits(s, g.sequence, g.lowest)
        if code != CODE_OK:
            refuse(g, code, out)
            return REC_OK
        if m.window and session_outcome(s, g.sequence, &outcome):
            return repeat(m, g, s, outcome, out)
    if g.auth_revision < m.auth_revision:
        refuse(g, CODE_AUTH_OLD_REVISION, out)
        return REC_OK
    rc = execute(m, g, out)
    if rc == REC_OK and g.session:
        s = session_find(&m.x.sessions, g.session)      # a request may have closed it
        if s != NULL:
            rc = keep(m, g, s)
    if rc == REC_OK and out != NULL and out.err:
        return REC_NOMEM
    return rc


# --- one entry ------------------------------------------------------------------------------------

cdef int refuse_entry(Loop *m, const uint8_t *p, size_t n, int code) noexcept nogil:
    """A batch with a malformed part: nothing is executed; origins that can be read hear so."""
    cdef uint64_t size
    cdef size_t at = 8
    cdef kv_buf *out
    m.malformed += 1
    fold_event(&m.x.w.hash, EVENT_MALFORMED, m.x.index, 0, 0, NULL, 0)
    while m.answering and n >= at and n - at >= ENV_GROUP_BYTES:
        size = ENV_GROUP_BYTES + <uint64_t>kv_load_u32(p + at + 8)
        if kv_load_u64(p + at + 40) == m.x.member:
            out = out_for(m, kv_load_u64(p + at + 48))
            if out == NULL:
                return REC_NOMEM
            res_refuse_group(out, kv_load_u32(p + at + 56), kv_load_u64(p + at + 48),
                             kv_load_u32(p + at + 4), <uint8_t>code)
        at += size
    return REC_OK


cdef int apply_batch(Loop *m, const uint8_t *p, size_t n) noexcept nogil:
    cdef uint64_t requests
    cdef uint32_t left
    cdef Group g
    cdef kv_rd r
    cdef int rc
    rc = env_check_batch(p, n, &left, &requests)
    if rc != ENV_ITEM:
        return refuse_entry(m, p, n, env_code(rc))
    kv_rd_init(&r, p, n)
    env_read_head(&r, &left)
    while env_next_group(&r, &left, &g) == ENV_ITEM:
        rc = apply_group(m, &g)
        if rc != REC_OK:
            return rc
    return REC_OK


cdef bint entries_fit(const Loop *m, const uint8_t *p, size_t n) noexcept nogil:
    """Invariant 1, before anything is touched."""
    cdef uint64_t index = m.applied_index, term = m.applied_term
    cdef const uint8_t *head
    cdef kv_rd r
    kv_rd_init(&r, p, n)
    while r.p < r.end:
        head = kv_get_bytes(&r, ENTRY_HEAD_BYTES)
        if head == NULL or kv_load_u64(head) != index + 1 or kv_load_u64(head + 8) < term:
            return 0
        if kv_get_bytes(&r, kv_load_u32(head + 20)) == NULL:
            return 0
        index += 1
        term = kv_load_u64(head + 8)
    return 1


cdef int apply_entries(Loop *m, const uint8_t *p, size_t n) noexcept nogil:
    """In an open transaction; entries_fit holds."""
    cdef const uint8_t *end = p + n
    cdef uint32_t size
    cdef int rc
    while p < end:
        size = kv_load_u32(p + 20)
        m.x.index = kv_load_u64(p)
        m.x.term = kv_load_u64(p + 8)
        if kv_load_u32(p + 16) == ENTRY_NORMAL and size:
            rc = apply_batch(m, p + ENTRY_HEAD_BYTES, size)
            if rc != REC_OK:
                return rc
        m.applied_index = m.x.index
        m.applied_term = m.x.term
        m.entries += 1
        p += ENTRY_HEAD_BYTES + size
    return REC_OK


# --- TREE_META ------------------------------------------------------------------------------------

cdef int put_meta(Loop *m, const char *name, const void *p, size_t n) noexcept nogil:
    cdef kv_slice key, val
    key.p = <const uint8_t *>name
    key.n = strlen(name)
    val.p = <const uint8_t *>p
    val.n = n
    return REC_OK if m.x.w.ops.put(m.x.w.txn, TREE_META, key, val) == ST_OK else REC_FAILED


cdef int get_meta(Loop *m, const char *name, kv_slice *val) noexcept nogil:
    """An absent key is an empty value."""
    cdef kv_slice key
    cdef int st
    key.p = <const uint8_t *>name
    key.n = strlen(name)
    st = m.x.w.ops.get(m.x.w.txn, TREE_META, key, val)
    if st == ST_NOTFOUND:
        val.n = 0
        return REC_OK
    return REC_OK if st == ST_OK else REC_FAILED


cdef int get_numbers(Loop *m, const char *name, uint64_t *numbers, size_t n,
                     bint *found) noexcept nogil:
    cdef kv_slice val
    cdef size_t i
    cdef int rc = get_meta(m, name, &val)
    found[0] = 0
    if rc != REC_OK or val.n == 0:
        return rc
    if val.n != n * 8:
        return REC_CORRUPT
    for i in range(n):
        numbers[i] = kv_load_u64(val.p + i * 8)
    found[0] = 1
    return REC_OK


cdef int store_compact(Loop *m) noexcept nogil:
    cdef uint64_t row[4]
    row[0] = <uint64_t>m.x.w.compacted
    row[1] = m.x.cursor_main
    row[2] = m.x.cursor_sub
    if m.x.cursor_main == m.x.pass_limit:
        row[2] |= AT_LIMIT
    row[3] = m.x.freed
    m.x.compact_dirty = 0
    return put_meta(m, "compact", row, sizeof(row))


cdef int store_heads(Loop *m) noexcept nogil:
    """What every transaction of apply ends with."""
    cdef uint64_t row[2]
    cdef int rc
    row[0] = m.applied_index
    row[1] = m.applied_term
    rc = put_meta(m, "applied", row, 16)
    if rc == REC_OK:
        row[0] = <uint64_t>m.x.w.revision
        rc = put_meta(m, "rev", row, 8)
    if rc == REC_OK:
        rc = put_meta(m, "hash", &m.x.w.hash, 8)
    if rc == REC_OK and m.x.compact_dirty:
        rc = store_compact(m)
    if rc == REC_OK and m.x.alarms_dirty:
        m.x.alarms_dirty = 0
        rc = put_meta(m, "alarms", m.x.alarms.p, m.x.alarms.n)
    if rc == REC_OK:
        rc = sessions_flush(&m.x.sessions, m.x.w.ops, m.x.w.txn)
    return rc


cdef int load_heads(Loop *m) noexcept nogil:
    cdef uint64_t row[4]
    cdef kv_slice val
    cdef bint found
    cdef int rc = get_numbers(m, "applied", row, 2, &found)
    if rc == REC_OK and found:
        m.applied_index = row[0]
        m.applied_term = row[1]
    if rc == REC_OK:
        rc = get_numbers(m, "rev", row, 1, &found)
        if rc == REC_OK and found:
            m.x.w.revision = <int64_t>row[0]
    if rc == REC_OK:
        rc = get_numbers(m, "hash", row, 1, &found)
        if rc == REC_OK and found:
            m.x.w.hash = row[0]
    if rc == REC_OK:
        rc = get_numbers(m, "authrev", row, 1, &found)
        if rc == REC_OK and found:
            m.auth_revision = row[0]
    if rc == REC_OK:
        rc = get_numbers(m, "compact", row, 4, &found)
        if rc == REC_OK and found:
            m.x.w.compacted = <int64_t>row[0]
            m.x.cursor_main = row[1]
            m.x.cursor_sub = <uint32_t>row[2]
            m.x.pass_limit = row[1] if row[2] & AT_LIMIT else 0
            m.x.freed = row[3]
    if rc == REC_OK:
        rc = get_meta(m, "alarms", &val)
        if rc == REC_OK and val.n % sizeof(Alarm):
            rc = REC_CORRUPT
    if rc == REC_OK:
        kv_put_bytes(&m.x.alarms, val.p, val.n)
        alarms_changed(&m.x)
        rc = REC_NOMEM if m.x.alarms.err else sessions_load(&m.x.sessions, m.x.w.ops, m.x.w.txn)
    return rc


# --- transactions of the store --------------------------------------------------------------------

cdef int apply_open(Loop *m, const uint8_t *p, size_t n) noexcept nogil:
    """Leaves the transaction open, ready for its commit; not after an error."""
    cdef int rc
    if m.x.w.ops.begin_write(m.x.w.ops.env, &m.x.w.txn) != ST_OK:
        return REC_FAILED
    rc = apply_entries(m, p, n)
    if rc == REC_OK:
        rc = store_heads(m)
    if rc != REC_OK:
        m.x.w.ops.abort(m.x.w.txn)
    return rc


cdef int apply_close(Loop *m) noexcept nogil:
    return REC_OK if m.x.w.ops.commit(m.x.w.txn) == ST_OK else REC_FAILED


cdef int free_all(Loop *m, uint64_t limit, uint64_t budget) noexcept nogil:
    cdef int rc
    if m.x.w.ops.begin_write(m.x.w.ops.env, &m.x.w.txn) != ST_OK:
        return REC_FAILED
    rc = free_slice(&m.x, limit, budget)
    if rc == REC_OK:
        rc = store_compact(m)
    if rc != REC_OK:
        m.x.w.ops.abort(m.x.w.txn)
        return rc
    return REC_OK if m.x.w.ops.commit(m.x.w.txn) == ST_OK else REC_FAILED


cdef class Machine:
    """The state machine over a store. Not thread-safe; Blocking: as the store's transactions."""

    def __cinit__(self, Store store not None, unsigned long long member_id,
                  unsigned long long cluster_id, *, bint window=True,
                  unsigned int sessions_per_user=SESSIONS_PER_USER_MAX):
        self.store = store
        self.loop = <Loop *>calloc(1, sizeof(Loop))
        if self.loop == NULL:
            raise MemoryError
        if exec_init(&self.loop.x, &store.ops, sessions_per_user) != REC_OK:
            raise MemoryError
        self.loop.x.member = member_id
        self.loop.x.cluster = cluster_id
        self.loop.window = window
        kv_buf_init(&self.loop.outcome)
        self.load(cluster_id)

    def __dealloc__(self):
        cdef size_t i
        if self.loop == NULL:
            return
        for i in range(self.loop.outs_cap):
            kv_buf_free(&self.loop.outs[i].buf)
        free(self.loop.outs)
        kv_buf_free(&self.loop.outcome)
        exec_free(&self.loop.x)
        free(self.loop)

    def load(self, unsigned long long cluster_id):
        """Reads the state; on an empty store writes the cluster id."""
        cdef Loop *m = self.loop
        cdef uint64_t stored
        cdef bint found
        cdef int rc
        if m.x.w.ops.begin_write(m.x.w.ops.env, &m.x.w.txn) != ST_OK:
            self.fail(REC_FAILED, "opening the state")
        rc = load_heads(m)
        if rc == REC_OK:
            rc = get_numbers(m, "cluster", &stored, 1, &found)
        if rc == REC_OK and found:
            m.x.w.ops.abort(m.x.w.txn)
            if stored != cluster_id:
                raise ConfigError(
                    f"this state belongs to cluster {stored:x}, not to {cluster_id:x}"
                )
            return
        if rc == REC_OK:
            stored = cluster_id
            rc = put_meta(m, "cluster", &stored, 8)
        if rc != REC_OK:
            m.x.w.ops.abort(m.x.w.txn)
            self.fail(rc, "opening the state")
        if m.x.w.ops.commit(m.x.w.txn) != ST_OK:
            self.fail(REC_FAILED, "opening the state")

    cdef int check(self) except -1:
        if self.why != REC_OK:
            self.fail(self.why, f"applying entry {self.loop.x.index}")
        if self.dead:
            raise DiskError("the state machine stopped after an error; open the store anew")
        return 0

    cdef int fail(self, int rc, str doing) except -1:
        cdef const char *text
        self.dead = True
        if rc == REC_CORRUPT:
            raise CorruptionError(f"stored state is damaged, found while {doing}")
        if rc == REC_NOMEM:
            raise MemoryError
        text = self.store.ops.last_error(self.store.ops.env)
        raise DiskError(f"{doing}: {text.decode('utf-8', 'replace') if text else 'store failed'}")

    def apply(self, const unsigned char[::1] entries not None, bint answer=True):
        """Applies committed entries in one transaction; returns [(incarnation, results)].

        `entries` as in the module's preamble, at least one. With `answer` false nothing is
        encoded (a start that applies again what was answered before it).
        Errors: AssertionError (gap, nothing applied), CorruptionError, DiskError, MemoryError;
        after the latter three the machine is dead.
        """
        cdef Loop *m = self.loop
        cdef const unsigned char *p
        cdef size_t i, n = entries.shape[0]
        cdef int rc
        self.check()
        if n == 0:
            return []
        p = &entries[0]
        if not entries_fit(m, p, n):
            raise AssertionError(f"entries don't continue applied index {m.applied_index}")
        m.answering = answer
        with nogil:
            rc = self.run(p, n)
        if rc != REC_OK:
            self.fail(rc, f"applying entry {m.x.index}")
        return [
            (m.outs[i].incarnation, (<char *>m.outs[i].buf.p)[:m.outs[i].buf.n])
            for i in range(m.outs_n) if m.outs[i].buf.n
        ]

    cdef int run(self, const uint8_t *p, size_t n) noexcept nogil:
        """One transaction of entries that fit, with its counters; REC_OK or why not."""
        cdef int rc = self.run_open(p, n)
        return self.run_close() if rc == REC_OK else rc

    cdef int run_open(self, const uint8_t *p, size_t n) noexcept nogil:
        cdef Loop *m = self.loop
        cdef int rc
        self.began = meter_now_ns()
        self.puts = m.x.w.puts
        self.deletes = m.x.w.deletes
        self.index = m.applied_index
        self.term = m.applied_term
        reset_outs(m)
        kv_buf_trim(&m.x.leases, OUT_KEEP)
        rc = apply_open(m, p, n)
        if rc != REC_OK:
            meter_forget()
        return rc

    cdef int run_close(self) noexcept nogil:
        cdef Loop *m = self.loop
        cdef int rc = apply_close(m)
        if rc != REC_OK:
            meter_forget()
        elif m.answering:
            meter_add(M_PUTS, m.x.w.puts - self.puts)
            meter_add(M_DELETES, m.x.w.deletes - self.deletes)
            meter_set(M_REVISION, <uint64_t>m.x.w.revision)
            meter_set(M_COMPACT_REVISION,
                      <uint64_t>m.x.w.compacted if m.x.w.compacted > 0 else 0)
            meter_applied(meter_now_ns() - self.began)
        return rc

    cdef int lone_open(self, const uint8_t *p, size_t n) noexcept nogil:
        """`apply` for a fast lane, but for its commit: REC_OK, the results are in `loop.outs`."""
        self.loop.answering = 1
        return self.lone_verdict(self.run_open(p, n))

    cdef int lone_close(self) noexcept nogil:
        """The commit of what `lone_open` did."""
        return self.lone_verdict(self.run_close())

    cdef void lone_abort(self) noexcept nogil:
        """Undoes what `lone_open` did to the store. Memory can't be undone: the machine is dead,
        and one that is loaded anew takes its place."""
        self.loop.x.w.ops.abort(self.loop.x.w.txn)
        meter_forget()
        self.lone_verdict(REC_FAILED)

    cdef int lone_verdict(self, int rc) noexcept nogil:
        """After an error nothing is changed but that the machine is dead; it says why at the next
        call."""
        if rc != REC_OK:
            self.loop.applied_index = self.index
            self.loop.applied_term = self.term
            self.dead = True
            self.why = rc
        return rc

    def free_some(self, unsigned long long budget, lowest_reading=None):
        """One slice of freeing, about `budget` records; True: there is more to do.

        `lowest_reading`: the lowest revision that is still being read on this node, or None.
        """
        cdef Loop *m = self.loop
        cdef uint64_t limit = 0
        cdef int rc
        self.check()
        if m.x.w.compacted <= 0:
            return False
        limit = <uint64_t>m.x.w.compacted
        if lowest_reading is not None and lowest_reading < limit:
            limit = lowest_reading
        if not freeing_pending(&m.x, limit):
            return False
        with nogil:
            rc = free_all(m, limit, budget if budget else 1)
        if rc != REC_OK:
            self.fail(rc, f"freeing at revision {m.x.cursor_main}")
        return bool(freeing_pending(&m.x, limit))

    @property
    def lease_events(self):
        """LeaseEvent rows (leases.pxd) of what the last call of apply did to leases."""
        cdef Loop *m = self.loop
        return (<char *>m.x.leases.p)[:m.x.leases.n] if m.x.leases.n else b""

    def lease_count(self):
        """Leases that are there. Blocking: a read transaction."""
        cdef const Loop *m = self.loop
        cdef uint64_t n
        cdef void *txn
        self.check()
        if m.x.w.ops.begin_read(m.x.w.ops.env, &txn) != ST_OK:
            self.fail(REC_FAILED, "counting leases")
        n = m.x.w.ops.entries(txn, TREE_LEASES)
        m.x.w.ops.end_read(txn)
        return n

    @property
    def applied_index(self):
        return self.loop.applied_index

    @property
    def applied_term(self):
        return self.loop.applied_term

    @property
    def revision(self):
        return self.loop.x.w.revision

    @property
    def compact_revision(self):
        """-1: never compacted."""
        return self.loop.x.w.compacted

    @property
    def freed_revision(self):
        """Reads below it may miss records."""
        return self.loop.x.freed

    @property
    def state_hash(self):
        return self.loop.x.w.hash

    @property
    def session_count(self):
        return self.loop.x.sessions.count

    @property
    def alarms(self):
        """(alarm, member) pairs, sorted."""
        cdef const Alarm *list = <const Alarm *>self.loop.x.alarms.p
        return [(list[i].alarm, list[i].member)
                for i in range(self.loop.x.alarms.n // sizeof(Alarm))]

    @property
    def counters(self):
        """Since the machine was opened."""
        cdef Loop *m = self.loop
        return {
            "entries": m.entries, "groups": m.groups, "repeated": m.repeated,
            "malformed": m.malformed, "puts": m.x.w.puts, "deletes": m.x.w.deletes,
        }

    def used_bytes(self):
        """Bytes of the store's live pages, what the quota counts. Blocking: a read transaction."""
        cdef const Loop *m = self.loop
        cdef uint64_t used
        cdef void *txn
        self.check()
        if m.x.w.ops.begin_read(m.x.w.ops.env, &txn) != ST_OK:
            self.fail(REC_FAILED, "reading the store's size")
        used = m.x.w.ops.used_bytes(txn)
        m.x.w.ops.end_read(txn)
        return used
