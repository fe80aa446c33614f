"""Counters, gauges and histograms that the processes of a node share, for /metrics.

Role: each process writes its own region, whoever serves /metrics reads all. They lie behind the
shared words in the same memory (`sharedword.pyx`), because a store into a file's page may wait
for its disk. A process that is started again goes on counting where the last one of its role
stopped: counters survive restarts of a process, and start at zero with the node.
Callers: `_core` modules by the C functions, procs/ by the Python ones, api/metrics reads.

Memory: 4096 bytes of words, then regions of METER_WORDS u64 each: 0 the supervisor, 1 the
applier, 2 consensus, 3.. the gateways.

    word
      0  magic, 0x313053524554454D ("METERS01" read little-endian)
      1  process id of the writer
      2  Unix time of its start, microseconds
     16  counters and gauges, M_* of meters.pxd
    128  histograms, H_* of meters.pxd one after the other, each: a count for each bound of BOUNDS,
         a count of what is above the last, the sum in nanoseconds

Example, a region of a process 1234 that did nothing: 4d 45 54 45 52 53 30 31 d2 04 00 ...

Invariants:
  1. One process writes a region; its threads add atomically.
  2. Before `attach` everything goes into memory of the process's own, so that any code may count.
  3. Counting allocates nothing and takes no lock.
"""

import mmap
import os

from libc.stdint cimport uint64_t
from libc.string cimport memset

from kvnode._core.codes cimport (
    CODE_OK,
    KIND_ALARM,
    KIND_COMPACT,
    KIND_DELETE_RANGE,
    KIND_LEASE_CHECKPOINT,
    KIND_LEASE_GRANT,
    KIND_LEASE_REVOKE,
    KIND_PUT,
    KIND_PUT_BATCH,
    KIND_PUT_BATCH_ONE,
    KIND_RANGE,
    KIND_TXN,
    KIND_TXN_BATCH,
)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t)

cdef extern from *:
    """
    #include <stdint.h>
    static inline void kv_meter_add(uint64_t *p, uint64_t n) {
      __atomic_fetch_add(p, n, __ATOMIC_RELAXED);
    }
    static inline void kv_meter_store(uint64_t *p, uint64_t v) {
      __atomic_store_n(p, v, __ATOMIC_RELAXED);
    }
    static inline uint64_t kv_meter_load(const uint64_t *p) {
      return __atomic_load_n(p, __ATOMIC_RELAXED);
    }
    """
    void kv_meter_add(uint64_t *p, uint64_t n) noexcept nogil
    void kv_meter_store(uint64_t *p, uint64_t v) noexcept nogil
    uint64_t kv_meter_load(const uint64_t *p) noexcept nogil

cdef enum:
    BASE = 4096
    SLOTS = METER_HEAD
    HISTOGRAMS = 128
    KINDS = 64
    SLOW_APPLY_NS = 100000000

cdef uint64_t MAGIC = 0x313053524554454D

# Of each histogram: bounds, the first one in nanoseconds (each is twice the last), first word.
cdef int bounds[H_COUNT]
cdef uint64_t first_ns[H_COUNT]
cdef int starts[H_COUNT]
cdef uint64_t ranges_good
cdef uint64_t ranges_bad
cdef uint64_t own[METER_WORDS]
cdef uint64_t *region = own
cdef uint64_t done[KINDS]
cdef uint64_t refused[KINDS]
cdef int op_of[KINDS]

OPERATIONS = (
    "Put", "DeleteRange", "Txn", "Compaction", "LeaseGrant", "LeaseRevoke", "Alarm", "Range",
    "unknown",
)
"""Label `op` by its number in H_APPLY."""


cdef void lay_out() noexcept:
    cdef int h, at = HISTOGRAMS
    for h in range(H_COUNT):
        bounds[h], first_ns[h] = 20, 100000
    for h in (H_WAL_FSYNC, H_WAL_WRITE, H_COMMIT):
        bounds[h], first_ns[h] = 14, 1000000
    bounds[H_DEFRAG], first_ns[H_DEFRAG] = 13, 100000000
    for h in (H_HASH, H_HASH_KV):
        bounds[h], first_ns[h] = 15, 10000000
    for h in range(H_COUNT):
        starts[h] = at
        at += bounds[h] + 2
    for h in range(KINDS):
        op_of[h] = APPLY_OPS - 1
    for h, op in (
        (KIND_PUT, 0), (KIND_PUT_BATCH, 0), (KIND_PUT_BATCH_ONE, 0), (KIND_DELETE_RANGE, 1),
        (KIND_TXN, 2), (KIND_TXN_BATCH, 2), (KIND_COMPACT, 3), (KIND_LEASE_GRANT, 4),
        (KIND_LEASE_REVOKE, 5), (KIND_ALARM, 6), (KIND_RANGE, 7), (KIND_LEASE_CHECKPOINT, 8),
    ):
        op_of[h] = op
    assert at <= METER_WORDS


