"""Replication: what a leader sends, what a follower answers, when an entry is committed.

Caller: `node`. Proposals only append; APPENDs are made when a Ready is taken, so all that one turn
of the caller's loop proposed travels in one message a follower, and goes out beside the leader's
own write. How far a follower is behind is found with one round trip a term in doubt, not one an
entry: a refusal carries the follower's newest entry that can be in the leader's log at all, and the
leader answers with its own newest that can be in the follower's (`RaftLog.last_not_above`).

Invariants, asserted:
 R4 a leader commits by counting only where the entry at the quorum's index is of its own term.
 P3 nobody acknowledges beyond what was sent: match <= last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft import election, membership
from kvnode.raft.errors import CompactedError, LogLostError, MessageError
from kvnode.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from kvnode.raft.quorum import joint_value
from kvnode.raft.types import (
    APPEND,
    APPEND_RESPONSE,
    HEARTBEAT_RESPONSE,
    Message,
    Role,
)

if TYPE_CHECKING:
    from kvnode.raft.state import Raft


# The leader's side.


def replicate(r: Raft) -> None:
    """At each Ready: send every follower what it lacks and its window allows."""
    last, committed = r.log.last_index, r.log.committed
    for member, progress in r.progress.items():
        state = progress.state
        if state == SNAPSHOT:
            continue
        while not progress.paused and (progress.next <= last or state == PROBE):
            if not send_append(r, member, progress):
                break
        if progress.state == REPLICATE and progress.sent_commit < min(committed, progress.match):
            send_append(r, member, progress)


def send_append(r: Raft, member: MemberID, progress: Progress) -> bool:
    """Send one APPEND, empty if the window is full or nothing is new; ask for a snapshot if what
    the member needs is gone. False: nothing left that would bring the member further now."""
    log = r.log
    previous = Index(progress.next - 1)
    try:
        log_term = log.term(previous)
        entries = (
            ()
            if progress.next > log.last_index
            or (progress.state == REPLICATE and progress.window_full())
            else log.entries(progress.next, r.config.message_bytes_max)
        )
    except CompactedError:
        _need_snapshot(r, member, progress)
        return False
    r.send(
        Message(APPEND, member, r.id, r.term, previous, log_term, log.committed, entries)
    )
    size = 0
    for entry in entries:
        size += len(entry.data)
    progress.sent(len(entries), previous + len(entries), size)
    progress.sent_commit = max(progress.sent_commit, log.committed)
    return bool(entries)


def _need_snapshot(r: Raft, member: MemberID, progress: Progress) -> None:
    # A member that does not answer would not take the snapshot either.
    if progress.recent_active:
        progress.become_snapshot()
        r.snapshot_requests.append(member)


def on_append_response(r: Raft, message: Message) -> None:
    """A follower has taken, or refused, an APPEND or a snapshot."""
    progress = r.progress[message.sender]
    progress.recent_active = True
    progress.known_commit = max(progress.known_commit, message.commit)
    if message.reject:
        _on_refusal(r, message, progress)
        return
    if message.index > r.log.last_index:
        raise MessageError(f"P3: {message.sender} acknowledged {message.index}, never sent")
    news = progress.maybe_update(message.index)
    if not news and not (progress.state == PROBE and progress.match == message.index):
        return
    if progress.state == PROBE:
        progress.become_replicate()
    elif progress.state == REPLICATE:
        progress.acknowledged(message.index)
    elif progress.match + 1 >= r.log.storage.first_index:
        progress.become_probe()
        progress.become_replicate()
    if news:
        maybe_commit(r)
    if r.transferee == message.sender and progress.match == r.log.last_index:
        election.send_timeout_now(r, message.sender)


def _on_refusal(r: Raft, message: Message, progress: Progress) -> None:
    probe_at = message.hint
    if message.log_term:
        probe_at, _ = r.log.last_not_above(message.hint, message.log_term)
    if progress.maybe_decrease(message.index, probe_at):
        if progress.state == REPLICATE:
            progress.become_probe()
        send_append(r, message.sender, progress)


def on_heartbeat_response(r: Raft, message: Message) -> None:
    """A member lives: try again what may have been lost on the way to it."""
    progress = r.progress[message.sender]
    progress.recent_active = True
    progress.known_commit = max(progress.known_commit, message.commit)
    if progress.state == SNAPSHOT:
        return
    progress.paused = False
    if progress.state == PROBE or (
        progress.match < r.log.last_index and progress.next > progress.match + 1
    ):
        # With a full window this is an empty APPEND: its refusal tells what was lost.
        send_append(r, message.sender, progress)


def maybe_commit(r: Raft) -> None:
    """Commit what a quorum has made durable, again for each configuration that this enacts."""
    log = r.log
    while r.role == Role.LEADER:
        index: int
        if r.sole:
            index = log.persisted
        else:
            own, persisted, progress = r.id, log.persisted, r.progress
            index = joint_value(
                r.configuration.voters,
                r.configuration.outgoing,
                lambda member: persisted if member == own else progress[member].match,  # noqa: B023
            )
        if index <= log.committed or log.term(index) != r.term:
            return
        assert index >= r.term_first_index, "R4: counted an older term's entry"
        commit_to(r, index)


def commit_to(r: Raft, index: int) -> None:
    """Raise the commit index and do what depends on it."""
    log = r.log
    log.commit_to(index)
    if log.changes and log.changes[0][0] <= log.committed:
        membership.enact_committed(r)
    uncommitted = r.uncommitted
    while uncommitted and uncommitted[0][0] <= index:
        r.uncommitted_bytes -= uncommitted.popleft()[1]
    if r.role == Role.LEADER:
        membership.maybe_leave_joint(r)


# The follower's side.


def check_append(message: Message) -> None:
    """Raise MessageError unless the entries continue (index, log_term) and end at the term."""
    index, term = message.index, message.log_term
    for entry in message.entries:
        index = Index(index + 1)
        if entry.index != index or entry.term < term:
            raise MessageError(f"APPEND from {message.sender}: entry {entry.index} out of order")
        term = entry.term
    if term > message.term:
        raise MessageError(f"APPEND from {message.sender}: entry newer than its term")


def on_append(r: Raft, message: Message) -> None:
    """Take the entries, answer when they are durable (R5)."""
    log = r.log
    if message.index < log.committed:
        _acknowledge(r, message.sender, log.committed)
        return
    if log.matches(message.index, message.log_term):
        last = Index(message.index + len(message.entries))
        if message.entries:
            log.append_from(message.entries)
        commit_to(r, max(log.committed, min(message.commit, last)))
        _acknowledge(r, message.sender, last)
        return
    hint, hint_term = log.last_not_above(message.index, message.log_term)
    r.send(
        Message(
            APPEND_RESPONSE, message.sender, r.id, r.term, message.index, hint_term,
            reject=True, hint=hint,
        )
    )


def _acknowledge(r: Raft, leader: MemberID, index: Index) -> None:
    answer = Message(APPEND_RESPONSE, leader, r.id, r.term, index, commit=r.durable_commit)
    if index <= r.log.persisted:
        r.send(answer)
    else:
        r.send_after_persist(answer)


def on_heartbeat(r: Raft, message: Message) -> None:
    """Answer at once, whatever the disk does."""
    if message.commit > r.log.last_index:
        raise LogLostError(
            f"the leader knows this member to have entry {message.commit}, but its log ends at"
            f" {r.log.last_index}: the directory is old; remove the member and add it anew"
        )
    commit_to(r, max(r.log.committed, message.commit))
    r.send(
        Message(
            HEARTBEAT_RESPONSE, message.sender, r.id, r.term,
            commit=r.durable_commit, context=message.context,
        )
    )


def on_snapshot(r: Raft, message: Message) -> None:
    """Install a snapshot unless the log is as far already."""
    snapshot = message.snapshot
    if snapshot is None or snapshot.term > message.term:
        raise MessageError(f"SNAPSHOT from {message.sender} without a sensible snapshot")
    log = r.log
    if snapshot.index <= log.committed or r.id not in snapshot.configuration.members():
        _acknowledge(r, message.sender, log.committed)
        return
    if log.matches(snapshot.index, snapshot.term):
        commit_to(r, snapshot.index)
        _acknowledge(r, message.sender, snapshot.index)
        return
    log.restore(snapshot)
    r.set_configuration(snapshot.configuration, snapshot.configuration_index)
    r.send_after_persist(
        Message(APPEND_RESPONSE, message.sender, r.id, r.term, snapshot.index)
    )


def stale_term_answer(r: Raft, message: Message) -> None:
    """Tell the leader of an older term that its time is over.

    With pre-vote and check-quorum no vote would reach it, and this member's term would keep it
    from ever following.
    """
    r.send(Message(APPEND_RESPONSE, message.sender, r.id, r.term, Index(0), Term(0)))
