"""A cluster of one voter: the whole way of a proposal, and starts from what a log held."""

from __future__ import annotations

from random import Random

import pytest

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft import (
    ENTRY_CONFIGURATION,
    NO_MEMBER,
    Change,
    ChangeType,
    Configuration,
    Entry,
    HardState,
    LogLostError,
    Node,
    NodeConfig,
    NotLeaderError,
    OverloadedError,
    ReadState,
    Ready,
    Role,
    Span,
)
from tests.raft.memory import MemoryStorage

ONE = MemberID(1)


def start(storage: MemoryStorage, applied: int = 0, **options: object) -> Node:
    return Node(
        NodeConfig(
            id=ONE,
            random=Random(7),
            storage=storage,
            configuration=storage.configuration,
            configuration_index=storage.configuration_index,
            hard_state=storage.hard_state,
            snapshot_index=storage.snapshot_index,
            snapshot_term=storage.snapshot_term,
            applied=Index(applied),
            **options,  # type: ignore[arg-type]
        )
    )


def drive(node: Node, storage: MemoryStorage) -> list[Ready]:
    """Take Readies, each durable at once, until there are none."""
    taken = []
    while (ready := node.ready()) is not None:
        taken.append(ready)
        if ready.needs_persist:
            storage.persist(ready)
            node.on_persisted(ready.number)
        if ready.committed is not None:
            node.on_applied(ready.committed.last)
    return taken


def leader(**options: object) -> tuple[Node, MemoryStorage]:
    storage = MemoryStorage(Configuration((ONE,)))
    node = start(storage, **options)
    assert node.campaign()
    drive(node, storage)
    assert node.role == Role.LEADER
    return node, storage


def test_campaign_leads_after_its_vote_is_durable() -> None:
    storage = MemoryStorage(Configuration((ONE,)))
    node = start(storage)
    ready = node.ready()
    assert ready is not None
    assert [entry[:3] for entry in ready.entries] == [(1, 1, ENTRY_CONFIGURATION)]
    assert ready.hard_state == HardState(Term(1), NO_MEMBER, Index(1))
    assert ready.configuration == (1, Configuration((ONE,)))
    node.campaign()
    node.on_persisted(ready.number)
    assert node.role == Role.CANDIDATE
    ready = node.ready()
    assert ready is not None and ready.committed == Span(Index(1), Index(1), Term(1))
    assert ready.hard_state == HardState(Term(2), ONE, Index(1))
    assert node.role == Role.CANDIDATE
    assert node.ready() is None
    node.on_persisted(ready.number)
    assert node.role == Role.LEADER
    ready = node.ready()
    assert ready is not None
    assert ready.entries == [Entry(Index(2), Term(2), 0, b"")]
    assert ready.committed is None and not node.sole_voter
    node.on_persisted(ready.number)
    assert node.sole_voter
    ready = node.ready()
    assert ready is not None and ready.committed == Span(Index(2), Index(2), Term(2))
    assert not ready.needs_persist


def test_nothing_is_appliable_before_it_is_durable_and_one_sync_serves_many() -> None:
    node, _ = leader()
    assert node.propose(b"a") == (3, 2)
    first = node.ready()
    assert node.propose(b"b") == (4, 2)
    assert node.propose(b"c") == (5, 2)
    second = node.ready()
    assert first is not None and second is not None
    assert [entry.data for entry in second.entries] == [b"b", b"c"]
    assert first.committed is None and second.committed is None and node.ready() is None
    node.on_persisted(first.number)
    ready = node.ready()
    assert ready is not None and ready.committed == Span(Index(3), Index(3), Term(2))
    node.propose(b"d")
    third = node.ready()
    assert third is not None
    # The commit index rides with entries; it never costs a sync of its own.
    assert third.hard_state == HardState(Term(2), ONE, Index(3))
    node.on_persisted(third.number)
    ready = node.ready()
    assert ready is not None and ready.committed == Span(Index(4), Index(6), Term(2))
    assert not node.log.tail and node.log.tail_bytes == 0


