"""What does one turn of a sole voter's Ready loop cost in Python?

propose -> ready -> on_persisted -> ready -> on_applied, with nothing behind it. Prints microseconds
per turn; a put's share is that divided by the puts in a batch.
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


if __name__ == "__main__":
    main()
