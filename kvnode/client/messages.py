"""Bodies of requests, as bytes: etcd's protobuf messages written without message objects.

Role: what the typed methods of the client and the command line send. Callers: client/sync, cli/,
and users who pipeline with `submit`. Zero fields are omitted, as every protobuf encoder does.

Keys and values are bytes or str (sent as UTF-8). Field numbers are etcd's and never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvnode.wire.native import encode_varint

Data = bytes | bytearray | memoryview | str

ORDERS = {"NONE": 0, "ASCEND": 1, "DESCEND": 2}
SORT_TARGETS = {"KEY": 0, "VERSION": 1, "CREATE": 2, "MODIFY": 3, "VALUE": 4}
COMPARISONS = {"=": 0, ">": 1, "<": 2, "!=": 3}
# target: (CompareTarget, field of the value in Compare)
COMPARE_TARGETS = {
    "version": (0, 4),
    "create": (1, 5),
    "mod": (2, 6),
    "value": (3, 7),
    "lease": (4, 8),
}
_COMPARE_RANGE_END = 64


def as_bytes(data: Data) -> bytes:
    """bytes as they are, str as UTF-8."""
    return data.encode() if isinstance(data, str) else bytes(data)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`: its last byte below 0xff + 1.

    b"\\0" (all keys from there on) when there is none.
    """
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def number_field(field: int, number: int) -> bytes:
    """An int64, uint64, enum or bool field; nothing for 0."""
    if not number:
        return b""
    return encode_varint(field << 3) + encode_varint(number & 0xFFFF_FFFF_FFFF_FFFF)


def bytes_field(field: int, data: bytes, *, empty: bool = False) -> bytes:
    """A bytes or message field; nothing for empty bytes unless `empty`."""
    if not data and not empty:
        return b""
    return encode_varint(field << 3 | 2) + encode_varint(len(data)) + data


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
    body = bytes_field(1, as_bytes(key)) + bytes_field(2, as_bytes(value))
    if lease or prev_kv or ignore_value or ignore_lease:
        body += number_field(3, lease) + number_field(4, prev_kv)
        body += number_field(5, ignore_value) + number_field(6, ignore_lease)
    return body


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
    body = bytes_field(1, as_bytes(key)) + bytes_field(2, as_bytes(range_end))
    numbers = (limit, revision, ORDERS[sort_order], SORT_TARGETS[sort_target], serializable,
               keys_only, count_only, min_mod_revision, max_mod_revision, min_create_revision,
               max_create_revision)  # fmt: skip
    if any(numbers):
        for field, number in enumerate(numbers, 3):
            body += number_field(field, number)
    return body


def delete_range_request(key: Data, range_end: Data = b"", *, prev_kv: bool = False) -> bytes:
    """etcdserverpb.DeleteRangeRequest."""
    return (
        bytes_field(1, as_bytes(key))
        + bytes_field(2, as_bytes(range_end))
        + number_field(3, prev_kv)
    )


def compaction_request(revision: int, *, physical: bool = False) -> bytes:
    """etcdserverpb.CompactionRequest."""
    return number_field(1, revision) + number_field(2, physical)


def compare(
    key: Data, target: str, comparison: str, value: Data | int, *, range_end: Data = b""
) -> bytes:
    """etcdserverpb.Compare: target version|create|mod|value|lease, comparison = > < !=."""
    number, field = COMPARE_TARGETS[target]
    body = number_field(1, COMPARISONS[comparison]) + number_field(2, number)
    body += bytes_field(3, as_bytes(key))
    if isinstance(value, int):
        # A member of a oneof is written even when it is 0.
        body += encode_varint(field << 3) + encode_varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    else:
        body += bytes_field(field, as_bytes(value), empty=True)
    return body + bytes_field(_COMPARE_RANGE_END, as_bytes(range_end))


def op_range(body: bytes) -> bytes:
    """etcdserverpb.RequestOp of a RangeRequest."""
    return bytes_field(1, body, empty=True)


def op_put(body: bytes) -> bytes:
    """etcdserverpb.RequestOp of a PutRequest."""
    return bytes_field(2, body, empty=True)


def op_delete_range(body: bytes) -> bytes:
    """etcdserverpb.RequestOp of a DeleteRangeRequest."""
    return bytes_field(3, body, empty=True)


def op_txn(body: bytes) -> bytes:
    """etcdserverpb.RequestOp of a TxnRequest."""
    return bytes_field(4, body, empty=True)


def txn_request(
    compares: Sequence[bytes] = (), success: Sequence[bytes] = (), failure: Sequence[bytes] = ()
) -> bytes:
    """etcdserverpb.TxnRequest from the bytes of `compare` and `op_...`."""
    parts: list[bytes] = []
    for field, items in enumerate((compares, success, failure), 1):
        parts += [bytes_field(field, item, empty=True) for item in items]
    return b"".join(parts)


def batch(bodies: Iterable[bytes]) -> bytes:
    """kvnodepb.PutBatch of PutRequests, or kvnodepb.TxnBatch of TxnRequests."""
    parts: list[bytes] = []
    for body in bodies:
        size = len(body)
        parts.append(b"\n" + (bytes((size,)) if size < 0x80 else encode_varint(size)))
        parts.append(body)
    return b"".join(parts)
