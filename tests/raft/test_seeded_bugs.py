"""The checks must notice bugs: each of these is put in, and must be caught.

First by the directed scenarios, which play what few seeds would hit, else within some seeds. Caught
means any failed check: a property of the cluster, a numbered invariant of the code, or no rest at
the end. `pytest -s` prints a table of bug, scenario or seed, and check.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvnode.base.errors import KvnodeError
from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft import HardState, Ready, election, membership, reads, replication
from kvnode.raft.log import RaftLog
from kvnode.raft.progress import Progress
from kvnode.raft.state import Raft
from kvnode.raft.types import Role
from tests.raft.memory import MemoryStorage
from tests.raft.test_faults import STEPS, Life
from tests.raft.test_scenarios import SCENARIOS, play

SEEDS = 100

Patch = pytest.MonkeyPatch


def vote_not_persisted(patch: Patch) -> None:
    keep = MemoryStorage.persist

    def persist(storage: MemoryStorage, ready: Ready) -> None:
        if ready.hard_state is not None:
            old = storage.hard_state
            vote = old.vote if ready.hard_state.term == old.term else MemberID(0)
            ready.hard_state = HardState(ready.hard_state.term, vote, ready.hard_state.commit)
        keep(storage, ready)

    patch.setattr(MemoryStorage, "persist", persist)


def term_not_persisted(patch: Patch) -> None:
    keep = MemoryStorage.persist

    def persist(storage: MemoryStorage, ready: Ready) -> None:
        old = storage.hard_state
        keep(storage, ready)
        storage.hard_state = HardState(old.term or Term(1), old.vote, storage.hard_state.commit)

    patch.setattr(MemoryStorage, "persist", persist)


def promises_before_the_sync(patch: Patch) -> None:
    patch.setattr(Raft, "send_after_persist", lambda r, message: r.messages.append(message))


def votes_asked_before_the_sync(patch: Patch) -> None:
    keep = election.campaign

    def campaign(r: Raft, transfer: bool) -> None:
        keep(r, transfer)
        r.messages += r.messages_after_persist
        r.messages_after_persist = []

    patch.setattr(election, "campaign", campaign)


def own_write_counted_before_the_sync(patch: Patch) -> None:
    keep = replication.maybe_commit

    def maybe_commit(r: Raft) -> None:
        durable = r.log.persisted
        r.log.persisted = r.log.handed
        keep(r)
        r.log.persisted = durable

    patch.setattr(replication, "maybe_commit", maybe_commit)


def applied_before_durable(patch: Patch) -> None:
    keep = RaftLog.take_appliable

    def take(log: RaftLog) -> object:
        durable = log.persisted
        log.persisted = log.last_index
        span = keep(log)
        log.persisted = durable
        return span

    patch.setattr(RaftLog, "take_appliable", take)


def old_term_committed(patch: Patch) -> None:
    class AnyTerm(int):
        def __ne__(self, other: object) -> bool:
            return False

    keep = RaftLog.term

    def maybe_commit(r: Raft) -> None:
        r.term_first_index = Index(0)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(RaftLog, "term", lambda log, index: AnyTerm(keep(log, index)))
            original(r)

    original = replication.maybe_commit
    patch.setattr(replication, "maybe_commit", maybe_commit)


def vote_for_an_older_log(patch: Patch) -> None:
    patch.setattr(RaftLog, "is_up_to_date", lambda log, index, term: True)


def two_votes_a_term(patch: Patch) -> None:
    keep = election.on_vote_request

    def on_vote_request(r: Raft, message: object) -> None:
        r.vote = MemberID(0)
        r.leader = MemberID(0) if r.role != Role.LEADER else r.leader
        keep(r, message)   # type: ignore[arg-type]

    patch.setattr(election, "on_vote_request", on_vote_request)


def one_vote_short(patch: Patch) -> None:
    keep = election._count

    def count(r: Raft, member: MemberID, granted: bool) -> None:
        for other in r.configuration.voters:
            if other != r.id and len(r.configuration.voters) > 2:
                r.votes[other] = True
                break
        keep(r, member, granted)

    patch.setattr(election, "_count", count)


def read_by_an_older_round(patch: Patch) -> None:
    keep = reads.begin_round

    def begin_round(r: Raft) -> None:
        r.reads.number -= 1 if r.reads.number > 1 and r.reads.waiting else 0
        keep(r)

    patch.setattr(reads, "begin_round", begin_round)


def read_before_the_term_commits(patch: Patch) -> None:
    patch.setattr(Raft, "term_committed", lambda r: True)


def lease_never_ends(patch: Patch) -> None:
    def holds(r: Raft) -> bool:
        return r.config.read_lease and r.reads.lease_until > 0

    patch.setattr(reads, "_lease_holds", holds)


def conflict_not_truncated(patch: Patch) -> None:
    keep = RaftLog.append_from

    def append_from(log: RaftLog, entries: object) -> None:
        new = [entry for entry in entries if entry.index > log.last_index]  # type: ignore[attr-defined]
        if new:
            keep(log, new)

    patch.setattr(RaftLog, "append_from", append_from)


def stale_write_acknowledged(patch: Patch) -> None:
    def lower(log: RaftLog, last: Index) -> None:
        log.handed = min(log.handed, last)
        log.persisted = min(log.persisted, last)

    patch.setattr(RaftLog, "_lower_marks", lower)


def configuration_lost_on_restart(patch: Patch) -> None:
    keep = MemoryStorage.persist

    def persist(storage: MemoryStorage, ready: Ready) -> None:
        if ready.configuration is not None and ready.configuration[0] > 1:
            ready.configuration = None
        keep(storage, ready)

    patch.setattr(MemoryStorage, "persist", persist)


def two_changes_in_flight(patch: Patch) -> None:
    keep = membership.propose

    def propose(r: Raft, change: object) -> object:
        r.pending_configuration_index = Index(0)
        return keep(r, change)   # type: ignore[arg-type]

    patch.setattr(membership, "propose", propose)


def no_joint_quorum(patch: Patch) -> None:
    for module in (replication, reads, election):
        for name in ("joint_value", "joint_votes"):
            if hasattr(module, name):
                keep = getattr(module, name)
                patch.setattr(module, name, lambda v, o, x, keep=keep: keep(v, (), x))


def lost_append_never_sent_again(patch: Patch) -> None:
    patch.setattr(Progress, "maybe_decrease", lambda progress, rejected, probe_at: False)


BUGS: list[Callable[[Patch], None]] = [
    vote_not_persisted,
    term_not_persisted,
    promises_before_the_sync,
    votes_asked_before_the_sync,
    own_write_counted_before_the_sync,
    applied_before_durable,
    old_term_committed,
    vote_for_an_older_log,
    two_votes_a_term,
    one_vote_short,
    read_by_an_older_round,
    read_before_the_term_commits,
    lease_never_ends,
    conflict_not_truncated,
    stale_write_acknowledged,
    configuration_lost_on_restart,
    two_changes_in_flight,
    no_joint_quorum,
    lost_append_never_sent_again,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_bug_is_caught(bug: Callable[[Patch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        for name, lines in SCENARIOS.items():
            try:
                play(lines)
            except (AssertionError, KvnodeError) as error:
                print(f"\n{bug.__name__}: scenario {name}, {type(error).__name__}: {error}")
                return
        for seed in range(SEEDS):
            life = Life(seed)
            try:
                for number in range(STEPS):
                    life.step()
                    if number % 50 == 0:
                        life.cluster.check_logs()
                life.peace()
            except Exception as error:
                text = str(error).splitlines()[0] if str(error) else ""
                print(f"\n{bug.__name__}: seed {seed}, {type(error).__name__}: {text[:70]}")
                return
    raise AssertionError(f"{bug.__name__} was not caught in {SEEDS} seeds")
