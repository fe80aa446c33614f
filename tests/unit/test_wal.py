"""The log over a disk in memory: rotation, recycling, replacement, cutting, snapshots, faults.

Damage and recovery have their own file (test_wal_damage.py), the real disk too (test_wal_disk.py).
"""

from __future__ import annotations

import errno
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kvnode.base.errors import ConfigError, CorruptionError
from kvnode.wal.disk import LogFailedError, NoSpaceError
from kvnode.wal.log import Log
from kvnode.wal.state import LogState
from tests.oracle.logrec import ListLog
from tests.support.memdisk import MemDisk

STATE = LogState(0xC1, 0xA1)
SMALL = 4096


def make(disk: MemDisk, **options: int) -> Log:
    return Log.create(disk, "/wal", STATE, **{"segment_bytes": SMALL, **options})


def reopen(disk: MemDisk, **options: int) -> Log:
    return Log.open(disk, "/wal", **{"segment_bytes": SMALL, **options})


def entries(first: int, count: int, term: int = 1, size: int = 300) -> list:
    return [(i, term, i % 3, bytes([i % 256]) * size) for i in range(first, first + count)]


def save(log: Log, *args) -> None:
    log.append(*args)
    assert log.submit() <= log.completed()


def all_entries(log: Log) -> list:
    if log.last_index < log.first_index:
        return []
    return log.entries(log.first_index, log.last_index + 1, 1 << 30)


def test_vote_survives_three_rounds_of_recycling() -> None:
    """The only hard state record is long cut and overwritten: each head carried it on."""
    disk = MemDisk()
    log = make(disk)
    log.save_hard_state(7, 2, 0)
    log.save_configuration(b"voters 1 2 3", 1)
    names: set[str] = set()
    used = set()
    index = 1
    while len(names) < 12:
        save(log, entries(index, 3))
        index += 3
        names.update(n for n in disk.listdir("/wal") if n.endswith(".wal"))
        log.cut(index - 5)
        used.add(id(log._segments[-1].handle and disk.handles[log._segments[-1].handle]))
    assert len(used) <= 4, "segments were recycled, not made anew"
    assert log.state.term == 7 and len(log._segments) <= 3
    disk = disk.crash()
    log = reopen(disk, known_durable_index=index - 1)
    assert (log.state.term, log.state.vote, log.state.configuration) == (7, 2, b"voters 1 2 3")
    assert log.last_index == index - 1
    log.close()


def test_durable_only_after_the_ticket() -> None:
    disk = MemDisk(lazy=True)
    log = make(disk)
    log.append(entries(1, 4))
    ticket = log.submit()
    assert log.completed() < ticket and log.durable_index == 0
    assert all_entries(log) == entries(1, 4), "read from the buffers in flight"
    log.append(entries(5, 20))
    assert all_entries(log) == entries(1, 24), "also across a rotation"
    disk.writers[-1].step()
    assert log.completed() > ticket and log.durable_index == 24
    log.append(entries(10, 1, term=2))
    assert log.durable_index == 9 and log.last_index == 10
    log.append(entries(11, 1, term=2))
    log.submit()
    assert log.durable_index == 9
    log.append(entries(11, 1, term=3))
    disk.writers[-1].step()
    log.completed()
    assert log.durable_index == 10, "entry 11 of term 2 is durable, that of term 3 is not"
    log.submit()
    disk.writers[-1].step()
    log.completed()
    assert log.durable_index == 11 and log.term(11) == 3


def test_entries_by_bytes() -> None:
    log = make(MemDisk())
    save(log, entries(1, 30, size=100))
    assert len(log.entries(1, 31, 1)) == 1
    assert [e[0] for e in log.entries(5, 31, 350)] == [5, 6, 7]
    assert log.entries(5, 9, 1 << 20) == entries(5, 4, size=100)
    with pytest.raises(AssertionError):
        log.entries(5, 32, 1)


def test_record_larger_than_a_segment() -> None:
    disk = MemDisk()
    log = make(disk)
    big = [(1, 1, 0, b"a" * 10), (2, 1, 0, b"b" * 9000), (3, 1, 0, b"c" * 20_000), (4, 1, 0, b"")]
    save(log, big)
    save(log, entries(5, 40))
    assert all_entries(log) == big + entries(5, 40)
    log = reopen(disk.crash())
    assert all_entries(log) == big + entries(5, 40)
    log.cut(40)
    assert log.first_index <= 40 < log.last_index


