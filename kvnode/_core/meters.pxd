"""Counters, gauges and histograms in memory that the processes of a node share. See meters.pyx."""

from libc.stdint cimport uint64_t

cdef enum:
    METER_WORDS = 1024            # u64 a region
    METER_HEAD = 16               # words of the region's head

    # counters and gauges, from word METER_HEAD on; who writes it
    M_WAL_BYTES = 0               # consensus
    M_LEADER_CHANGES = 1
    M_HAS_LEADER = 2              # gauge
    M_IS_LEADER = 3               # gauge
    M_HEARTBEAT_FAILURES = 8
    M_SLOW_READ_INDEXES = 9
    M_READ_INDEXES_FAILED = 10

    M_PUTS = 16                   # applier
    M_DELETES = 17
    M_TXNS = 18
    M_REVISION = 19               # gauge
    M_COMPACT_REVISION = 20       # gauge
    M_SLOW_APPLIES = 21
    M_DEFRAG_RUNNING = 24         # gauge
    M_LEASES_GRANTED = 27
    M_LEASES_REVOKED = 28

    M_RANGES = 32                 # gateway
    M_HEALTH_GOOD = 33
    M_HEALTH_BAD = 34
    M_PROBES = 35                 # 5 checks: good, bad, last (gauge)
    M_EVENTS = 50
    M_WATCHERS = 51               # gauge
    M_WATCH_STREAMS = 52          # gauge
    M_SLOW_WATCHERS = 53          # gauge
    M_PENDING_EVENTS = 54         # gauge
    M_GRPC_CONNECTIONS = 56       # gauge
    M_HTTP_REQUESTS = 57
    M_PROPOSALS_FAILED = 58

    M_RESTARTS = 64               # supervisor
    M_DEAD_CPU_US = 65            # of children that ended

    # histograms
    H_WAL_FSYNC = 0
    H_WAL_WRITE = 1
    H_COMMIT = 2
    H_DEFRAG = 3
    H_RANGE = 4
    H_RANGE_FAILED = 5
    H_HASH = 6
    H_HASH_KV = 7
    H_APPLY = 8                   # + 2 x operation + (0 done, 1 refused)
    APPLY_OPS = 9
    H_COUNT = 26

cdef void meter_add(int slot, uint64_t n) noexcept nogil
cdef void meter_set(int slot, uint64_t value) noexcept nogil
cdef void meter_observe(int histogram, uint64_t ns, uint64_t times) noexcept nogil
# One request of the log was executed; told in all by meter_applied.
cdef void meter_request(int kind, int code) noexcept nogil
# The requests since the last meter_applied are executed again: their transaction was given up.
cdef void meter_forget() noexcept nogil
# The requests since the last call took ns together.
cdef void meter_applied(uint64_t ns) noexcept nogil
# One range was answered; timed in all by meter_ranges: those since the last call took ns together.
cdef void meter_range(int code) noexcept nogil
cdef void meter_ranges(uint64_t ns) noexcept nogil
# One that took several turns, by itself.
cdef void meter_long_range(int code, uint64_t ns) noexcept nogil
cdef uint64_t meter_now_ns() noexcept nogil
