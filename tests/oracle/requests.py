"""Requests and responses of the state machine's tests, written down as plain Python values.

Used by the oracle model (tests/oracle/mvcc.py) and by the generators of the differential tests.
Every request knows its `kind` and encodes itself as etcd's message; responses are encoded by small
functions. Only the fields that the state machine meets are here. Zero fields are left out, as
proto3 does, so equal values have equal bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from kvnode.base.codes import Kind

MASK64 = (1 << 64) - 1


def varint(number: int) -> bytes:
    """`number` (int64 or uint64) as a protobuf varint."""
    number &= MASK64
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def num(tag: int, number: int) -> bytes:
    """A varint field; nothing when zero."""
    return varint(tag << 3) + varint(number) if number else b""


def sub(tag: int, body: bytes) -> bytes:
    """A length-prefixed field, also when empty."""
    return varint(tag << 3 | 2) + varint(len(body)) + body


def raw(tag: int, body: bytes) -> bytes:
    """A bytes field; nothing when empty."""
    return sub(tag, body) if body else b""


# --- requests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Put:
    key: bytes
    value: bytes = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False
    kind = Kind.PUT

    def encode(self) -> bytes:
        return (
            raw(1, self.key)
            + raw(2, self.value)
            + num(3, self.lease)
            + num(4, self.prev_kv)
            + num(5, self.ignore_value)
            + num(6, self.ignore_lease)
        )


@dataclass(frozen=True)
class Range:
    key: bytes
    end: bytes = b""
    limit: int = 0
    revision: int = 0
    order: int = 0  # 0 none, 1 ascend, 2 descend
    target: int = 0  # 0 key, 1 version, 2 create, 3 mod, 4 value
    keys_only: bool = False
    count_only: bool = False
    min_mod: int = 0
    max_mod: int = 0
    min_create: int = 0
    max_create: int = 0
    kind = Kind.RANGE

    def filters(self) -> bool:
        return bool(self.min_mod or self.max_mod or self.min_create or self.max_create)

    def encode(self) -> bytes:
        return (
            raw(1, self.key)
            + raw(2, self.end)
            + num(3, self.limit)
            + num(4, self.revision)
            + num(5, self.order)
            + num(6, self.target)
            + num(8, self.keys_only)
            + num(9, self.count_only)
            + num(10, self.min_mod)
            + num(11, self.max_mod)
            + num(12, self.min_create)
            + num(13, self.max_create)
        )


@dataclass(frozen=True)
class Delete:
    key: bytes
    end: bytes = b""
    prev_kv: bool = False
    kind = Kind.DELETE_RANGE

    def encode(self) -> bytes:
        return raw(1, self.key) + raw(2, self.end) + num(3, self.prev_kv)


TARGETS = ("version", "create", "mod", "value", "lease")


@dataclass(frozen=True)
class Compare:
    """`target` and `result` are etcd's numbers; `union` names the value the client set."""

    key: bytes
    target: int  # index into TARGETS
    result: int  # 0 equal, 1 greater, 2 less, 3 not equal
    number: int = 0
    value: bytes = b""
    end: bytes = b""
    union: str | None = None  # None: the member that `target` names

    def member(self) -> str:
        return TARGETS[self.target] if self.union is None else self.union

    def encode(self) -> bytes:
        out = num(1, self.result) + num(2, self.target) + raw(3, self.key)
        member = self.member()
        if member == "value":
            out += sub(7, self.value)
        elif member in TARGETS:
            tag = {"version": 4, "create": 5, "mod": 6, "lease": 8}[member]
            out += varint(tag << 3) + varint(self.number)
        return out + raw(64, self.end)


@dataclass(frozen=True)
class Txn:
    compare: tuple[Compare, ...] = ()
    success: tuple[Put | Range | Delete | Txn, ...] = ()
    failure: tuple[Put | Range | Delete | Txn, ...] = ()
    kind = Kind.TXN

    def encode(self) -> bytes:
        return (
            b"".join(sub(1, c.encode()) for c in self.compare)
            + b"".join(sub(2, encode_op(op)) for op in self.success)
            + b"".join(sub(3, encode_op(op)) for op in self.failure)
        )


OP_TAG = {Range: 1, Put: 2, Delete: 3, Txn: 4}


def encode_op(op: Put | Range | Delete | Txn) -> bytes:
    return sub(OP_TAG[type(op)], op.encode())


@dataclass(frozen=True)
class Compact:
    revision: int
    kind = Kind.COMPACT

    def encode(self) -> bytes:
        return num(1, self.revision)


@dataclass(frozen=True)
class PutBatch:
    """One of the three batches: `kind` is PUT_BATCH, PUT_BATCH_ONE or TXN_BATCH."""

    items: tuple[Put | Txn, ...]
    kind: Kind = Kind.PUT_BATCH

    def encode(self) -> bytes:
        return b"".join(sub(1, item.encode()) for item in self.items)


