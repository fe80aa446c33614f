"""Seeded faults against a cluster of three to five; see `cluster` for what is checked.

Each seed is a short life: some hundred random steps, then peace, in which the cluster must elect a
leader, bring everybody to the same log and answer.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from kvnode.base.ids import MemberID
from kvnode.raft import Change, ChangeType, ProposalRefusedError, Transition
from kvnode.raft.configuration import EMPTY
from tests.raft.cluster import Cluster, Member

SEEDS = int(os.environ.get("KVNODE_RAFT_SEEDS", "300"))
STEPS = 700
coverage: Counter[str] = Counter()


class Life:
    """One seed."""

    def __init__(self, seed: int) -> None:
        # A storm: time runs faster, disks are slow, more crashes, cuts and changes of members.
        self.storm = seed % 4 == 2
        # Lease reads assume clocks of one pace, so all members tick together.
        self.lease = seed % 5 == 1
        options = {
            "election_ticks": 6,
            "message_bytes_max": 40,
            "window_messages_max": 3,
            "window_bytes_max": 100,
            "uncommitted_bytes_max": 400,
            "tail_bytes_max": 60,
            "learner_lag_max": 8,
            "lease_drift_ticks": 1,
            "read_lease": self.lease,
            "pre_vote": seed % 4 != 0,
            "check_quorum": self.lease or seed % 8 != 0,
        }
        self.cluster = Cluster(3 if seed % 3 else 5, seed, **options)
        self.random = self.cluster.random
        if seed % 2:
            self.cluster.members[MemberID(1)].node.campaign()
            self.cluster.stabilize()
        self.proposed = 0
        self.next_member = 10

    def any_up(self) -> Member | None:
        up = [member for member in self.cluster.members.values() if member.up]
        return self.random.choice(up) if up else None

    def step(self) -> None:
        cluster, random = self.cluster, self.random
        dice = random.random()
        member = self.any_up()
        if self.storm and random.random() < 0.15:
            self.storm_step()
        elif member is None or dice < 0.01:
            self.restart()
        elif dice < 0.45:
            for _ in range(random.randrange(1, 6)):
                self.deliver()
        elif dice < 0.80:
            cluster.take_ready(member)
            if member.writing and random.random() < (0.5 if self.storm else 0.8):
                cluster.persist_one(member, acknowledge=random.random() < 0.8)
            if member.to_apply and random.random() < 0.8:
                cluster.apply_one(member)
                if random.random() < 0.5:
                    member.checkpoint = member.applied
        elif dice < 0.83:
            for each in cluster.members.values():
                if each.up and (self.lease or random.random() < 0.8):
                    each.node.tick()
        elif dice < 0.93:
            self.propose(member)
        elif dice < 0.955:
            cluster.read(member, object())
        elif dice < 0.958:
            cluster.crash(member, random.randrange(len(member.writing) + 1))
        elif dice < 0.963:
            self.cut()
        elif dice < 0.978:
            self.change_members()
        elif dice < 0.99:
            cluster.compact(member, random.randrange(4))
        elif dice < 0.993:
            self.transfer(member)
        else:
            self.restart()
        cluster.check()

    def storm_step(self) -> None:
        cluster, random = self.cluster, self.random
        dice = random.random()
        member = self.any_up()
        if dice < 0.6 or member is None:
            for each in cluster.members.values():
                if each.up and (self.lease or random.random() < 0.8):
                    each.node.tick()
        elif dice < 0.68:
            cluster.crash(member, random.randrange(len(member.writing) + 1))
        elif dice < 0.8:
            self.restart()
        elif dice < 0.9:
            self.cut()
        else:
            self.replace_members()

    def replace_members(self) -> None:
        """Change most of the voters at once, through a joint phase."""
        leader = self.cluster.leader()
        if leader is None:
            return
        voters = leader.node.configuration.voters
        changes = [Change(ChangeType.REMOVE, member) for member in voters[1:]]
        for member in self.random.sample(range(1, 8), 4):
            if MemberID(member) not in voters:
                changes.append(Change(ChangeType.ADD_VOTER, MemberID(member)))
        try:
            leader.node.propose_configuration(tuple(changes))
        except ProposalRefusedError:
            return
        coverage["replacements"] += 1
        for _, member in changes:
            if member not in self.cluster.members:
                self.cluster.add(member, EMPTY)

    def deliver(self) -> None:
        network = self.cluster.network
        if not network:
            return
        at = self.random.randrange(min(len(network), 8))
        dice = self.random.random()
        message = network[at] if dice < 0.05 else network.pop(at)
        if not 0.05 < dice < 0.12:
            self.cluster.deliver(message)
        else:
            self.cluster.report(message, delivered=False)

    def propose(self, member: Member) -> None:
        self.proposed += 1
        data = b"%d" % self.proposed + b"x" * self.random.randrange(30)
        self.cluster.propose(member, data)

    def restart(self) -> None:
        down = [member for member in self.cluster.members.values() if not member.up]
        if down:
            self.random.choice(down).start(self.cluster.seed)

    def cut(self) -> None:
        cluster = self.cluster
        if cluster.cut and self.random.random() < 0.6:
            cluster.cut.clear()
            return
        ids = list(cluster.members)
        group = set(self.random.sample(ids, self.random.randrange(1, len(ids))))
        one_way = self.random.random() < 0.3
        cluster.cut = {
            (a, b) for a in ids for b in ids if a in group and b not in group
        }
        if not one_way:
            cluster.cut |= {(b, a) for a, b in cluster.cut}
        coverage["cuts"] += 1

    def transfer(self, member: Member) -> None:
        try:
            member.node.transfer_leadership(self.random.choice(list(self.cluster.members)))
            coverage["transfers"] += 1
        except ProposalRefusedError:
            pass

    def change_members(self) -> None:
        leader = self.cluster.leader()
        if leader is None:
            return
        random = self.random
        configuration = leader.node.configuration
        changes = []
        for _ in range(1 if random.random() < 0.6 else 2):
            kind = random.choice(list(ChangeType))
            if kind in (ChangeType.ADD_VOTER, ChangeType.ADD_LEARNER) and random.random() < 0.7:
                member = MemberID(self.next_member)
                self.next_member += 1
            elif kind == ChangeType.PROMOTE and configuration.learners:
                member = random.choice(configuration.learners)
            else:
                member = random.choice(configuration.members())
            if kind == ChangeType.REMOVE and len(configuration.voters) <= 2:
                continue
            changes.append(Change(kind, member))
        try:
            leader.node.propose_configuration(
                tuple(changes), transition=random.choice(list(Transition))
            )
        except ProposalRefusedError:
            return
        coverage["changes"] += 1
        for _, member in changes:
            if member not in self.cluster.members:
                self.cluster.add(member, EMPTY)

    def peace(self) -> None:
        """Heal everything; all members must come to the same state."""
        cluster = self.cluster
        cluster.cut.clear()
        for member in cluster.members.values():
            if not member.up:
                member.start(cluster.seed)
        leader = self.wait_rest()
        if leader.node.configuration.joint:
            leader.node.propose_configuration(())
            leader = self.wait_rest()
        cluster.check_logs()
        cluster.read(leader, "last")
        cluster.stabilize()
        assert "last" not in cluster.reads, "a read without an answer"

    def wait_rest(self) -> Member:
        """Let time pass until all members have applied the leader's whole log."""
        for _ in range(400):
            for member in self.cluster.members.values():
                member.node.tick()
            self.cluster.stabilize()
            leader = self.cluster.leader()
            if leader is not None and self.at_rest():
                return leader
        raise AssertionError(
            f"no rest: {[member.node.status() for member in self.cluster.members.values()]}"
        )

    def at_rest(self) -> bool:
        leader = self.cluster.leader()
        if leader is None or leader.node.transferee or not leader.node.is_voter():
            return False
        if not leader.node.term_committed():
            return False
        members = leader.node.configuration.members()
        return all(
            self.cluster.members[member].applied == leader.node.log.last_index
            for member in members
        )


@pytest.mark.parametrize("block", range(10))
def test_faults(block: int) -> None:
    for seed in range(block * SEEDS // 10, (block + 1) * SEEDS // 10):
        life = Life(seed)
        try:
            for number in range(STEPS):
                life.step()
                if number % 50 == 0:
                    life.cluster.check_logs()
            life.peace()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        cluster = life.cluster
        coverage["terms led"] += len(cluster.leaders)
        coverage["crashes"] += cluster.crashes
        coverage["snapshots"] += cluster.snapshots_installed
        coverage["reads"] += cluster.reads_answered
        coverage["entries"] += cluster.greatest_applied


def test_the_faults_happened() -> None:
    print(dict(coverage))
    for what in ("terms led", "crashes", "snapshots", "reads", "entries", "changes", "transfers"):
        assert coverage[what] >= SEEDS // 10, (what, coverage)
