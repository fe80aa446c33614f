"""What does one turn of the Ready loop cost in Python?

A sole voter: propose -> ready -> on_persisted -> ready -> on_applied, with nothing behind it; and
the leader of three, with its two followers' answers (their own turns are not counted). Prints
microseconds per turn; a put's share is that divided by the puts in a batch.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kvnode.base.ids import MemberID
from kvnode.raft import Configuration, Node, NodeConfig
from tests.raft.cluster import Cluster
from tests.raft.memory import MemoryStorage


def sole_leader() -> Node:
    """A sole voter that leads and has committed its first entry."""
    configuration = Configuration((MemberID(1),))
    storage = MemoryStorage(configuration)
    node = Node(
        NodeConfig(
            id=MemberID(1), random=Random(1), storage=storage, configuration=configuration
        )
    )
    node.campaign()
    while (ready := node.ready()) is not None:
        if ready.needs_persist:
            node.on_persisted(ready.number)
    return node


def measure(turns: int, proposals: int) -> float:
    """Seconds per turn with `proposals` proposals in it."""
    node = sole_leader()
    data = b"x" * 4096
    began = time.perf_counter()
    for _ in range(turns):
        for _ in range(proposals):
            node.propose(data)
        ready = node.ready()
        node.on_persisted(ready.number)
        ready = node.ready()
        node.on_applied(ready.committed.last)
    return (time.perf_counter() - began) / turns


def measure_three(turns: int) -> float:
    """Seconds per turn of a leader with two followers; one proposal a turn."""
    cluster = Cluster(3, 1)
    leader = cluster.members[MemberID(1)]
    cluster.stabilize()
    leader.node.campaign()
    cluster.stabilize()
    node, data, spent = leader.node, b"x" * 4096, 0.0
    followers = [cluster.members[MemberID(2)].node, cluster.members[MemberID(3)].node]
    for _ in range(turns):
        answers = []
        began = time.perf_counter()
        node.propose(data)
        written = node.ready()
        spent += time.perf_counter() - began
        for follower in followers:
            for message in written.messages:
                if message.to == follower.id:
                    follower.step(message)
            while (ready := follower.ready()) is not None:
                answers += ready.messages + ready.messages_after_persist
                follower.on_persisted(ready.number)
        began = time.perf_counter()
        node.on_persisted(written.number)
        for message in answers:
            node.step(message)
        ready = node.ready()
        node.on_applied(ready.committed.last)
        spent += time.perf_counter() - began
    return spent / turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"python {platform.python_version()} {platform.machine()}")
    for proposals in (1, 4):
        best = sorted(measure(arguments.turns, proposals) for _ in range(arguments.rounds))
        print(
            f"{proposals} proposals a turn: median {best[len(best) // 2] * 1e6:.2f} us,"
            f" best {best[0] * 1e6:.2f} us"
        )
    best = sorted(measure_three(arguments.turns // 4) for _ in range(arguments.rounds))
    print(
        f"leader of three, 1 proposal a turn: median {best[len(best) // 2] * 1e6:.2f} us,"
        f" best {best[0] * 1e6:.2f} us"
    )


if __name__ == "__main__":
    main()
