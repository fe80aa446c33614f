"""Random sequences of KV requests, from a seed.

Role: what the differential test sends. Caller: runner.py, which feeds back the store's revision.

A `Step` is a list of requests that go out together: either one request of any kind, or several
that write (a pipelined batch: one or more log entries), or several that read (no order among
reads is promised, none is needed). Requests collide on purpose: about fifty keys with shared
prefixes, zero bytes and 0xff bytes, some of 511 bytes and more with equal beginnings; few values,
so that sorting meets ties.

Left out on purpose, because real etcd 3.7.1 has no answer to compare with:
- a put with ignore_value or ignore_lease beside a from-key delete in one transaction (its overlap
  check does not see the delete, and applying it panics the server);
- keys over 4096 bytes (kvnode's own limit);
- leases that end by themselves: each has TTL_SECONDS at least, more than a run takes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from kvnode.base.codes import Kind
from kvnode.proto import rpc_pb2 as pb

FROM_KEY = b"\0"
TXN_OPS_MAX = 128
LONG = b"L" * 510
KEYS = (
    *(b"k%02d" % i for i in range(24)),
    b"a", b"a\0", b"a\0\0", b"a\0b", b"a/", b"a/b", b"a/b/c", b"a0", b"aa", b"ab",
    b"\0", b"\0\0", b"\0\xff", b"\xff", b"\xff\0", b"\xff\xff", b"\xff\xff\xff",
    b"p\xff", b"p\xff\xff", b"p\xffa", b"q", b"q\0",
    LONG, LONG + b"\0", LONG + b"\0\0", LONG + b"\x01", LONG + b"L", LONG + b"L" + b"x" * 300,
    LONG + b"L" + b"y" * 3585, LONG + b"M", LONG[:-1] + b"M",
)
LEASES = (1, 2, 3, 77, -5, (1 << 63) - 1, -(1 << 63))
TTL_SECONDS = 100_000
VALUES = (b"", b"v", b"v", b"w", b"w\0", b"\xff", b"same", b"same", b"same", b"x" * 700)


class Op(NamedTuple):
    """One request."""

    kind: Kind
    message: object


Step = list[Op]


class Generator:
    """Makes the steps of one run. `revision` is what the servers said last; see `heard`.

    server_limits: also requests that a server refuses before its state machine sees them (too
    large, or an operation with nothing in it).
    """

    def __init__(
        self, seed: int, txn_ops_max: int = TXN_OPS_MAX, server_limits: bool = True
    ) -> None:
        self.random = random.Random(seed)
        self.server_limits = server_limits
        self.txn_ops_max = txn_ops_max
        self.revision = 1
        self.compacted = 0
        self._count = 0

    def heard(self, revision: int) -> None:
        """Takes the revision of an answer's header."""
        self.revision = max(self.revision, revision)

    def step(self) -> Step:
        """The next requests to send together."""
        roll = self.random.random()
        if roll < 0.12:
            return [self.write() for _ in range(self.random.choice((2, 3, 5, 7, 40, 150)))]
        if roll < 0.20:
            return [self.range() for _ in range(self.random.choice((2, 5, 12)))]
        if roll < 0.44:
            return [self.range()]
        if roll < 0.47:
            return [self.attached()]
        return [self.write()]

    def write(self) -> Op:
        """A request that goes through the log (or is refused before it)."""
        roll = self.random.random()
        if roll < 0.40:
            return Op(Kind.PUT, self.put())
        if roll < 0.55:
            return Op(Kind.DELETE_RANGE, self.delete())
        if roll < 0.90:
            return Op(Kind.TXN, self.txn(self.random.choice((0, 0, 1, 2))))
        if roll < 0.97:
            return self.lease()
        return Op(Kind.COMPACT, self.compact())

    # --- parts ----------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        """True for this share of calls."""
        return self.random.random() < share

    def key(self) -> bytes:
        """A key that is likely to be there; rarely the empty one."""
        if self.chance(0.01):
            return b""
        return self.random.choice(KEYS)

    def value(self) -> bytes:
        """A value, equal to another key's more often than not; rarely a large or too large one."""
        if self.chance(0.002):
            sizes = (70_000, 1 << 20, 1600 << 10 if self.server_limits else 65_536)
            return b"B" * self.random.choice(sizes)
        if self.chance(0.3):
            self._count += 1
            return b"n%d" % self._count
        return self.random.choice(VALUES)

    def span(self) -> tuple[bytes, bytes]:
        """(key, range_end): a point, a prefix, from-key, everything, any two keys, or inverted."""
        key = self.key()
        roll = self.random.random()
        if roll < 0.35:
            return key, b""
        if roll < 0.50:
            return key, FROM_KEY
        if roll < 0.60:
            return b"\0", FROM_KEY
        if roll < 0.80:
            key = self.random.choice((b"k", b"k1", b"a", b"a/", b"\xff", b"p\xff", LONG, b"\0"))
            return key, prefix_end(key)
        return key, self.random.choice(KEYS)

    def old_revision(self) -> int:
        """A revision to read at or to compact: mostly legal, at and around every border."""
        low, high = max(self.compacted, 1), self.revision
        return self.random.choice(
            (
                *(self.random.randint(low, max(low, high)) for _ in range(6)),
                high, high, high - 1, high + 1, high + 1000, low, low - 1, low + 1,
                -1, -7, 1, 2, (1 << 63) - 1,
            )
        )

    # --- requests -------------------------------------------------------------------------------

    def put(self, plain: bool = False) -> pb.PutRequest:
        """A put with every flag; `plain` leaves out those that need the key to be there."""
        put = pb.PutRequest(key=self.key(), value=self.value(), prev_kv=self.chance(0.3))
        if not plain and self.chance(0.12):
            put.ignore_value = True
            if self.chance(0.85):
                put.value = b""
        if not plain and self.chance(0.06):
            put.ignore_lease = True
        if self.chance(0.25):
            put.lease = self.random.choice((*LEASES, 1 << 62))
        return put

    def lease(self) -> Op:
        """A grant with an id, or a revoke; of leases that are there or not."""
        lease = self.random.choice(LEASES)
        if self.chance(0.4):
            return Op(Kind.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=self.random.choice((lease, 9))))
        ttl = TTL_SECONDS + self.random.randrange(1000)
        if self.chance(0.05):
            ttl = self.random.choice((9_000_000_000, 9_000_000_001, (1 << 63) - 1))
        return Op(Kind.LEASE_GRANT, pb.LeaseGrantRequest(ID=lease, TTL=ttl))

    def attached(self) -> Op:
        """The keys of a lease; the time that it has left is not compared."""
        lease = self.random.choice((*LEASES, 0, 9))
        return Op(Kind.LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(ID=lease, keys=True))

    def delete(self) -> pb.DeleteRangeRequest:
        """Deletes one key or a range. Ranges over everything are rare, or nothing would be left."""
        key, end = self.span()
        if end == FROM_KEY and self.chance(0.8):
            end = b""
        return pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=self.chance(0.4))

    def range(self) -> Op:
        """A read with every option."""
        return Op(Kind.RANGE, self.range_request())

    def range_request(self) -> pb.RangeRequest:
        """See `range`."""
        key, end = self.span()
        read = pb.RangeRequest(key=key, range_end=end)
        if self.chance(0.35):
            read.revision = self.old_revision()
        if self.chance(0.35):
            read.limit = self.random.choice((1, 2, 3, 5, 13, 60, 1000, -1, (1 << 63) - 1))
        if self.chance(0.45):
            read.sort_order = self.random.choice((0, 1, 1, 2, 2))
            read.sort_target = self.random.choice((0, 1, 2, 3, 4))
        if self.chance(0.01):
            read.sort_order = 3
        if self.chance(0.01):
            read.sort_target = 9
        read.serializable = self.chance(0.3)
        read.keys_only = self.chance(0.15)
        read.count_only = self.chance(0.12)
        for name in (
            "min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision",
        ):
            if self.chance(0.07):
                setattr(read, name, self.old_revision())
        return read

    def compact(self) -> pb.CompactionRequest:
        """Compaction: small steps mostly, so that old revisions remain to be read."""
        if self.chance(0.3):
            revision = self.old_revision()
        else:
            revision = self.random.randint(self.compacted, max(self.compacted, self.revision))
            revision = (revision + self.compacted) // 2
        if self.compacted < revision <= self.revision:
            self.compacted = revision
        return pb.CompactionRequest(revision=revision, physical=self.chance(0.3))

    def compare(self) -> pb.Compare:
        """A condition of any target and operator, over a key or a range; rarely an unknown one."""
        key, end = self.span()
        if self.chance(0.6):
            end = b""
        condition = pb.Compare(
            key=key, range_end=end,
            result=self.random.choice((0, 0, 1, 2, 3)), target=self.random.randrange(5),
        )
        target = condition.target
        if self.chance(0.03):
            target = self.random.randrange(5)  # the union holds another member than target names
        if self.chance(0.01):
            condition.result = 7
        if self.chance(0.01):
            condition.target = 8
        if self.chance(0.04):
            return condition  # no member at all: zero
        if target == 0:
            condition.version = self.random.choice((0, 0, 1, 1, 2, 3, 9))
        elif target == 1:
            condition.create_revision = self.random.choice((0, 0, self.old_revision()))
        elif target == 2:
            condition.mod_revision = self.random.choice((0, 0, self.old_revision()))
        elif target == 3:
            condition.value = self.random.choice(VALUES)
        else:
            condition.lease = self.random.choice((0, 0, 1, 77, -5, -1))
        return condition

    def txn(self, depth: int) -> pb.TxnRequest:
        """A transaction, nested up to `depth`; sometimes too large, sometimes with duplicates."""
        txn = pb.TxnRequest()
        for _ in range(self.random.choice((0, 1, 1, 1, 2, 3))):
            txn.compare.append(self.compare())
        # Keys come from one shuffled list most times: duplicates are an error, and an error
        # that is too frequent hides everything else.
        fresh: Callable[[], bytes] | None = None
        if self.chance(0.85):
            deck = self.random.sample(KEYS, len(KEYS))
            fresh = deck.pop
        from_key_delete = self.chance(0.05)
        sizes = (0, 1, 1, 2, 3, 5)
        for branch in (txn.success, txn.failure):
            for _ in range(self.random.choice(sizes)):
                branch.append(self._operation(depth, fresh, from_key_delete))
        if self.chance(0.01):
            self._too_many(txn)
        return txn

    def _operation(
        self, depth: int, fresh: Callable[[], bytes] | None, from_key_delete: bool
    ) -> pb.RequestOp:
        roll = self.random.random()
        if roll < 0.01 and self.server_limits:
            return pb.RequestOp()
        if roll < 0.40:
            put = self.put(plain=from_key_delete or depth > 0)
            if fresh and put.key:
                put.key = fresh()
            return pb.RequestOp(request_put=put)
        if roll < 0.55:
            delete = self.delete()
            if delete.range_end == FROM_KEY and not from_key_delete:
                delete.range_end = b""
            if fresh and delete.key and not delete.range_end:
                delete.key = fresh()
            return pb.RequestOp(request_delete_range=delete)
        if roll < 0.80 or depth == 0:
            return pb.RequestOp(request_range=self.range_request())
        return pb.RequestOp(request_txn=self._nested(depth - 1, fresh, from_key_delete))

    def _nested(
        self, depth: int, fresh: Callable[[], bytes] | None, from_key_delete: bool
    ) -> pb.TxnRequest:
        txn = pb.TxnRequest()
        for _ in range(self.random.choice((0, 1, 1, 2))):
            txn.compare.append(self.compare())
        for branch in (txn.success, txn.failure):
            for _ in range(self.random.choice((0, 1, 2))):
                branch.append(self._operation(depth, fresh, from_key_delete))
        return txn

    def _too_many(self, txn: pb.TxnRequest) -> None:
        """Fills a branch to the limit and around it; nested ones count what their parents left."""
        want = self.txn_ops_max + self.random.choice((-1, 0, 1))
        nested = self.chance(0.5)
        inner = txn.success.add().request_txn.success if nested else txn.success
        if nested:
            want -= max(len(txn.success), len(txn.failure), len(txn.compare))
        while len(inner) < want:
            inner.add().request_range.CopyFrom(pb.RangeRequest(key=b"k01", count_only=True))


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`."""
    for at in reversed(range(len(prefix))):
        if prefix[at] < 0xFF:
            return prefix[:at] + bytes((prefix[at] + 1,))
    return FROM_KEY
