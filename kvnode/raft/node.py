"""A member's consensus: messages, ticks and proposals in, one `Ready` out.

Caller: `procs/consensus` and the simulator, from one thread. The way of a message is
`step -> step_leader / step_follower / step_candidate -> send`, the way out is `ready`. See the
package for the caller's side of the contract. No clock, no randomness of its own, no I/O but
reading the log storage it was given.
"""

from __future__ import annotations

from typing import NamedTuple

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft import election, membership, reads, replication
from kvnode.raft.config import NodeConfig
from kvnode.raft.configuration import (
    Change,
    Configuration,
    ConfigurationChange,
    Transition,
    encode_change,
    first_change,
)
from kvnode.raft.errors import (
    MessageError,
    NotLeaderError,
    OverloadedError,
    TransferringError,
)
from kvnode.raft.progress import REPLICATE
from kvnode.raft.progress import SNAPSHOT as PROGRESS_SNAPSHOT
from kvnode.raft.state import Raft
from kvnode.raft.types import (
    APPEND,
    APPEND_RESPONSE,
    CONTEXT_TRANSFER,
    ENTRY_CONFIGURATION,
    ENTRY_NORMAL,
    HEARTBEAT,
    HEARTBEAT_RESPONSE,
    MESSAGE_NAMES,
    NO_MEMBER,
    PRE_VOTE,
    PRE_VOTE_RESPONSE,
    PROPOSE,
    READ_INDEX,
    READ_INDEX_RESPONSE,
    SNAPSHOT,
    TIMEOUT_NOW,
    TRANSFER_LEADER,
    VOTE,
    VOTE_RESPONSE,
    Entry,
    HardState,
    Message,
    Ready,
    Role,
    Snapshot,
    SoftState,
)

_FROM_LEADER = frozenset((APPEND, HEARTBEAT, SNAPSHOT))
_FROM_FOLLOWER = frozenset((APPEND_RESPONSE, HEARTBEAT_RESPONSE))


class MemberStatus(NamedTuple):
    """How far another member is, as its leader knows; `needs_from` is its first missing entry."""

    member: MemberID
    match: Index
    next: Index
    state: str
    active: bool
    needs_from: Index


class Status(NamedTuple):
    """What a member reports about itself; `members` only on the leader, `removed` for good."""

    id: MemberID
    term: Term
    vote: MemberID
    leader: MemberID
    role: Role
    commit: Index
    persisted: Index
    applied: Index
    last_index: Index
    last_term: Term
    configuration: Configuration
    configuration_index: Index
    learner: bool
    removed: bool
    transferee: MemberID
    uncommitted_bytes: int
    proposals_dropped: int
    members: tuple[MemberStatus, ...]


class LoneEntry(NamedTuple):
    """Index and term of the next proposal, and the hard state that is saved with it: the vote, and
    whether one is due, which commits the entry before."""

    at: Index
    term: Term
    vote: MemberID
    commits: bool


