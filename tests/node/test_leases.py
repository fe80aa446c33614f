"""Leases on a whole node: expiry, restarts, stalls and deaths of its processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvnode._core.messages import encode_lease
from kvnode.base.codes import Code, Kind
from kvnode.base.errors import RequestError
from kvnode.client import Client
from kvnode.client.sync import decode
from tests.support.etcd import find, why_missing
from tests.support.node import Node

SHAPES = {
    "unix": (),
    "zmq-barrier": ("--link", "zmq", "--force-read-barrier"),
    "two-gateways": ("--gateways", "2"),
}
LONG = b"L" * 2000


@pytest.fixture(params=sorted(SHAPES))
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "data", *SHAPES[request.param])
    made.start()
    yield made
    made.stop()
    made.fsck()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Node]:
    """A node whose long leases are written down every second."""
    made = Node(tmp_path / "data", env={"KVNODE_TEST_LEASE_CHECKPOINT_SECONDS": "1"})
    made.start()
    yield made
    made.stop()
    made.fsck()


def until(there: Callable[[], bool], seconds: float, every: float = 0.02) -> float:
    """Asks again and again; the seconds that it took."""
    began = time.monotonic()
    pause = threading.Event()
    while not there():
        assert time.monotonic() - began < seconds, "it did not come"
        pause.wait(every)
    return time.monotonic() - began


@contextlib.contextmanager
def stopped(node: Node, role: str) -> Iterator[None]:
    """A process of the node stands still."""
    pid = next(pid for name, pid in node.process_ids().items() if name.startswith(role))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_expiry_deletes_all_keys_in_one_revision(node: Node) -> None:
    with Client(node.endpoint) as client:
        lease = client.grant(2)
        granted = time.monotonic()
        assert lease.TTL == 2 and lease.ID > 0
        for key in (b"b", LONG, b"a"):
            client.put(key, b"v", lease=lease.ID)
        client.put(b"c", b"v")
        before = client.range(b"\0", b"\0")
        assert before.count == 4
        left = client.time_to_live(lease.ID, keys=True)
        assert list(left.keys) == [LONG, b"a", b"b"] and left.TTL in (1, 2) and left.grantedTTL == 2
        until(lambda: client.range(b"\0", b"\0").count < 4, 10)
        assert time.monotonic() - granted >= 2
        after = client.range(b"\0", b"\0")
        assert after.count == 1 and after.header.revision == before.header.revision + 1
        assert client.time_to_live(lease.ID).TTL == -1
        assert client.keep_alive(lease.ID).TTL == 0
        with pytest.raises(RequestError) as refused:
            client.put(b"d", b"v", lease=lease.ID)
        assert refused.value.code == Code.LEASE_NOT_FOUND


def test_the_tour(node: Node) -> None:
    with Client(node.endpoint) as client:
        for number, ttl in ((7, 500), (8, 100), (-9, 300)):
            assert number == client.grant(ttl, number).ID
        assert [one.ID for one in client.leases().leases] == [8, -9, 7]
        with pytest.raises(RequestError) as refused:
            client.grant(100, 7)
        assert refused.value.code == Code.LEASE_EXIST
        client.put(b"k", b"v", lease=7)
        client.put(b"k", b"w", lease=8)
        assert list(client.time_to_live(7, keys=True).keys) == []
        client.defragment()
        assert list(client.time_to_live(8, keys=True).keys) == [b"k"]
        assert client.keep_alive(-9).TTL == 300
        assert client.revoke(8).header.revision == 4
        assert client.get(b"k") is None
        # What was acknowledged is seen by every keep-alive that begins afterwards.
        for number in range(200):
            client.grant(60, 1000 + number)
            assert client.keep_alive(1000 + number).TTL == 60
            client.revoke(1000 + number)
            assert client.keep_alive(1000 + number).TTL == 0


def test_an_orderly_restart_keeps_what_each_lease_has_left(one: Node) -> None:
    with Client(one.endpoint) as client:
        client.grant(30, 7)
        client.grant(30, 8)
        client.put(b"k", b"v", lease=7)
        until(lambda: client.time_to_live(7).TTL <= 26, 10)
        client.keep_alive(8)
        left = [client.time_to_live(lease).TTL for lease in (7, 8)]
    one.stop()
    one.start()
    with Client(one.endpoint) as client:
        again = [client.time_to_live(lease).TTL for lease in (7, 8)]
        assert all(-1 <= now - then <= 1 for now, then in zip(again, left, strict=True))
        assert client.keep_alive(7).TTL == 30
        assert client.time_to_live(7, keys=True).TTL in (29, 30)
    one.kill()
    one.start()
    with Client(one.endpoint) as client:
        assert client.time_to_live(7).TTL >= 28, "what the keep-alive promised outlives a crash"


@pytest.mark.parametrize("victim", ["node", "consensus", "applier"])
def test_a_crash_keeps_what_was_written_down(one: Node, victim: str) -> None:
    with Client(one.endpoint) as client:
        client.grant(60, 7)
        client.put(b"k", b"v", lease=7)
        until(lambda: client.time_to_live(7).TTL <= 55, 15)
        if victim == "node":
            one.kill()
            one.start()
        else:
            one.kill_process(victim)
        assert 52 <= client.time_to_live(7, keys=True, timeout=20).TTL <= 57
        assert list(client.time_to_live(7, keys=True).keys) == [b"k"]
        assert client.keep_alive(7).TTL == 60
        client.grant(2, 9)
        client.put(b"n", b"v", lease=9)
        until(lambda: client.get(b"n") is None, 10)


@pytest.mark.parametrize("role", ["consensus", "gateway", "applier"])
def test_a_stalled_process_expires_nothing_early(tmp_path: Path, role: str) -> None:
    node = Node(tmp_path / "data")
    with node, Client(node.endpoint, timeout=30) as client:
        leases = range(1, 40)
        for lease in leases:
            client.grant(2, lease)
            client.put(b"k%d" % lease, b"v", lease=lease)
        for lease in leases:
            assert client.keep_alive(lease).TTL == 2
        with stopped(node, role):
            pending = [
                client.submit(Kind.LEASE_KEEP_ALIVE, encode_lease(lease)) for lease in leases
            ]
            client.flush()
            began = time.monotonic()
            if role == "applier":
                # Keep-alives need no applier: they are answered meanwhile.
                while time.monotonic() - began < 5:
                    assert all(client.keep_alive(lease).TTL == 2 for lease in leases)
            until(lambda: time.monotonic() - began > 5, 10)
        for ticket in pending:
            assert decode(Kind.LEASE_KEEP_ALIVE, client.wait(ticket)).TTL == 2
        for lease in leases:
            assert client.keep_alive(lease).TTL == 2
        assert client.range(b"k", b"l").count == len(leases)
        until(lambda: client.range(b"k", b"l").count == 0, 15)
    node.fsck()


def test_keep_alives_cross_a_death_of_each_process(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    with node, Client(node.endpoint, timeout=30) as client:
        for lease in range(1, 20):
            client.grant(10, lease)
        for role in ("consensus", "applier", "gateway", "consensus"):
            node.kill_process(role)
            for lease in range(1, 20):
                assert client.keep_alive(lease).TTL == 10
        assert len(client.leases().leases) == 19
    node.fsck()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_hundred_thousand_leases_are_kept_alive(tmp_path: Path) -> None:
    keeper = find("keeper")
    if keeper is None:
        pytest.skip(why_missing())
    node = Node(tmp_path / "data")
    with node:
        began = node.cpu_seconds()
        done = subprocess.run(
            [str(keeper), "-endpoints", f"127.0.0.1:{node.port}", "-leases", "100000",
             "-ttl", "10", "-seconds", "30"],
            check=True, capture_output=True, text=True, timeout=240,
        )
        figures = json.loads(done.stdout)
        print(figures, "cpu of the node:", round(node.cpu_seconds() - began, 2))
        assert figures["lost"] == figures["late"] == 0
        assert figures["left"] == 100_000 and figures["answered"] == figures["sent"]
        assert figures["sent"] > 800_000
        with Client(node.endpoint, timeout=60) as client:
            # Then they end, paced, and every one of them.
            print("ended after", until(lambda: len(client.leases().leases) == 0, 200, 1.0))
    node.fsck()