lay_out()


cdef uint64_t meter_now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef void meter_add(int slot, uint64_t n) noexcept nogil:
    kv_meter_add(region + SLOTS + slot, n)


cdef void meter_set(int slot, uint64_t value) noexcept nogil:
    kv_meter_store(region + SLOTS + slot, value)


cdef void meter_observe(int histogram, uint64_t ns, uint64_t times) noexcept nogil:
    """`times` observations of ns each."""
    cdef uint64_t *h = region + starts[histogram]
    cdef uint64_t bound = first_ns[histogram]
    cdef int i = 0, n = bounds[histogram]
    while i < n and ns > bound:
        bound <<= 1
        i += 1
    kv_meter_add(h + i, times)
    kv_meter_add(h + n + 1, ns * times)


cdef void meter_request(int kind, int code) noexcept nogil:
    if code == CODE_OK:
        done[kind & (KINDS - 1)] += 1
    else:
        refused[kind & (KINDS - 1)] += 1


cdef void meter_forget() noexcept nogil:
    memset(done, 0, sizeof(done))
    memset(refused, 0, sizeof(refused))


cdef void meter_applied(uint64_t ns) noexcept nogil:
    """A batch is one transaction of the store: each of its requests took the mean."""
    cdef uint64_t total = 0
    cdef int kind, at
    for kind in range(KINDS):
        total += done[kind] + refused[kind]
    if total == 0:
        return
    ns //= total
    for kind in range(KINDS):
        at = H_APPLY + 2 * op_of[kind]
        if done[kind]:
            meter_observe(at, ns, done[kind])
        if refused[kind]:
            meter_observe(at + 1, ns, refused[kind])
    meter_add(M_TXNS, done[KIND_TXN] + done[KIND_TXN_BATCH])
    meter_add(M_LEASES_GRANTED, done[KIND_LEASE_GRANT])
    meter_add(M_LEASES_REVOKED, done[KIND_LEASE_REVOKE])
    if ns > SLOW_APPLY_NS:
        meter_add(M_SLOW_APPLIES, total)
    meter_forget()


cdef void meter_range(int code) noexcept nogil:
    global ranges_good, ranges_bad
    if code == CODE_OK:
        ranges_good += 1
    else:
        ranges_bad += 1