def test_cut_keeps_the_entry_itself_and_its_term() -> None:
    disk = MemDisk()
    log = make(disk)
    save(log, entries(1, 60))
    for index in range(1, 61):
        log.cut(index)
        assert log.first_index <= index and log.term(index) == 1
    assert log.first_index > 40
    log = reopen(disk.crash(), known_durable_index=60)
    assert log.term(60) == 1 and log.term(log.first_index - 1) == 1
    with pytest.raises(CorruptionError, match="the store holds only up to"):
        reopen(disk.crash(), known_durable_index=3)
    with pytest.raises(AssertionError):
        log.cut(61)


def test_snapshot_takes_the_place_of_the_log() -> None:
    disk = MemDisk()
    log = make(disk)
    save(log, entries(1, 30))
    log.save_snapshot(10, 1, b"conf", 4, "g2")
    assert (log.first_index, log.last_index, log.term(10)) == (11, 30, 1)
    log.save_snapshot(100, 5, b"conf2", 90, "g3")
    assert (log.first_index, log.last_index, log.term(100)) == (101, 100, 5)
    save(log, entries(101, 30, term=5))
    assert log.durable_index == 130 and log.state.commit == 100
    log.cut(100)
    log = reopen(disk.crash(), known_durable_index=20)
    assert (log.first_index, log.last_index, log.term(100)) == (101, 130, 5)
    assert (log.state.generation, log.state.configuration) == ("g3", b"conf2")
    assert all_entries(log) == entries(101, 30, term=5)


def test_snapshot_is_durable_only_with_its_ticket() -> None:
    disk = MemDisk(lazy=True)
    log = make(disk)
    log.append(entries(1, 20))
    log.submit()
    disk.writers[-1].step()
    log.completed()
    log.save_snapshot(15, 9, b"", 0, "g")
    log.submit()
    assert log.last_index == 15 and log.durable_index == 14
    disk.writers[-1].step()
    log.completed()
    assert log.durable_index == 15


def test_a_segment_stays_until_the_next_head_is_durable() -> None:
    """The snapshot's record is durable, the copy of it in the new head is not yet."""
    disk = MemDisk(lazy=True)
    log = make(disk)
    log.save_snapshot(50, 3, b"conf", 49, "g")
    log.submit()
    disk.writers[-1].step()
    log.completed()
    while len(log._segments) == 1:
        log.save_hard_state(3, 1, 50)
    log.submit()
    assert log.cut(50) == 0
    assert reopen(disk.crash(), known_durable_index=50).state.generation == "g"
    disk.writers[-1].step()
    log.completed()
    assert log.cut(50) == 1
    assert reopen(disk.crash(), known_durable_index=50).state.vote == 1


def test_another_members_log_is_refused() -> None:
    disk = MemDisk()
    make(disk).close()
    with pytest.raises(ConfigError, match="own data directory"):
        reopen(disk, cluster_id=0xC1, member_id=0xA2)
    with pytest.raises(ConfigError, match="cluster"):
        reopen(disk, cluster_id=1)
    reopen(disk, cluster_id=0xC1, member_id=0xA1).close()


def test_committed_entries_are_not_replaced() -> None:
    log = make(MemDisk())
    save(log, entries(1, 5))
    log.save_hard_state(1, 0, 3)
    with pytest.raises(AssertionError):
        log.append(entries(3, 1, term=2))
    log.append(entries(4, 1, term=2))
    with pytest.raises(AssertionError, match="gap"):
        log.append(entries(6, 1))


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "rename", "fsync_dir"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_write_or_sync_ends_the_log(call: str, code: int) -> None:
    """Nothing is acknowledged after the first failure, nothing is tried again."""
    disk = MemDisk(2)
    log = make(disk, spares=2)
    save(log, entries(1, 5))
    disk.fail(call, code)
    acknowledged = log.durable_index
    with pytest.raises(LogFailedError, match="must stop"):
        for i in range(6, 40):
            save(log, entries(i, 1))
            acknowledged = log.durable_index
    calls = dict(disk.calls)
    for again in (
        log.submit,
        log.completed,
        lambda: log.append(entries(7, 1)),
        lambda: log.save_hard_state(1, 1, 1),
        lambda: log.cut(1),
    ):
        with pytest.raises(LogFailedError):
            again()
    log.close()
    assert disk.calls == calls, "nothing was tried again"
    log = reopen(disk.crash(), known_durable_index=acknowledged)
    assert log.last_index >= acknowledged
    save(log, entries(log.last_index + 1, 3))


