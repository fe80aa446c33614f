"""The whole state machine, written for being obviously right: the oracle of kvnode/_core/machine.

Every key keeps its full history as a list; compaction only moves a number; nothing is ever freed.
Requests are the values of tests/oracle/requests.py, answers are bytes, so that a differential
test compares what a client would see. Slow on purpose: no index, no cache, linear scans.

Differences from etcd that the model states as well: keys over 4096 bytes are refused; in a
transaction whose earlier operation deletes a key, ignore_value and ignore_lease on that key are
refused up front (etcd's check doesn't look, and its apply loop then panics).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from kvnode._core.crc32c import crc32c
from kvnode.base.codes import Code, Kind
from kvnode.base.limits import KEY_BYTES_MAX
from tests.oracle.gosort import go_sorted
from tests.oracle.requests import (
    MASK64,
    TARGETS,
    Compare,
    Delete,
    KeyValue,
    Put,
    PutBatch,
    Range,
    Txn,
    header,
    num,
    sub,
    varint,
)

ALARMS_MAX = 256
OUTCOME_BYTES_MAX = 4096
HASH_MULTIPLIER = 0x9E3779B97F4A7C15

# tags of state hash events
EVENT_COMPACT, EVENT_OPEN, EVENT_CLOSE, EVENT_EVICT = 1, 2, 3, 4
EVENT_ALARM_SET, EVENT_ALARM_CLEAR, EVENT_MALFORMED, EVENT_REPEATED, EVENT_OUTCOME = 5, 6, 7, 8, 9
EVENT_LEASE_GRANT, EVENT_LEASE_REVOKE, EVENT_LEASE_CHECKPOINT = 10, 11, 12
LEASE_TTL_MAX = 9_000_000_000


class Refused(Exception):
    def __init__(self, code: Code) -> None:
        self.code = code


@dataclass
class Version:
    """One record of a key; `kv` is None in a tombstone."""

    main: int
    sub: int
    kv: KeyValue | None


def in_range(key: bytes, start: bytes, end: bytes) -> bool:
    if end == b"":
        return key == start
    if end == b"\0":
        return key >= start
    return start <= key < end


# --- checks that need no state -------------------------------------------------------------------


def check_put(req: Put) -> None:
    if not req.key:
        raise Refused(Code.EMPTY_KEY)
    if req.ignore_value and req.value:
        raise Refused(Code.VALUE_PROVIDED)
    if req.ignore_lease and req.lease:
        raise Refused(Code.LEASE_PROVIDED)


def check_range(req: Range) -> None:
    if not req.key:
        raise Refused(Code.EMPTY_KEY)
    if req.order not in (0, 1, 2) or req.target not in (0, 1, 2, 3, 4):
        raise Refused(Code.INVALID_SORT)


def check_ops(req: Txn, max_ops: int) -> None:
    widest = max(len(req.compare), len(req.success), len(req.failure))
    if widest > max_ops:
        raise Refused(Code.TOO_MANY_OPS)
    for compare in req.compare:
        if not compare.key:
            raise Refused(Code.EMPTY_KEY)
    for op in req.success + req.failure:
        if isinstance(op, Range):
            check_range(op)
        elif isinstance(op, Put):
            check_put(op)
        elif isinstance(op, Delete):
            if not op.key:
                raise Refused(Code.EMPTY_KEY)
        else:
            check_ops(op, max_ops - widest)


def check_duplicates(ops: tuple) -> tuple[set[bytes], list[Delete]]:
    """The keys put and the ranges deleted by `ops`, as etcd gathers them."""

    def deleted(key: bytes) -> bool:
        # a from-key delete is an interval that ends before it begins: it never overlaps
        return any(d.end != b"\0" and in_range(key, d.key, d.end) for d in dels)

    dels = [op for op in ops if isinstance(op, Delete)]
    puts: set[bytes] = set()
    for op in ops:
        if not isinstance(op, Txn):
            continue
        puts_then, dels_then = check_duplicates(op.success)
        puts_else, dels_else = check_duplicates(op.failure)
        if any(key in puts or deleted(key) for key in puts_then):
            raise Refused(Code.DUPLICATE_KEY)
        puts |= puts_then
        if any((key in puts and key not in puts_then) or deleted(key) for key in puts_else):
            raise Refused(Code.DUPLICATE_KEY)
        puts |= puts_else
        dels += dels_then + dels_else
    for op in ops:
        if isinstance(op, Put):
            if op.key in puts or deleted(op.key):
                raise Refused(Code.DUPLICATE_KEY)
            puts.add(op.key)
    return puts, dels


def check_lengths(req: Put | Range | Delete | Txn) -> None:
    if isinstance(req, Txn):
        for compare in req.compare:
            if len(compare.key) > KEY_BYTES_MAX or len(compare.end) > KEY_BYTES_MAX:
                raise Refused(Code.KEY_TOO_LONG)
        for op in req.success + req.failure:
            check_lengths(op)
    elif len(req.key) > KEY_BYTES_MAX or len(getattr(req, "end", b"")) > KEY_BYTES_MAX:
        raise Refused(Code.KEY_TOO_LONG)


def check_txn(req: Txn, max_ops: int) -> None:
    check_ops(req, max_ops)
    check_duplicates(req.success)
    check_duplicates(req.failure)
    check_lengths(req)


def has_put(req: Txn) -> bool:
    return any(
        isinstance(op, Put) or (isinstance(op, Txn) and has_put(op))
        for op in req.success + req.failure
    )


# --- the store -----------------------------------------------------------------------------------


@dataclass
class Mvcc:
    """Keys, revisions, compaction and alarms; one call per request, answers with bytes."""

    cluster: int = 1
    member: int = 1
    term: int = 1
    revision: int = 1
    compacted: int = -1
    hash: int = 0
    max_ops: int = 1 << 40
    keys: dict[bytes, list[Version]] = field(default_factory=dict)
    log: list[tuple[int, int, bytes]] = field(default_factory=list)
    alarms: set[tuple[int, int]] = field(default_factory=set)  # (alarm, member)
    leases: dict[int, Lease] = field(default_factory=dict)

    # --- state hash

    def fold(self, crc: int) -> None:
        mixed = self.hash ^ crc
        rotated = (mixed << 23 | mixed >> 41) & MASK64
        self.hash = rotated * HASH_MULTIPLIER & MASK64

    def fold_event(self, tag: int, a: int = 0, b: int = 0, c: int = 0, tail: bytes = b"") -> None:
        self.fold(crc32c(struct.pack("<QQQQ", tag, a & MASK64, b & MASK64, c & MASK64) + tail))

    # --- reading

    def latest(self, key: bytes) -> KeyValue | None:
        versions = self.keys.get(key)
        return versions[-1].kv if versions else None

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        for version in reversed(self.keys.get(key, [])):
            if version.main <= revision:
                return version.kv
        return None

    def select(self, start: bytes, end: bytes, revision: int | None = None) -> list[KeyValue]:
        """The keys of a range in order; by default as the transaction under way left them."""
        if end == b"":
            wanted = [start] if start in self.keys else []
        else:
            wanted = sorted(key for key in self.keys if in_range(key, start, end))
        found = [self.latest(key) if revision is None else self.at(key, revision) for key in wanted]
        return [kv for kv in found if kv is not None]

    def range(self, req: Range, current: int, head: bytes) -> bytes:
        if req.revision > current:
            raise Refused(Code.FUTURE_REV)
        revision = req.revision if req.revision > 0 else current
        if revision < self.compacted:
            raise Refused(Code.COMPACTED)
        kvs = self.select(req.key, req.end, revision)
        count = len(kvs)
        if req.count_only:
            return sub(1, head) + num(4, count)
        plain = req.order == 0 or (req.target == 0 and req.order == 1)
        if plain and req.limit > 0 and not req.filters():
            kvs = kvs[: req.limit + 1]  # before sorting, even when there is a target to sort by
        if req.keys_only and req.target != 4:
            kvs = [KeyValue(kv.key, kv.create, kv.mod, kv.version, kv.value) for kv in kvs]
        kvs = [
            kv
            for kv in kvs
            if (not req.max_mod or kv.mod <= req.max_mod)
            and (not req.min_mod or kv.mod >= req.min_mod)
            and (not req.max_create or kv.create <= req.max_create)
            and (not req.min_create or kv.create >= req.min_create)
        ]
        order = req.order if req.order or req.target == 0 else 1
        if order and (order, req.target) != (1, 0):
            name = ("key", "version", "create", "mod", "value")[req.target]
            kvs = go_sorted(kvs, lambda kv: getattr(kv, name), order == 2)
        more = 0 < req.limit < len(kvs)
        if more:
            kvs = kvs[: req.limit]
        out = sub(1, head)
        for kv in kvs:
            if req.keys_only:
                kv = KeyValue(kv.key, kv.create, kv.mod, kv.version, b"", kv.lease)
            out += sub(2, kv.encode())
        return out + num(3, more) + num(4, count)

    # --- writing; `writer` is the revision under way

    def write(self, writer: Writer, key: bytes, kv: KeyValue | None) -> None:
        self.keys.setdefault(key, []).append(Version(writer.main, writer.sub, kv))
        self.log.append((writer.main, writer.sub, key))
        shown = kv if kv is not None else KeyValue(key)
        fixed = struct.pack(
            "<QIIQQQII",
            writer.main,
            writer.sub,
            kv is None,
            shown.create,
            shown.version,
            shown.lease & MASK64,
            len(key),
            len(shown.value),
        )
        self.fold(crc32c(fixed + key + shown.value))
        writer.sub += 1

    def do_put(self, writer: Writer, req: Put) -> bytes:
        """Writes, and returns the response without its header."""
        old = self.latest(req.key)
        value, lease = req.value, req.lease
        if req.ignore_value:
            assert old is not None
            value = old.value
        if req.ignore_lease:
            assert old is not None
            lease = old.lease
        create, version = (old.create, old.version + 1) if old else (writer.main, 1)
        kv = KeyValue(req.key, create, writer.main, version, value, lease)
        self.write(writer, req.key, kv)
        return sub(2, old.encode()) if req.prev_kv and old else b""

    def do_delete(self, writer: Writer, req: Delete) -> tuple[int, bytes]:
        found = self.select(req.key, req.end)
        for kv in found:
            self.write(writer, kv.key, None)
        rest = num(2, len(found))
        if req.prev_kv:
            rest += b"".join(sub(3, kv.encode()) for kv in found)
        return len(found), rest

    def check_put_state(self, req: Put) -> None:
        if req.lease and req.lease not in self.leases:
            raise Refused(Code.LEASE_NOT_FOUND)
        if (req.ignore_value or req.ignore_lease) and self.latest(req.key) is None:
            raise Refused(Code.KEY_NOT_FOUND)

    def head(self, revision: int) -> bytes:
        return header(revision, self.cluster, self.member, self.term)

    # --- requests: each returns (response body, outcome)

    def put(self, req: Put) -> tuple[bytes, bytes]:
        check_put(req)
        check_lengths(req)
        self.check_alarms(writes=True)
        self.check_put_state(req)
        writer = Writer(self.revision + 1)
        rest = self.do_put(writer, req)
        self.revision += 1
        return sub(1, self.head(self.revision)) + rest, self.outcome(req.kind, req.prev_kv)

    def delete(self, req: Delete) -> tuple[bytes, bytes]:
        if not req.key:
            raise Refused(Code.EMPTY_KEY)
        check_lengths(req)
        self.check_alarms(writes=False)
        writer = Writer(self.revision + 1)
        deleted, rest = self.do_delete(writer, req)
        self.revision += deleted > 0
        outcome = self.outcome(req.kind, req.prev_kv and deleted > 0, varint(deleted))
        return sub(1, self.head(self.revision)) + rest, outcome

    def range_request(self, req: Range) -> tuple[bytes, bytes]:
        check_range(req)
        check_lengths(req)
        self.check_alarms(writes=False)
        body = self.range(req, self.revision, self.head(self.revision))
        return body, self.outcome(req.kind, True)

    def txn(self, req: Txn) -> tuple[bytes, bytes]:
        check_txn(req, self.max_ops)
        self.check_alarms(writes=has_put(req))
        path = self.decide(req)
        self.check_taken(path, [])
        writer = Writer(self.revision + 1)
        executed = self.execute(writer, path)
        self.revision += writer.sub > 0
        body = sub(1, self.head(self.revision)) + executed.body
        return body, self.outcome(req.kind, executed.partial, executed.outcome)

    def compact(self, revision: int) -> tuple[bytes, bytes]:
        self.check_alarms(writes=False)
        if revision <= self.compacted:
            raise Refused(Code.COMPACTED)
        if revision > self.revision:
            raise Refused(Code.FUTURE_REV)
        self.compacted = revision
        self.fold_event(EVENT_COMPACT, revision)
        return sub(1, self.head(self.revision)), self.outcome(Kind.COMPACT, False)

    def alarm(self, action: int, member: int, alarm: int) -> tuple[bytes, bytes]:
        shown: list[tuple[int, int]] = []
        if action == 0:
            shown = sorted(a for a in self.alarms if alarm in (0, a[0]))
        elif action == 1 and alarm != 0:
            if (alarm, member) not in self.alarms:
                if len(self.alarms) >= ALARMS_MAX:
                    raise Refused(Code.TOO_MANY_REQUESTS)
                self.alarms.add((alarm, member))
                self.fold_event(EVENT_ALARM_SET, member, alarm)
            shown = [(alarm, member)]
        elif action == 2 and (alarm, member) in self.alarms:
            self.alarms.discard((alarm, member))
            self.fold_event(EVENT_ALARM_CLEAR, member, alarm)
            shown = [(alarm, member)]
        elif action not in (1, 2):
            raise Refused(Code.MALFORMED)
        rest = b"".join(sub(2, num(1, m) + num(2, a)) for a, m in shown)
        return sub(1, self.head(self.revision)) + rest, self.outcome(Kind.ALARM, bool(shown))

    def batch(self, req: PutBatch) -> tuple[bytes, bytes]:
        """Batches whose items are refused alone: PUT_BATCH and TXN_BATCH."""
        self.check_alarms(writes=req.kind == Kind.PUT_BATCH)
        before, applied, refused = self.revision, 0, []
        for index, item in enumerate(req.items):
            try:
                self.put(item) if isinstance(item, Put) else self.txn(item)
                applied += 1
            except Refused as refusal:
                refused.append((index, int(refusal.code)))
        return self.batch_answer(req.kind, before, applied, refused)

    def batch_one(self, req: PutBatch) -> tuple[bytes, bytes]:
        keys: set[bytes] = set()
        for item in req.items:
            assert isinstance(item, Put)
            check_put(item)
            check_lengths(item)
            if item.key in keys:
                raise Refused(Code.DUPLICATE_KEY)
            keys.add(item.key)
        self.check_alarms(writes=True)
        for item in req.items:
            self.check_put_state(item)
        before = self.revision
        writer = Writer(self.revision + 1)
        for item in req.items:
            self.do_put(writer, item)
        self.revision += writer.sub > 0
        return self.batch_answer(req.kind, before, len(req.items), [])

    def batch_answer(
        self, kind: Kind, before: int, applied: int, refused: list[tuple[int, int]]
    ) -> tuple[bytes, bytes]:
        changed = self.revision > before
        first, last = (before + 1, self.revision) if changed else (0, 0)
        body = sub(1, self.head(self.revision))
        body += b"".join(sub(2, num(1, i) + num(2, c)) for i, c in refused)
        body += num(3, first) + num(4, last) + num(5, applied)
        listed = b"".join(varint(i) + varint(c) for i, c in refused)
        tail = varint(first) + varint(applied) + varint(len(refused)) + listed
        return body, self.outcome(kind, False, tail)

    # --- leases

    def attached(self, lease: int) -> list[bytes]:
        """The keys of a lease, in order."""
        latest = {key: self.latest(key) for key in self.keys}
        return sorted(key for key, kv in latest.items() if kv is not None and kv.lease == lease)

    def lease_grant(self, lease: int, ttl: int) -> tuple[bytes, bytes]:
        self.check_alarms(writes=True)
        if lease == 0:
            raise Refused(Code.LEASE_NOT_FOUND)
        if ttl > LEASE_TTL_MAX:
            raise Refused(Code.LEASE_TTL_TOO_LARGE)
        if lease in self.leases:
            raise Refused(Code.LEASE_EXIST)
        ttl = max(ttl, 1)
        self.leases[lease] = Lease(ttl)
        self.fold_event(EVENT_LEASE_GRANT, lease, ttl)
        body = sub(1, self.head(self.revision)) + num(2, lease) + num(3, ttl)
        return body, self.outcome(Kind.LEASE_GRANT, False, varint(lease) + varint(ttl))

    def lease_revoke(self, lease: int) -> tuple[bytes, bytes]:
        self.check_alarms(writes=False)
        if lease not in self.leases:
            raise Refused(Code.LEASE_NOT_FOUND)
        keys = self.attached(lease)
        writer = Writer(self.revision + 1)
        for key in keys:
            self.write(writer, key, None)
        self.revision += len(keys) > 0
        del self.leases[lease]
        self.fold_event(EVENT_LEASE_REVOKE, lease, len(keys))
        return sub(1, self.head(self.revision)), self.outcome(Kind.LEASE_REVOKE, False)

    def lease_checkpoint(self, points: tuple[tuple[int, int], ...]) -> tuple[bytes, bytes]:
        for id_, remaining in points:
            lease = self.leases.get(id_)
            if lease is not None:
                lease.remaining = remaining if 0 <= remaining < lease.ttl else 0
                self.fold_event(EVENT_LEASE_CHECKPOINT, id_, lease.remaining)
        return sub(1, self.head(self.revision)), self.outcome(Kind.LEASE_CHECKPOINT, False)

    def check_alarms(self, *, writes: bool) -> None:
        kinds = {alarm for alarm, _ in self.alarms}
        if 2 in kinds:
            raise Refused(Code.CORRUPT)
        if writes and 1 in kinds:
            raise Refused(Code.NO_SPACE)

    def outcome(self, kind: int, partial: bool, tail: bytes = b"") -> bytes:
        partial = partial or len(tail) > OUTCOME_BYTES_MAX
        head = varint(0) + varint(kind << 1 | partial) + varint(self.revision)
        return head if partial else head + tail

    # --- transactions

    def decide(self, req: Txn) -> Taken:
        """Which branch every transaction takes, all against the state before the first write."""
        succeeded = all(self.compare(c) for c in req.compare)
        ops = req.success if succeeded else req.failure
        return Taken(succeeded, [self.decide(op) if isinstance(op, Txn) else op for op in ops])

    def compare(self, c: Compare) -> bool:
        kvs = self.select(c.key, c.end)
        if not kvs:
            return c.target != 3 and compare_kv(c, KeyValue(b""))
        return all(compare_kv(c, kv) for kv in kvs)

    def check_taken(self, taken: Taken, deletes: list[Delete]) -> None:
        for op in taken.ops:
            if isinstance(op, Taken):
                self.check_taken(op, deletes)
            elif isinstance(op, Delete):
                deletes.append(op)
            elif isinstance(op, Put):
                self.check_put_state(op)
                if (op.ignore_value or op.ignore_lease) and any(
                    in_range(op.key, d.key, d.end) for d in deletes
                ):
                    raise Refused(Code.KEY_NOT_FOUND)
            elif op.revision > self.revision:
                raise Refused(Code.FUTURE_REV)
            elif op.revision != 0 and op.revision < self.compacted:
                raise Refused(Code.COMPACTED)

    def execute(self, writer: Writer, taken: Taken) -> Executed:
        """Body without the header; headers of operations hold the revision at their time."""
        body = num(2, taken.succeeded)
        outcome = varint(taken.succeeded) + varint(len(taken.ops))
        partial = False
        for op in taken.ops:
            if isinstance(op, Taken):
                inner = self.execute(writer, op)
                body += sub(3, sub(4, sub(1, b"") + inner.body))
                outcome += varint(Kind.TXN) + inner.outcome
                partial |= inner.partial
            elif isinstance(op, Put):
                rest = self.do_put(writer, op)
                body += sub(3, sub(2, sub(1, header(writer.seen())) + rest))
                outcome += varint(Kind.PUT)
                partial |= op.prev_kv
            elif isinstance(op, Delete):
                deleted, rest = self.do_delete(writer, op)
                body += sub(3, sub(3, sub(1, header(writer.seen())) + rest))
                outcome += varint(Kind.DELETE_RANGE) + varint(deleted)
                partial |= op.prev_kv and deleted > 0
            else:
                body += sub(3, sub(1, self.range(op, writer.seen(), header(writer.seen()))))
                outcome += varint(Kind.RANGE)
                partial = True
        return Executed(body, outcome, partial)


@dataclass
class Lease:
    ttl: int
    remaining: int = 0  # 0: the whole ttl


@dataclass
class Writer:
    """The main revision under way and the next sub-revision in it."""

    main: int
    sub: int = 0

    def seen(self) -> int:
        return self.main if self.sub else self.main - 1


@dataclass
class Taken:
    succeeded: bool
    ops: list


@dataclass
class Executed:
    body: bytes
    outcome: bytes
    partial: bool


def compare_kv(c: Compare, kv: KeyValue) -> bool:
    member = c.member()
    if c.target >= len(TARGETS):
        return c.result not in (1, 2, 3)
    name = TARGETS[c.target]
    ours = getattr(kv, name)
    if name == "value":
        theirs: int | bytes = c.value if member == "value" else b""
    else:
        theirs = c.number if member == name else 0
    sign = (ours > theirs) - (ours < theirs)
    verdicts = (sign == 0, sign > 0, sign < 0, sign != 0)
    return verdicts[c.result] if c.result < len(verdicts) else True
