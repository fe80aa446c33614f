"""Numbers shared by every room: request kinds, refusal codes, flags.

base/codes.py is the Python side of the same table; tests/unit/test_codes.py holds them equal.
"""

cdef enum:
    # request kinds (envelope and native protocol)
    KIND_PUT = 1             # body: etcdserverpb.PutRequest
    KIND_RANGE = 2           # body: etcdserverpb.RangeRequest
    KIND_DELETE_RANGE = 3    # body: etcdserverpb.DeleteRangeRequest
    KIND_TXN = 4             # body: etcdserverpb.TxnRequest
    KIND_COMPACT = 5         # body: etcdserverpb.CompactionRequest
    KIND_PUT_BATCH = 6       # body: kvnodepb.PutBatch, each put has its own revision
    KIND_PUT_BATCH_ONE = 7   # body: kvnodepb.PutBatch, all puts in one revision, keys unique
    KIND_TXN_BATCH = 8       # body: kvnodepb.TxnBatch, each transaction has its own revision
    KIND_SESSION_OPEN = 16   # body: kvnodepb.SessionOpen
    KIND_SESSION_CLOSE = 17  # body: kvnodepb.SessionClose
    KIND_ALARM = 18          # body: etcdserverpb.AlarmRequest
    KIND_LEASE_GRANT = 19    # body: etcdserverpb.LeaseGrantRequest, id and least TTL filled in
    KIND_LEASE_REVOKE = 20   # body: etcdserverpb.LeaseRevokeRequest
    KIND_LEASE_CHECKPOINT = 21   # body: etcdserverpb.LeaseCheckpointRequest; consensus' own
    KIND_STATUS = 32         # body: etcdserverpb.StatusRequest; never in the log
    KIND_DEFRAG = 33         # body: etcdserverpb.DefragmentRequest; never in the log
    KIND_LEASE_KEEP_ALIVE = 34   # body: etcdserverpb.LeaseKeepAliveRequest; never in the log
    KIND_LEASE_TIME_TO_LIVE = 35  # body: etcdserverpb.LeaseTimeToLiveRequest; never in the log
    KIND_LEASE_LEASES = 36       # body: etcdserverpb.LeaseLeasesRequest; never in the log

    # refusal codes; 0 is success
    CODE_OK = 0
    CODE_EMPTY_KEY = 1
    CODE_KEY_NOT_FOUND = 2
    CODE_VALUE_PROVIDED = 3
    CODE_LEASE_PROVIDED = 4
    CODE_TOO_MANY_OPS = 5
    CODE_DUPLICATE_KEY = 6
    CODE_INVALID_SORT = 7
    CODE_COMPACTED = 8
    CODE_FUTURE_REV = 9
    CODE_NO_SPACE = 10
    CODE_LEASE_NOT_FOUND = 11
    CODE_LEASE_EXIST = 12
    CODE_LEASE_TTL_TOO_LARGE = 13
    CODE_REQUEST_TOO_LARGE = 14
    CODE_TOO_MANY_REQUESTS = 15
    CODE_TIMEOUT = 16
    CODE_NO_LEADER = 17
    CODE_STOPPED = 18
    CODE_CORRUPT = 19
    CODE_MALFORMED = 20          # body is not the message its kind names
    CODE_KEY_TOO_LONG = 21
    CODE_UNKNOWN_KIND = 22
    CODE_UNKNOWN_FLAGS = 23
    CODE_OUTCOME_UNKNOWN = 24    # below the session's window, or session unknown: not executed
    CODE_WINDOW_EXCEEDED = 25    # sequence >= lowest open + W: not executed
    CODE_APPLIED = 26            # applied before; the answer was more than its stored outcome
    CODE_AUTH_OLD_REVISION = 27
    CODE_PERMISSION_DENIED = 28
    CODE_TOO_MANY_SESSIONS = 29
    CODE_NESTED_TOO_DEEP = 30
    CODE_UNAVAILABLE = 31        # the process that would answer is restarting
    CODE_COUNT = 32
