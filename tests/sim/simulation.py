"""A run: founders, clients, faults for a minute of virtual time, then peace and the last checks.

`Simulation(seed).run()` gives a Report or raises SafetyError, whose text begins with the seed.
A seed decides everything: how many members, which faults how often, what clients ask.
"""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from kvnode.base.ids import MemberID
from kvnode.raft import (
    Change,
    ChangeType,
    Configuration,
    ConfigurationRefusedError,
    LearnerNotReadyError,
    NotLeaderError,
    ProposalRefusedError,
    Role,
)
from tests.sim.checks import Checks
from tests.sim.clients import Client, Operation
from tests.sim.member import Member
from tests.sim.world import MS, SECOND, Network, SafetyError, World

FAULTY_US = 60 * SECOND
PEACE_US = 40 * SECOND
LOG_MATCHING_US = 3 * SECOND
CLIENTS = 6


@dataclass
class Report:
    """What a run went through."""

    seed: int
    members: int
    simulated_us: int
    operations: int
    acknowledged: int
    retries: int
    elections: int
    snapshots: int
    changes: int
    faults: Counter[str]
    longest_silence_us: int


class Simulation:
    """One seed."""

    def __init__(self, seed: int, trace: bool = False, **options: object) -> None:
        self.world = World(seed)
        if trace:
            self.world.trace = []
        random = self.world.random
        self.options = {"message_bytes_max": random.choice([2000, 1 << 20]),
                        "window_messages_max": random.choice([2, 256]),
                        "tail_bytes_max": random.choice([0, 4000, 1 << 26]),
                        "learner_lag_max": 50, **options}
        self.network = Network(self.world)
        self.checks = Checks(self)
        self.members: dict[MemberID, Member] = {}
        self.history: list[Operation] = []
        self.ended = False
        self.revision = 1
        self.refused = self.retries = self.elections = self.snapshots = self.changes = 0
        count = random.choice([3, 3, 3, 5])
        founders = Configuration(tuple(MemberID(i + 1) for i in range(count)))
        for member in founders.voters:
            self.members[member] = Member(self, member, founders)
        self.next_id = count + 1
        self.clients = [Client(self, number) for number in range(CLIENTS)]

    def violated(self, text: str) -> SafetyError:
        return SafetyError(f"seed {self.world.seed} at {self.world.now / SECOND:.3f} s: {text}")

    def pick(self) -> Member:
        """Any member of the cluster, up or not."""
        here = [m for m in self.members.values() if not m.gone]
        return self.world.random.choice(here)

    def leader(self) -> Member | None:
        """The leader of the newest term."""
        leaders = [m for m in self.members.values() if m.up and m.node.role == Role.LEADER]
        return max(leaders, key=lambda m: m.node.term, default=None)

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> Report:
        """Faults for FAULTY_US, peace until all members are equal, then the history."""
        world = self.world
        for member in list(self.members.values()):
            member.start()
        for client in self.clients:
            world.after(world.random.randrange(SECOND), client.begin)
        self.plan_faults()
        for at in range(LOG_MATCHING_US, FAULTY_US, LOG_MATCHING_US):
            world.run(at)
            self.checks.log_matching()
        world.run(FAULTY_US)
        self.make_peace()
        self.checks.real_time(self.history)
        self.checks.replay(self.history)
        return self.report()

    def make_peace(self) -> None:
        """Nothing fails any more: the cluster must come to rest, with all members equal."""
        self.ended_faults = True
        self.network.heal()
        world = self.world
        for member in list(self.members.values()):
            member.slow_disk = member.frozen = False
            member.disk.faults.clear()
            if not member.up and not member.gone:
                member.start(power_lost=True)
        world.run(world.now + 5 * SECOND)
        self.ended = True
        end = world.now + PEACE_US
        while world.now < end:
            world.run(world.now + SECOND)
            if all(c.current is None for c in self.clients) and self.at_rest():
                return
        waiting = [c.number for c in self.clients if c.current is not None]
        raise self.violated(f"the cluster does not come to rest: clients {waiting}, "
                            + "; ".join(self.describe(m) for m in self.members.values()))

    def at_rest(self) -> bool:
        leader = self.leader()
        if leader is None:
            return False
        members = leader.node.configuration.members()
        states = {(self.members[m].machine.applied_index, self.members[m].machine.state_hash)
                  for m in members if self.members[m].up}
        return len(states) == 1 and all(self.members[m].up for m in members)

    def describe(self, member: Member) -> str:
        if not member.up:
            return f"{member.id} down"
        node = member.node
        return (f"{member.id} {node.role.name} term {node.term} commit {node.log.committed} "
                f"applied {member.machine.applied_index} last {node.log.last_index}")

    # --- faults ---------------------------------------------------------------------------------

    def plan_faults(self) -> None:
        """Each kind of fault at its own pace, which the seed draws; some stay away."""
        kinds: list[tuple[Callable[[], None], float]] = [
            (self.fault_kill, 8), (self.fault_power, 10), (self.fault_all_lose_power, 40),
            (self.fault_partition, 9), (self.fault_one_way, 12), (self.fault_lossy, 12),
            (self.fault_slow_disk, 12), (self.fault_disk_error, 25), (self.fault_freeze, 12),
            (self.fault_slow_member, 14), (self.change_members, 9), (self.transfer, 20),
        ]
        random = self.world.random
        self.ended_faults = False
        for kind, seconds in kinds:
            if random.random() < 0.35:
                continue
            self.again_and_again(kind, seconds * random.choice([0.7, 1.5, 3]))
        # A run without a fault would prove nothing.
        self.world.after(random.randrange(5, 50) * SECOND, self.fault_kill)

    def again_and_again(self, kind: Callable[[], None], pace: float) -> None:
        """Lets a fault happen every `pace` seconds on average."""

        def now() -> None:
            if not self.ended_faults:
                kind()
                self.again_and_again(kind, pace)

        self.world.after(int(self.world.random.expovariate(1 / pace) * SECOND), now)

    def up(self) -> list[Member]:
        return [m for m in self.members.values() if m.up and not m.gone]

    def victim(self) -> Member | None:
        """A member that is up; the leader more often than others."""
        up = self.up()
        leader = self.leader()
        if leader in up and self.world.chance(0.5):
            return leader
        return self.world.random.choice(up) if up else None

    def count(self, name: str) -> None:
        self.world.faults[name] += 1
        self.world.say(f"fault {name}")

    def restart_later(self, member: Member, power_lost: bool) -> None:
        delay = self.world.random.randrange(50, 4000) * MS

        def start() -> None:
            if not member.up and not member.gone:
                member.start(power_lost)

        self.world.after(delay, start)

    def fault_kill(self) -> None:
        member = self.victim()
        if member is not None:
            self.count("kill")
            member.crash(power=False)
            self.restart_later(member, power_lost=False)

    def fault_power(self) -> None:
        member = self.victim()
        if member is not None:
            self.count("power cut")
            member.crash(power=True)
            self.restart_later(member, power_lost=True)

    def fault_all_lose_power(self) -> None:
        self.count("power cut of all")
        for member in self.up():
            member.crash(power=True)
            self.restart_later(member, power_lost=True)

    def heal_later(self, call: Callable[[], None]) -> None:
        self.world.after(self.world.random.randrange(300, 6000) * MS, call)

    def fault_partition(self) -> None:
        """Some members are cut off from the others, and the clients from some of them."""
        ids: list[object] = list(self.members)
        self.world.random.shuffle(ids)
        side = ids[: self.world.random.randrange(1, len(ids))]
        self.count("partition")
        for name in side:
            others = [i for i in ids if i not in side]
            self.network.isolate(name, others, inward=True, outward=True)
        self.heal_later(self.network.cut.clear)

    def fault_one_way(self) -> None:
        member = self.victim()
        if member is not None:
            self.count("one-way partition")
            inward = self.world.chance(0.5)
            others: list[object] = [i for i in self.members if i != member.id]
            self.network.isolate(member.id, others, inward=inward, outward=not inward)
            self.heal_later(self.network.cut.clear)

    def fault_lossy(self) -> None:
        self.count("loss, repetition, delay")
        network = self.network
        network.loss = self.world.random.choice([0.02, 0.1, 0.3])
        network.repeat = self.world.random.choice([0.0, 0.1])
        network.delay_us = (100, self.world.random.choice([2, 30, 150]) * MS)

        def heal() -> None:
            network.loss = network.repeat = 0.0
            network.delay_us = (100, 2 * MS)

        self.heal_later(heal)

    def fault_slow_disk(self) -> None:
        member = self.victim()
        if member is not None:
            self.count("slow disk")
            member.slow_disk = True

            def heal() -> None:
                member.slow_disk = False

            self.heal_later(heal)

    def fault_disk_error(self) -> None:
        """The next sync fails: the member must end without a word, and may come back."""
        member = self.victim()
        if member is not None:
            self.count("disk error")
            disk = member.disk
            disk.fail(self.world.random.choice(["fdatasync", "pwrite"]), errno.EIO)
            self.world.after(2 * SECOND, disk.faults.clear)

    def fault_freeze(self) -> None:
        """SIGSTOP: nothing moves, then everything at once."""
        member = self.victim()
        if member is not None:
            self.count("freeze")
            member.frozen = True

            def heal() -> None:
                member.frozen = False

            self.heal_later(heal)

    def fault_slow_member(self) -> None:
        member = self.victim()
        if member is not None:
            self.count("slow network of a member")
            self.network.slow[member.id] = self.world.random.randrange(20, 400) * MS
            self.heal_later(self.network.slow.clear)

    # --- members --------------------------------------------------------------------------------

    def transfer(self) -> None:
        leader = self.leader()
        if leader is not None and not leader.frozen:
            try:
                leader.node.transfer_leadership(
                    self.world.random.choice(leader.node.configuration.voters))
            except ProposalRefusedError:
                return
            self.count("transfer of leadership")
            leader.turn()

    def change_members(self) -> None:
        """One change as an operator would make it; refused ones are part of it."""
        leader = self.leader()
        if leader is None or leader.frozen:
            return
        configuration = leader.node.configuration
        random = self.world.random
        changes: tuple[Change, ...]
        if configuration.learners:
            learner = random.choice(configuration.learners)
            kind = ChangeType.PROMOTE if random.random() < 0.85 else ChangeType.REMOVE
            changes = (Change(kind, learner),)
        elif len(configuration.voters) < 4:
            member = MemberID(self.next_id)
            changes = (Change(ChangeType.ADD_LEARNER, member),)
        elif random.random() < 0.4:
            out, back = random.sample(configuration.voters, 2)
            changes = (Change(ChangeType.REMOVE, out), Change(ChangeType.ADD_LEARNER, back))
        else:
            changes = (Change(ChangeType.REMOVE, random.choice(configuration.voters)),)
        try:
            leader.node.propose_configuration(changes)
        except (ConfigurationRefusedError, LearnerNotReadyError, NotLeaderError,
                ProposalRefusedError):
            return
        self.changes += 1
        self.count("change of members")
        self.world.say(f"{leader.id} proposes {changes}")
        for kind, member in changes:
            if kind == ChangeType.ADD_LEARNER and member not in self.members:
                self.next_id += 1
                self.members[member] = new = Member(self, member, Configuration(()))
                new.start()
        leader.turn()

    def on_removed(self, member: Member) -> None:
        """A member that lost its place stops for good."""
        member.gone = True
        self.world.say(f"member {member.id} is removed")
        self.world.after(SECOND, lambda: self._end(member))

    def _end(self, member: Member) -> None:
        if member.up and member.node.removed:
            self.checks.on_crash(member)
            member.up = False

    # --- the end --------------------------------------------------------------------------------

    def report(self) -> Report:
        done = sorted(o.end for o in self.history if o.end is not None and not o.code)
        silence = max((b - a for a, b in itertools.pairwise(done)), default=0)
        return Report(
            self.world.seed, len(self.members), self.world.now, len(self.history), len(done),
            self.retries, self.elections, self.snapshots, self.changes, self.world.faults, silence,
        )
