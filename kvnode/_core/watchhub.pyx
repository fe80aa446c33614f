"""The watch hub: reads events out of TREE_REVS and gives them to all watchers of a gateway.

Called by watchcalls, which owns the requests of clients; a gateway's loop calls its `turn` after
every word of the applier's. Inputs: snapshots (RangeReader), streams and watchers. Outputs:
WatchResponses into the streams of a Calls.

A *cursor* is the next main revision that somebody is owed. Watchers of equal cursor are a group.
The group at the head reads what is new; lagging, new and resumed watchers are groups in a heap by
cursor. Both are served by the same loop, a *slice* at a time: read records from the lowest cursor
on, find the nodes of watchers that each key concerns (watchindex), encode each event once, then
send. A lag slice serves every group whose cursor lies in what it read, and all of them leave it
as one group, so 10,000 watchers resumed at as many revisions cost one pass; a group that reaches
the head's cursor joins it.

    watcher:  AT_LAG --slices--> AT_HEAD       PARKED --room--> AT_LAG or AT_HEAD
              AT_HEAD, AT_LAG --its stream is full--> PARKED
              any --compacted or damaged--> DEAD --client cancels--> gone

Events of a slice are bytes in one buffer. What watchers of one node and equal wishes are sent is
one Shared tail; a few bytes before it (header, watch id) are each one's own.

Invariants:
1. A watcher gets each event of its interest with revision >= its start once, in order of (main,
   sub), and all events of a main revision in one slice. A slice ends between main revisions; only
   with `fragment` one response does not.
2. Whom a slice serves is fixed when it begins reading: groups made later wait (Group.stamp), and
   watchers that join the head meanwhile begin behind it (Watcher.first).
3. The compact revision is read in the snapshot of the slice. A lagging cursor below it ends its
   watchers; equal is served. Watchers at the head saw all up to their cursor: they are ended only
   if freeing, too, has passed it. A pass under way is given up the same way.
4. prev_kv is given only if mod_revision - 1 >= the compact revision.
5. A full stream (room <= 0) gets no event: its watcher is parked at the cursor it had. So a stream
   holds at most its room, one slice's answer a watcher at most beyond it, and control responses.
6. Progress R is sent only when the head's cursor is R + 1, no slice of the head is under way, and
   the watchers it speaks for are at the head.
7. Downcalls into Calls make no upcalls.

Absent on purpose: clocks, permissions, who asks for a turn.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from kvnode._core.buf cimport (
    kv_buf,
    kv_buf_free,
    kv_buf_init,
    kv_slice_cmp,
    kv_varint_size,
    kv_varint_write,
)
from kvnode._core.etcdpb cimport put_header
from kvnode._core.records cimport (
    REC_CORRUPT,
    REC_FAILED,
    REC_KEY_BYTES,
    REC_NOMEM,
    REC_OK,
    Record,
    decode_record,
    decode_record_key,
    key_of_kv,
    record_key,
)
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_REVS, kv_store
from kvnode._core.watchgroup cimport (
    AT_HEAD,
    AT_LAG,
    DEAD,
    PARKED,
    W_FRAGMENT,
    W_NODELETE,
    W_NOPUT,
    W_PREV,
    W_PROGRESS,
    W_QUIET,
    group_add,
    group_append,
    group_drop,
    stream_add,
    stream_drop,
)
from kvnode._core.watchindex cimport (
    NODE_FROM,
    NODE_KEY,
    NODE_RANGE,
    found_free,
    node_free,
)
from kvnode._core.watchpb cimport (
    FILTER_NODELETE,
    FILTER_NOPUT,
    WatchHead,
    put_watch_head,
)
from kvnode._core.watchslice cimport NO_HIT, Answer

from kvnode.base.errors import CorruptionError, DiskError

cdef enum:
    IDLE = 0
    SCAN = 1
    SEND = 2

    SCAN_MORE = 64           # beside REC_*: paused inside a main revision
    WORK_RECORD = 3          # in units of 100 ns, as ranges.pyx counts
    WORK_SEND = 3
    WORK_BYTES = 512


cdef bytes DAMAGED = b"etcdserver: corrupt cluster"


cdef inline Watcher *watcher(void *p) noexcept nogil:
    return <Watcher *> p


cdef inline size_t id_field_size(int64_t id) noexcept nogil:
    return 1 + kv_varint_size(<uint64_t> id) if id else 0


cdef class WatchHub:
    """All watchers of one gateway.

    seed: of the hash tables and of the progress ticks' jitter. slice_work: units of about 100 ns,
    slice_bytes: of events, that a slice reads before it ends at the next main revision.
    fragment_bytes: a response of a `fragment` watcher is split from this size on.
    progress_us: interval of progress_notify. watchers_max, interest_bytes_max (of their keys):
    more are refused.
    """

    def __cinit__(self, Calls calls not None, *, unsigned long long seed=0,
                  unsigned long long slice_work=10_000, size_t slice_bytes=1 << 18,
                  size_t fragment_bytes=1 << 21, unsigned long long progress_us=600_000_000,
                  size_t watchers_max=1_000_000, size_t interest_bytes_max=1 << 28):
        self.calls = calls
        self.index = Index(seed)
        self.dice = seed ^ 0x2545F4914F6CDD1D
        self.slice_work = slice_work
        self.slice_bytes = slice_bytes
        self.slice = Slice(fragment_bytes)
        self.lagging = Heap()
        self.ids = Ids()
        self.progress_us = progress_us
        self.watchers_max = watchers_max
        self.interest_bytes_max = interest_bytes_max
        self.next_due = 0xFFFFFFFFFFFFFFFF
        self.head.cursor = 2
        self.head.taken = True
        self.turn_side = AT_HEAD

    def __dealloc__(self):
        cdef Group *g
        if self.ids is not None and self.index is not None and self.slice is not None:
            while self.streams != NULL:
                self.close(self.streams)
        if self.node != NULL and self.node.refs == 0:
            node_free(self.node)
        while self.taken != NULL:
            g = self.taken
            self.taken = g.next_taken
            free(g)
        found_free(&self.found)

    def identify(self, unsigned long long cluster, unsigned long long member):
        """What response headers say."""
        self.identity.cluster_id = cluster
        self.identity.member_id = member

    def set_term(self, unsigned long long term):
        self.identity.raft_term = term

    @property
    def watchers(self):
        """Watchers that can still get events."""
        return self.alive

    @property
    def stream_count(self):
        return self.streams_n

    @property
    def slow(self):
        """Watchers that are not at the head: they lag, or their stream is full."""
        return self.alive - self.head.n

    @property
    def pending(self):
        """Main revisions that the watchers at the head have not been given."""
        cdef int64_t behind = self.revision + 1 - self.head.cursor
        return behind if behind > 0 and self.head.n else 0

    @property
    def lowest(self):
        """The lowest cursor that is being read; None without any. Freeing does not wait for it."""
        if self.lagging.n and (not self.head.n or self.lagging.groups[0].cursor < self.head.cursor):
            return self.lagging.groups[0].cursor
        return self.head.cursor if self.head.n else None

    @property
    def next_due_us(self):
        """When a turn is due for progress notifications; None without a stream that wants any."""
        return None if self.next_due == 0xFFFFFFFFFFFFFFFFu else self.next_due

    # --- streams and ids ------------------------------------------------------------------------

    cdef int look(self, RangeReader reader, uint64_t now_us) except -1:
        """Takes note of the reader's snapshot, a new one if it has none."""
        cdef int rc = REC_OK if reader.txn != NULL else reader.refresh_c()
        if rc == REC_CORRUPT:
            raise CorruptionError("the store's heads are damaged")
        if rc != REC_OK:
            raise DiskError("no snapshot of the store")
        self.reader = reader
        self.now_us = now_us
        self.revision = <int64_t> reader.heads.revision
        self.compacted = <int64_t> reader.heads.compacted
        self.freed = <int64_t> reader.heads.freed
        if self.head.n == 0 and not (self.phase != IDLE and self.side == AT_HEAD):
            self.head.cursor = self.revision + 1
        return 0

    cdef Stream *open(self, Call call) except NULL:
        cdef Stream *s = <Stream *> calloc(1, sizeof(Stream))
        if s == NULL:
            raise MemoryError
        s.call = call
        s.next = self.streams
        if s.next != NULL:
            s.next.prev = s
        self.streams = s
        self.streams_n += 1
        return s

    cdef int close(self, Stream *s) except -1:
        """Forgets the stream and its watchers. The caller has taken it out of its own lists."""
        cdef Watcher *w = s.first
        cdef Watcher *rest
        while w != NULL:
            rest = w.stream_next
            self.kill(w)
            self.ids.drop(w)
            free(w)
            w = rest
        if s.prev != NULL:
            s.prev.next = s.next
        else:
            self.streams = s.next
        if s.next != NULL:
            s.next.prev = s.prev
        self.streams_n -= 1
        kv_buf_free(&s.inbox)
        free(s)
        return 0

    # --- creation and end of watchers -----------------------------------------------------------

    cdef int create(self, Stream *s, const WatchReq *q, int64_t *id) except -1:
        """A watcher as etcd's watchStream.Watch makes it; MADE_*, and its id."""
        cdef kv_slice end = q.range_end
        cdef int kind = NODE_KEY
        cdef Watcher *w
        if end.n == 1 and end.p[0] == 0:
            kind = NODE_FROM
        elif end.n:
            kind = NODE_RANGE
            if kv_slice_cmp(q.key, end) >= 0:
                return MADE_EMPTY_RANGE
        if q.watch_id == 0:
            while self.ids.find(s, s.next_id) != NULL:
                s.next_id += 1
            id[0] = s.next_id
        elif self.ids.find(s, q.watch_id) != NULL:
            return MADE_DUPLICATE
        else:
            id[0] = q.watch_id
        if self.ids.n >= self.watchers_max or (
            self.interest_bytes + q.key.n + end.n > self.interest_bytes_max
        ):
            return MADE_TOO_MANY
        if q.watch_id == 0:
            s.next_id += 1
        w = <Watcher *> calloc(1, sizeof(Watcher))
        if w == NULL:
            raise MemoryError
        w.stream = s
        w.id = id[0]
        w.start = q.start_revision
        w.state = DEAD
        w.flags = ((W_PREV if q.prev_kv else 0) | (W_FRAGMENT if q.fragment else 0)
                   | (W_NOPUT if q.filters & FILTER_NOPUT else 0)
                   | (W_NODELETE if q.filters & FILTER_NODELETE else 0)
                   | (W_PROGRESS | W_QUIET if q.progress_notify else 0))
        w.node = self.index.get(q.key, end, kind)
        if w.node == NULL:
            free(w)
            raise MemoryError
        w.node.refs += 1
        self.interest_bytes += w.node.key.n + w.node.end.n
        if q.prev_kv:
            w.node.prevs += 1
        self.ids.add(w)
        stream_add(s, w)
        s.alive += 1
        self.alive += 1
        if w.start > s.start_max:
            s.start_max = w.start
        if q.progress_notify:
            s.progress_n += 1
            if s.due_us == 0:
                s.due_us = self.now_us + self.interval()
                if s.due_us < self.next_due:
                    self.next_due = s.due_us
        w.first = w.start if w.start else self.revision + 1
        self.lag_from(w, w.first)
        return MADE

    cdef bint cancel(self, Stream *s, int64_t id) except -1:
        """The client's cancel; False when there is no such watcher."""
        cdef Watcher *w = self.ids.find(s, id)
        if w == NULL:
            return False
        self.kill(w)
        self.ids.drop(w)
        stream_drop(s, w)
        free(w)
        return True

    cdef void enter_node(self, Watcher *w, int side) noexcept nogil:
        cdef Node *node = w.node
        w.state = side
        w.node_prev = watcher(node.last[side])
        w.node_next = NULL
        if w.node_prev != NULL:
            w.node_prev.node_next = w
        else:
            node.first[side] = w
        node.last[side] = w
        if side == AT_HEAD:
            w.stream.at_head += 1

    cdef void leave_node(self, Watcher *w) noexcept nogil:
        cdef Node *node = w.node
        if self.at == w:
            self.at = w.node_next
        if w.node_prev != NULL:
            w.node_prev.node_next = w.node_next
        else:
            node.first[w.state] = w.node_next
        if w.node_next != NULL:
            w.node_next.node_prev = w.node_prev
        else:
            node.last[w.state] = w.node_prev
        if w.state == AT_HEAD:
            w.stream.at_head -= 1

    cdef void leave(self, Watcher *w) noexcept nogil:
        """Out of its node's list and its group, or out of its stream's parked ones."""
        cdef Stream *s = w.stream
        if w.state == PARKED:
            if w.group_prev != NULL:
                w.group_prev.group_next = w.group_next
            else:
                s.parked_first = w.group_next
            if w.group_next != NULL:
                w.group_next.group_prev = w.group_prev
            else:
                s.parked_last = w.group_prev
        elif w.state != DEAD:
            self.leave_node(w)
            group_drop(w.group, w)

    cdef void release_node(self, Watcher *w) noexcept nogil:
        cdef Node *node = w.node
        w.node = NULL
        self.interest_bytes -= node.key.n + node.end.n
        if w.flags & W_PREV:
            node.prevs -= 1
        node.refs -= 1
        if node.refs == 0:
            self.index.unlink(node)
            # one that the slice still names is freed when the slice lets go of it
            if not node.touched and node != self.node:
                node_free(node)

    cdef void kill(self, Watcher *w) noexcept nogil:
        """It gets nothing any more; its id stays."""
        if w.state == DEAD:
            return
        self.leave(w)
        self.release_node(w)
        w.state = DEAD
        w.stream.alive -= 1
        self.alive -= 1
        if w.flags & W_PROGRESS:
            w.stream.progress_n -= 1

    cdef void park(self, Watcher *w, int64_t cursor) noexcept nogil:
        cdef Stream *s = w.stream
        self.leave(w)
        w.state = PARKED
        w.cursor = cursor
        w.group_next = NULL
        w.group_prev = s.parked_last
        if s.parked_last != NULL:
            s.parked_last.group_next = w
        else:
            s.parked_first = w
        s.parked_last = w

    cdef int on_room(self, Stream *s) except -1:
        """Its parked watchers go on from where they were."""
        cdef Watcher *w
        while s.parked_first != NULL:
            w = s.parked_first
            self.leave(w)
            w.state = DEAD
            w.first = w.cursor
            self.lag_from(w, w.cursor)
        return 0

    cdef int64_t open_limit(self) noexcept nogil:
        """From this revision on no slice of the head under way has looked."""
        if self.side == AT_HEAD:
            if self.phase == SCAN:
                return self.limit
            if self.phase == SEND:
                return self.end
        return self.head.cursor

    cdef void join_head(self, Watcher *w) noexcept nogil:
        self.enter_node(w, AT_HEAD)
        group_add(&self.head, w)

    cdef int lag_from(self, Watcher *w, int64_t cursor) except -1:
        """Into the head's group if that has not passed `cursor`, else a group of this cursor."""
        cdef Group *g
        cdef size_t at
        if cursor >= self.open_limit():
            self.join_head(w)
            return 0
        # Often many come with one cursor, one after another.
        at = self.lagging.n
        while at and at + 2 > self.lagging.n:
            at -= 1
            g = self.lagging.groups[at]
            if g.cursor == cursor and (self.phase == IDLE or g.stamp == self.stamp):
                self.enter_node(w, AT_LAG)
                group_add(g, w)
                return 0
        self.lagging.room()
        g = <Group *> calloc(1, sizeof(Group))
        if g == NULL:
            raise MemoryError
        g.cursor = cursor
        g.stamp = self.stamp
        self.enter_node(w, AT_LAG)
        group_add(g, w)
        self.lagging.push(g)
        return 0

    cdef void group_to_head(self, Group *g) noexcept nogil:
        cdef Watcher *w = g.first
        while w != NULL:
            self.leave_node(w)
            self.enter_node(w, AT_HEAD)
            if w.first < g.cursor:
                w.first = g.cursor
            w = w.group_next
        group_append(&self.head, g)
        free(g)

    cdef int end_group(self, Group *g, int64_t compact_revision, bytes reason) except -1:
        """Cancels all of a group: their history is gone, or damaged."""
        cdef Watcher *w = g.first
        cdef Watcher *rest
        while w != NULL:
            rest = w.group_next
            if compact_revision and w.first >= compact_revision:
                w = rest                  # at the head: it waits for what is still to come
                continue
            self.kill(w)
            # etcd's header has no revision here: there is none that the watcher has seen.
            self.control(w.stream, 0, w.id, False, True, compact_revision, reason)
            if compact_revision:
                self.compacted_away += 1
            w = rest
        return 0

    # --- a slice: reading -----------------------------------------------------------------------

    cdef void begin_scan(self, int side, int64_t begin, int64_t limit) noexcept nogil:
        self.phase = SCAN
        self.side = side
        self.begin = begin
        self.limit = limit
        self.scan_main = begin
        self.scan_sub = 0
        self.slice_spent = 0
        self.stamp += 1

    cdef bint begin_head(self) except -1:
        if self.head.n == 0 or self.head.cursor > self.revision:
            return False
        if self.head.cursor < self.compacted and self.freed > self.head.cursor:
            self.end_group(&self.head, self.compacted, None)
            self.head.cursor = self.compacted
            return self.begin_head()
        self.begin_scan(AT_HEAD, self.head.cursor, self.revision + 1)
        return True

    cdef bint begin_lag(self) except -1:
        cdef Group *g
        cdef Watcher *w
        cdef Watcher *rest
        while self.lagging.n:
            g = self.lagging.groups[0]
            if g.n and g.cursor >= self.head.cursor:
                self.lagging.pop()
                self.group_to_head(g)
                continue
            if g.cursor < self.compacted:
                self.end_group(g, self.compacted, None)
            w = g.first
            while w != NULL:
                # nothing is read for streams that take nothing
                rest = w.group_next
                if self.calls.room(w.stream.call) <= 0:
                    self.park(w, g.cursor)
                w = rest
            if g.n:
                self.begin_scan(AT_LAG, g.cursor, self.head.cursor)
                return True
            self.lagging.pop()
            free(g)
        return False

    cdef int scan(self, uint64_t budget, uint64_t *spent) noexcept nogil:
        """Reads until the slice is full: REC_OK, SCAN_MORE inside a large revision, or REC_*."""
        cdef const kv_store *ops = &self.reader.store.ops
        cdef void *txn = self.reader.txn
        cdef uint8_t room[REC_KEY_BYTES]
        cdef kv_slice key, val
        cdef uint64_t main
        cdef uint32_t sub, chunk
        cdef void *cur
        cdef bint full
        cdef int st, rc = REC_OK
        cdef int64_t reading = self.scan_main if self.scan_sub else 0
        if ops.cursor_open(txn, TREE_REVS, &cur) != ST_OK:
            return REC_FAILED
        self.end = self.limit
        st = ops.cursor_seek(cur, record_key(room, self.scan_main, self.scan_sub, 0), &key, &val)
        while st == ST_OK:
            rc = decode_record_key(key, &main, &sub, &chunk)
            if rc != REC_OK or <int64_t> main >= self.limit:
                break
            if chunk == 0:
                full = (self.slice_spent + spent[0] >= self.slice_work
                        or self.slice.bytes.n >= self.slice_bytes)
                if <int64_t> main != reading:
                    if full and reading:
                        self.end = <int64_t> main
                        break
                    reading = <int64_t> main
                elif full and spent[0] >= budget and sub:
                    self.scan_main = reading
                    self.scan_sub = sub
                    rc = SCAN_MORE
                    break
                rc = self.take_record(val, reading, sub, spent)
                if rc != REC_OK:
                    break
            else:
                spent[0] += WORK_RECORD
            st = ops.cursor_next(cur, &key, &val)
        ops.cursor_close(cur)
        self.slice_spent += spent[0]
        if st != ST_OK and st != ST_NOTFOUND:
            return REC_FAILED
        if rc == REC_OK and self.slice.bytes.err:
            return REC_NOMEM
        return rc

    cdef int take_record(self, kv_slice val, int64_t main, uint32_t sub,
                         uint64_t *spent) noexcept nogil:
        cdef Record rec
        cdef kv_slice key
        cdef Node *node
        cdef size_t i, before = self.slice.bytes.n
        cdef bint wanted = False, prevs = False
        cdef int rc = decode_record(val, <uint64_t> main, sub, &rec)
        if rc == REC_OK:
            rc = key_of_kv(rec.kv, &key)
        if rc != REC_OK:
            return rc
        self.events_read += 1
        spent[0] += WORK_RECORD
        if not self.index.find(key, &self.found):
            return REC_NOMEM
        for i in range(self.found.n):
            node = self.found.nodes[i]
            if node.first[self.side] != NULL:
                wanted = True
                prevs = prevs or node.prevs != 0
        spent[0] += self.found.n
        if not wanted:
            return REC_OK
        rc = self.slice.add(&self.reader.store.ops, self.reader.txn, &rec, prevs,
                            self.compacted)
        if rc != REC_OK:
            return rc
        for i in range(self.found.n):
            node = self.found.nodes[i]
            if node.first[self.side] != NULL:
                if not self.slice.touch(node):
                    return REC_NOMEM
        spent[0] += (self.slice.bytes.n - before) // WORK_BYTES
        return REC_OK

    cdef int end_scan(self) except -1:
        """Reading is over: who is served is taken out of the heap, and sending begins."""
        cdef Group *g
        cdef Group *later = NULL
        cdef kv_buf b
        cdef RespHeader h = self.identity
        self.slices += 1
        if self.side == AT_LAG:
            while self.lagging.n and self.lagging.groups[0].cursor < self.end:
                g = self.lagging.pop()
                if g.stamp < self.stamp:
                    g.taken = True
                    g.next_taken = self.taken
                    self.taken = g
                else:
                    g.next_taken = later
                    later = g
            while later != NULL:
                g = later
                later = g.next_taken
                self.lagging.push(g)
        # The header says up to where this slice read.
        h.revision = self.end - 1
        kv_buf_init(&b)
        put_header(&b, &h)
        if b.err or b.n > sizeof(self.header):
            kv_buf_free(&b)
            raise MemoryError
        memcpy(self.header, b.p, b.n)
        self.header_n = b.n
        kv_buf_free(&b)
        self.phase = SEND
        self.at = NULL
        self.node = NULL
        return 0

    cdef int fail_slice(self) except -1:
        """What the slice would have read is damaged: its watchers are told so, and end."""
        cdef Group *g
        self.damaged += 1
        if self.side == AT_HEAD:
            self.end_group(&self.head, 0, DAMAGED)
            self.head.cursor = self.revision + 1
        elif self.lagging.n:
            g = self.lagging.pop()
            self.end_group(g, 0, DAMAGED)
            free(g)
        self.clear_slice()
        return 0

    cdef void clear_slice(self) noexcept nogil:
        """Nothing of the slice is left; the phase is IDLE."""
        if self.node != NULL and self.node.refs == 0:
            node_free(self.node)
        self.node = NULL
        self.at = NULL
        self.slice.clear()
        self.phase = IDLE

    cdef int end_slice(self) except -1:
        """All were served: cursors move to the slice's end, groups of now equal cursor join."""
        cdef Group *g
        cdef Group *to = self.taken
        if self.side == AT_HEAD:
            self.head.cursor = self.end
        elif to != NULL:
            g = to
            while g != NULL:
                if g.n > to.n:
                    to = g
                g = g.next_taken
            while self.taken != NULL:
                g = self.taken
                self.taken = g.next_taken
                if g != to:
                    group_append(to, g)
                    free(g)
            to.cursor = self.end
            to.taken = False
            to.next_taken = NULL
            if to.n == 0:
                free(to)
            elif to.cursor >= self.head.cursor:
                self.group_to_head(to)
            else:
                self.lagging.room()
                self.lagging.push(to)
        self.clear_slice()
        return 0

    # --- a slice: sending -----------------------------------------------------------------------

    cdef bint deliver(self, uint64_t budget, uint64_t *spent) except -1:
        """Sends to the watchers of the touched nodes; True when all have been seen to."""
        cdef Watcher *w
        cdef Node *node
        while True:
            if self.at == NULL:
                node = self.node
                if node != NULL:
                    self.node = NULL
                    self.slice.clear_answers()
                    if node.refs == 0:
                        node_free(node)
                node = self.slice.take_touched()
                if node == NULL:
                    return True
                self.node = node
                self.at = watcher(node.first[self.side])
                continue
            if spent[0] >= budget:
                return False
            w = self.at
            self.at = w.node_next
            spent[0] += 1
            if w.group.taken:
                self.serve(w, spent)

    cdef int serve(self, Watcher *w, uint64_t *spent) except -1:
        """One watcher's events of the slice: sent whole, or it is parked where it was."""
        cdef int64_t since = w.group.cursor if w.group.cursor > w.first else w.first
        cdef uint32_t steps
        cdef uint32_t hit = self.slice.hit_from(self.node, since, &steps)
        cdef uint8_t head[96]
        cdef uint8_t *d
        cdef Answer *a
        cdef size_t i
        spent[0] += steps // 16
        if hit == NO_HIT:
            return 0
        a = self.slice.answer(self.node, hit, w.flags, self.header_n, id_field_size(w.id), spent)
        if a.n == 0:
            return 0
        if self.calls.room(w.stream.call) <= 0:
            self.park(w, since)
            return 0
        memcpy(head, self.header, self.header_n)
        d = head + self.header_n
        if w.id:
            d[0] = 0x10
            d = kv_varint_write(d + 1, <uint64_t> w.id)
        for i in range(a.n):
            if a.n > 1 and i + 1 < a.n:
                d[0] = 0x38
                d[1] = 1
                self.calls.send_tail(w.stream.call, head, d + 2 - head, a.parts[i])
            else:
                self.calls.send_tail(w.stream.call, head, d - head, a.parts[i])
        w.flags &= <uint8_t> ~W_QUIET
        self.responses += a.n
        self.events_sent += a.events
        spent[0] += WORK_SEND * a.n
        return 0

    # --- a turn ---------------------------------------------------------------------------------

    cdef bint run(self) except -1:
        """Slices on the snapshot of `look`, about slice_work in all. True: there is more to do."""
        cdef uint64_t spent = 0, part
        cdef int rc
        while spent < self.slice_work:
            part = 0
            if self.phase == IDLE:
                # head and lag take turns, so neither waits for the other's end
                self.turn_side = AT_LAG if self.turn_side == AT_HEAD else AT_HEAD
                if self.turn_side == AT_HEAD:
                    if not self.begin_head() and not self.begin_lag():
                        break
                elif not self.begin_lag() and not self.begin_head():
                    break
            elif self.phase == SCAN and (
                self.freed > self.begin or (self.side == AT_LAG and self.compacted > self.begin)
            ):
                self.clear_slice()        # paused, and meanwhile compacted
                continue
            if self.phase == SCAN:
                with nogil:
                    rc = self.scan(self.slice_work - spent, &part)
                spent += part
                if rc == REC_CORRUPT:
                    self.fail_slice()
                elif rc == REC_NOMEM:
                    raise MemoryError("watch")
                elif rc == REC_FAILED:
                    raise DiskError("watch: the store failed")
                elif rc == REC_OK:
                    self.end_scan()
            else:
                if self.deliver(self.slice_work - spent, &part):
                    self.end_slice()
                spent += part + 1
        self.tick()
        return (self.phase != IDLE or self.lagging.n != 0
                or (self.head.n != 0 and self.head.cursor <= self.revision))

    # --- control responses and progress ---------------------------------------------------------

    cdef int control(self, Stream *s, int64_t revision, int64_t id, bint created, bint canceled,
                     int64_t compact_revision, bytes reason) except -1:
        """A response without events."""
        cdef RespHeader h = self.identity
        cdef WatchHead w
        h.revision = revision
        w.watch_id = id
        w.created = created
        w.canceled = canceled
        w.compact_revision = compact_revision
        w.reason.p = NULL
        w.reason.n = 0
        if reason is not None:
            w.reason.p = reason
            w.reason.n = len(reason)
        w.fragment = False
        put_watch_head(self.calls.begin_message(s.call), &h, &w)
        self.calls.end_message(s.call)
        self.responses += 1
        return 0

    cdef bint synced(self) noexcept nogil:
        """Whether the watchers at the head have been sent all of this turn's snapshot."""
        return (self.head.cursor == self.revision + 1
                and not (self.phase != IDLE and self.side == AT_HEAD))

    cdef bint answer_asked(self, Stream *s) except -1:
        """A WatchProgressRequest: True when it is done with, answered or, as etcd does, dropped
        (no watchers, or one that waits for a revision to come)."""
        cdef Watcher *w
        if s.alive == 0:
            return True
        if not self.synced() or s.at_head < s.alive or self.calls.room(s.call) <= 0:
            return False
        if s.start_max > self.revision:
            w = s.first
            while w != NULL:
                if w.state == AT_HEAD and w.start > self.revision:
                    return True
                w = w.stream_next
        self.control(s, self.revision, -1, False, False, 0, None)
        return True

    cdef uint64_t interval(self) noexcept nogil:
        """With up to a tenth more, so that streams opened together don't all come together."""
        self.dice ^= self.dice << 13
        self.dice ^= self.dice >> 7
        self.dice ^= self.dice << 17
        return self.progress_us + self.dice % (self.progress_us // 10 + 1)

    cdef int tick(self) except -1:
        """progress_notify: who got nothing since the last tick hears how far it is."""
        cdef Stream *s = self.streams
        cdef uint64_t due = 0xFFFFFFFFFFFFFFFF
        if self.now_us < self.next_due or not self.synced():
            return 0
        while s != NULL:
            if s.progress_n == 0:
                s.due_us = 0
            elif s.due_us <= self.now_us:
                self.tick_stream(s)
                s.due_us = self.now_us + self.interval()
            if s.due_us and s.due_us < due:
                due = s.due_us
            s = s.next
        self.next_due = due
        return 0

    cdef int tick_stream(self, Stream *s) except -1:
        cdef Watcher *w = s.first
        while w != NULL:
            if w.flags & W_PROGRESS and w.state == AT_HEAD:
                if (w.flags & W_QUIET and w.start <= self.revision
                        and self.calls.room(s.call) > 0):
                    self.control(s, self.revision, w.id, False, False, 0, None)
                w.flags |= W_QUIET
            w = w.stream_next
        return 0
