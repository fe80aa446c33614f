"""Request kinds and refusal codes, with the gRPC status and text a client sees.

Texts and statuses are etcd's where etcd has the error (its rpctypes); the rest are kvnode's own.
The numbers stand in the log and on the wire: they never change, new ones are added at the end.
"""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class Kind(IntEnum):
    """What a request's body is; see `_core/codes.pxd` for the messages."""

    PUT = 1
    RANGE = 2
    DELETE_RANGE = 3
    TXN = 4
    COMPACT = 5
    PUT_BATCH = 6
    PUT_BATCH_ONE = 7
    TXN_BATCH = 8
    SESSION_OPEN = 16
    SESSION_CLOSE = 17
    ALARM = 18
    LEASE_GRANT = 19
    LEASE_REVOKE = 20
    LEASE_CHECKPOINT = 21
    STATUS = 32
    DEFRAG = 33
    LEASE_KEEP_ALIVE = 34
    LEASE_TIME_TO_LIVE = 35
    LEASE_LEASES = 36


class Grpc(IntEnum):
    """The gRPC status codes that kvnode answers with."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@unique
class Code(IntEnum):
    """Why a request was refused; 0 is success."""

    OK = 0
    EMPTY_KEY = 1
    KEY_NOT_FOUND = 2
    VALUE_PROVIDED = 3
    LEASE_PROVIDED = 4
    TOO_MANY_OPS = 5
    DUPLICATE_KEY = 6
    INVALID_SORT = 7
    COMPACTED = 8
    FUTURE_REV = 9
    NO_SPACE = 10
    LEASE_NOT_FOUND = 11
    LEASE_EXIST = 12
    LEASE_TTL_TOO_LARGE = 13
    REQUEST_TOO_LARGE = 14
    TOO_MANY_REQUESTS = 15
    TIMEOUT = 16
    NO_LEADER = 17
    STOPPED = 18
    CORRUPT = 19
    MALFORMED = 20
    KEY_TOO_LONG = 21
    UNKNOWN_KIND = 22
    UNKNOWN_FLAGS = 23
    OUTCOME_UNKNOWN = 24
    WINDOW_EXCEEDED = 25
    APPLIED = 26
    AUTH_OLD_REVISION = 27
    PERMISSION_DENIED = 28
    TOO_MANY_SESSIONS = 29
    NESTED_TOO_DEEP = 30
    UNAVAILABLE = 31


STATUS: dict[Code, tuple[Grpc, str]] = {
    Code.OK: (Grpc.OK, ""),
    Code.EMPTY_KEY: (Grpc.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    Code.KEY_NOT_FOUND: (Grpc.INVALID_ARGUMENT, "etcdserver: key not found"),
    Code.VALUE_PROVIDED: (Grpc.INVALID_ARGUMENT, "etcdserver: value is provided"),
    Code.LEASE_PROVIDED: (Grpc.INVALID_ARGUMENT, "etcdserver: lease is provided"),
    Code.TOO_MANY_OPS: (
        Grpc.INVALID_ARGUMENT,
        "etcdserver: too many operations in txn request",
    ),
    Code.DUPLICATE_KEY: (
        Grpc.INVALID_ARGUMENT,
        "etcdserver: duplicate key given in txn request",
    ),
    Code.INVALID_SORT: (Grpc.INVALID_ARGUMENT, "etcdserver: invalid sort option"),
    Code.COMPACTED: (
        Grpc.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision has been compacted",
    ),
    Code.FUTURE_REV: (
        Grpc.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    ),
    Code.NO_SPACE: (Grpc.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
    Code.LEASE_NOT_FOUND: (Grpc.NOT_FOUND, "etcdserver: requested lease not found"),
    Code.LEASE_EXIST: (Grpc.FAILED_PRECONDITION, "etcdserver: lease already exists"),
    Code.LEASE_TTL_TOO_LARGE: (Grpc.OUT_OF_RANGE, "etcdserver: too large lease TTL"),
    Code.REQUEST_TOO_LARGE: (Grpc.INVALID_ARGUMENT, "etcdserver: request is too large"),
    Code.TOO_MANY_REQUESTS: (Grpc.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    Code.TIMEOUT: (Grpc.UNAVAILABLE, "etcdserver: request timed out"),
    Code.NO_LEADER: (Grpc.UNAVAILABLE, "etcdserver: no leader"),
    Code.STOPPED: (Grpc.UNAVAILABLE, "etcdserver: server stopped"),
    Code.CORRUPT: (Grpc.DATA_LOSS, "etcdserver: corrupt cluster"),
    Code.MALFORMED: (Grpc.INTERNAL, "kvnode: request body is not a valid message of its kind"),
    Code.KEY_TOO_LONG: (Grpc.INVALID_ARGUMENT, "kvnode: key is longer than 4096 bytes"),
    Code.UNKNOWN_KIND: (Grpc.UNIMPLEMENTED, "kvnode: unknown request kind"),
    Code.UNKNOWN_FLAGS: (Grpc.INVALID_ARGUMENT, "kvnode: unknown request flags"),
    Code.OUTCOME_UNKNOWN: (
        Grpc.FAILED_PRECONDITION,
        "kvnode: outcome unknown: session or sequence is no longer kept, nothing was executed",
    ),
    Code.WINDOW_EXCEEDED: (
        Grpc.RESOURCE_EXHAUSTED,
        "kvnode: sequence is beyond the session's window, nothing was executed",
    ),
    Code.APPLIED: (
        Grpc.UNAVAILABLE,
        "kvnode: applied by an earlier attempt whose answer is no longer known",
    ),
    Code.AUTH_OLD_REVISION: (
        Grpc.INVALID_ARGUMENT,
        "etcdserver: revision of auth store is old",
    ),
    Code.PERMISSION_DENIED: (Grpc.PERMISSION_DENIED, "etcdserver: permission denied"),
    Code.TOO_MANY_SESSIONS: (Grpc.RESOURCE_EXHAUSTED, "kvnode: too many sessions"),
    Code.NESTED_TOO_DEEP: (Grpc.INVALID_ARGUMENT, "kvnode: transaction is nested too deep"),
    Code.UNAVAILABLE: (Grpc.UNAVAILABLE, "kvnode: the node is restarting one of its processes"),
}
