"""No message waits for another one's wake-up.

libzmq's descriptor is edge-triggered, and a send takes the edge of what arrived meanwhile: a
gateway that doesn't look again after sending leaves a request until the next one comes.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

from kvnode.client import Client
from tests.support.node import Node

SECONDS = 2.0
SLOWEST_SECONDS_MAX = 0.6


def test_lone_requests_are_not_left(tmp_path: Path) -> None:
    """Two clients ask once a round, up to 0.4 ms apart, and both wait for their answers: one whose
    request came while the other's answer was sent must not wait for its retry (1 s)."""
    node = Node(tmp_path / "data")
    node.start()
    times: list[float] = []
    errors: list[Exception] = []
    rounds = threading.Barrier(2)

    def read(number: int) -> None:
        rng = random.Random(number)
        try:
            with Client(node.endpoint, timeout=10) as client:
                until = time.monotonic() + SECONDS
                while time.monotonic() < until:
                    rounds.wait(10)
                    wait = time.perf_counter() + rng.random() * 0.0004
                    while time.perf_counter() < wait:
                        pass
                    begun = time.monotonic()
                    client.get(b"key")
                    times.append(time.monotonic() - begun)
        except threading.BrokenBarrierError:
            pass
        except Exception as error:
            errors.append(error)
        rounds.abort()

    try:
        threads = [threading.Thread(target=read, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        node.stop()
    node.fsck()
    slow = sum(t > SLOWEST_SECONDS_MAX for t in times)
    print(f"\n{len(times)} lone reads, slowest {max(times) * 1000:.0f} ms, left behind {slow}")
    assert not errors, "\n".join([*map(str, errors), *node.tail])
    assert slow == 0
