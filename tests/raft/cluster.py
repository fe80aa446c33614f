"""A whole cluster in memory, driven step by step from one seed.

Faults: messages lost, repeated, reordered and cut off (also one way); Readies become durable late
and out of step with messages; crashes lose what is not durable, at any point between persist, send
and apply; configurations change; logs are compacted, so members need snapshots.

Checked after every step, over all members:
 - one leader a term (election safety);
 - what is acknowledged is durable where it is acknowledged;
 - what two members apply at an index is the same (state machine safety);
 - nothing is applied that a quorum's disks could still lose: it is in the durable log of the member
   that applies it;
 - two logs that agree in the term at an index agree in all before it (log matching);
 - an answered read's index is not below what anybody had applied when it was asked.
"""

from __future__ import annotations

from collections import deque
from random import Random

from kvnode.base.ids import Index, MemberID, Term
from kvnode.raft import (
    CompactedError,
    Configuration,
    Entry,
    Message,
    Node,
    NodeConfig,
    ProposalRefusedError,
    Ready,
    Role,
    Snapshot,
    Span,
)
from kvnode.raft.types import APPEND_RESPONSE, SNAPSHOT
from tests.raft.memory import MemoryStorage


class SafetyError(AssertionError):
    """A property of Raft does not hold."""


class Member:
    """One member: node, disk, the Readies being written, and what it applied."""

    def __init__(self, member: MemberID, configuration: Configuration, **options: object) -> None:
        self.id = member
        self.storage = MemoryStorage(configuration)
        self.options = options
        self.applied = 0              # in memory
        self.checkpoint = 0           # what a crash leaves of it
        self.writing: deque[Ready] = deque()
        self.to_apply: deque[object] = deque()
        self.up = False
        self.starts = 0
        self.node: Node

    def start(self, seed: int) -> None:
        storage = self.storage
        self.applied = self.checkpoint = max(self.checkpoint, storage.snapshot_index)
        self.starts += 1
        self.node = Node(
            NodeConfig(
                id=self.id,
                random=Random(f"{seed}/{self.id}/{self.starts}"),
                storage=storage,
                configuration=storage.configuration,
                configuration_index=storage.configuration_index,
                hard_state=storage.hard_state,
                snapshot_index=storage.snapshot_index,
                snapshot_term=storage.snapshot_term,
                applied=Index(self.applied),
                **self.options,  # type: ignore[arg-type]
            )
        )
        self.up = True

    def crash(self, durable: int) -> None:
        """Stop; of the Readies being written the first `durable` got through, unacknowledged."""
        for ready in list(self.writing)[:durable]:
            self.storage.persist(ready)
        self.writing.clear()
        self.to_apply.clear()
        self.up = False


