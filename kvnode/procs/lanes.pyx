"""Fast lanes: a lone put's way through consensus and the applier without Python.

Role: a put that comes alone costs its processes more in cold caches than in work: each has been
waiting, and its working set is gone. So while nothing else is going on, the wait of the poll loop
(procs/loop) is done here, and one frame of the one kind that is expected goes through in a few
hundred instructions. Whatever is not exactly that is left where it came, and the loop goes on as
if there were no lane.
Callers: procs/consensus, procs/applier, which arm a lane at the end of a turn when their state is
at rest, and take in (`settle`) what went through it before anything else of the next turn.

`ProposeLane`, in consensus, with one voter that leads and has nothing in flight:
    PROPOSE -> entry (and hard state) encoded, written -> LONE -> synced -> the word -> BORDER
`ApplyLane`, in the applier, with all applied that was committed:
    LONE -> executed; BORDER of that entry -> RESULTS -> the map's commit -> the shared word

So the entry is executed while the disk works, in a transaction of the map that nobody sees. Of what
goes ahead only a lone put, delete or transaction is executed so; other entries leave behind their
sync, as COMMITTED with entry and border, and are executed then. If something else comes than just
that border, or nothing for LONE_MS, the transaction is aborted, and so is the machine, whose memory
has run ahead: `reload` loads one from the map, and the frames go the long way.

The results of a lone put, delete or transaction leave before the map's commit, which takes longer
than all the rest (it copies the pages it changed into the file). The entry is durable and committed
by then and its outcome is certain; ANSWERED, a shared word, makes every read of this node that
begins after it wait until the map has it (`Gateway.snapshot`). If the commit fails, the log repeats
the entry, and gateways take no second answer.

Invariants:
  1. What a lane writes is byte for byte what the long way would have written (a test compares).
  2. Nothing leaves before it is durable. COMMIT, and ANSWERED where results leave before their
     commit, are stored before the frame leaves; APPLIED after the commit.
  3. Between arming and the lane's work no other code of the process runs; nor does any between
     LONE and its border, but for threads that don't touch the machine.
  4. A failure leaves the frame to the long way, which meets it again and says so.
  5. A lane returns to its loop for every other event, for signals, at its timeout, and after
     `passes_max` frames: timers and checkpoints are late by LONE_MS at most.
  6. Before its border an entry leaves no trace: no word, no frame, nothing in the map.

Absent on purpose: deciding anything. What an entry's index and term are, Raft says when arming.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kvnode._core.buf cimport (
    kv_buf, kv_buf_clear, kv_buf_free, kv_buf_grow, kv_buf_init, kv_buf_trim, kv_load_u32,
    kv_load_u64, kv_store_u32, kv_store_u64,
)
from kvnode._core.logrec cimport HEADER, Encoder, EntryTable, row_t
from kvnode._core.logwriter cimport LogWriter
from kvnode._core.machine cimport Machine, Outbox
from kvnode._core.meters cimport meter_now_ns
from kvnode._core.records cimport REC_OK
from kvnode._core.codes cimport KIND_DELETE_RANGE, KIND_PUT, KIND_TXN
from kvnode._core.sharedword cimport WORD_ANSWERED, WORD_APPLIED, WORD_COMMIT, SharedWords
from kvnode.env.unixlink cimport HEAD_BYTES, Stream, UnixEndpoint

from kvnode.base.failpoint import hit, points
from kvnode.wire.frames import Frame

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int c_epoll_wait "epoll_wait"(int epfd, epoll_event *events, int most, int timeout)

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int c_poll "poll"(pollfd *fds, unsigned long n, int timeout)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t)

cdef enum:
    EVENTS = 64
    LANE_BYTES = 16384        # a larger batch goes the long way
    PAIR_BYTES = 16
    ENTRY_BYTES = 24          # an entry's head in LONE and COMMITTED
    KIND_AT = 8 + 80          # the first request's kind, behind the heads of batch and group
    FRAME_KEEP = 1 << 20
    LONE_MS = 1000            # a border that is later meets its entry the long way
    F_PROPOSE = 2
    F_BORDER = 6
    F_RESULTS = 7
    F_COMMITTED = 16
    F_LONE = 29

# What `settle` of a ProposeLane is called with when the log failed; it raises.
FAILED = -1

assert (Frame.PROPOSE, Frame.BORDER, Frame.RESULTS, Frame.COMMITTED, Frame.LONE) == (
    F_PROPOSE, F_BORDER, F_RESULTS, F_COMMITTED, F_LONE
)

LANE_BYTES_MAX = LANE_BYTES
cdef uint64_t SOLE_FLAG = <uint64_t>1 << 63


cdef int64_t now_ms() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000 + t.tv_nsec // 1000000


cdef bint is_lone(const uint8_t *batch, size_t n) noexcept:
    """One request of those that touch nothing but keys (and leases, by what is attached)."""
    cdef uint8_t kind = batch[KIND_AT] if n > KIND_AT else 0
    return (
        (kind == KIND_PUT or kind == KIND_DELETE_RANGE or kind == KIND_TXN)
        and kv_load_u32(batch + 4) == 1 and kv_load_u32(batch + 12) == 1
    )


cdef class Lane:
    """The wait of a loop whose one expected frame is handled on the way."""

    cdef int poll_fd
    cdef UnixEndpoint endpoint
    cdef Stream source          # the frame comes from it
    cdef object settle
    cdef bint armed
    cdef int passes
    cdef int passes_max
    cdef bint enough           # the loop is to hear of what went through at once
    cdef bint watched          # a test's points are armed
    cdef kv_buf frame

    def __cinit__(self, int poll_fd, settle, int passes_max, *args):
        self.poll_fd = poll_fd
        self.settle = settle
        self.passes_max = passes_max
        self.watched = bool(points())
        kv_buf_init(&self.frame)

    def __dealloc__(self):
        kv_buf_free(&self.frame)

    cdef int one(self) except -1:
        """Takes the frame that has come; 0: not one for this lane."""
        return 0

    def disarm(self) -> None:
        """Nothing goes through until the next `arm`."""
        self.armed = False

    def wait(self, double timeout) -> list:
        """Waits as `select.epoll.poll` does; (descriptor, events) of what is ready.

        An empty list means that nothing came; what went through the lane does count as something.
        """
        cdef epoll_event events[EVENTS]
        cdef int64_t until = 0
        cdef int64_t ms = -1
        cdef int i, n
        if timeout >= 0:
            ms = <int64_t>(timeout * 1000.0)
            if ms < timeout * 1000.0:
                ms += 1
            if self.armed and ms:
                until = now_ms() + ms
        while True:
            with nogil:
                n = c_epoll_wait(self.poll_fd, events, EVENTS, <int>ms)
            if n < 0:
                if errno != EINTR:
                    raise OSError(errno, "epoll_wait")
                PyErr_CheckSignals()
                n = 0
            if n != 1 or not self.armed or events[0].data.fd != self.endpoint.poll_fd:
                break
            if not self.one():
                break
            n = 0
            self.passes += 1
            if self.enough or self.passes >= self.passes_max:
                break
            if until:
                ms = until - now_ms()
                if ms <= 0:
                    break
        found = [(events[i].data.fd, events[i].events) for i in range(n)]
        if self.passes:
            n, self.passes = self.passes, 0
            self.armed = self.enough = False
            self.settle(n)
            found.append((-1, 0))
        return found


cdef class ProposeLane(Lane):
    """Consensus' lane. `settle(passes)` is to move Raft and the log forward by as many entries."""

    cdef SharedWords words
    cdef Stream applier
    cdef Encoder encoder
    cdef EntryTable table
    cdef LogWriter writer
    cdef row_t like
    cdef int handle
    cdef uint64_t room_end
    cdef uint64_t index         # of the last entry
    cdef uint64_t vote
    cdef bint commits           # the next entry's record is followed by a hard state
    cdef readonly unsigned long long ticket
    cdef readonly bint last_commits     # whether the last entry came with a hard state

    def __init__(self, int poll_fd, settle, int passes_max, UnixEndpoint endpoint not None,
                 SharedWords words not None):
        self.endpoint = endpoint
        self.words = words

    def arm(self, gateway, applier, tuple log, next_entry) -> None:
        """`log`: `Log.lane()`; `next_entry`: `Node.lone_entry()`."""
        self.source = gateway.key
        self.applier = applier.key
        self.encoder, self.table, self.writer, self.handle, segment, self.room_end = log
        index, term, self.vote, self.commits = next_entry
        self.index = index - 1
        self.like.term = term
        self.like.segment = segment
        self.armed = True

    cdef int one(self) except -1:
        cdef size_t n, size
        cdef uint64_t offset
        cdef bint ahead
        cdef const uint8_t *p = self.endpoint.peek(
            self.source, F_PROPOSE, -1, LANE_BYTES, &size
        )
        if p == NULL:
            return 0
        # The entry, a hard state and a mark, with room for what else may be saved behind them.
        if (self.encoder.buf.n or self.applier.fd < 0 or self.applier.out or size == 0
                or self.encoder.base + size + 6 * HEADER > self.room_end):
            self.endpoint.give_back(self.source, size)
            return 0
        offset = self.encoder.base
        n = self.encoder.lone(self.table, &self.like, self.index + 1, p, size, self.commits,
                              self.vote)
        ahead = is_lone(p, size)
        self.ticket = 0
        if self.writer.lone_write(self.handle, <int64_t>offset, self.encoder.buf.p, n, ahead):
            if ahead:
                self.send_entry(F_LONE, p, size)
                if self.watched:
                    hit("lone-sent")
            self.ticket = self.writer.lone_sync(self.handle)
        if self.ticket == 0:
            self.settle(FAILED)
            raise AssertionError("the log's writer was not idle")
        self.index += 1
        self.words.store(WORD_COMMIT, self.index | SOLE_FLAG)
        if self.watched:
            hit("lone-synced")
        if ahead:
            self.send_border()
        else:
            self.send_entry(F_COMMITTED, p, size)
        self.writer.lone_mark(self.handle, <int64_t>(offset + n), self.encoder.buf.p + n, HEADER)
        self.encoder.lone_durable(n)
        self.last_commits = self.commits
        self.commits = True
        return 1

    cdef int send_entry(self, int kind, const uint8_t *p, size_t size) except -1:
        """The entry that is next as LONE, or the last one with its border as COMMITTED."""
        cdef uint64_t index = self.index + 1 if kind == F_LONE else self.index
        cdef size_t border = 0 if kind == F_LONE else PAIR_BYTES
        cdef uint8_t *f
        kv_buf_clear(&self.frame)
        f = kv_buf_grow(&self.frame, HEAD_BYTES + border + ENTRY_BYTES + size)
        if f == NULL:
            raise MemoryError
        if border:
            kv_store_u64(f + HEAD_BYTES, index)
            kv_store_u64(f + HEAD_BYTES + 8, self.like.term)
        f += HEAD_BYTES + border
        kv_store_u64(f, index)
        kv_store_u64(f + 8, self.like.term)
        kv_store_u32(f + 16, 0)
        kv_store_u32(f + 20, <uint32_t>size)
        memcpy(f + ENTRY_BYTES, p, size)
        f -= HEAD_BYTES + border
        return self.endpoint.send_frame(self.applier, f, kind, border + ENTRY_BYTES + size)

    cdef int send_border(self) except -1:
        """BORDER of the last entry; nothing to an applier that broke away from its LONE."""
        cdef uint8_t frame[HEAD_BYTES + PAIR_BYTES]
        if self.applier.fd < 0:
            return 0
        kv_store_u64(frame + HEAD_BYTES, self.index)
        kv_store_u64(frame + HEAD_BYTES + 8, self.like.term)
        return self.endpoint.send_frame(self.applier, frame, F_BORDER, PAIR_BYTES)


