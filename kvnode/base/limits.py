"""Every bound of kvnode, in one place; units last. Flags override those that name a flag."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

KEY_BYTES_MAX = 4096
REQUEST_BYTES_DEFAULT = MIB + MIB // 2      # --max-request-bytes
REQUEST_BYTES_CEILING = 64 * MIB
TXN_OPS_DEFAULT = 128                       # --max-txn-ops
TXN_DEPTH_MAX = 64
ENTRY_BYTES_MAX = 64 * MIB + MIB            # one log entry, and so one client batch
PROPOSAL_BYTES_SOFT = 4 * MIB               # a gateway closes a proposal here
SESSION_WINDOW = 4096                       # W: outcomes kept a session
SESSIONS_PER_USER_MAX = 4096
QUOTA_BYTES_DEFAULT = 2 * GIB               # --quota-backend-bytes
MAP_BYTES_MIN = 64 * GIB
MAP_QUOTA_FACTOR = 8
CHECKPOINT_SECONDS = 1.0
CHECKPOINT_DIRTY_BYTES = 128 * MIB
SEGMENT_BYTES_DEFAULT = 64 * MIB            # --wal-segment-bytes
SLICE_RANGE_BYTES = 256 * KIB
GATHER_BYTES = MIB                          # consensus: proposals above do not wait for a sync
QUOTA_CLEAR_PART = 0.9                      # NOSPACE ends below this part of the quota
READING_SECONDS_MAX = 30.0                  # freeing waits so long for one read at an old revision
