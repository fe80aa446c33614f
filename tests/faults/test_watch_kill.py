"""kill -9 of processes while a client watches: it resumes at the last revision it knows, plus one.

One writer puts a new key at a time below the watched prefix, so every revision of the store is
one event: the watcher must see each revision exactly once, whatever died meanwhile, and every
acknowledged put under its own.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from pathlib import Path

import grpc
import pytest

from tests.faults.test_kill import FLAGS, kill_node, wait_reborn
from tests.support.node import Node
from tests.support.watchstream import Kv, WatchStream, dial

PREFIX, END = b"w/", b"w0"
ROLES = ("gateway", "applier", "consensus")


class Writer:
    """Puts numbered keys; one that was not acknowledged is left alone, and the next one tried."""

    def __init__(self, endpoint: str) -> None:
        self.kv = Kv(dial(endpoint))
        self.acknowledged: dict[bytes, int] = {}
        self.tried = 0
        self.changed = threading.Condition()
        self.stopped = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self.stopped:
            key = PREFIX + b"%08d" % self.tried
            self.tried += 1
            with contextlib.suppress(grpc.RpcError):
                revision = self.kv.put(key, b"v", timeout=5)
                with self.changed:
                    self.acknowledged[key] = revision
                    self.changed.notify_all()

    def wait_more(self, count: int) -> None:
        """Until so many more are acknowledged."""
        with self.changed:
            aim = len(self.acknowledged) + count
            assert self.changed.wait_for(lambda: len(self.acknowledged) >= aim, 60), "no writes"

    def stop(self) -> None:
        self.stopped = True
        self.thread.join(30)


class Watcher:
    """Watches the prefix from revision 2 on, over as many streams as it takes."""

    def __init__(self, endpoint: str, prev_kv: bool) -> None:
        self.endpoint = endpoint
        self.prev_kv = prev_kv
        self.events: list[tuple[int, bytes]] = []
        self.next = 2
        self.streams = 0
        self.stopped = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        channel = dial(self.endpoint)
        while not self.stopped:
            stream = WatchStream(channel)
            self.streams += 1
            stream.create(key=PREFIX, range_end=END, start_revision=self.next,
                          prev_kv=self.prev_kv)
            with contextlib.suppress(grpc.RpcError):
                while not self.stopped:
                    self._take(stream)
            stream.close()
        channel.close()

    def _take(self, stream: WatchStream) -> None:
        response = stream.get(0.1)
        if response is None:
            return
        assert not response.canceled, response
        for event in response.events:
            self.events.append((event.kv.mod_revision, event.kv.key))
        if response.events:
            self.next = response.events[-1].kv.mod_revision + 1

    def finish(self, revision: int) -> None:
        """Waits until it has come that far."""
        until = time.monotonic() + 30
        while self.next <= revision:
            assert time.monotonic() < until, f"at {self.next}, of {revision}"
            time.sleep(0.01)
        self.stopped = True
        self.thread.join(30)


def watch_through_kills(folder: Path, kills: int, seed: int, roles: tuple[str, ...]) -> str:
    rng = random.Random(seed)
    node = Node(folder / "data", *FLAGS)
    node.start()
    endpoint = f"127.0.0.1:{node.port}"
    writer = Writer(endpoint)
    watchers = [Watcher(endpoint, prev_kv=False), Watcher(endpoint, prev_kv=True)]
    try:
        for thread in (writer.thread, *(w.thread for w in watchers)):
            thread.start()
        for number in range(kills):
            writer.wait_more(rng.choice((1, 20, 60)))
            if "node" in roles and number % 8 == 7:
                assert kill_node(node) == 0
                node.start()
                continue
            role = rng.choice([r for r in roles if r != "node"])
            wait_reborn(node, role, node.kill_process(role))
        writer.wait_more(20)
        writer.stop()
        last = max(writer.acknowledged.values())
        for watcher in watchers:
            watcher.finish(last)
    finally:
        writer.stopped = True
        for watcher in watchers:
            watcher.stopped = True
        node.stop()
    node.fsck()
    for watcher in watchers:
        revisions = [revision for revision, _ in watcher.events]
        gaps = [r for r, after in itertools.pairwise(revisions) if after != r + 1]
        assert revisions[0] == 2 and not gaps, gaps[:5]
        keys = dict(watcher.events)
        for key, revision in writer.acknowledged.items():
            assert keys[revision] == key
    return (
        f"seed {seed}: {kills} kills, {len(writer.acknowledged)} of {writer.tried} puts "
        f"acknowledged, {len(watchers[0].events)} events, "
        f"{[w.streams for w in watchers]} streams; no gap, no repeat"
    )


@pytest.mark.timeout(200)
@pytest.mark.parametrize("role", [*ROLES, "node"])
def test_a_resumed_watch_has_no_gap_and_no_repeat(tmp_path: Path, role: str) -> None:
    roles = (role,) if role != "node" else (*ROLES, "node")
    print("\n" + watch_through_kills(tmp_path, 8, 5, roles))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_kills(tmp_path: Path, seed: int) -> None:
    print("\n" + watch_through_kills(tmp_path, 100, 100 + seed, (*ROLES, "node")))
