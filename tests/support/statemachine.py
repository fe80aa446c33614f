"""Random logs for the state machine, and the machine beside its oracle.

`Pair` feeds the same entries to a Machine and to tests/oracle/statemachine.py and compares answers
and heads; `contents` reads back what a store holds, independent of how far freeing got.
`LogMaker` makes groups of every request kind from a seed, over few keys, so that conflicts,
deletes of nothing, ties and repeats are common.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvnode._core.machine import Machine
from kvnode._core.store import Store
from kvnode._core.storetxn import (
    TREE_KEYS,
    TREE_LEASE_KEYS,
    TREE_LEASES,
    TREE_META,
    TREE_REVS,
    TREE_SESSIONS,
)
from kvnode.base.codes import Kind
from tests.oracle.requests import (
    Alarm,
    Compact,
    Compare,
    Delete,
    Group,
    LeaseCheckpoint,
    LeaseGrant,
    LeaseRevoke,
    Poison,
    Put,
    PutBatch,
    Range,
    Request,
    SessionClose,
    SessionOpen,
    Txn,
    decode_results,
    encode_batch,
)
from tests.oracle.statemachine import StateMachine

Entry = tuple[int, int, list[Group] | None]


def encode_entry(index: int, term: int, groups: list[Group] | None) -> bytes:
    data = b"\xff\xff" if groups is None else encode_batch(groups)
    return struct.pack("<QQII", index, term, 0, len(data)) + data


class Pair:
    """A Machine and its model, compared after each call."""

    def __init__(self, store: Store, *, window: bool = True, sessions_max: int = 4096) -> None:
        self.store = store
        self.window = window
        self.sessions_max = sessions_max
        self.model = StateMachine(window=window, sessions_max=sessions_max)
        self.entries: list[Entry] = []
        self.machine = self.open()

    def open(self) -> Machine:
        """Opens the machine (again) over its store; the model stays."""
        self.machine = Machine(
            self.store, 1, 1, window=self.window, sessions_per_user=self.sessions_max
        )
        return self.machine

    def apply(self, batches: Sequence[list[Group] | None], term: int = 1) -> None:
        """One call of apply with these entries."""
        first = self.model.applied + 1
        entries = [(first + i, term, groups) for i, groups in enumerate(batches)]
        self.entries += entries
        expected: dict[int, list] = {}
        for entry in entries:
            for result in self.model.apply(*entry):
                expected.setdefault(result.incarnation, []).append(result)
        got = self.machine.apply(b"".join(encode_entry(*entry) for entry in entries))
        answers = {incarnation: decode_results(data) for incarnation, data in got}
        if answers != expected:
            explain(entries, expected, answers)
        assert answers == expected
        self.compare_heads()

    def crash(self, store: Store, rng: random.Random) -> None:
        """Goes on over `store`, an earlier state: what it lacks is applied again, regrouped."""
        self.store = store
        self.open()
        for part in regroup(self.entries[self.machine.applied_index :], rng):
            self.machine.apply(part, answer=rng.random() < 0.5)
        self.compare_heads()

    def compare_heads(self) -> None:
        machine, mvcc = self.machine, self.model.mvcc
        assert machine.applied_index == self.model.applied
        assert machine.revision == mvcc.revision
        assert machine.compact_revision == mvcc.compacted
        assert machine.alarms == sorted(mvcc.alarms)
        assert machine.session_count == len(self.model.sessions)
        assert machine.state_hash == mvcc.hash

    def free_all(self, budget: int = 7) -> None:
        while self.machine.free_some(budget):
            pass


def regroup(entries: Sequence[Entry], rng: random.Random) -> Iterator[bytes]:
    """The same entries in calls of random length."""
    at = 0
    while at < len(entries):
        count = rng.choice([1, 1, 2, 5, 40])
        yield b"".join(encode_entry(*entry) for entry in entries[at : at + count])
        at += count


def explain(entries: list[Entry], expected: dict[int, list], answers: dict[int, list]) -> None:
    """Prints the first group whose answer differs, and what was asked."""
    sent = {(g.incarnation, g.slot): g for _, _, groups in entries for g in groups or []}
    for incarnation, wanted in expected.items():
        got = answers.get(incarnation, [])
        for i, result in enumerate(wanted):
            if i >= len(got) or got[i] != result:
                print("asked   ", sent[incarnation, result.slot])
                print("expected", result)
                print("answered", got[i] if i < len(got) else None)
                return


def contents(store: Store) -> dict[str, object]:
    """Sessions, heads that the log determines, and every record's place and message."""
    with store.begin_read() as txn:
        meta = dict(txn.items(TREE_META))
        meta["compact"] = meta.pop(b"compact", b"")[:8]
        keys = {}
        for key, value in txn.items(TREE_KEYS):
            # depth, and under long keys the order of equal entries, are local
            keys[key] = [value[at : at + 37] for at in range(0, len(value), 40)]
        return {
            "meta": meta,
            "keys": keys,
            "records": [(key, value[24:]) for key, value in txn.items(TREE_REVS)],
            "sessions": dict(txn.items(TREE_SESSIONS)),
            "leases": dict(txn.items(TREE_LEASES)),
            "attached": dict(txn.items(TREE_LEASE_KEYS)),
        }


