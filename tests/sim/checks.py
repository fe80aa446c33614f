"""What must hold in a simulated cluster: at every step, and of the whole history at the end.

At every step: one leader a term; a leader has everything that anybody applied; what two members
apply at an index is the same; equal entries leave equal state hashes; what is acknowledged is
durable; what is applied is durable on the member; a start finds what was acknowledged.
At the end: the entries applied are replayed through the slow model (tests/oracle); every answer
that a client heard must be the model's for that (session, sequence) or, for a read, at that
revision; and real time must be respected: nothing is older than what was answered before it began.
With revisions as the order this is linearizability, checked exactly.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvnode._core.envelope import parse_batch
from kvnode.base.codes import Code, Kind
from kvnode.proto import rpc_pb2 as pb
from kvnode.raft import ENTRY_NORMAL, Entry, Message, Ready, Role
from kvnode.raft.types import APPEND_RESPONSE, VOTE_RESPONSE
from tests.oracle.mvcc import Refused
from tests.oracle.requests import Group, GroupResult, Range, Txn, header
from tests.oracle.statemachine import StateMachine

if TYPE_CHECKING:
    from tests.sim.clients import Operation
    from tests.sim.member import Member
    from tests.sim.simulation import Simulation

RESPONSES: dict[Kind, Any] = {
    Kind.PUT: pb.PutResponse, Kind.RANGE: pb.RangeResponse, Kind.TXN: pb.TxnResponse,
    Kind.DELETE_RANGE: pb.DeleteRangeResponse, Kind.COMPACT: pb.CompactionResponse,
}


def plain(kind: Kind, body: bytes) -> Any:
    """A response without what depends on who answered: member, cluster and term."""
    message = RESPONSES[kind].FromString(body)
    revision = message.header.revision
    message.header.Clear()
    message.header.revision = revision
    return message


class Checks:
    """One run's checks and what they remember."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.leaders: dict[int, int] = {}
        self.entries: dict[int, Entry] = {}
        self.last_applied = 0
        self.hashes: dict[int, int] = {}
        self.groups: dict[tuple[object, ...], Group] = {}
        self.acknowledged: dict[int, tuple[int, int, int]] = {}
        self.promised: dict[int, dict[int, int]] = defaultdict(dict)

    def fail(self, text: str) -> None:
        raise self.sim.violated(text)

    def know(self, group: Group) -> None:
        """Remembers what a proposal's bytes mean."""
        self.groups[self.name(group.session, group.sequence, group.requests[0].encode())] = group

    @staticmethod
    def name(session: int, sequence: int, body: bytes) -> tuple[object, ...]:
        return (session, sequence) if session else (0, body)

    # --- at every step --------------------------------------------------------------------------

    def on_role(self, member: Member) -> None:
        node = member.node
        if node.role != Role.LEADER:
            return
        self.sim.elections += 1
        known = self.leaders.setdefault(node.term, member.id)
        if known != member.id:
            self.fail(f"term {node.term}: {known} and {member.id} lead")
        if self.last_applied:
            entry = self.entries[self.last_applied]
            if node.log.last_index < entry.index:
                self.fail(f"leader {member.id} lacks entry {entry.index}, which was applied")
            try:
                term = node.log.term(entry.index)
            except Exception:   # below a snapshot: it has it
                return
            if term != entry.term:
                self.fail(f"leader {member.id} has another entry {entry.index} than was applied")

    def on_ready(self, member: Member, ready: Ready) -> None:
        """Messages that leave now must not promise what is not durable."""
        for message in ready.messages:
            self.check_promise(member, message)

    def on_durable(self, member: Member, ready: Ready) -> None:
        for message in ready.messages_after_persist:
            self.check_promise(member, message)

    def check_promise(self, member: Member, message: Message) -> None:
        kind, term = message.type, message.term
        if message.reject or term != member.node.term:
            return
        if kind == APPEND_RESPONSE and message.index > member.wal.durable_index:
            if message.index > member.wal.state.snapshot_index:
                self.fail(f"{member.id} acknowledges {message.index}, durable is "
                          f"{member.wal.durable_index}")
        elif kind == VOTE_RESPONSE:
            given = self.promised[member.id].setdefault(term, message.to)
            if given != message.to:
                self.fail(f"{member.id} votes for {given} and {message.to} in term {term}")

    def on_apply(self, member: Member, entry: Entry) -> None:
        if entry.index > member.wal.durable_index:
            self.fail(f"{member.id} applies {entry.index}, durable is {member.wal.durable_index}")
        known = self.entries.setdefault(entry.index, entry)
        if known != entry:
            self.fail(f"{member.id} applies another entry {entry.index} than others did")
        self.last_applied = max(self.last_applied, entry.index)

    def on_state(self, member: Member) -> None:
        machine = member.machine
        self.sim.revision = max(self.sim.revision, machine.revision)
        known = self.hashes.setdefault(machine.applied_index, machine.state_hash)
        if known != machine.state_hash:
            self.fail(f"{member.id} has another state at {machine.applied_index} than others")

    def on_crash(self, member: Member) -> None:
        """Remembers what this member had promised to hold."""
        node = member.node
        self.acknowledged[member.id] = (
            member.wal.durable_index, node.durable_term, node.durable_vote)

    def on_start(self, member: Member) -> None:
        index, term, vote = self.acknowledged.get(member.id, (0, 0, 0))
        state = member.wal.state
        if state.term < term:
            self.fail(f"{member.id} starts in term {state.term}, it was in {term}")
        if state.term == term and vote and state.vote != vote:
            self.fail(f"{member.id} starts without its vote for {vote} in term {term}")
        if max(member.wal.last_index, member.machine.applied_index) < index:
            self.fail(f"{member.id} starts with {member.wal.last_index} entries, {index} were "
                      "durable")

    def log_matching(self) -> None:
        """Two logs that agree in the term at an index agree in all before it."""
        members = [m for m in self.sim.members.values() if m.up]
        for at, one in enumerate(members):
            for other in members[at + 1 :]:
                first = max(one.wal.first_index, other.wal.first_index)
                last = min(one.wal.last_index, other.wal.last_index)
                agree = False
                for index in range(last, first - 1, -1):
                    same = one.wal.term(index) == other.wal.term(index)
                    if agree and not same:
                        self.fail(f"logs of {one.id} and {other.id} differ at {index} and agree "
                                  "above")
                    agree = agree or same

    # --- the history ----------------------------------------------------------------------------

    def on_answer(self, operation: Operation, known: dict[bytes, bytes]) -> None:
        """The answer's revision, and what the client learned of its counters."""
        if operation.code:
            return
        message = plain(Kind(operation.request.kind), operation.body)
        operation.revision = message.header.revision
        request = operation.request
        if isinstance(request, Txn) and request.failure and isinstance(request.failure[0], Range):
            key = request.compare[0].key
            if message.succeeded:
                known[key] = request.success[0].value   # type: ignore[union-attr]
            else:
                kvs = message.responses[0].response_range.kvs
                if kvs:
                    known[key] = kvs[0].value
                else:
                    known.pop(key, None)

    def real_time(self, history: list[Operation]) -> None:
        """No answer shows less than what was answered before the question."""
        done = sorted((o for o in history if o.end is not None and not o.code),
                      key=lambda o: o.end or 0)
        asked = sorted((o for o in done if not o.serializable), key=lambda o: o.start)
        newest = at = 0
        for operation in asked:
            while at < len(done) and (done[at].end or 0) < operation.start:
                if not done[at].serializable:
                    newest = max(newest, done[at].revision)
                at += 1
            if operation.revision < newest:
                self.fail(
                    f"client {operation.client} asked at {operation.start} and got revision "
                    f"{operation.revision} from member {operation.member}; {newest} was answered "
                    "before"
                )

    def replay(self, history: list[Operation]) -> None:
        """The model executes the entries; every answer heard must be the model's."""
        answers: dict[tuple[int, int], Operation] = {}
        reads: dict[int, list[Operation]] = defaultdict(list)
        for operation in history:
            if operation.end is None:
                continue
            if operation.sequence:
                answers[1000 + operation.client, operation.sequence] = operation
            elif not operation.code:
                reads[operation.revision].append(operation)
        model = StateMachine()
        executed: set[tuple[int, int]] = set()
        for index in range(1, self.last_applied + 1):
            entry = self.entries.get(index)
            if entry is None:
                self.fail(f"entry {index} was never applied, {self.last_applied} was")
                return
            model.applied = index
            model.mvcc.term = entry.term
            if entry.type != ENTRY_NORMAL or not entry.data:
                continue
            for raw in parse_batch(entry.data):
                self.check_reads(model, reads.pop(model.mvcc.revision, []))
                group = replace(
                    self.groups[self.name(raw["session"], raw["sequence"], raw["requests"][0][1])],
                    member=raw["member"], incarnation=raw["incarnation"], slot=raw["slot"],
                )
                result = model.group(group)
                key = (raw["session"], raw["sequence"])
                if key in answers and key not in executed and result.state == 0:
                    executed.add(key)
                    self.check_write(answers[key], result)
            if index in self.hashes and self.hashes[index] != model.mvcc.hash:
                self.fail(f"the members' state at {index} is not the model's")
        self.check_reads(model, reads.pop(model.mvcc.revision, []))
        if reads:
            self.fail(f"reads at revisions that never were: {sorted(reads)}")
        missing = set(answers) - executed
        if missing:
            self.fail(f"acknowledged and never executed: {sorted(missing)[:5]}")

    def check_write(self, operation: Operation, result: GroupResult) -> None:
        code, kind, body = result.results[0]
        if operation.code == Code.APPLIED:
            return
        if code != operation.code:
            self.fail(f"{operation.request} was answered {Code(operation.code).name}, not "
                      f"{Code(code).name}")
        if code == 0 and plain(Kind(kind), body) != plain(Kind(kind), operation.body):
            self.fail(f"{operation.request} of client {operation.client} was answered "
                      f"{plain(Kind(kind), operation.body)}, not {plain(Kind(kind), body)}")

    def check_reads(self, model: StateMachine, operations: list[Operation]) -> None:
        for operation in operations:
            request = operation.request
            assert isinstance(request, Range)
            revision = model.mvcc.revision
            try:
                body = model.mvcc.range(request, revision, header(revision))
            except Refused as refusal:
                self.fail(f"{request}: refused with {refusal}")
                return
            if plain(Kind.RANGE, body) != plain(Kind.RANGE, operation.body):
                self.fail(f"{request} at {revision} of client {operation.client} was answered "
                          f"{plain(Kind.RANGE, operation.body)}, not {plain(Kind.RANGE, body)}")
