"""Bodies of requests, as bytes: etcd's protobuf messages written without message objects.

Role: what the typed methods of the client and the command line send, in words instead of enum
numbers. Callers: client/sync, cli/, and users who pipeline with `submit`. The encoding itself is
`_core/messages` (0.1 µs a put, 3.5 in plain Python).

Keys and values are bytes or str (sent as UTF-8).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvnode._core.messages import (
    encode_batch,
    encode_compact,
    encode_compare,
    encode_delete_range,
    encode_op,
    encode_put,
    encode_put_batch,
    encode_range,
    encode_txn,
)

Data = bytes | bytearray | memoryview | str

ORDERS = {"NONE": 0, "ASCEND": 1, "DESCEND": 2}
SORT_TARGETS = {"KEY": 0, "VERSION": 1, "CREATE": 2, "MODIFY": 3, "VALUE": 4}
COMPARISONS = {"=": 0, ">": 1, "<": 2, "!=": 3}
COMPARE_TARGETS = {"version": 0, "create": 1, "mod": 2, "value": 3, "lease": 4}
_OP_RANGE, _OP_PUT, _OP_DELETE_RANGE, _OP_TXN = 1, 2, 3, 4


def as_bytes(data: Data) -> bytes:
    """bytes as they are, str as UTF-8."""
    return data.encode() if isinstance(data, str) else bytes(data)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`: its last byte below 0xff + 1.

    b"\\0" (all keys from there on) when there is none.
    """
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def put_request(
    key: Data,
    value: Data = b"",
    *,
    lease: int = 0,
    prev_kv: bool = False,
    ignore_value: bool = False,
    ignore_lease: bool = False,
) -> bytes:
    """etcdserverpb.PutRequest."""
    return encode_put(as_bytes(key), as_bytes(value), lease, prev_kv, ignore_value, ignore_lease)


def range_request(
    key: Data,
    range_end: Data = b"",
    *,
    limit: int = 0,
    revision: int = 0,
    sort_order: str = "NONE",
    sort_target: str = "KEY",
    serializable: bool = False,
    keys_only: bool = False,
    count_only: bool = False,
    min_mod_revision: int = 0,
    max_mod_revision: int = 0,
    min_create_revision: int = 0,
    max_create_revision: int = 0,
) -> bytes:
    """etcdserverpb.RangeRequest; sort_order of ORDERS, sort_target of SORT_TARGETS."""
    return encode_range(
        as_bytes(key),
        as_bytes(range_end),
        limit,
        revision,
        ORDERS[sort_order],
        SORT_TARGETS[sort_target],
        serializable,
        keys_only,
        count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    )


def delete_range_request(key: Data, range_end: Data = b"", *, prev_kv: bool = False) -> bytes:
    """etcdserverpb.DeleteRangeRequest."""
    return encode_delete_range(as_bytes(key), as_bytes(range_end), prev_kv)


def compaction_request(revision: int, *, physical: bool = False) -> bytes:
    """etcdserverpb.CompactionRequest."""
    return encode_compact(revision, physical)


def compare(
    key: Data, target: str, comparison: str, value: Data | int, *, range_end: Data = b""
) -> bytes:
    """etcdserverpb.Compare: target version|create|mod|value|lease, comparison = > < !=."""
    return encode_compare(
        as_bytes(key),
        COMPARISONS[comparison],
        COMPARE_TARGETS[target],
        value if isinstance(value, int) else as_bytes(value),
        as_bytes(range_end),
    )


def op_range(body: bytes) -> bytes:
    """etcdserverpb.RequestOp of a RangeRequest."""
    return encode_op(_OP_RANGE, body)


def op_put(body: bytes) -> bytes:
    """etcdserverpb.RequestOp of a PutRequest."""
    return encode_op(_OP_PUT, body)


def op_delete_range(body: bytes) -> bytes:
    """etcdserverpb.RequestOp of a DeleteRangeRequest."""
    return encode_op(_OP_DELETE_RANGE, body)


def op_txn(body: bytes) -> bytes:
    """etcdserverpb.RequestOp of a TxnRequest."""
    return encode_op(_OP_TXN, body)


def txn_request(
    compares: Sequence[bytes] = (), success: Sequence[bytes] = (), failure: Sequence[bytes] = ()
) -> bytes:
    """etcdserverpb.TxnRequest from the bytes of `compare` and `op_...`."""
    return encode_txn(compares, success, failure)


def put_batch(pairs: Iterable[tuple[Data, Data]]) -> bytes:
    """kvnodepb.PutBatch of (key, value) pairs."""
    keys: list[bytes] = []
    values: list[bytes] = []
    for key, value in pairs:
        keys.append(as_bytes(key))
        values.append(as_bytes(value))
    return encode_put_batch(keys, values)


def batch(bodies: Iterable[bytes]) -> bytes:
    """kvnodepb.PutBatch of PutRequests, or kvnodepb.TxnBatch of TxnRequests."""
    return encode_batch(bodies)
