"""Commands of the datadriven scripts in `testdata/`; `test_scripts` runs them.

A script is a list of blocks: a command line (and more lines of it), `----`, the output, an empty
line. With KVNODE_REWRITE=1 the outputs are written anew and the reviewer reads the diff.

```
cluster 3 [option=value ...]   members 1..3 of a new cluster; options are NodeConfig's
joiner 4                       a member that knows nothing yet
campaign 1                     tick 1 [times]          propose 1 text [text ...]
change 1 [joint|explicit] +2 ~3 -4 ^3 =2     add voter, add learner, remove, promote, update
leave 1                        read 1 name             transfer 1 2
ready 1                        take one Ready: messages leave, writes queue
persist 1 [count]              apply 1                 the oldest write, or span, is done
deliver [1->2] [type] [count]  drop [1->2] [type]      the oldest messages that fit
copy [1->2] [type]             the network repeats them
settle                         do everything until nothing is left to do
settle-one 1                   the same within one member, without delivering messages
cut 1 2    heal                no messages between these two; all again
crash 1 [durable writes]       restart 1               compact 1 index
mute 1    unmute 1             lose 1 index            what an old directory lacks
status [1]    log 1            trace                   settle, and print all that happens
```
"""

from __future__ import annotations

from kvnode.base.ids import Index, MemberID
from kvnode.raft import (
    ENTRY_CONFIGURATION,
    Change,
    ChangeType,
    Configuration,
    ConfigurationChange,
    Entry,
    LogLostError,
    Message,
    MessageError,
    ProposalRefusedError,
    Ready,
    Snapshot,
    Transition,
    decode_change,
)
from kvnode.raft.configuration import EMPTY
from kvnode.raft.types import (
    APPEND,
    HEARTBEAT,
    HEARTBEAT_RESPONSE,
    MESSAGE_NAMES,
    PRE_VOTE_RESPONSE,
    VOTE_RESPONSE,
)
from tests.raft.cluster import Cluster, Member

SIGNS = {
    "+": ChangeType.ADD_VOTER,
    "~": ChangeType.ADD_LEARNER,
    "-": ChangeType.REMOVE,
    "^": ChangeType.PROMOTE,
    "=": ChangeType.UPDATE,
}


def format_configuration(configuration: Configuration) -> str:
    text = "voters " + ",".join(map(str, configuration.voters))
    for name in ("outgoing", "learners", "learners_next"):
        if ids := getattr(configuration, name):
            text += f" {name} " + ",".join(map(str, ids))
    return text + (" auto-leave" if configuration.auto_leave else "")


def format_change(change: ConfigurationChange) -> str:
    signs = {kind: sign for sign, kind in SIGNS.items()}
    text = " ".join(signs[kind] + str(member) for kind, member in change.changes) or "leave joint"
    return text if change.transition == Transition.AUTO else f"{text} {change.transition.name}"


def format_entry(entry: Entry) -> str:
    data = (
        f"[{format_change(decode_change(entry.data))}]"
        if entry.type == ENTRY_CONFIGURATION
        else f'"{entry.data.decode()}"'
    )
    return f"{entry.index}/{entry.term} {data}"


def format_message(message: Message) -> str:
    text = f"{message.sender}->{message.to} {MESSAGE_NAMES[message.type]}"
    if message.term:
        text += f" term {message.term}"
    if message.type == APPEND:
        text += f" after {message.index}/{message.log_term} commit {message.commit}"
        text += "".join(f" {format_entry(entry)}" for entry in message.entries)
        return text
    if message.type in (HEARTBEAT, HEARTBEAT_RESPONSE):
        return f"{text} round {message.context} commit {message.commit}"
    if message.reject:
        text += " REFUSED"
    if message.index or message.log_term:
        text += f" index {message.index}" + (f"/{message.log_term}" if message.log_term else "")
    if message.hint:
        text += f" hint {message.hint}"
    if message.type in (PRE_VOTE_RESPONSE, VOTE_RESPONSE) and message.commit:
        text += f" commit {message.commit}/{message.commit_term}"
    if message.snapshot is not None:
        text += f" snapshot {format_snapshot(message.snapshot)}"
    if message.entries:
        text += "".join(f' "{entry.data.decode()}"' for entry in message.entries)
    if MESSAGE_NAMES[message.type] == "transfer-leader":
        text += f" to {message.context}"
    elif message.context == 1 and MESSAGE_NAMES[message.type] == "vote":
        text += " transfer"
    return text