cdef class ApplyLane(Lane):
    """The applier's lane. `settle(passes)` is to do what follows a commit of the map;
    `on_leases()` what goes before the results of an entry that did something to leases;
    `reload()` loads the machine anew, after an entry whose border did not come."""

    cdef UnixEndpoint server
    cdef SharedWords words
    cdef Machine machine
    cdef dict gateways
    cdef object on_leases
    cdef object reload
    cdef readonly list answered      # incarnations that the last entry's results went to
    cdef readonly unsigned long long applied_bytes

    def __init__(self, int poll_fd, settle, int passes_max, UnixEndpoint server not None,
                 SharedWords words not None, on_leases, reload):
        self.server = server
        self.words = words
        self.on_leases = on_leases
        self.reload = reload
        self.answered = []

    def arm(self, UnixEndpoint endpoint not None, consensus, Machine machine not None,
            dict gateways) -> None:
        """`gateways`: peers by incarnation; with several the lane returns after each entry."""
        self.endpoint = endpoint
        self.source = consensus.key
        self.machine = machine
        self.gateways = gateways
        self.applied_bytes = 0
        self.armed = True

    cdef int one(self) except -1:
        cdef Machine machine = self.machine
        cdef size_t size, rest
        cdef uint64_t index, term
        cdef int64_t compacted
        cdef const uint8_t *entry
        cdef bint early, ahead
        cdef int rc
        cdef const uint8_t *p = self.endpoint.peek(
            self.source, F_COMMITTED, F_LONE, PAIR_BYTES + ENTRY_BYTES + LANE_BYTES, &size
        )
        if p == NULL:
            return 0
        ahead = (p - HEAD_BYTES)[4] == F_LONE
        entry = p if ahead else p + PAIR_BYTES
        rest = size if ahead else size - PAIR_BYTES
        if size < PAIR_BYTES + ENTRY_BYTES or kv_load_u32(entry + 20) != rest - ENTRY_BYTES:
            self.endpoint.give_back(self.source, size)
            return 0
        index = kv_load_u64(entry)
        term = kv_load_u64(entry + 8)
        if (index != machine.loop.applied_index + 1 or term < machine.loop.applied_term
                or (not ahead and (kv_load_u64(p) != index or kv_load_u64(p + 8) != term))
                or machine.dead):
            self.endpoint.give_back(self.source, size)
            return 0
        compacted = machine.loop.x.w.compacted
        with nogil:
            rc = machine.lone_open(entry, rest)
        early = (
            rc == REC_OK and machine.loop.x.leases.n == 0 and len(self.gateways) == 1
            and is_lone(entry + ENTRY_BYTES, rest - ENTRY_BYTES)
        )
        if ahead and rc == REC_OK:
            if not self.bordered(index, term, size):
                with nogil:
                    machine.lone_abort()
                self.armed = False
                self.reload()
                return 0
            size += HEAD_BYTES + PAIR_BYTES
        if early:
            self.words.store(WORD_ANSWERED, index)
            self.answer()
            hit("lane-answered")
        if rc == REC_OK:
            with nogil:
                rc = machine.lone_close()
        if rc != REC_OK:
            # A full disk: what is answered stands in the log, and whoever reads what is here must
            # not wait for room. Linearizable reads wait for COMMIT all the same.
            self.words.store(WORD_ANSWERED, self.words.load(WORD_APPLIED))
            self.armed = False
            self.endpoint.give_back(self.source, size)
            return 0
        self.words.store_applied(index)
        if not early:
            if machine.loop.x.leases.n:
                self.on_leases()
            self.answer()
        self.applied_bytes += size
        if compacted != machine.loop.x.w.compacted or len(self.gateways) != 1:
            self.enough = True
        return 1

    cdef bint bordered(self, uint64_t index, uint64_t term, size_t size) except -1:
        """Waits for the BORDER of the entry, whose LONE had `size` bytes, and which is executed in
        the open transaction. False: something else came, or nothing; it is left with the LONE."""
        cdef uint64_t opened = meter_now_ns()
        cdef int64_t until = now_ms() + LONE_MS
        cdef int64_t ms = LONE_MS
        cdef const uint8_t *p
        cdef pollfd fd
        cdef int n
        if self.watched:
            hit("lane-open")
        fd.fd = self.source.fd
        fd.events = POLLIN
        while self.source.behind == 0:
            # A signal is for the loop: it is seen there behind this entry.
            with nogil:
                n = c_poll(&fd, 1, <int>ms)
            if n > 0 or n == 0 or errno != EINTR:
                break
            ms = max(0, until - now_ms())
        p = self.endpoint.peek_behind(self.source, size, F_BORDER, PAIR_BYTES)
        if p == NULL:
            return False
        if kv_load_u64(p) != index or kv_load_u64(p + 8) != term:
            self.endpoint.give_back(self.source, size + HEAD_BYTES + PAIR_BYTES)
            return False
        # What it waited for the disk is not time of applying.
        self.machine.began += meter_now_ns() - opened
        return True

    cdef int answer(self) except -1:
        """RESULTS to the gateways of origin."""
        cdef Machine machine = self.machine
        cdef Outbox *out
        cdef size_t i
        self.answered.clear()
        for i in range(machine.loop.outs_n):
            out = &machine.loop.outs[i]
            if out.buf.n:
                peer = self.gateways.get(out.incarnation)
                if peer is not None:
                    self.answer_one(<Stream?>peer.key, out)
                    self.answered.append(out.incarnation)
        return 0

    cdef int answer_one(self, Stream gateway, Outbox *out) except -1:
        cdef uint8_t *f
        if gateway.fd < 0:
            return 0
        kv_buf_trim(&self.frame, FRAME_KEEP)
        f = kv_buf_grow(&self.frame, HEAD_BYTES + out.buf.n)
        if f == NULL:
            raise MemoryError
        memcpy(f + HEAD_BYTES, out.buf.p, out.buf.n)
        return self.server.send_frame(gateway, f, F_RESULTS, out.buf.n)
