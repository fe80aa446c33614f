"""The lessor with a virtual clock: nothing expires early, everything expires, stalls, terms."""

from __future__ import annotations

import random
import struct

import pytest

from kvnode._core.envelope import parse_batch
from kvnode._core.leaseclock import LeaseClock
from kvnode._core.leasepb import parse
from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode.base.codes import Kind
from kvnode.state.lessor import GRACE_US, SILENT_US, SILENT_US_MAX, STALL_US, Lessor
from tests.oracle.requests import Group, LeaseCheckpoint, LeaseGrant
from tests.support.statemachine import encode_entry

SECOND = 1_000_000
TICK = 100_000
ROW = struct.Struct("<QQqqQ")
GRANTED, REVOKED, CHECKPOINTED = 1, 2, 3


def ids(*leases: int) -> bytes:
    return struct.pack(f"<{len(leases)}q", *leases)


def rows(*events: tuple[int, int, int, int, int]) -> bytes:
    """(index, lease, ttl, remaining, what)"""
    return b"".join(ROW.pack(i, lease & (1 << 64) - 1, *rest) for i, lease, *rest in events)


class World:
    """A lessor whose proposals are applied at once, and what it promised to whom."""

    def __init__(self, **settings: int) -> None:
        self.now = 10 * SECOND
        self.lessor = Lessor(**settings)
        self.lessor.tick(self.now)
        self.lessor.load_done(0, self.now)
        self.index = 0
        self.promised: dict[int, int] = {}     # lease -> alive until, monotonic
        self.ttls: dict[int, int] = {}
        self.ended: dict[int, int] = {}

    def grant(self, lease: int, ttl: int) -> None:
        self.index += 1
        self.lessor.told(rows((self.index, lease, ttl, 0, GRANTED)), 0, self.now)
        self.ttls[lease] = ttl
        self.promised[lease] = self.now + ttl * SECOND
        self.ended.pop(lease, None)

    def keep(self, *leases: int) -> list[int]:
        kept, _ = self.lessor.renew(ids(*leases), 0, self.now)
        answers = list(struct.unpack(f"<{len(leases)}q", kept))
        for lease, ttl in zip(leases, answers, strict=True):
            if ttl:
                self.promised[lease] = self.now + ttl * SECOND
        return answers

    def tick(self, passed: int = TICK, signs: tuple[int, ...] = ()) -> list[int]:
        """Time passes; the leases whose revoke was proposed, and is applied."""
        self.now += passed
        self.lessor.tick(self.now, signs)
        gone: list[int] = []
        for work in self.lessor.work(self.now):
            for kind, body in requests(work.batch):
                self.index += 1
                if kind == Kind.LEASE_REVOKE:
                    lease = parse(kind, body)[0]
                    gone.append(lease)
                    assert self.promised[lease] <= self.now, "expired early"
                    event = (self.index, lease, self.ttls[lease], 0, REVOKED)
                    self.ended[lease] = self.now
                    self.lessor.told(rows(event), 0, self.now)
                else:
                    for lease, left in parse(kind, body):
                        event = (self.index, lease, self.ttls[lease], left, CHECKPOINTED)
                        self.lessor.told(rows(event), 0, self.now)
        self.lessor.clock.check()
        return gone

    def left(self, lease: int) -> tuple[int, int]:
        return struct.unpack("<qq", self.lessor.times(ids(lease), 0, self.now))


def requests(batch: bytes) -> list[tuple[int, bytes]]:
    return [(q[0], q[-1]) for group in parse_batch(batch) for q in group["requests"]]


def test_a_lease_ends_after_its_ttl_and_not_before() -> None:
    world = World()
    world.grant(7, 2)
    world.grant(-5, 3)
    assert world.left(7) == (2, 2) and world.left(8) == (-1, 0)
    for _ in range(19):
        assert world.tick() == []
    assert world.left(7) == (0, 2)
    assert world.tick() == [7]
    assert world.left(7) == (-1, 0) and world.left(-5) == (1, 3)
    assert [world.tick() for _ in range(10)][-1] == [-5]
    assert world.lessor.clock.count == 0 and world.lessor.expired == 2


