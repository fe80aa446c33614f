"""Membership: proposing a change of configuration, and enacting it when it is committed.

Caller: `node` and `replication`. A change takes force where its entry is committed, on every
member at that moment, without waiting for the state machine. One change is in flight at a time
(R6); the entry of the next one travels, and becomes durable, together with a commit index that
covers the one before, so a member that has it never goes back by two configurations. A joint phase
with auto_leave is left by its leader, or by the next one, as soon as the change is committed.

A removed member is told the commit index once more before it is forgotten. A leader that is
removed or demoted goes on, without counting itself, until a quorum of the others says that it knows
the commit; then it asks the best follower to campaign and steps down. Earlier would be too early:
the others would still need its vote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft import election, replication
from kvnode.raft.configuration import (
    ChangeType,
    Configuration,
    ConfigurationChange,
    apply_change,
    encode_change,
)
from kvnode.raft.errors import ConfigurationRefusedError, LearnerNotReadyError
from kvnode.raft.progress import SNAPSHOT
from kvnode.raft.quorum import joint_value
from kvnode.raft.types import ENTRY_CONFIGURATION, Role

if TYPE_CHECKING:
    from kvnode.raft.state import Raft


def propose(r: Raft, change: ConfigurationChange) -> tuple[Index, Term]:
    """Append a change on the leader; ConfigurationRefusedError: it is not possible now."""
    if r.pending_configuration_index > r.log.committed:
        raise ConfigurationRefusedError(
            f"another change (or the tail of an older term) up to entry"
            f" {r.pending_configuration_index} is not committed yet"
        )
    if not r.term_committed():
        raise ConfigurationRefusedError("the leader has not committed an entry of its term yet")
    apply_change(r.configuration, change)
    for kind, member in change.changes:
        if kind == ChangeType.PROMOTE:
            _check_caught_up(r, member)
    return append(r, change)


def _check_caught_up(r: Raft, member: MemberID) -> None:
    progress = r.progress.get(member)
    if progress is None:
        raise LearnerNotReadyError(f"member {member} is not a learner yet")
    lag = r.log.last_index - progress.match
    if not progress.recent_active or progress.state == SNAPSHOT or progress.match == 0:
        raise LearnerNotReadyError(f"learner {member} is not in sync with the leader")
    if lag > r.config.learner_lag_max:
        raise LearnerNotReadyError(f"learner {member} lacks {lag} entries")


def append(r: Raft, change: ConfigurationChange) -> tuple[Index, Term]:
    """Append a change that was checked."""
    assert r.pending_configuration_index <= r.log.committed, "R6: two changes in flight"
    index = r.log.append_own(r.term, ENTRY_CONFIGURATION, encode_change(change))
    r.log.changes.append((index, change))
    r.pending_configuration_index = index
    return index, r.term


def enact_committed(r: Raft) -> None:
    """Take into force the changes that the commit index has reached."""
    changes = r.log.changes
    while changes and changes[0][0] <= r.log.committed:
        index, change = changes.popleft()
        if index <= r.configuration_index:
            continue   # a snapshot brought a newer configuration than its place in the log
        _switch(r, apply_change(r.configuration, change), index)


def _switch(r: Raft, configuration: Configuration, index: Index) -> None:
    if r.role != Role.LEADER:
        r.set_configuration(configuration, index)
        return
    for member, progress in r.progress.items():
        if progress.state != SNAPSHOT:
            replication.send_append(r, member, progress)
    r.set_configuration(configuration, index)
    r.reads.lease_until = 0   # it was promised by a quorum of another configuration
    members = set(configuration.members())
    for member in list(r.progress):
        if member not in members:
            del r.progress[member]
    for member in configuration.members():
        if member != r.id and member not in r.progress:
            r.progress[member] = r.new_progress()
    if r.transferee and r.transferee not in configuration.voters:
        r.transferee = MemberID(0)


def maybe_step_down(r: Raft) -> None:
    """A leader without a vote goes when the others can do without it."""
    configuration, progress = r.configuration, r.progress
    known = joint_value(
        configuration.voters,
        configuration.outgoing,
        lambda member: progress[member].known_commit,
    )
    if known >= r.configuration_index:
        election.give_up_leadership(r)


def maybe_leave_joint(r: Raft) -> None:
    """Leave a joint phase that leaves by itself."""
    if (
        r.configuration.auto_leave
        and r.pending_configuration_index <= r.log.committed
        and r.term_committed()
    ):
        append(r, ConfigurationChange())
