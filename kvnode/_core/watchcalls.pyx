"""The Watch method: requests of clients to the hub, in etcd's words.

Called by the floor below (h2.Http2, in tests localcalls.LocalCalls) for each message, and by the
gateway's loop, `turn`, after its other work. A request is checked when it comes and waits in its
stream's inbox for the next turn, which takes a snapshot first: so a watch made after a write was
acknowledged begins behind it, whichever gateway acknowledged it.

Invariants:
1. Requests of a stream are answered in their order; a watch's `created` precedes its events.
2. A full stream's requests wait until it has room; beyond `inbox_max` bytes it is ended. So a
   client that never reads costs bounded memory.
3. What is deterministic in etcd 3.7.1 (v3rpc/watch.go) is so here: ids given or made, texts,
   what a refused creation says, that a half-closed stream goes on getting events.

Where etcd drops a progress request because one of the stream's watchers is behind, here it waits
until none is.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memmove, memset

from kvnode._core.buf cimport (
    kv_buf_trim,
    kv_load_u32,
    kv_put_bytes,
    kv_put_u32,
)
from kvnode._core.codes cimport CODE_OK
from kvnode._core.ranges cimport RangeReader
from kvnode._core.watchhub cimport (
    MADE,
    MADE_DUPLICATE,
    MADE_EMPTY_RANGE,
)
from kvnode._core.watchpb cimport (
    WATCH_CANCEL,
    WATCH_CREATE,
    WATCH_PROGRESS,
    decode_watch,
)

cdef enum:
    GRPC_RESOURCE_EXHAUSTED = 8
    GRPC_INTERNAL = 13
    TURN_REQUESTS = 2048         # of all streams, in one turn: about 1.5 ms

cdef bytes COMPACTED = b"etcdserver: mvcc: required revision has been compacted"
cdef bytes EMPTY_RANGE = b"mvcc: watcher range is empty"
cdef bytes DUPLICATE = b"mvcc: duplicate watch ID provided on the WatchStream"
cdef bytes TOO_MANY = b"etcdserver: too many requests"
cdef bytes MALFORMED = (
    b"grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data"
)


cdef class Watches(Methods):
    """The watches of one gateway. One method, whatever number it is routed by."""

    def __cinit__(self, WatchHub hub not None, *, size_t inbox_max=1 << 22):
        self.hub = hub
        self.calls = hub.calls
        self.asking = []
        self.inbox_max = inbox_max

    def __dealloc__(self):
        free(self.streams)

    @property
    def wants_turn(self):
        """Whether requests wait."""
        return self.ready != NULL

    @property
    def idle(self):
        """No stream is open: a turn would do nothing."""
        return self.hub.streams == NULL

    def turn(self, RangeReader reader not None, unsigned long long now_us):
        """One turn on the reader's snapshot: requests, then about 1 ms of events.

        The snapshot is to be younger than every request that waits; a reader without one takes it
        here, and the caller closes it. True: there is more to do, call again soon. Blocking: no.
        Errors: DiskError, CorruptionError (of the store's heads; damaged records end the watchers
        they concern).
        """
        cdef Stream *s
        cdef int left = TURN_REQUESTS
        cdef bint more
        self.hub.look(reader, now_us)
        while self.ready != NULL and left > 0:
            s = self.ready
            self.ready = s.ready_next
            if self.ready == NULL:
                self.ready_last = NULL
            s.ready = False
            left = self.take(s, left)
        more = self.hub.run()
        if self.asking:
            self.answer_asking()
        return more or self.ready != NULL

    def finish_all(self, int status, bytes text not None):
        """Ends every stream: the gateway is going away."""
        cdef size_t i
        for i in range(self.streams_cap):
            if self.streams[i] != NULL:
                self.end(self.streams[i], status, text)

    cdef int answer_asking(self) except -1:
        cdef list waiting = []
        cdef Stream *s
        cdef size_t at
        for at in self.asking:
            s = <Stream *> at
            if self.hub.answer_asked(s):
                s.asked = False
            else:
                waiting.append(at)
        self.asking = waiting
        return 0

    cdef Stream *find(self, Call call) noexcept nogil:
        cdef Stream *s
        if call.number >= self.streams_cap:
            return NULL
        s = self.streams[call.number]
        return s if s != NULL and s.call.generation == call.generation else NULL

    cdef void make_ready(self, Stream *s) noexcept nogil:
        if s.ready:
            return
        s.ready = True
        s.ready_next = NULL
        if self.ready_last != NULL:
            self.ready_last.ready_next = s
        else:
            self.ready = s
        self.ready_last = s

    cdef void forget(self, Stream *s) noexcept:
        """Out of this object's lists."""
        cdef Stream **link = &self.ready
        cdef Stream *last = NULL
        self.streams[s.call.number] = NULL
        if s.ready:
            while link[0] != s:
                last = link[0]
                link = &link[0].ready_next
            link[0] = s.ready_next
            if self.ready_last == s:
                self.ready_last = last
        if s.asked:
            self.asking.remove(<size_t> s)

    cdef int end(self, Stream *s, int status, bytes text) except -1:
        cdef Call call = s.call
        self.forget(s)
        self.hub.close(s)
        self.calls.finish(call, status, text, len(text))
        return 0

    # --- upcalls --------------------------------------------------------------------------------

    cdef int on_open(self, Call call, int method) except -1:
        cdef Stream **wider
        cdef size_t cap = self.streams_cap
        if call.number >= cap:
            cap = call.number * 2 + 16
            wider = <Stream **> realloc(self.streams, cap * sizeof(Stream *))
            if wider == NULL:
                raise MemoryError
            memset(wider + self.streams_cap, 0, (cap - self.streams_cap) * sizeof(Stream *))
            self.streams = wider
            self.streams_cap = cap
        self.streams[call.number] = self.hub.open(call)
        return 0

    cdef int on_message(self, Call call, int method, const uint8_t *p, size_t n) except -1:
        cdef Stream *s = self.find(call)
        cdef WatchReq q
        if s == NULL:
            return 0
        if decode_watch(p, n, &q) != CODE_OK:
            return self.end(s, GRPC_INTERNAL, MALFORMED)
        if s.inbox.n - s.inbox_at + n + 4 > self.inbox_max:
            return self.end(s, GRPC_RESOURCE_EXHAUSTED, TOO_MANY)
        if s.inbox_at > s.inbox.n // 2:
            s.inbox.n -= s.inbox_at
            memmove(s.inbox.p, s.inbox.p + s.inbox_at, s.inbox.n)
            s.inbox_at = 0
        kv_put_u32(&s.inbox, <uint32_t> n)
        kv_put_bytes(&s.inbox, p, n)
        if s.inbox.err:
            raise MemoryError
        self.make_ready(s)
        return 0

    cdef int on_gone(self, Call call, int method) except -1:
        cdef Stream *s = self.find(call)
        if s != NULL:
            self.forget(s)
            self.hub.close(s)
        return 0

    cdef int on_room(self, Call call, int method) except -1:
        cdef Stream *s = self.find(call)
        if s != NULL:
            self.hub.on_room(s)
            self.make_ready(s)           # for a turn, whatever waits
        return 0

    # --- requests -------------------------------------------------------------------------------

    cdef int take(self, Stream *s, int budget) except -1:
        """Answers what waits, while there is room; what is left of the budget."""
        cdef WatchReq q
        cdef uint32_t n
        while s.inbox_at < s.inbox.n and budget > 0:
            if self.calls.room(s.call) <= 0:
                return budget            # on_room makes it ready again
            n = kv_load_u32(s.inbox.p + s.inbox_at)
            decode_watch(s.inbox.p + s.inbox_at + 4, n, &q)
            self.answer(s, &q)
            s.inbox_at += 4 + n
            budget -= 1
        if s.inbox_at == s.inbox.n:
            s.inbox_at = 0
            kv_buf_trim(&s.inbox, 1 << 14)
        else:
            self.make_ready(s)
        return budget

    cdef int answer(self, Stream *s, WatchReq *q) except -1:
        cdef WatchHub hub = self.hub
        if q.kind == WATCH_CREATE:
            return self.on_create(s, q)
        if q.kind == WATCH_CANCEL:
            if hub.cancel(s, q.watch_id):
                hub.control(s, hub.revision, q.watch_id, False, True, 0, None)
        elif q.kind == WATCH_PROGRESS and not s.asked:
            s.asked = True
            self.asking.append(<size_t> s)
        return 0

    cdef int on_create(self, Stream *s, WatchReq *q) except -1:
        cdef WatchHub hub = self.hub
        cdef const uint8_t *zero = b"\0"
        cdef bytes reason
        cdef int64_t id = -1
        cdef int made
        if q.key.n == 0:
            q.key.p = zero
            q.key.n = 1
        if q.start_revision < 0:
            return hub.control(s, hub.revision, -1, True, True, 0, COMPACTED)
        made = hub.create(s, q, &id)
        if made == MADE:
            return hub.control(s, hub.revision, id, True, False, 0, None)
        reason = (EMPTY_RANGE if made == MADE_EMPTY_RANGE
                  else DUPLICATE if made == MADE_DUPLICATE else TOO_MANY)
        return hub.control(s, hub.revision, -1, True, True, 0, reason)