def format_snapshot(snapshot: Snapshot) -> str:
    configuration = format_configuration(snapshot.configuration)
    return f"{snapshot.index}/{snapshot.term} ({configuration} @{snapshot.configuration_index})"


def format_ready(ready: Ready) -> list[str]:
    lines = []
    if ready.soft_state is not None:
        leader, role = ready.soft_state
        lines.append(f"{role.name.lower().replace('_', '-')}, leader {leader}")
    if ready.configuration is not None:
        index, configuration = ready.configuration
        lines.append(f"configuration @{index}: {format_configuration(configuration)}")
    if ready.snapshot is not None:
        lines.append(f"install snapshot {format_snapshot(ready.snapshot)}")
    if ready.hard_state is not None:
        term, vote, commit = ready.hard_state
        lines.append(f"hard state: term {term} vote {vote} commit {commit}")
    lines += [f"write {format_entry(entry)}" for entry in ready.entries]
    lines += [f"send {format_message(message)}" for message in ready.messages]
    lines += [
        f"after write {ready.number}: {format_message(message)}"
        for message in ready.messages_after_persist
    ]
    if ready.committed is not None:
        first, last, term = ready.committed
        lines.append(f"apply {first}..{last} (term {term})")
    lines += [f"read {context}: index {index}" for context, index in ready.read_states]
    lines += [f"needs a snapshot: {member}" for member in ready.snapshot_requests]
    if ready.needs_persist:
        lines.append(f"= write {ready.number}")
    return lines