def test_keep_alives_keep_and_too_late_ones_do_not() -> None:
    world = World()
    world.grant(7, 2)
    for _ in range(100):
        assert world.tick() == []
        if world.now % SECOND == 0:
            assert world.keep(7, 9) == [2, 0]
    due = world.lessor.clock.due(world.now + 5 * SECOND, 10)
    assert due == [7]
    assert world.keep(7) == [0], "its revoke is proposed"
    world.lessor.clock.not_proposed(due)
    assert world.keep(7) == [2], "the revoke was not taken after all"


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_expire_nothing_early_and_everything_in_the_end(seed: int) -> None:
    rng = random.Random(seed)
    world = World(checkpoint_seconds=5, revokes_per_second=rng.choice([20, 1000]))
    heard = world.now
    for step in range(1500):
        if rng.random() < 0.3:
            world.grant(rng.choice([step + 1, -step - 1]), rng.choice([1, 2, 3, 10, 40]))
        live = [lease for lease in world.promised if lease not in world.ended]
        if live and rng.random() < 0.5:
            world.keep(*rng.sample(live, min(len(live), rng.randint(1, 20))))
        passed = rng.choice([TICK, TICK, TICK, TICK // 3, 2 * SECOND])
        if rng.random() < 0.9:
            heard = world.now + passed
        world.tick(passed, (heard,))
    for _ in range(1200):
        world.tick()
    assert set(world.ended) == set(world.promised)
    assert world.lessor.clock.count == 0


def test_a_stall_stops_lease_time_and_what_waited_is_heard_first() -> None:
    world = World()
    for lease in range(1, 50):
        world.grant(lease, 2)
    assert world.tick() == []
    assert world.tick(60 * SECOND) == [], "this process stood still: nothing expires"
    assert world.tick(GRACE_US // 2) == []
    assert world.keep(*range(1, 40)) == [2] * 39
    gone = [lease for _ in range(24) for lease in world.tick()]
    assert sorted(gone) == list(range(40, 50)), "kept ones live on, the others had their time"
    assert len([lease for _ in range(15) for lease in world.tick()]) == 39


def test_a_silent_gateway_stops_lease_time_but_not_for_ever() -> None:
    world = World()
    world.grant(7, 2)
    heard = world.now
    for _ in range(15):
        world.tick(signs=(heard + 0,))
        if world.now - heard <= SILENT_US:
            assert world.left(7)[0] >= 0
    assert world.left(7) == (2, 2), "the silence counts from its beginning"
    while world.now - heard < SILENT_US_MAX:
        assert world.tick(signs=(heard,)) == []
    gone = [lease for _ in range(40) for lease in world.tick(signs=(heard,))]
    assert gone == [7]


def test_a_gateway_that_speaks_again_is_heard_before_anything_ends() -> None:
    world = World()
    world.grant(7, 2)
    heard = world.now
    for _ in range(100):
        assert world.tick(signs=(heard,)) == []
    for _ in range(GRACE_US // TICK - 1):
        assert world.tick(signs=(world.now,)) == []
    assert world.keep(7) == [2]


def test_slow_ticks_are_no_stall() -> None:
    world = World()
    world.grant(7, 2)
    assert [world.tick(STALL_US) for _ in range(4)][-1] == [7]


def test_revokes_are_paced_and_batched() -> None:
    world = World(revokes_per_second=100)
    for lease in range(1, 301):
        world.grant(lease, 1)
    counts = []
    for _ in range(60):
        counts.append(len(world.tick()))
    assert sum(counts) == 300
    assert max(counts) <= 50, "what gathered of the budget is bounded"
    assert counts.index(next(c for c in counts if c)) == 9
    seconds = [sum(counts[i : i + 10]) for i in range(9, 50, 10)]
    assert max(seconds[1:]) <= 110


def test_a_batch_that_was_not_taken_is_due_again() -> None:
    world = World()
    world.grant(7, 1)
    world.now += SECOND
    world.lessor.tick(world.now - SECOND // 2)
    world.lessor.tick(world.now)
    (work,) = world.lessor.work(world.now)
    assert work.expires and world.lessor.expired == 1
    assert world.lessor.work(world.now) == []
    world.lessor.not_proposed(work)
    assert world.lessor.expired == 0
    assert world.tick() == [7]


def test_long_leases_are_written_down_and_keep_alives_lift_it() -> None:
    world = World(checkpoint_seconds=300)
    world.grant(7, 3600)
    world.grant(8, 200)
    for _ in range(3010):
        world.tick()
    assert world.left(7)[0] in (3298, 3299)
    _, clear = world.lessor.renew(ids(7), 0, world.now)
    assert clear, "a persisted time must go before the answer"
    work = world.lessor.clearing(ids(7), 0)
    assert work is not None
    assert parse(Kind.LEASE_CHECKPOINT, requests(work.batch)[0][1]) == [(7, 0)]
    assert world.lessor.clearing(ids(7), 0) is None, "it is on its way"
    world.index += 1
    world.lessor.told(rows((world.index, 7, 3600, 0, CHECKPOINTED)), 0, world.now)
    assert world.lessor.renew(ids(7), 0, world.now)[1] is False


def test_a_checkpoint_on_its_way_is_lifted_too() -> None:
    """A keep-alive between a checkpoint's proposal and its application."""
    world = World(checkpoint_seconds=1)
    world.grant(7, 60)
    world.now += SECOND * 2
    (work,) = world.lessor.work(world.now)
    assert not work.expires
    assert world.lessor.renew(ids(7), 0, world.now)[1] is True


def test_last_words_hold_what_every_lease_lost() -> None:
    world = World()
    world.grant(7, 60)
    world.grant(8, 60)
    for _ in range(55):
        world.tick()
    world.keep(8)
    (work,) = world.lessor.last_words(world.now)
    assert parse(Kind.LEASE_CHECKPOINT, requests(work.batch)[0][1]) == [(7, 55)]


def test_loading_gives_each_lease_its_persisted_time_from_now() -> None:
    store = MemStore()
    machine = Machine(store, 1, 1)
    grants = [Group([LeaseGrant(lease, 100) for lease in range(1, 30)])]
    machine.apply(encode_entry(1, 1, grants))
    machine.apply(encode_entry(2, 1, [Group([LeaseCheckpoint(((7, 33), (9, 1)))])]))
    lessor, now = Lessor(), 5 * SECOND
    lessor.tick(now)
    start: bytes | None = bytes(8)
    with store.begin_read() as txn:
        while start is not None:
            start = lessor.load(txn, start, 4, now)
    meanwhile = ((2, 7, 100, 0, REVOKED), (3, 8, 100, 0, REVOKED), (3, 99, 5, 0, GRANTED))
    lessor.loading(rows(*meanwhile), 0)
    lessor.load_done(2, now)
    assert lessor.loaded and lessor.clock.count == 29
    assert struct.unpack("<qq", lessor.times(ids(7), 0, now)) == (33, 100), "known already"
    assert struct.unpack("<qq", lessor.times(ids(8), 0, now)) == (-1, 0)
    assert struct.unpack("<qq", lessor.times(ids(99), 0, now)) == (5, 5)
    assert list(struct.unpack("<29q", lessor.clock.ids()))[:3] == [9, 99, 7]


def test_nothing_is_due_before_the_table_is_whole_or_in_another_term() -> None:
    world = World()
    world.grant(7, 1)
    world.lessor.reset()
    assert world.tick(2 * SECOND) == [] and world.left(7) == (-1, 0)
    world.lessor.load_done(0, world.now)
    world.grant(8, 1)
    for _ in range(GRACE_US // TICK + 12):
        world.tick()
    assert list(world.ended) == [8]


def test_many_ids_with_equal_low_bits_come_and_go() -> None:
    clock = LeaseClock()
    rng = random.Random(5)
    live: dict[int, int] = {}
    for i in range(4000):
        lease = rng.choice([i << 32 | 1, i, -i - 1, (i % 50) << 40 | 1])
        if lease == 0:
            continue
        if rng.random() < 0.6:
            clock.told(rows((i + 1, lease, 50, 0, GRANTED)), 0, 0, i)
            live[lease] = 50
        elif live:
            gone = rng.choice(list(live))
            clock.told(rows((i + 1, gone, 50, 0, REVOKED)), 0, 0, i)
            del live[gone]
    assert clock.count == len(live)
    assert sorted(struct.unpack(f"<{len(live)}q", clock.ids())) == sorted(live)
    clock.check()
