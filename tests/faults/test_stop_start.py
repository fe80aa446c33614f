"""How a node ends and begins: SIGTERM under load, kill -9, and what the next start does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from kvnode.client import Client
from tests.faults.history import Writers
from tests.faults.test_kill import kill_node
from tests.support.node import Node

STOP_SECONDS_MAX = 5.0


def clean_mark(node: Node) -> bool:
    return (node.data_dir / "member" / "state" / "CLEAN").exists()


def load(client: Client, keys: int) -> None:
    for first in range(0, keys, 1000):
        pairs = [(b"load/%07d" % i, b"v" * 100) for i in range(first, first + 1000)]
        client.put_batch(pairs, timeout=20)


def test_sigterm_under_load_leaves_the_clean_mark(tmp_path: Path) -> None:
    node = Node(tmp_path / "data", "--checkpoint-interval", "60s")
    node.start()
    assert not clean_mark(node)
    with Client(node.endpoint) as client:
        load(client, 20_000)
    writers = Writers(node.endpoint, timeout=60)
    writers.start()
    writers.wait_answered(100)
    took = node.stop()
    assert took < STOP_SECONDS_MAX
    assert clean_mark(node)
    report = node.fsck()
    assert "rolled back" not in report, report
    node.start()
    clean_start = node.ready_seconds
    assert not clean_mark(node)
    writers.wait_answered(50)
    assert kill_node(node) == 0
    assert not clean_mark(node)
    node.start()
    killed_start = node.ready_seconds
    writers.wait_answered(50)
    writers.finish()
    verdict = writers.check()
    with Client(node.endpoint) as client:
        assert client.range(b"load/", prefix=True, count_only=True).count == 20_000
    node.stop()
    print(
        f"\nSIGTERM under load: stopped in {took:.2f} s, clean; ready in {clean_start:.2f} s, "
        f"after kill -9 in {killed_start:.2f} s; {verdict}"
    )
    assert verdict.sound and verdict.unknown == 0, "\n".join(verdict.notes)


def test_kill_9_rolls_back_and_loses_nothing(tmp_path: Path) -> None:
    """No checkpoint since the start: all of it comes back from the log."""
    node = Node(tmp_path / "data", "--checkpoint-interval", "60s")
    node.start()
    with Client(node.endpoint) as client:
        load(client, 10_000)
    kill_node(node)
    report = node.fsck()
    assert "rolled back" in report and " 0 keys" in report, report
    node.start()
    with Client(node.endpoint) as client:
        assert client.range(b"load/", prefix=True, count_only=True).count == 10_000
    print(f"\nkill -9 with nothing checkpointed: ready in {node.ready_seconds:.2f} s, all there")
    node.stop()
    node.fsck()


def test_sigterm_twice_and_at_the_start(tmp_path: Path) -> None:
    """Signals at awkward moments end the node, and the next start works."""
    node = Node(tmp_path / "data")
    for _ in range(3):
        node.start()
        os.kill(node.pid, signal.SIGTERM)
        assert node.stop() < STOP_SECONDS_MAX
        assert clean_mark(node)
    node.start()
    begun = time.monotonic()
    with Client(node.endpoint) as client:
        client.put(b"k", b"v")
    assert time.monotonic() - begun < 5
    node.stop()
    node.fsck()