@dataclass(frozen=True)
class SessionOpen:
    session: int
    gateway: bool = False
    kind = Kind.SESSION_OPEN

    def encode(self) -> bytes:
        return num(1, self.session) + num(2, self.gateway)


@dataclass(frozen=True)
class SessionClose:
    session: int
    kind = Kind.SESSION_CLOSE

    def encode(self) -> bytes:
        return num(1, self.session)


@dataclass(frozen=True)
class Alarm:
    action: int  # 0 get, 1 activate, 2 deactivate
    member: int = 0
    alarm: int = 0  # 1 NOSPACE, 2 CORRUPT
    kind = Kind.ALARM

    def encode(self) -> bytes:
        return num(1, self.action) + num(2, self.member) + num(3, self.alarm)


@dataclass(frozen=True)
class LeaseGrant:
    lease: int
    ttl: int
    kind = Kind.LEASE_GRANT

    def encode(self) -> bytes:
        return num(1, self.ttl) + num(2, self.lease)


@dataclass(frozen=True)
class LeaseRevoke:
    lease: int
    kind = Kind.LEASE_REVOKE

    def encode(self) -> bytes:
        return num(1, self.lease)


@dataclass(frozen=True)
class LeaseCheckpoint:
    points: tuple[tuple[int, int], ...]  # lease, remaining seconds
    kind = Kind.LEASE_CHECKPOINT

    def encode(self) -> bytes:
        return b"".join(sub(1, num(1, lease) + num(2, left)) for lease, left in self.points)


@dataclass(frozen=True)
class Poison:
    """Bytes that are no message of their kind."""

    kind: int
    body: bytes

    def encode(self) -> bytes:
        return self.body


Request = (
    Put | Range | Delete | Txn | Compact | PutBatch | SessionOpen | SessionClose | Alarm | Poison
    | LeaseGrant | LeaseRevoke | LeaseCheckpoint
)


# --- envelopes ----------------------------------------------------------------------------------


@dataclass
class Group:
    """One unit of a proposal: requests under one (session, sequence)."""

    requests: list[Request]
    session: int = 0
    sequence: int = 0
    lowest: int = 0
    client: bool = False
    user: int = 0
    member: int = 1
    incarnation: int = 1
    slot: int = 0
    auth_revision: int = 0
    flags: int = field(default=0)

    def encode(self) -> bytes:
        body = b"".join(
            struct.pack("<BBHI", r.kind, 0, 0, len(r.encode())) + r.encode() for r in self.requests
        )
        head = struct.pack(
            "<BBHIIIQQQQQIIQQ",
            1,
            self.flags | self.client,
            0,
            len(self.requests),
            len(body),
            self.user,
            self.session,
            self.sequence,
            self.lowest,
            self.member,
            self.incarnation,
            self.slot,
            0,
            self.auth_revision,
            0,
        )
        return head + body


def encode_batch(groups: list[Group]) -> bytes:
    """The data of one log entry."""
    return struct.pack("<BBHI", 1, 0, 0, len(groups)) + b"".join(g.encode() for g in groups)


@dataclass(frozen=True)
class GroupResult:
    slot: int
    incarnation: int
    state: int
    code: int
    count: int
    results: tuple[tuple[int, int, bytes], ...]  # (code, kind, body); none in state 2


def decode_results(data: bytes) -> list[GroupResult]:
    out = []
    at = 0
    while at < len(data):
        slot, count, incarnation, size, state, code, zero = struct.unpack_from("<IIQIBBH", data, at)
        assert zero == 0
        at += 24
        end = at + size
        results = []
        for _ in range(count if state != 2 else 0):
            rcode, kind, _zero, length = struct.unpack_from("<BBHI", data, at)
            at += 8
            results.append((rcode, kind, bytes(data[at : at + length])))
            at += length
        assert at == end, "a result group's length is wrong"
        out.append(GroupResult(slot, incarnation, state, code, count, tuple(results)))
    return out


# --- responses ----------------------------------------------------------------------------------


def header(revision: int, cluster: int = 0, member: int = 0, term: int = 0) -> bytes:
    return num(1, cluster) + num(2, member) + num(3, revision) + num(4, term)


@dataclass(frozen=True)
class KeyValue:
    key: bytes
    create: int = 0
    mod: int = 0
    version: int = 0
    value: bytes = b""
    lease: int = 0

    def encode(self) -> bytes:
        return (
            raw(1, self.key)
            + num(2, self.create)
            + num(3, self.mod)
            + num(4, self.version)
            + raw(5, self.value)
            + num(6, self.lease)
        )
