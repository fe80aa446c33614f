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
LEASE_ASKS_BYTES_MAX = 64 * MIB             # keep-alives that wait in consensus
GATHER_BYTES = MIB                          # consensus: proposals above do not wait for a sync
QUOTA_CLEAR_PART = 0.9                      # NOSPACE ends below this part of the quota
READING_SECONDS_MAX = 30.0                  # freeing waits so long for one read at an old revision
HTTP_HEADER_BYTES_MAX = 64 * KIB            # HTTP/1.1: request line and headers
HTTP_HEADER_SECONDS = 30.0                  # from a request's first byte to its headers' end
HTTP_BODY_SECONDS = 60.0                    # for the whole body of a single call
HTTP_IDLE_SECONDS = 120                     # keep-alive: between requests
HTTP_STALL_SECONDS = 300.0                  # a client that reads nothing of its answer
HTTP_LINGER_SECONDS = 2.0                   # after an answer that came before its request's end
HTTP_BODIES_BYTES_MAX = 64 * MIB            # bodies of single calls being received, all together
HTTP_STREAM_BYTES_MAX = 64 * KIB            # one message of a stream's client (watch, keep-alive)
HTTP_QUEUE_BYTES = 256 * KIB                # of a stream to a client; above it the call pauses
GRPC_OVERHEAD_BYTES = 512 * KIB             # what etcd adds to --max-request-bytes for gRPC
WATCH_SLICE_WORK = 10_000                   # about 1 ms of the watch hub, in units of 100 ns
WATCH_SLICE_BYTES = 256 * KIB               # events of one slice, before it ends with its revision