class Node(Raft):
    """One member. Every method but `ready` and `status` returns at once and does no work later."""

    __slots__ = (
        "_commit_handed",
        "_configuration_handed",
        "_ready_number",
        "_snapshot_handed",
        "_soft_state_handed",
        "_term_handed",
        "_vote_handed",
    )

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self.become_follower(self.term, NO_MEMBER)
        self._term_handed = self.term
        self._vote_handed = self.vote
        self._commit_handed: int = config.hard_state.commit
        self._configuration_handed = self.configuration_index
        self._ready_number = 0
        self._soft_state_handed = (NO_MEMBER, Role.FOLLOWER)
        self._snapshot_handed: Snapshot | None = None
        if self.log.last_index == 0 and self.term == 0 and config.configuration.voters:
            self._bootstrap()
        # What is applied was committed, whatever the last durable hard state says.
        elif config.applied > self.log.committed:
            replication.commit_to(self, config.applied)

    def _bootstrap(self) -> None:
        """All founders begin with the same entry, so whoever joins later finds it in the log."""
        change = first_change(self.configuration, self.config.bootstrap_context)
        self.become_follower(Term(1), NO_MEMBER)
        index = self.log.append_own(Term(1), ENTRY_CONFIGURATION, encode_change(change))
        self.log.commit_to(index)
        self.set_configuration(self.configuration, index)

    # Time.

    def tick(self) -> None:
        """One tick of the caller's clock has passed."""
        self.now += 1
        self.election_elapsed += 1
        if self.role == Role.LEADER:
            self._tick_leader()
        elif self.election_elapsed >= self.random_election_ticks:
            if self.promotable():
                self.election_elapsed = 0
                election.maybe_campaign(self)
            else:
                self.leader = NO_MEMBER   # it can't be replaced from here, but it is not there

    def _tick_leader(self) -> None:
        config = self.config
        stalled = self.log.in_flight[0][4] if self.log.in_flight else self.now
        if not self.sole and self.now - stalled >= config.election_ticks:
            election.give_up_leadership(self)
            return
        self.quiet = self.muted or self.now - stalled > config.election_ticks // 2
        if self.election_elapsed >= config.election_ticks:
            self.election_elapsed = 0
            self.transferee = NO_MEMBER
            if config.check_quorum:
                election.check_quorum(self)
                if self.role != Role.LEADER:
                    return
        self.heartbeat_elapsed += 1
        if self.heartbeat_elapsed >= config.heartbeat_ticks and not self.quiet:
            self.heartbeat_elapsed = 0
            if self.progress:
                reads.begin_round(self)

    def mute(self, muted: bool) -> None:
        """Stop (or resume) a leader's heartbeats and APPENDs, for instance while the applier shows
        no life: the others elect a leader that works."""
        self.muted = muted
        self.quiet = muted

    # Proposals.

    def campaign(self) -> bool:
        """Start an election now; False if this member may not lead or leads already."""
        return election.maybe_campaign(self)

    def propose(self, data: bytes) -> tuple[Index, Term]:
        """Append `data` as one entry; where it will stand if its term's leader commits it.

        On a follower the bytes go to the leader and the answer is (0, 0): what becomes of them is
        seen in the log. ProposalRefusedError: not appended, not sent.
        """
        if self.role != Role.LEADER:
            return self._forward(data)
        if self.transferee or not (self.sole or self.is_voter()):
            raise TransferringError(f"leadership is going to member {self.transferee}")
        size = len(data)
        held = self.uncommitted_bytes
        if held and held + size > self.config.uncommitted_bytes_max:
            raise OverloadedError(f"{held} bytes are appended and not committed")
        term = self.term
        index = self.log.append_own(term, ENTRY_NORMAL, data)
        self.uncommitted.append((index, size))
        self.uncommitted_bytes = held + size
        return index, term

    def _forward(self, data: bytes) -> tuple[Index, Term]:
        if self.leader == NO_MEMBER or not self.config.forward_proposals:
            raise NotLeaderError(self.leader)
        held = self.forwarding_bytes
        if held and held + len(data) > self.config.uncommitted_bytes_max:
            raise OverloadedError(f"{held} bytes are on their way to the leader")
        self.forwarding.append(data)
        self.forwarding_bytes = held + len(data)
        return Index(0), Term(0)

    def propose_configuration(
        self,
        changes: tuple[Change, ...],
        context: bytes = b"",
        transition: Transition = Transition.AUTO,
    ) -> tuple[Index, Term]:
        """Append a change of configuration; empty `changes` leave an explicit joint phase.

        Only the leader takes it (NotLeaderError). After it returns `sole_voter` is False, and
        nothing of the change has left the node: it leaves with the next Ready.
        """
        if self.role != Role.LEADER:
            raise NotLeaderError(self.leader)
        if self.transferee or not self.is_voter():
            raise TransferringError(f"leadership is going to member {self.transferee}")
        return membership.propose(self, ConfigurationChange(changes, transition, context))

    def transfer_leadership(self, member: MemberID) -> None:
        """Hand leadership to a voter; given up after an election timeout."""
        if self.role != Role.LEADER:
            if self.leader == NO_MEMBER:
                raise NotLeaderError(self.leader)
            self.messages.append(
                Message(TRANSFER_LEADER, self.leader, self.id, Term(0), context=member)
            )
            return
        if member == self.id or member == self.transferee:
            return
        if member not in self.configuration.voters:
            raise TransferringError(f"member {member} is not a voter")
        self.transferee = member
        self.election_elapsed = 0
        progress = self.progress[member]
        if progress.match == self.log.last_index:
            election.send_timeout_now(self, member)
        elif progress.state != PROGRESS_SNAPSHOT:
            replication.send_append(self, member, progress)   # finds out what was lost

    # Reads.

    def read_index(self, context: object) -> None:
        """Ask for an index; a later Ready's `read_states` answers with `context`.

        A read waits for a leader and a quorum as long as it takes; `drop_reads` ends that.
        """
        if len(self.reads.waiting) >= self.config.reads_waiting_max or (
            self.reads.forwarded and self.reads.open_count() >= self.config.reads_waiting_max
        ):
            raise OverloadedError("too many reads are waiting")
        self.reads.waiting.append(context)

    def drop_reads(self) -> list[object]:
        """Give up all reads without an answer; returns their contexts."""
        return self.reads.drop_all()

    @property
    def sole_voter(self) -> bool:
        """Whether this leader's commit index alone answers reads: no other member can commit.

        False as soon as a change of configuration is appended, before it leaves with a Ready.
        """
        return (
            self.sole
            and self.role == Role.LEADER
            and self.log.committed >= self.term_first_index
            and self.pending_configuration_index <= self.log.committed
        )

    # Snapshots.

    def snapshot_at(self, index: Index) -> Snapshot:
        """What to call a snapshot of the state that has applied `index`."""
        assert index <= self.log.committed, "L5: a snapshot of the future"
        return Snapshot(index, self.log.term(index), self.configuration, self.configuration_index)

    def send_snapshot(self, member: MemberID, snapshot: Snapshot) -> bool:
        """Queue the SNAPSHOT message for a member of `snapshot_requests`.

        The caller lets it arrive only after the snapshot's bytes did. False: no longer wanted.
        """
        progress = self.progress.get(member)
        if self.role != Role.LEADER or progress is None or progress.state != PROGRESS_SNAPSHOT:
            return False
        assert snapshot.index <= self.log.committed, "L5: a snapshot of the future"
        progress.pending_snapshot = snapshot.index
        self.send(Message(SNAPSHOT, member, self.id, self.term, snapshot=snapshot))
        return True

    def report_snapshot(self, member: MemberID, delivered: bool) -> None:
        """What became of a transfer: to be called once for each of `snapshot_requests`.

        Either way the member is probed at the next heartbeat, behind the snapshot or from where it
        stood; a member that lost a delivered snapshot in a crash so comes to a new request.
        """
        progress = self.progress.get(member)
        if progress is not None and progress.state == PROGRESS_SNAPSHOT:
            if not delivered:
                progress.pending_snapshot = 0
            progress.become_probe()
            progress.paused = True

    def report_unreachable(self, member: MemberID) -> None:
        """Messages to the member were lost: stop sending optimistically."""
        progress = self.progress.get(member)
        if progress is not None and progress.state == REPLICATE:
            progress.become_probe()

    # Lone entries.

    def lone_entry(self) -> LoneEntry | None:
        """What the next proposal becomes, for a caller that writes it before it proposes it; None
        unless this node is at rest: a sole voter that leads, all handed out, durable and committed.

        It holds until the node is called again, and is taken in by `lone_appended`.
        """
        log = self.log
        if (
            self.role != Role.LEADER or self.progress or self.transferee
            or self.term != log.last_term or not self.sole_voter
            or log.handed_applying != log.last_index or log.in_flight or log.tail or log.changes
            or log.snapshot is not None
            or self.uncommitted or self.forwarding or self.messages or self.messages_after_persist
            or self.reads.waiting or self.reads.remote or self.reads.forwarded
            or self.reads.answered or self.reads.rounds
            or (self.leader, self.role) != self._soft_state_handed
            or self.term != self._term_handed or self.vote != self._vote_handed
            or self.configuration_index != self._configuration_handed
        ):
            return None
        return LoneEntry(
            Index(log.last_index + 1), self.term, self.vote, log.committed != self._commit_handed
        )

    def lone_appended(self, count: int, commit_written: bool) -> Index:
        """`count` entries, one after another, were proposed, made durable and handed to the state
        machine just as `lone_entry` said; `commit_written`: the last one came with a hard state.

        The node is as if each had gone through `propose`, `ready`, `on_persisted` and `ready`.
        Returns the commit index that is durable.
        """
        log = self.log
        index = Index(log.last_index + count)
        if commit_written:
            self._commit_handed = index - 1
        self.durable_commit = Index(self._commit_handed)
        self._ready_number += count
        log.last_index = log.handed = log.persisted = log.committed = index
        log.handed_applying = index
        log.tail_first = index + 1
        return self.durable_commit

    # Acknowledgements.

    def on_persisted(self, number: int) -> None:
        """All of Ready `number` and before is durable. Durability: after the fsync, not earlier."""
        assert number <= self._ready_number, "L6: acknowledged what was not handed out"
        mark = self.log.persisted_to(number)
        if mark is None:
            return
        self.durable_commit = Index(mark[5])
        if mark[2] != self.durable_term or mark[3] != self.durable_vote:
            self.durable_term = mark[2]
            self.durable_vote = mark[3]
            election.on_vote_durable(self)
        if self.role == Role.LEADER:
            replication.maybe_commit(self)
        self._trim()

    def on_applied(self, index: Index) -> None:
        """The state machine has applied all up to `index`."""
        log = self.log
        assert index <= log.handed_applying, "L5: applied what was not handed out"
        if index > log.applied:
            log.applied = index

    def _trim(self) -> None:
        log = self.log
        keep_after: int = log.persisted
        for progress in self.progress.values():
            if progress.match < keep_after and progress.state == REPLICATE:
                keep_after = progress.match
        log.trim(keep_after, self.config.tail_bytes_max)

    # Messages.

    def step(self, message: Message) -> None:
        """Take a peer's message. MessageError: it was nonsense and ignored; LogLostError: fatal."""
        if message.to != self.id or message.type not in MESSAGE_NAMES:
            raise MessageError(f"message of type {message.type} for {message.to}, not {self.id}")
        if message.type == APPEND:
            replication.check_append(message)
        if message.term != self.term and not self._step_term(message):
            return
        kind = message.type
        if kind in (VOTE, PRE_VOTE):
            election.on_vote_request(self, message)
        elif kind == READ_INDEX:
            reads.on_read_index(self, message)
        elif self.role == Role.LEADER:
            self.step_leader(message)
        elif self.role == Role.FOLLOWER:
            self.step_follower(message)
        else:
            self.step_candidate(message)

    def _step_term(self, message: Message) -> bool:
        """Compare the terms; True: the message is for the (maybe new) own term, go on."""
        kind = message.type
        if message.term == 0:
            return True
        if message.term > self.term:
            if kind in (VOTE, PRE_VOTE) and message.context != CONTEXT_TRANSFER and self.in_lease():
                return False
            # A pre-vote moves nobody's term, neither asked nor granted.
            if kind == PRE_VOTE or (kind == PRE_VOTE_RESPONSE and not message.reject):
                return True
            leader = message.sender if kind in _FROM_LEADER else NO_MEMBER
            self.become_follower(message.term, leader)
            return True
        if kind in (APPEND, HEARTBEAT):
            replication.stale_term_answer(self, message)
        elif kind == PRE_VOTE:
            election.refuse_vote(self, message)
        return False

    def step_leader(self, message: Message) -> None:
        kind = message.type
        if kind in _FROM_FOLLOWER:
            if message.sender not in self.progress:
                return
            if kind == APPEND_RESPONSE:
                replication.on_append_response(self, message)
            else:
                replication.on_heartbeat_response(self, message)
                reads.on_round_answer(self, message)
            if not self.is_voter():
                membership.maybe_step_down(self)
        elif kind == PROPOSE:
            for entry in message.entries:
                self._propose_for(entry)
        elif kind == TRANSFER_LEADER:
            if message.context in self.configuration.voters:
                self.transfer_leadership(MemberID(message.context))
        else:
            assert kind not in _FROM_LEADER, f"R2: {message.sender} leads term {self.term} too"

    def _propose_for(self, entry: Entry) -> None:
        try:
            if entry.type == ENTRY_NORMAL:
                self.propose(entry.data)
                return
        except (OverloadedError, TransferringError):
            pass
        self.proposals_dropped += 1

    def step_follower(self, message: Message) -> None:
        kind = message.type
        if kind in _FROM_LEADER:
            if self.leader != message.sender:
                assert self.leader == NO_MEMBER, f"R2: {self.leader} leads this term"
                self.leader = message.sender
            self.election_elapsed = 0
            if kind == APPEND:
                replication.on_append(self, message)
            elif kind == HEARTBEAT:
                replication.on_heartbeat(self, message)
            else:
                replication.on_snapshot(self, message)
        elif kind == READ_INDEX_RESPONSE:
            reads.on_read_index_response(self, message)
        elif kind == TIMEOUT_NOW:
            election.on_timeout_now(self)
        elif kind == PROPOSE:
            # Not passed on: two members that take each other for the leader would never stop.
            self.proposals_dropped += len(message.entries)

    def step_candidate(self, message: Message) -> None:
        kind = message.type
        if kind in _FROM_LEADER:
            self.become_follower(message.term, message.sender)
            self.step_follower(message)
        elif kind in (PRE_VOTE_RESPONSE, VOTE_RESPONSE):
            election.on_vote_response(self, message)
        elif kind == PROPOSE:
            self.proposals_dropped += len(message.entries)

    # The way out.

    def ready(self) -> Ready | None:
        """What there is to persist, send and apply; None if nothing."""
        log = self.log
        if self.forwarding:
            self._send_forwarded()
        if self.reads.waiting or self.reads.remote or self.reads.forwarded:
            reads.advance(self)
        if self.progress and not self.quiet:
            replication.replicate(self)
            if log.tail:
                self._trim()
        ready = Ready()
        ready.entries = entries = log.take_unhanded() if log.handed != log.last_index else []
        ready.committed = committed = (
            log.take_appliable() if log.committed > log.handed_applying else None
        )
        ready.snapshot = ready.configuration = ready.hard_state = None
        if log.snapshot is not self._snapshot_handed:
            self._snapshot_handed = ready.snapshot = log.snapshot   # or None: it is installed
        if self.configuration_index != self._configuration_handed or ready.snapshot is not None:
            self._configuration_handed = self.configuration_index
            ready.configuration = (self.configuration_index, self.configuration)
        if (
            self.term != self._term_handed
            or self.vote != self._vote_handed
            or ready.configuration is not None
            or (entries and log.committed != self._commit_handed)
        ):
            ready.hard_state = HardState(self.term, self.vote, log.committed)
            self._term_handed = self.term
            self._vote_handed = self.vote
            self._commit_handed = log.committed
        self._take_messages(ready)
        ready.needs_persist = bool(
            entries or ready.hard_state is not None or ready.messages_after_persist
        )
        ready.number = 0
        if ready.needs_persist:
            self._ready_number = ready.number = self._ready_number + 1
            log.in_flight.append(
                [ready.number, log.handed, self.term, self.vote, self.now, self._commit_handed]
            )
        ready.soft_state = None
        if (self.leader, self.role) != self._soft_state_handed:
            self._soft_state_handed = (self.leader, self.role)
            ready.soft_state = SoftState(self.leader, self.role)
        # The lists are given away, also the empty ones: they would be filled later.
        ready.read_states, self.reads.answered = self.reads.answered, []
        ready.snapshot_requests, self.snapshot_requests = self.snapshot_requests, []
        if (
            ready.needs_persist
            or committed is not None
            or ready.messages
            or ready.soft_state is not None
            or ready.read_states
            or ready.snapshot_requests
        ):
            return ready
        return None

    def _take_messages(self, ready: Ready) -> None:
        ready.messages, self.messages = self.messages, []
        after_persist = self.messages_after_persist
        if after_persist:
            self.messages_after_persist = []
            if not ready.entries and ready.hard_state is None and not self.log.in_flight:
                ready.messages.extend(after_persist)   # all is durable already
                after_persist = []
            ready.messages_after_persist = after_persist
        else:
            ready.messages_after_persist = []

    def _send_forwarded(self) -> None:
        if self.role == Role.LEADER:
            for data in self.forwarding:
                self._propose_for(Entry(Index(0), Term(0), ENTRY_NORMAL, data))
        elif self.leader != NO_MEMBER:
            entries = [Entry(Index(0), Term(0), ENTRY_NORMAL, data) for data in self.forwarding]
            self.messages.append(
                Message(PROPOSE, self.leader, self.id, Term(0), entries=entries)
            )
        else:
            self.proposals_dropped += len(self.forwarding)
        self.forwarding = []
        self.forwarding_bytes = 0

    def status(self) -> Status:
        """A picture of the moment."""
        log = self.log
        return Status(
            self.id, self.term, self.vote, self.leader, self.role, log.committed, log.persisted,
            Index(log.applied), log.last_index, log.last_term, self.configuration,
            self.configuration_index,
            learner=self.id in self.configuration.learners,
            removed=self.removed,
            transferee=self.transferee,
            uncommitted_bytes=self.uncommitted_bytes,
            proposals_dropped=self.proposals_dropped,
            members=tuple(
                MemberStatus(
                    member, Index(progress.match), Index(progress.next),
                    progress.state.name.lower(), progress.recent_active, progress.keep_from(),
                )
                for member, progress in self.progress.items()
            ),
        )