def test_no_space_for_a_segment_leaves_the_log_usable() -> None:
    disk = MemDisk(3)
    log = make(disk)
    disk.fail("allocate", errno.ENOSPC)
    disk.fail("fill_zeros", errno.ENOSPC)
    index = 1
    with pytest.raises(NoSpaceError):
        while True:
            save(log, entries(index, 2))
            index += 2
    assert log.space_error is not None and log.room_bytes < SMALL
    assert log.last_index == index - 1 == log.durable_index
    before = log.last_index
    with pytest.raises(NoSpaceError):
        log.append(entries(index, 50))
    assert log.last_index == before
    disk.faults.clear()
    log.retry_space()
    log.completed()
    assert log.space_error is None and log.room_bytes > SMALL
    save(log, entries(index, 50))
    assert all_entries(log) == entries(1, index + 49)


def test_close_leaves_a_synced_mark_and_refuses_use() -> None:
    disk = MemDisk()
    log = make(disk)
    save(log, entries(1, 3))
    log.append(entries(4, 1))
    log.close()
    log.close()
    with pytest.raises(AssertionError):
        log.submit()
    assert not disk.handles
    disk = disk.crash(power=True)
    log = reopen(disk)
    assert log.last_index == 4
    assert disk.calls.get("pwrite", 0) == 0, "a clean log is not written at open"


class LogMachine(RuleBasedStateMachine):
    """append, conflict, votes, snapshots, cut and reopen against a list; crashes of both kinds."""

    @initialize(seed=st.integers(0, 1 << 20))
    def begin(self, seed: int) -> None:
        self.disk = MemDisk(seed)
        self.log = make(self.disk)
        self.model = ListLog()
        self.term = 1
        self.hard = (0, 0, 0)
        self.rng = Random(seed)

    def commit(self) -> int:
        return max(self.hard[2], self.log.state.snapshot_index)

    @rule(count=st.integers(1, 20), size=st.integers(0, 900))
    def append(self, count: int, size: int) -> None:
        new = entries(self.model.last + 1, count, self.term, size)
        save(self.log, new)
        self.model.append(new)

    @precondition(lambda self: self.model.last > self.commit())
    @rule(back=st.integers(0, 30), count=st.integers(1, 8))
    def conflict(self, back: int, count: int) -> None:
        self.term += 1
        new = entries(max(self.commit() + 1, self.model.last - back), count, self.term, 77)
        save(self.log, new)
        self.model.append(new)

    @rule(vote=st.integers(0, 3), up=st.integers(0, 10))
    def hard_state(self, vote: int, up: int) -> None:
        self.hard = (self.term, vote, min(self.model.last, self.commit() + up))
        self.log.save_hard_state(*self.hard)
        assert self.log.submit() <= self.log.completed()

    @rule(back=st.integers(0, 20))
    def cut(self, back: int) -> None:
        self.log.cut(max(0, self.commit() - back))

    @rule(up=st.integers(1, 30), keep=st.booleans())
    def snapshot(self, up: int, keep: bool) -> None:
        index = self.commit() + up
        term = self.log.term(index)
        keep = keep and term is not None
        if not keep:
            self.term += 1
            term = self.term
        self.log.save_snapshot(index, term, b"c%d" % index, index, "g")
        self.model.snapshot(index, keep)
        self.hard = (self.log.state.term, self.log.state.vote, self.log.state.commit)
        assert self.log.submit() <= self.log.completed()

    @rule(power=st.booleans(), clean=st.booleans())
    def restart(self, power: bool, clean: bool) -> None:
        state = self.log.state
        if clean:
            self.log.close()
        self.disk = self.disk.crash(power)
        self.log = reopen(self.disk, known_durable_index=self.commit())
        assert self.log.state == state
        assert self.log.durable_index == self.model.last

    @rule()
    def read(self) -> None:
        log = self.log
        assert log.last_index == self.model.last
        got = all_entries(log)
        assert got == self.model.get(log.first_index, log.last_index + 1)
        for i in range(log.first_index, log.last_index + 1):
            assert log.term(i) == got[i - log.first_index][1]

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.read()


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, derandomize=True
)