cdef void meter_ranges(uint64_t ns) noexcept nogil:
    global ranges_good, ranges_bad
    cdef uint64_t total = ranges_good + ranges_bad
    if total == 0:
        return
    meter_add(M_RANGES, total)
    if ranges_good:
        meter_observe(H_RANGE, ns // total, ranges_good)
    if ranges_bad:
        meter_observe(H_RANGE_FAILED, ns // total, ranges_bad)
    ranges_good = ranges_bad = 0


cdef void meter_long_range(int code, uint64_t ns) noexcept nogil:
    meter_add(M_RANGES, 1)
    meter_observe(H_RANGE if code == CODE_OK else H_RANGE_FAILED, ns, 1)


# --- Python ---------------------------------------------------------------------------------------

SUPERVISOR, APPLIER, CONSENSUS, GATEWAY = 0, 1, 2, 3
"""Numbers of regions; gateway N is GATEWAY + N."""

BOUNDS = [[first_ns[h] * (1 << i) for i in range(bounds[h])] for h in range(H_COUNT)]
"""Upper bounds of each histogram in nanoseconds."""

SLOT = {
    "wal_bytes": M_WAL_BYTES, "leader_changes": M_LEADER_CHANGES, "has_leader": M_HAS_LEADER,
    "is_leader": M_IS_LEADER, "proposals_failed": M_PROPOSALS_FAILED,
    "heartbeat_failures": M_HEARTBEAT_FAILURES, "slow_read_indexes": M_SLOW_READ_INDEXES,
    "read_indexes_failed": M_READ_INDEXES_FAILED, "puts": M_PUTS, "deletes": M_DELETES,
    "txns": M_TXNS, "revision": M_REVISION, "compact_revision": M_COMPACT_REVISION,
    "slow_applies": M_SLOW_APPLIES, "defrag_running": M_DEFRAG_RUNNING,
    "leases_granted": M_LEASES_GRANTED, "leases_revoked": M_LEASES_REVOKED, "ranges": M_RANGES,
    "health_good": M_HEALTH_GOOD, "health_bad": M_HEALTH_BAD, "probes": M_PROBES,
    "events": M_EVENTS, "watchers": M_WATCHERS, "watch_streams": M_WATCH_STREAMS,
    "slow_watchers": M_SLOW_WATCHERS, "pending_events": M_PENDING_EVENTS,
    "grpc_connections": M_GRPC_CONNECTIONS, "http_requests": M_HTTP_REQUESTS,
    "restarts": M_RESTARTS, "dead_cpu_us": M_DEAD_CPU_US,
}
"""Counters and gauges by name."""

GAUGES = frozenset((
    M_HAS_LEADER, M_IS_LEADER, M_REVISION, M_COMPACT_REVISION, M_DEFRAG_RUNNING, M_WATCHERS,
    M_WATCH_STREAMS, M_SLOW_WATCHERS, M_PENDING_EVENTS, M_GRPC_CONNECTIONS,
))
"""Slots that go down as well: a process that is started again begins them at zero."""

HISTOGRAM = {
    "wal_fsync": H_WAL_FSYNC, "wal_write": H_WAL_WRITE, "commit": H_COMMIT, "defrag": H_DEFRAG,
    "range": H_RANGE, "range_failed": H_RANGE_FAILED, "hash": H_HASH, "hash_kv": H_HASH_KV,
    "apply": H_APPLY,
}
"""Histograms by name; apply's is that of its first operation."""


def _map(str path, int number, bint create):
    fd = os.dup(int(path[3:])) if path.startswith("fd:") else os.open(path, os.O_RDWR)
    try:
        size = BASE + (number + 1) * METER_WORDS * 8
        if create and os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        return mmap.mmap(fd, METER_WORDS * 8, offset=BASE + number * METER_WORDS * 8)
    finally:
        os.close(fd)


cdef class _Attached:
    """Keeps the mapping alive, and the region the process's own when it is gone."""
    cdef object map
    cdef object view

_attached = None
_leader = 0


def create(str path, int gateways):
    """Makes room behind the shared words at `path`. Called by the supervisor, once."""
    _map(path, GATEWAY + gateways - 1, True).close()


def attach(str path, int number, unsigned long long now_us):
    """From here on this process writes region `number`; `now_us` is Unix time.

    What was counted before goes along.
    """
    global region, _attached
    cdef unsigned char[::1] view
    cdef uint64_t *mapped
    cdef int i
    assert _attached is None, "a process writes one region"
    kept = _Attached()
    kept.map = _map(path, number, False)
    view = kept.map
    kept.view = view
    mapped = <uint64_t *>&view[0]
    for i in range(METER_HEAD, METER_WORDS):
        if own[i]:
            kv_meter_add(mapped + i, own[i])
    # What the last process of this role had open is gone with it.
    for slot in GAUGES:
        kv_meter_store(mapped + SLOTS + <int>slot, own[SLOTS + <int>slot])
    mapped[0] = MAGIC
    mapped[1] = os.getpid()
    mapped[2] = now_us
    region = mapped
    _attached = kept


def add(int slot, unsigned long long n=1):
    """Adds to a counter of this process."""
    assert 0 <= slot < HISTOGRAMS - SLOTS
    meter_add(slot, n)


def put(int slot, unsigned long long value):
    """Sets a gauge of this process."""
    assert 0 <= slot < HISTOGRAMS - SLOTS
    meter_set(slot, value)


def observe(int histogram, unsigned long long ns, unsigned long long times=1):
    """`times` observations of `ns`."""
    assert 0 <= histogram < H_COUNT
    meter_observe(histogram, ns, times)


def tell_leader(unsigned long long leader, unsigned long long member):
    """Who leads now (0: nobody), seen by `member`."""
    global _leader
    meter_set(M_HAS_LEADER, leader != 0)
    meter_set(M_IS_LEADER, leader == member)
    if leader and leader != _leader:
        meter_add(M_LEADER_CHANGES, 1)
    _leader = leader


def count_request(int kind, int code):
    """meter_request, for tests."""
    meter_request(kind, code)


def count_applied(unsigned long long ns):
    """meter_applied, for tests."""
    meter_applied(ns)


cdef class Region:
    """A region as somebody else's reader sees it."""
    cdef object map
    cdef object view
    cdef const uint64_t *words

    def __init__(self, str path, int number):
        cdef unsigned char[::1] view
        self.map = _map(path, number, False)
        view = self.map
        self.view = view
        self.words = <const uint64_t *>&view[0]

    @property
    def process_id(self) -> int:
        """Of the writer; 0 if none has been there."""
        return kv_meter_load(self.words + 1) if kv_meter_load(self.words) == MAGIC else 0

    def get(self, int slot) -> int:
        """A counter or gauge."""
        assert 0 <= slot < HISTOGRAMS - SLOTS
        return kv_meter_load(self.words + SLOTS + slot)

    def histogram(self, int number) -> tuple:
        """(counts of each bucket, the one above the last bound included; sum in nanoseconds)."""
        assert 0 <= number < H_COUNT
        cdef const uint64_t *h = self.words + starts[number]
        cdef int i, n = bounds[number]
        counts = [kv_meter_load(h + i) for i in range(n + 1)]
        return counts, kv_meter_load(h + n + 1)