def test_restart_goes_on_with_a_new_term() -> None:
    node, storage = leader()
    node.propose(b"a")
    drive(node, storage)
    node = start(storage, applied=1)
    assert node.status().commit == 2 and node.status().term == 2
    assert node.role == Role.FOLLOWER and not node.sole_voter
    node.campaign()
    readies = drive(node, storage)
    spans = [ready.committed for ready in readies if ready.committed is not None]
    assert spans == [Span(Index(2), Index(2), Term(2)), Span(Index(3), Index(4), Term(3))]
    assert node.propose(b"b") == (5, 3)


def test_a_start_commits_at_least_what_is_applied() -> None:
    node, storage = leader()
    node.propose(b"a")
    node.propose(b"b")
    drive(node, storage)
    assert storage.hard_state.commit == 2
    assert start(storage, applied=4).status().commit == 4


def test_a_start_finds_configurations_committed_after_the_last_hard_state() -> None:
    node, storage = leader()
    node.propose_configuration((Change(ChangeType.ADD_LEARNER, MemberID(2)),))
    ready = node.ready()
    assert ready is not None
    storage.persist(ready)
    node = start(storage, applied=3)
    assert node.configuration == Configuration((ONE,), learners=(MemberID(2),))
    assert node.configuration_index == 3


def test_a_log_shorter_than_its_commit_is_refused() -> None:
    storage = MemoryStorage(Configuration((ONE,)))
    storage.hard_state = HardState(Term(1), ONE, Index(9))
    with pytest.raises(LogLostError):
        start(storage)
    with pytest.raises(LogLostError):
        storage.hard_state = HardState(Term(1), ONE, Index(0))
        start(storage, applied=4)


def test_proposals_need_a_leader_and_room() -> None:
    storage = MemoryStorage(Configuration((ONE,)))
    node = start(storage)
    with pytest.raises(NotLeaderError):
        node.propose(b"x")
    node, storage = leader(uncommitted_bytes_max=100)
    node.propose(b"x" * 1000)   # whatever its size, one goes
    with pytest.raises(OverloadedError):
        node.propose(b"y")
    drive(node, storage)
    node.propose(b"y")
    node.propose(b"z" * 99)
    with pytest.raises(OverloadedError):
        node.propose(b"z")


def test_sole_voter_ends_when_a_change_is_appended() -> None:
    node, storage = leader()
    assert node.sole_voter
    node.propose_configuration((Change(ChangeType.ADD_VOTER, MemberID(2)),))
    assert not node.sole_voter
    drive(node, storage)
    assert not node.sole_voter
    assert node.configuration == Configuration((ONE, MemberID(2)))
    assert storage.configuration == node.configuration


def test_reads_wait_for_the_first_entry_of_the_term() -> None:
    node, storage = leader()
    node.propose(b"a")
    drive(node, storage)
    node.read_index("r1")
    ready = node.ready()
    assert ready is not None and ready.read_states == [ReadState("r1", Index(3))]
    node = start(storage, applied=3)
    node.campaign()
    node.read_index("r2")
    answers = [state for ready in drive(node, storage) for state in ready.read_states]
    assert answers == [ReadState("r2", Index(4))]


def test_election_by_ticks_alone() -> None:
    storage = MemoryStorage(Configuration((ONE,)))
    node = start(storage)
    for _ in range(20):
        node.tick()
    drive(node, storage)
    assert node.role == Role.LEADER
    for _ in range(100):
        node.tick()
    assert drive(node, storage) == []


def test_acknowledging_what_was_not_handed_out_is_a_programmers_error() -> None:
    node, _ = leader()
    with pytest.raises(AssertionError, match="L6"):
        node.on_persisted(99)
    with pytest.raises(AssertionError, match="L5"):
        node.on_applied(Index(99))