class Cluster:
    """Members and the messages between them."""

    def __init__(self, members: int, seed: int, **options: object) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.options = options
        self.members: dict[MemberID, Member] = {}
        self.network: list[Message] = []
        self.cut: set[tuple[MemberID, MemberID]] = set()
        self.history: dict[int, tuple[int, bytes]] = {}    # index: what was applied there
        self.leaders: dict[int, MemberID] = {}
        self.greatest_applied = 0
        self.reads: dict[object, int] = {}
        self.reads_answered = 0
        self.snapshots_installed = 0
        self.crashes = 0
        founders = Configuration(tuple(MemberID(i + 1) for i in range(members)))
        for member in founders.voters:
            self.add(member, founders)

    def add(self, member: MemberID, configuration: Configuration) -> None:
        self.members[member] = Member(member, configuration, **self.options)
        self.members[member].start(self.seed)

    # The outside of a node.

    def take_ready(self, member: Member) -> bool:
        ready = member.node.ready()
        if ready is None:
            return False
        for message in ready.messages:
            self.check_acknowledged(member, message)
        self.network.extend(ready.messages)
        if ready.needs_persist:
            member.writing.append(ready)
        else:
            assert not ready.messages_after_persist and not ready.entries
        if ready.snapshot is not None:
            member.to_apply.append((ready.number, ready.snapshot))
        if ready.committed is not None:
            member.to_apply.append(ready.committed)
        for context, index in ready.read_states:
            asked_at = self.reads.pop(context)
            self.reads_answered += 1
            if index < asked_at:
                raise SafetyError(f"read {context}: index {index}, {asked_at} was applied before")
        for wanted in ready.snapshot_requests:
            self.make_snapshot(member, wanted)
        return True

    def make_snapshot(self, member: Member, wanted: MemberID) -> None:
        if member.applied and self.random.random() < 0.8:
            member.node.send_snapshot(wanted, member.node.snapshot_at(Index(member.applied)))
        else:
            member.node.report_snapshot(wanted, delivered=False)

    def persist_one(self, member: Member, acknowledge: bool = True) -> None:
        """The oldest Ready being written becomes durable."""
        ready = member.writing.popleft()
        member.storage.persist(ready)
        if ready.snapshot is not None:
            while isinstance(member.to_apply[0], Span):
                member.to_apply.popleft()   # the snapshot holds them, the log no more
        for message in ready.messages_after_persist:
            self.check_acknowledged(member, message)
        self.network.extend(ready.messages_after_persist)
        if acknowledge or not member.writing:
            member.node.on_persisted(ready.number)
            if ready.snapshot is not None:
                self.snapshots_installed += 1

    def apply_one(self, member: Member) -> None:
        work = member.to_apply[0]
        if isinstance(work, tuple) and isinstance(work[1], Snapshot):
            number, snapshot = work
            if any(ready.number <= number for ready in member.writing):
                return
            member.to_apply.popleft()
            member.applied = member.checkpoint = snapshot.index
            member.node.on_applied(snapshot.index)
            return
        member.to_apply.popleft()
        first, last, term = work   # type: ignore[misc]
        if first != member.applied + 1:
            raise SafetyError(f"{member.id} applies {first} after {member.applied}")
        if last > member.storage.last_index or member.storage.term(Index(last)) != term:
            raise SafetyError(f"{member.id} applies {last}, not durable in its log")
        for entry in member.storage.entries(Index(first), Index(last + 1), 1 << 60):
            known = self.history.setdefault(entry.index, (entry.term, entry.data))
            if known != (entry.term, entry.data):
                raise SafetyError(f"{member.id} applies another entry {entry.index} than others")
        member.applied = last
        self.greatest_applied = max(self.greatest_applied, last)
        member.node.on_applied(Index(last))

    def deliver(self, message: Message) -> None:
        member = self.members.get(message.to)
        if member is None or not member.up or (message.sender, message.to) in self.cut:
            self.report(message, delivered=False)
            return
        member.node.step(message)
        self.report(message, delivered=True)

    def report(self, message: Message, delivered: bool) -> None:
        """The transport knows whether a snapshot came to its end, and never forgets to say it."""
        sender = self.members[message.sender]
        if message.type == SNAPSHOT and sender.up:
            sender.node.report_snapshot(message.to, delivered)

    def read(self, member: Member, context: object) -> None:
        self.reads[context] = self.greatest_applied
        member.node.read_index(context)

    def crash(self, member: Member, durable: int) -> None:
        self.crashes += 1
        for context in member.node.drop_reads():
            self.reads.pop(context, None)
        for state in member.node.reads.answered:
            self.reads.pop(state.context, None)
        member.crash(durable)

    # Checks.

    def check_acknowledged(self, member: Member, message: Message) -> None:
        """What is acknowledged in the member's term is durable now, and is what it believes."""
        node, storage = member.node, member.storage
        if message.type != APPEND_RESPONSE or message.reject or message.term != node.term:
            return
        index = message.index
        if storage.hard_state.term < message.term or storage.last_index < index:
            raise SafetyError(f"{member.id} acknowledges {index}, not durable")
        known = storage.before[0] < index <= node.log.last_index
        if known and storage.term(index) != node.log.term(index):
            raise SafetyError(f"{member.id} acknowledges another entry {index} than it has")

    def check(self) -> None:
        for member in self.members.values():
            if member.up and member.node.role == Role.LEADER:
                known = self.leaders.setdefault(member.node.term, member.id)
                if known != member.id:
                    raise SafetyError(f"term {member.node.term}: {known} and {member.id} lead")

    def check_logs(self) -> None:
        """Log matching, pairwise, over what both logs still hold."""
        logs = [self._log_of(member) for member in self.members.values() if member.up]
        for i, one in enumerate(logs):
            for other in logs[i + 1 :]:
                common = [
                    index for index in one.keys() & other.keys()
                    if one[index].term == other[index].term
                ]
                if not common:
                    continue
                for index in one.keys() & other.keys():
                    if index <= max(common) and one[index] != other[index]:
                        raise SafetyError(f"logs differ at {index} and agree at {max(common)}")

    @staticmethod
    def _log_of(member: Member) -> dict[int, Entry]:
        log = member.node.log
        first = member.storage.first_index
        entries: dict[int, Entry] = {}
        if first < log.tail_first:
            last = min(member.storage.last_index, log.tail_first - 1)
            if first <= last:
                for entry in member.storage.entries(first, Index(last + 1), 1 << 60):
                    entries[entry.index] = entry
        for entry in log.tail:
            entries[entry.index] = entry
        return entries

    # Running.

    def settle(self, member: Member) -> bool:
        """Do all that one member has to do at once; whether there was anything."""
        busy = False
        while member.up:
            step = self.take_ready(member)
            if member.writing:
                self.persist_one(member)
                step = True
            if member.to_apply:
                self.apply_one(member)
                step = True
            if not step:
                return busy
            busy = True
        return busy

    def stabilize(self, rounds: int = 2000) -> None:
        """No faults: deliver, persist and apply until nobody has anything to do."""
        for _ in range(rounds):
            busy = False
            for member in list(self.members.values()):
                busy |= self.settle(member)
            messages, self.network = self.network, []
            for message in messages:
                self.deliver(message)
            self.check()
            if not busy and not messages:
                return
        raise SafetyError("the cluster does not come to rest")

    def leader(self) -> Member | None:
        """The leader of the newest term."""
        leaders = [
            member
            for member in self.members.values()
            if member.up and member.node.role == Role.LEADER
        ]
        return max(leaders, key=lambda member: member.node.term, default=None)

    def compact(self, member: Member, keep: int) -> None:
        if member.writing:
            return
        limit = min(member.checkpoint, member.storage.last_index) - keep
        if limit > member.storage.before[0]:
            member.storage.compact(limit)

    def propose(self, member: Member, data: bytes) -> tuple[Index, Term] | None:
        try:
            return member.node.propose(data)
        except (ProposalRefusedError, CompactedError):
            return None
