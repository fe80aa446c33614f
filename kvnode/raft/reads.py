"""Linearizable reads without log entries: rounds of heartbeats, forwarding, leases.

Caller: `node`. A read waits until the next Ready; then all that wait share one round. A round is
a number that every heartbeat carries: a member that answers number n knew no newer leader after
round n began, so a quorum of answers >= n proves that nothing newer than the commit index at its
beginning was acknowledged to anybody before. A follower sends the number of its bundle of reads to
the leader, and again to the next one, until an index comes back.

Invariants:
 D1 a round takes only reads that arrived before it began (they are taken at its beginning).
 D2 a bundle's number is never used again, also not after a restart (it starts at random), so a late
    answer can't meet another bundle.
 R7 (see `state`) is asserted where a round begins.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft.errors import MessageError
from kvnode.raft.quorum import joint_value
from kvnode.raft.types import (
    HEARTBEAT,
    NO_MEMBER,
    READ_INDEX,
    READ_INDEX_RESPONSE,
    Message,
    ReadState,
    Role,
)

if TYPE_CHECKING:
    from kvnode.raft.state import Raft

_LEASE_ROUNDS_MAX = 64


class Round:
    """One round under way; it may have no reads and still renew the lease."""

    __slots__ = ("contexts", "index", "number", "remote", "started")

    def __init__(
        self,
        number: int,
        index: Index,
        started: int,
        contexts: list[object],
        remote: list[tuple[MemberID, int]],
    ) -> None:
        self.number = number
        self.index = index            # committed when the round began
        self.started = started        # tick
        self.contexts = contexts      # this member's reads
        self.remote = remote          # (follower, number of its bundle)


class Reads:
    """Reads waiting, under way and answered."""

    __slots__ = (
        "answered",
        "forwarded",
        "lease_until",
        "next_bundle",
        "number",
        "remote",
        "rounds",
        "waiting",
    )

    def __init__(self, first_bundle: int) -> None:
        self.waiting: list[object] = []
        self.remote: list[tuple[MemberID, int]] = []
        self.rounds: deque[Round] = deque()
        self.number = 0
        self.lease_until = 0                          # tick
        self.next_bundle = first_bundle
        self.forwarded: dict[int, tuple[int, list[object]]] = {}   # number: tick sent, reads
        self.answered: list[ReadState] = []

    def role_changed(self) -> None:
        """Own reads wait for the next leader; followers ask it themselves."""
        for round_ in self.rounds:
            self.waiting.extend(round_.contexts)
        self.rounds.clear()
        self.remote.clear()
        self.lease_until = 0
        for _, contexts in self.forwarded.values():
            self.waiting.extend(contexts)
        self.forwarded.clear()

    def open_count(self) -> int:
        return (
            len(self.waiting)
            + sum(len(round_.contexts) for round_ in self.rounds)
            + sum(len(contexts) for _, contexts in self.forwarded.values())
        )

    def drop_all(self) -> list[object]:
        """Forget all own reads; returns them."""
        dropped = list(self.waiting)
        for round_ in self.rounds:
            dropped.extend(round_.contexts)
            round_.contexts = []
        for _, contexts in self.forwarded.values():
            dropped.extend(contexts)
        self.waiting = []
        self.forwarded.clear()
        return dropped


def advance(r: Raft) -> None:
    """At each Ready: take the reads that wait as far as possible."""
    reads = r.reads
    if r.role == Role.LEADER:
        if (reads.waiting or reads.remote) and r.term_committed() and not r.quiet:
            if r.sole or _lease_holds(r):
                _answer(r, r.log.committed, reads.waiting, reads.remote)
                reads.waiting = []
                reads.remote = []
            else:
                begin_round(r)
    elif r.leader != NO_MEMBER:
        _forward(r)


def begin_round(r: Raft) -> None:
    """Send heartbeats with a new number and bind the waiting reads to it."""
    reads = r.reads
    reads.number += 1
    takes_reads = r.term_committed() and bool(reads.waiting or reads.remote)
    if takes_reads:
        assert r.log.term(r.log.committed) == r.term, "R7: no entry of the own term committed"
        reads.rounds.append(
            Round(reads.number, r.log.committed, r.now, reads.waiting, reads.remote)
        )
        reads.waiting = []
        reads.remote = []
    elif r.config.read_lease and len(reads.rounds) < _LEASE_ROUNDS_MAX:
        reads.rounds.append(Round(reads.number, Index(0), r.now, [], []))
    for member, progress in r.progress.items():
        commit = Index(min(progress.match, r.log.committed))
        r.send(Message(HEARTBEAT, member, r.id, r.term, commit=commit, context=reads.number))
        progress.sent_commit = max(progress.sent_commit, commit)


def on_round_answer(r: Raft, message: Message) -> None:
    """A member answered a heartbeat."""
    progress = r.progress[message.sender]
    if message.context <= progress.acked_round:
        return
    if message.context > r.reads.number:
        raise MessageError(f"D1: {message.sender} answers round {message.context}, not begun yet")
    progress.acked_round = message.context
    if r.reads.rounds:
        finish_rounds(r)


def finish_rounds(r: Raft) -> None:
    """Answer the reads of all rounds that a quorum has answered."""
    reads = r.reads
    configuration = r.configuration
    progress = r.progress
    own, number = r.id, reads.number
    reached = joint_value(
        configuration.voters,
        configuration.outgoing,
        lambda member: number if member == own else progress[member].acked_round,
    )
    while reads.rounds and reads.rounds[0].number <= reached:
        round_ = reads.rounds.popleft()
        lease = r.config.election_ticks - r.config.lease_drift_ticks
        reads.lease_until = max(reads.lease_until, round_.started + lease)
        _answer(r, round_.index, round_.contexts, round_.remote)


def _lease_holds(r: Raft) -> bool:
    # A TIMEOUT_NOW out there may make a follower campaign without regard to leases at any time.
    return r.config.read_lease and not r.timeout_now_sent and r.now < r.reads.lease_until


def _answer(
    r: Raft, index: Index, contexts: list[object], remote: list[tuple[MemberID, int]]
) -> None:
    if contexts:
        r.reads.answered.extend([ReadState(context, index) for context in contexts])
    for member, number in remote:
        r.send(
            Message(READ_INDEX_RESPONSE, member, r.id, r.term, index=index, context=number)
        )


def _forward(r: Raft) -> None:
    reads = r.reads
    if reads.waiting:
        reads.forwarded[reads.next_bundle] = (-1, reads.waiting)
        reads.next_bundle += 1
        reads.waiting = []
    for number, (sent, contexts) in reads.forwarded.items():
        if sent < 0 or r.now - sent >= r.config.election_ticks:
            reads.forwarded[number] = (r.now, contexts)
            r.messages.append(Message(READ_INDEX, r.leader, r.id, Term(0), context=number))


def on_read_index(r: Raft, message: Message) -> None:
    """A follower's bundle; a member that does not lead leaves it to the asker to ask again."""
    if r.role == Role.LEADER:
        entry = (message.sender, message.context)
        if entry not in r.reads.remote and len(r.reads.remote) < r.config.reads_waiting_max:
            r.reads.remote.append(entry)


def on_read_index_response(r: Raft, message: Message) -> None:
    """The leader's answer; unknown numbers are answered already."""
    found = r.reads.forwarded.pop(message.context, None)
    if found is not None:
        r.reads.answered.extend([ReadState(context, message.index) for context in found[1]])