LONG = b"long/" + b"x" * 506
KEYS = [
    b"a",
    b"a\0",
    b"a\0\0",
    b"b",
    b"b\xff",
    b"c",
    b"\0",
    b"\xff",
    b"\xff\xff",
    b"ab",
    b"p/1",
    b"p/2",
    b"p/3",
    LONG,
    LONG + b"1",
    LONG + b"2",
    LONG[:-1],
    LONG + b"\0",
    b"z" * 4096,
]
ENDS = [b"", b"", b"\0", b"b", b"c", b"p0", b"\xff", b"\xff\xff\xff", b"a\0", LONG + b"2", b"\0\0"]
LEASES = [1, 2, 2, 3, 3, 77, -5, (1 << 63) - 1, 0]
VALUES = [b"", b"0", b"1", b"2", b"v" * 40]


class LogMaker:
    """Groups from a seed. `revision` and `compacted` steer which revisions are asked for."""

    def __init__(self, seed: int, *, big: bool = True) -> None:
        self.random = random.Random(seed)
        self.revision = 1
        self.compacted = 0
        self.big = big
        self.sessions = {7: (1, True), 8: (2, True), 9: (1, False)}  # id -> user, client
        self.next = dict.fromkeys(self.sessions, 1)
        self.sent: list[Group] = []
        self.slot = 0
        self.alarms: list[tuple[int, int]] = []

    def key(self) -> bytes:
        return self.random.choice(KEYS)

    def end(self) -> bytes:
        return self.random.choice(ENDS)

    def value(self) -> bytes:
        if self.big and self.random.random() < 0.01:
            return self.random.randbytes(self.random.choice([65_000, 65_536, 70_000, 200_000]))
        return self.random.choice(VALUES)

    def some_revision(self) -> int:
        low = max(self.compacted - 2, -1)
        return self.random.choice([0, 0, 0, self.random.randint(low, self.revision + 1)])

    def flip(self, chance: float) -> bool:
        return self.random.random() < chance

    def lease(self) -> int:
        return self.random.choice(LEASES)

    def lease_request(self) -> Request:
        kind = self.random.random()
        if kind < 0.6:
            ttl = self.random.choice([1, 2, 60, 600, 0, -1, 9_000_000_000, 9_000_000_001])
            return LeaseGrant(self.lease(), ttl)
        if kind < 0.85:
            return LeaseRevoke(self.lease())
        points = [(self.lease(), self.random.choice([0, 1, 30, 599, -1, 1 << 62]))]
        return LeaseCheckpoint(tuple(points * self.random.choice([1, 1, 2])))

    # --- requests

    def put(self) -> Put:
        ignore_value = self.flip(0.1)
        return Put(
            self.key() if not self.flip(0.01) else b"",
            self.value() if not ignore_value or self.flip(0.1) else b"",
            lease=self.lease() if self.flip(0.25) else 0,
            prev_kv=self.flip(0.2),
            ignore_value=ignore_value,
            ignore_lease=self.flip(0.05),
        )

    def delete(self) -> Delete:
        return Delete(self.key(), self.end(), prev_kv=self.flip(0.3))

    def range(self) -> Range:
        return Range(
            self.key(),
            self.end(),
            limit=self.random.choice([0, 0, 1, 3]),
            revision=self.some_revision(),
            order=self.random.choice([0, 0, 1, 2]),
            target=self.random.choice([0, 0, 1, 2, 3, 4]),
            keys_only=self.flip(0.2),
            count_only=self.flip(0.1),
            min_mod=self.flip(0.1) * self.random.randint(0, self.revision),
            max_create=self.flip(0.1) * self.random.randint(0, self.revision),
        )

    def compare(self) -> Compare:
        target = self.random.choice([0, 1, 2, 3, 3, 4])
        union = None if self.flip(0.9) else self.random.choice(["none", "value", "version", "mod"])
        near = [0, 1, self.revision, self.random.randint(0, self.revision)]
        if target == 4:
            near = [0, *LEASES]
        return Compare(
            self.key(),
            target,
            self.random.choice([0, 0, 1, 2, 3]),
            number=self.random.choice(near),
            value=self.random.choice(VALUES),
            end=self.end() if self.flip(0.3) else b"",
            union=union,
        )

    def operation(self, depth: int) -> Put | Range | Delete | Txn:
        kind = self.random.random()
        if kind < 0.45:
            return self.put()
        if kind < 0.6:
            return self.range()
        if kind < 0.8 or depth >= 3:
            return self.delete()
        return self.txn(depth + 1)

    def txn(self, depth: int = 0) -> Txn:
        def some(most: int) -> range:
            return range(self.random.randint(0, most))

        return Txn(
            tuple(self.compare() for _ in some(2)),
            tuple(self.operation(depth) for _ in some(4)),
            tuple(self.operation(depth) for _ in some(3)),
        )

    def batch(self) -> PutBatch:
        kind = self.random.choice([Kind.PUT_BATCH, Kind.PUT_BATCH_ONE, Kind.TXN_BATCH])
        make = self.txn if kind == Kind.TXN_BATCH else self.put
        return PutBatch(tuple(make() for _ in range(self.random.randint(0, 5))), kind)

    def poison(self) -> Poison:
        kinds = [k for k in Kind if k < Kind.STATUS] + [0, 33, 200]
        return Poison(int(self.random.choice(kinds)), b"\x0a\xff" + self.random.randbytes(3))

    def admin(self) -> Request:
        session = self.random.choice([7, 8, 9, 10, 11, 0])
        if self.flip(0.25):
            action, kind = self.random.choice([0, 1, 2, 2, 3]), self.random.choice([0, 1, 1, 2])
            return Alarm(action, self.random.randint(0, 1), kind)
        if self.flip(0.3):
            return self.poison()
        if self.flip(0.1):
            return SessionClose(session)
        return SessionOpen(session, self.flip(0.2))

    def request(self) -> Request:
        if self.flip(0.1):
            return self.lease_request()
        kind = self.random.random()
        if kind < 0.35:
            return self.put()
        if kind < 0.5:
            return self.delete()
        if kind < 0.75:
            return self.txn()
        if kind < 0.87:
            return self.batch()
        if kind < 0.9:
            return self.range()
        if kind < 0.95:
            return Compact(self.random.randint(self.compacted - 1, self.revision + 1))
        return self.admin()

    # --- groups and entries

    def group(self) -> Group:
        if self.sent and self.flip(0.2):
            again = self.random.choice(self.sent[-8:])
            return again if self.flip(0.9) else replace(again, requests=[self.put()])
        group = Group(
            [self.request() for _ in range(self.random.choice([1, 1, 1, 2, 4, 0]))],
            member=self.random.choice([1, 1, 1, 2]),
            incarnation=self.random.choice([1, 5]),
            slot=self.slot,
        )
        self.slot += 1
        if self.flip(0.6):
            self.number(group)
            self.sent.append(group)
        return group

    def number(self, group: Group) -> None:
        """Gives the group a session and a sequence, mostly a good one."""
        group.session = self.random.choice(list(self.sessions))
        group.user, group.client = self.sessions[group.session]
        following = self.next[group.session]
        group.sequence = following + self.random.choice([0, 0, 0, 1, 3])
        if self.flip(0.03):
            group.sequence += self.random.choice([4095, 4096, 5000])
        else:
            self.next[group.session] = max(following, group.sequence) + 1
        group.lowest = max(0, following - self.random.choice([0, 1, 2, 5, 30]))
        if self.flip(0.03):
            group.user += 1
        if self.flip(0.03):
            group.client = not group.client
        if self.flip(0.03):
            group.session = 12345

    def opening(self) -> list[Group]:
        return [
            Group([SessionOpen(id_, not client)], user=user, client=client)
            for id_, (user, client) in self.sessions.items()
        ]

    def entry(self) -> list[Group] | None:
        if self.flip(0.01):
            return None
        groups = [self.group() for _ in range(self.random.choice([1, 1, 2, 3, 0]))]
        if self.alarms and self.flip(0.4):
            groups.insert(0, Group([Alarm(2, member, alarm) for alarm, member in self.alarms]))
        if self.flip(0.01) and groups:
            groups[-1] = Group([self.put()], flags=64)
        return groups

    def saw(self, machine: Machine) -> None:
        self.revision = machine.revision
        self.compacted = machine.compact_revision
        self.alarms = machine.alarms