class Script(Cluster):
    """A cluster that does what the commands say and tells what happened."""

    def __init__(self, members: int = 3, **options: object) -> None:
        self.lines: list[str] = []
        self.tracing = False
        self.auto_snapshot = True
        super().__init__(members, 1, **options)

    # What a cluster does, told.

    def take_ready(self, member: Member) -> bool:
        before = member.node.ready

        def telling() -> Ready | None:
            ready = before()
            if ready is not None and self.tracing:
                self.lines += [f"{member.id}: {line}" for line in format_ready(ready)]
            return ready

        member.node = Spy(member.node, telling)   # type: ignore[assignment]
        try:
            return super().take_ready(member)
        finally:
            member.node = member.node.node        # type: ignore[attr-defined]

    def make_snapshot(self, member: Member, wanted: MemberID) -> None:
        if self.auto_snapshot:
            member.node.send_snapshot(wanted, member.node.snapshot_at(Index(member.applied)))

    def persist_one(self, member: Member, acknowledge: bool = True) -> None:
        if self.tracing:
            self.lines.append(f"{member.id}: write {member.writing[0].number} is durable")
        super().persist_one(member, acknowledge)

    def deliver(self, message: Message) -> None:
        if self.tracing:
            cut = (message.sender, message.to) in self.cut or not self.members[message.to].up
            self.lines.append(format_message(message) + (" LOST" if cut else ""))
        super().deliver(message)

    # Commands.

    def run(self, words: list[str]) -> list[str]:
        self.lines = []
        command, *arguments = words
        self.tracing = command in ("ready", "persist", "deliver", "trace", "apply")
        try:
            getattr(self, "do_" + command.replace("-", "_"))(*arguments)
        except (ProposalRefusedError, MessageError, LogLostError) as error:
            self.lines.append(f"{type(error).__name__}: {error}")
        self.tracing = False
        self.check()
        return self.lines

    def of(self, word: str) -> Member:
        return self.members[MemberID(int(word))]

    def do_joiner(self, member: str) -> None:
        self.add(MemberID(int(member)), EMPTY)

    def do_campaign(self, member: str) -> None:
        if not self.of(member).node.campaign():
            self.lines.append("may not campaign")

    def do_tick(self, member: str, times: str = "1") -> None:
        for _ in range(int(times)):
            self.of(member).node.tick()

    def do_propose(self, member: str, *texts: str) -> None:
        for text in texts:
            index, term = self.of(member).node.propose(text.encode())
            self.lines.append(f"{index}/{term}")

    def do_change(self, member: str, *words: str) -> None:
        transition = Transition.AUTO
        changes = []
        for word in words:
            if word in ("joint", "explicit"):
                transition = (
                    Transition.JOINT_AUTO_LEAVE if word == "joint" else Transition.JOINT_EXPLICIT
                )
            else:
                changes.append(Change(SIGNS[word[0]], MemberID(int(word[1:]))))
        node = self.of(member).node
        index, term = node.propose_configuration(tuple(changes), transition=transition)
        self.lines.append(f"{index}/{term}")

    def do_leave(self, member: str) -> None:
        self.do_change(member)

    def do_read(self, member: str, name: str) -> None:
        self.read(self.of(member), name)

    def do_transfer(self, member: str, to: str) -> None:
        self.of(member).node.transfer_leadership(MemberID(int(to)))

    def do_ready(self, member: str) -> None:
        if not self.take_ready(self.of(member)):
            self.lines.append("nothing")

    def do_persist(self, member: str, count: str = "1") -> None:
        for _ in range(int(count)):
            if self.of(member).writing:
                self.persist_one(self.of(member))
            else:
                self.lines.append("nothing to write")

    def do_apply(self, member: str) -> None:
        if not self.of(member).to_apply:
            self.lines.append("nothing to apply")
            return
        self.apply_one(self.of(member))
        self.lines.append(f"applied {self.of(member).applied}")

    def _take(self, words: tuple[str, ...]) -> list[Message]:
        count = 1 << 30
        fits = self.network
        for word in words:
            if "->" in word:
                sender, to = map(int, word.split("->"))
                fits = [m for m in fits if (m.sender, m.to) == (sender, to)]
            elif word.isdigit():
                count = int(word)
            else:
                fits = [m for m in fits if MESSAGE_NAMES[m.type] == word]
        taken = fits[:count]
        for message in taken:
            self.network.remove(message)
        return taken

    def do_deliver(self, *words: str) -> None:
        for message in self._take(words):
            self.deliver(message)

    def do_copy(self, *words: str) -> None:
        taken = self._take(words)
        self.network += taken + taken

    def do_drop(self, *words: str) -> None:
        for message in self._take(words):
            self.lines.append("lost " + format_message(message))
            self.report(message, delivered=False)

    def do_settle(self) -> None:
        self.stabilize()

    def do_settle_one(self, member: str) -> None:
        self.settle(self.of(member))

    def do_trace(self) -> None:
        self.stabilize()

    def do_cut(self, one: str, other: str) -> None:
        a, b = MemberID(int(one)), MemberID(int(other))
        self.cut |= {(a, b), (b, a)}

    def do_heal(self) -> None:
        self.cut.clear()

    def do_crash(self, member: str, durable: str = "0") -> None:
        self.crash(self.of(member), int(durable))

    def do_restart(self, member: str) -> None:
        self.of(member).start(self.seed)

    def do_checkpoint(self, member: str) -> None:
        self.of(member).checkpoint = self.of(member).applied

    def do_compact(self, member: str, index: str) -> None:
        self.of(member).checkpoint = self.of(member).applied
        self.of(member).storage.compact(int(index))

    def do_lose(self, member: str, last: str) -> None:
        storage = self.of(member).storage
        del storage.list[int(last) - storage.before[0] :]
        self.of(member).checkpoint = min(self.of(member).checkpoint, int(last))

    def do_mute(self, member: str) -> None:
        self.of(member).node.mute(True)

    def do_unmute(self, member: str) -> None:
        self.of(member).node.mute(False)

    def do_status(self, member: str = "") -> None:
        for each in self.members.values():
            if member in ("", str(each.id)):
                self._tell(each)

    def _tell(self, member: Member) -> None:
        if not member.up:
            self.lines.append(f"{member.id}: down")
            return
        s = member.node.status()
        role = "learner" if s.learner else s.role.name.lower().replace("_", "-")
        text = f"{s.id}: {role} term {s.term} leader {s.leader} commit {s.commit}"
        text += f" durable {s.persisted} last {s.last_index}/{s.last_term}"
        text += f" {format_configuration(s.configuration)} @{s.configuration_index}"
        text += " removed" if s.removed else ""
        text += " sole" if member.node.sole_voter else ""
        self.lines.append(text)
        self.lines += [
            f"   {other}: {progress}" for other, progress in member.node.progress.items()
        ]

    def do_log(self, member: str) -> None:
        log = self._log_of(self.of(member))
        self.lines += [format_entry(log[index]) for index in sorted(log)]


class Spy:
    """A node whose `ready` is listened to."""

    def __init__(self, node: object, ready: object) -> None:
        self.node = node
        self.ready = ready

    def __getattr__(self, name: str) -> object:
        return getattr(self.node, name)
