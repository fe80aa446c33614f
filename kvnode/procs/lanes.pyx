"""Fast lanes: a lone put's way through consensus and the applier without Python.

Role: a put that comes alone costs its processes more in cold caches than in work: each has been
waiting, and its working set is gone. So while nothing else is going on, the wait of the poll loop
(procs/loop) is done here, and one frame of the one kind that is expected goes through in a few
hundred instructions. Whatever is not exactly that is left where it came, and the loop goes on as
if there were no lane.
Callers: procs/consensus, procs/applier, which arm a lane at the end of a turn when their state is
at rest, and take in (`settle`) what went through it before anything else of the next turn.

`ProposeLane`, in consensus, with one voter that leads and has nothing in flight:
    PROPOSE -> entry (and hard state) encoded, written, synced -> the shared word -> COMMITTED
`ApplyLane`, in the applier, with all applied that was committed:
    COMMITTED of one entry -> executed -> RESULTS -> the map's commit -> the shared word

The results of a lone put, delete or transaction leave before the map's commit, which takes longer
than all the rest (it copies the pages it changed into the file). The entry is durable and committed
by then and its outcome is certain; ANSWERED, a shared word, makes every read of this node that
begins after it wait until the map has it (`Gateway.snapshot`). If the commit fails, the log repeats
the entry, and gateways take no second answer.

Invariants:
  1. What a lane writes is byte for byte what the long way would have written (a test compares).
  2. Nothing leaves before it is durable. COMMIT, and ANSWERED where results leave before their
     commit, are stored before the frame leaves; APPLIED after the commit.
  3. Between arming and the lane's work no other code of the process runs.
  4. A failure leaves the frame to the long way, which meets it again and says so.
  5. A lane returns to its loop for every other event, for signals, at its timeout, and after
     `passes_max` frames: timers and checkpoints are not late.

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
from kvnode._core.records cimport REC_OK
from kvnode._core.codes cimport KIND_DELETE_RANGE, KIND_PUT, KIND_TXN
from kvnode._core.sharedword cimport WORD_ANSWERED, WORD_COMMIT, SharedWords
from kvnode.env.unixlink cimport HEAD_BYTES, Stream, UnixEndpoint

from kvnode.base.failpoint import hit
from kvnode.wire.frames import Frame

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int c_epoll_wait "epoll_wait"(int epfd, epoll_event *events, int most, int timeout)

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
    ENTRY_BYTES = 24          # an entry's head in COMMITTED
    KIND_AT = 8 + 80          # the first request's kind, behind the heads of batch and group
    FRAME_KEEP = 1 << 20
    F_PROPOSE = 2
    F_RESULTS = 7
    F_COMMITTED = 16

# What `settle` of a ProposeLane is called with when the log failed; it raises.
FAILED = -1

assert (Frame.PROPOSE, Frame.RESULTS, Frame.COMMITTED) == (F_PROPOSE, F_RESULTS, F_COMMITTED)

LANE_BYTES_MAX = LANE_BYTES
cdef uint64_t SOLE_FLAG = <uint64_t>1 << 63


cdef int64_t now_ms() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000 + t.tv_nsec // 1000000


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
    cdef kv_buf frame

    def __cinit__(self, int poll_fd, settle, int passes_max, *args):
        self.poll_fd = poll_fd
        self.settle = settle
        self.passes_max = passes_max
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
        cdef size_t n, size, whole
        cdef uint64_t offset
        cdef uint8_t *f
        cdef const uint8_t *p = self.endpoint.peek(self.source, F_PROPOSE, LANE_BYTES, &size)
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
        self.ticket = self.writer.lone(self.handle, <int64_t>offset, self.encoder.buf.p, n)
        if self.ticket == 0:
            self.settle(FAILED)
            raise AssertionError("the log's writer was not idle")
        self.index += 1
        self.words.store(WORD_COMMIT, self.index | SOLE_FLAG)
        kv_buf_clear(&self.frame)
        whole = PAIR_BYTES + ENTRY_BYTES + size
        f = kv_buf_grow(&self.frame, HEAD_BYTES + whole)
        if f == NULL:
            raise MemoryError
        kv_store_u64(f + 8, self.index)
        kv_store_u64(f + 16, self.like.term)
        kv_store_u64(f + 24, self.index)
        kv_store_u64(f + 32, self.like.term)
        kv_store_u32(f + 40, 0)
        kv_store_u32(f + 44, <uint32_t>size)
        memcpy(f + 48, p, size)
        self.endpoint.send_frame(self.applier, f, F_COMMITTED, whole)
        self.writer.lone_mark(self.handle, <int64_t>(offset + n), self.encoder.buf.p + n, HEADER)
        self.encoder.lone_durable(n)
        self.last_commits = self.commits
        self.commits = True
        return 1


cdef class ApplyLane(Lane):
    """The applier's lane. `settle(passes)` is to do what follows a commit of the map;
    `on_leases()` what goes before the results of an entry that did something to leases."""

    cdef UnixEndpoint server
    cdef SharedWords words
    cdef Machine machine
    cdef dict gateways
    cdef object on_leases
    cdef readonly list answered      # incarnations that the last entry's results went to
    cdef readonly unsigned long long applied_bytes

    def __init__(self, int poll_fd, settle, int passes_max, UnixEndpoint server not None,
                 SharedWords words not None, on_leases):
        self.server = server
        self.words = words
        self.on_leases = on_leases
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
        cdef size_t size
        cdef uint64_t index, term
        cdef int64_t compacted
        cdef const uint8_t *entry
        cdef bint early
        cdef int rc
        cdef const uint8_t *p = self.endpoint.peek(
            self.source, F_COMMITTED, PAIR_BYTES + ENTRY_BYTES + LANE_BYTES, &size
        )
        if p == NULL:
            return 0
        entry = p + PAIR_BYTES
        if (size < PAIR_BYTES + ENTRY_BYTES
                or kv_load_u32(entry + 20) != size - PAIR_BYTES - ENTRY_BYTES):
            self.endpoint.give_back(self.source, size)
            return 0
        index = kv_load_u64(entry)
        term = kv_load_u64(entry + 8)
        if (index != machine.loop.applied_index + 1 or term < machine.loop.applied_term
                or kv_load_u64(p) != index or kv_load_u64(p + 8) != term or machine.dead):
            self.endpoint.give_back(self.source, size)
            return 0
        compacted = machine.loop.x.w.compacted
        with nogil:
            rc = machine.lone_open(entry, size - PAIR_BYTES)
        early = rc == REC_OK and self.may_answer_early(entry + ENTRY_BYTES,
                                                       size - PAIR_BYTES - ENTRY_BYTES)
        if early:
            self.words.store(WORD_ANSWERED, index)
            self.answer()
            hit("lane-answered")
        if rc == REC_OK:
            with nogil:
                rc = machine.lone_close()
        if rc != REC_OK:
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

    cdef bint may_answer_early(self, const uint8_t *batch, size_t n) noexcept:
        """One request of those that touch nothing but keys, and one gateway that is to hear."""
        cdef uint8_t kind = batch[KIND_AT] if n > KIND_AT else 0
        return (
            (kind == KIND_PUT or kind == KIND_DELETE_RANGE or kind == KIND_TXN)
            and kv_load_u32(batch + 4) == 1 and kv_load_u32(batch + 12) == 1
            and self.machine.loop.x.leases.n == 0 and len(self.gateways) == 1
        )

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
