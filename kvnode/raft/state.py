"""A member's consensus state, the four roles it can take, and how its messages leave.

Caller: the other modules of this room; they are functions over a `Raft`, and `Node` is the class
the outside uses. Roles change only in the `become_*` methods here.

Invariants, asserted here and in the modules named:
 R1  the term never goes back; within a term the vote goes from nobody to one member only.
 R2  a term has one leader (`node`: a leader that hears another one of its term).
 R3  a member leads only when its own vote in that term is durable.
 R4  a leader counts only entries of its own term (`replication`).
 R5  what was promised to survive is durable before the promise leaves: a message waits for the
     term it carries, a VOTE or its answer for the vote, an APPEND_RESPONSE for the entries.
 R6  a leader's log has at most one change of configuration above the commit index (`membership`).
 R7  a read is answered only after an entry of the leader's own term is committed, with an index
     committed when its round began (`reads`).
"""

from __future__ import annotations

from collections import deque

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft.config import NodeConfig
from kvnode.raft.configuration import Configuration
from kvnode.raft.log import RaftLog
from kvnode.raft.progress import Progress
from kvnode.raft.reads import Reads
from kvnode.raft.types import (
    ENTRY_NORMAL,
    NO_MEMBER,
    Message,
    Role,
)


class Raft:
    """Everything a member knows; see the module for what always holds."""

    __slots__ = (
        "config",
        "configuration",
        "configuration_index",
        "durable_commit",
        "durable_term",
        "durable_vote",
        "election_elapsed",
        "forwarding",
        "forwarding_bytes",
        "guard_until",
        "heartbeat_elapsed",
        "id",
        "leader",
        "log",
        "messages",
        "messages_after_persist",
        "muted",
        "now",
        "pending_configuration_index",
        "progress",
        "proposals_dropped",
        "quiet",
        "random_election_ticks",
        "reads",
        "removed",
        "role",
        "snapshot_requests",
        "sole",
        "term",
        "term_first_index",
        "timeout_now_sent",
        "transferee",
        "uncommitted",
        "uncommitted_bytes",
        "vote",
        "votes",
    )

    def __init__(self, config: NodeConfig) -> None:
        config.validate()
        self.config = config
        self.id = config.id
        hard_state = config.hard_state
        self.term: Term = hard_state.term
        self.vote: MemberID = hard_state.vote
        # What of both is durable; equal to them but while a Ready is being written.
        self.durable_term: int = hard_state.term
        self.durable_vote: int = hard_state.vote
        self.durable_commit: Index = hard_state.commit
        self.log = RaftLog(
            config.storage,
            config.snapshot_index,
            config.snapshot_term,
            # What is compacted was committed, though the last hard state may not say so yet.
            Index(max(hard_state.commit, config.snapshot_index, config.storage.first_index - 1)),
            Index(max(config.applied, config.snapshot_index)),
        )
        self.configuration: Configuration = config.configuration
        self.configuration_index = config.configuration_index
        self.sole = self._is_sole()
        self.removed = False                          # seen to lose its place
        self.role = Role.FOLLOWER
        self.leader: MemberID = NO_MEMBER
        self.now = 0                                  # ticks since the start
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.random_election_ticks = 0
        # After a restart nobody knows whom this member has promised its lease.
        self.guard_until = config.election_ticks if config.read_lease else 0
        self.votes: dict[MemberID, bool] = {}
        self.progress: dict[MemberID, Progress] = {}  # all other members, while leading
        self.transferee: MemberID = NO_MEMBER
        self.timeout_now_sent = False                 # in this term; voids the lease for good
        self.pending_configuration_index = Index(0)
        self.term_first_index = Index(0)              # the empty entry of the term led
        self.uncommitted: deque[tuple[int, int]] = deque()  # (index, bytes)
        self.uncommitted_bytes = 0
        self.forwarding: list[bytes] = []
        self.forwarding_bytes = 0
        self.proposals_dropped = 0
        self.muted = False                            # the outside asked for silence
        self.quiet = False                            # muted, or the own disk hangs
        self.reads = Reads(config.random.getrandbits(62))
        self.messages: list[Message] = []
        self.messages_after_persist: list[Message] = []
        self.snapshot_requests: list[MemberID] = []

    # Roles.

    def _reset(self, term: Term) -> None:
        if term != self.term:
            assert term > self.term, f"R1: term {self.term} -> {term}"
            self.term = term
            self.vote = NO_MEMBER
            self.timeout_now_sent = False
        self.leader = NO_MEMBER
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        ticks = self.config.election_ticks
        self.random_election_ticks = ticks + self.config.random.randrange(ticks)
        self.votes = {}
        self.progress = {}
        self.transferee = NO_MEMBER
        self.pending_configuration_index = Index(0)
        self.uncommitted.clear()
        self.uncommitted_bytes = 0
        self.quiet = self.muted
        self.reads.role_changed()

    def become_follower(self, term: Term, leader: MemberID) -> None:
        self._reset(term)
        self.role = Role.FOLLOWER
        self.leader = leader

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won; neither term nor vote change."""
        assert self.role != Role.LEADER, "R2: a leader does not campaign"
        self.role = Role.PRE_CANDIDATE
        self.leader = NO_MEMBER
        self.votes = {}

    def become_candidate(self) -> None:
        assert self.role != Role.LEADER, "R2: a leader does not campaign"
        self._reset(Term(self.term + 1))
        self.role = Role.CANDIDATE
        self.vote = self.id

    def become_leader(self) -> None:
        assert self.role == Role.CANDIDATE, "R3: only a candidate wins"
        assert self.durable_term == self.term and self.durable_vote == self.id, "R3"
        self._reset(self.term)
        self.role = Role.LEADER
        self.leader = self.id
        for member in self.configuration.members():
            if member != self.id:
                self.progress[member] = self.new_progress()
        # The tail may hold a change of configuration; to look is dearer than to wait.
        self.pending_configuration_index = self.log.last_index
        self.term_first_index = self.log.append_own(self.term, ENTRY_NORMAL, b"")

    def new_progress(self) -> Progress:
        config = self.config
        progress = Progress(
            self.log.last_index + 1, config.window_messages_max, config.window_bytes_max
        )
        # Nobody is called dead before there was time for an answer.
        progress.recent_active = True
        return progress

    # Facts.

    def _is_sole(self) -> bool:
        return self.configuration.voters == (self.id,) and not self.configuration.outgoing

    def set_configuration(self, configuration: Configuration, index: Index) -> None:
        if self.id in self.configuration.members():
            self.removed = self.id not in configuration.members()
        self.configuration = configuration
        self.configuration_index = index
        self.sole = self._is_sole()

    def is_voter(self) -> bool:
        return self.id in self.configuration.voters or self.id in self.configuration.outgoing

    def promotable(self) -> bool:
        """Whether this member may campaign."""
        return self.is_voter() and self.log.snapshot is None

    def in_lease(self) -> bool:
        """Whether a vote would break the promise to the leader heard from last."""
        if self.now < self.guard_until:
            return True
        return (
            self.config.check_quorum
            and self.leader != NO_MEMBER
            and self.election_elapsed < self.config.election_ticks
        )

    def term_committed(self) -> bool:
        """Whether a leader has committed an entry of its own term."""
        return self.log.committed >= self.term_first_index

    # Sending.

    def send(self, message: Message) -> None:
        """Queue what depends on nothing but the term."""
        if self.durable_term == self.term:
            self.messages.append(message)
        else:
            self.messages_after_persist.append(message)

    def send_after_persist(self, message: Message) -> None:
        """Queue what depends on all that is known now."""
        self.messages_after_persist.append(message)
