"""Watch on kvnode and on real etcd: the same histories, the same watches, over gRPC.

Events of both are checked against the full history (tests/oracle/watch), so they are equal;
answers to requests (created, cancelled, refused, compacted) are compared field by field. Between
steps each server may finish what it owes, since how events of several revisions are packed into
responses is up to the server. KVNODE_SEED=N repeats one run.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvnode.proto import rpc_pb2
from tests.oracle.revindex import History
from tests.oracle.watch import Told, Wish, events
from tests.support.etcd import Etcd, find, why_missing
from tests.support.node import Node
from tests.support.process import Server
from tests.support.watchstream import Kv, WatchStream, dial

OWED_SECONDS_MAX = 20.0
STEPS = 150

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[str, Server, str]]]:
    if find("etcd") is None:
        pytest.skip(why_missing())
    folder = tmp_path_factory.mktemp("watch")
    etcd = Etcd(folder / "etcd", "--unsafe-no-fsync")
    node = Node(folder / "node")
    with etcd, node:
        yield [("etcd", etcd, etcd.endpoint), ("kvnode", node, f"127.0.0.1:{node.port}")]
    node.fsck()


class Stream:
    """A stream, its watches, and what it answered to requests."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.stream = WatchStream(site.channel)
        self.wishes: list[Wish] = []
        self.watches: dict[int, Told] = {}
        self.used: set[int] = set()
        self.answers: list[tuple[object, ...]] = []
        self.progress: list[int] = []

    def take(self, seconds: float) -> bool:
        r = self.stream.get(seconds)
        if r is None:
            return False
        if r.created:
            wish = self.wishes.pop(0)
            if not r.canceled:
                first = wish.start or r.header.revision + 1
                self.watches[r.watch_id] = Told(self.site.history, wish, first)
                self.used.add(r.watch_id)
        elif r.canceled:
            self.watches.pop(r.watch_id, None)
            if not r.compact_revision:
                self.used.discard(r.watch_id)
        elif r.events:
            self.watches[r.watch_id].on_events(r)
            return True
        else:
            self.progress.append(r.header.revision)
            for told in self.watches.values():
                told.on_revision(r.header.revision)
            return True
        revision = r.header.revision - self.site.base if r.header.revision else 0
        compact = r.compact_revision - self.site.base if r.compact_revision else 0
        self.answers.append((
            "created" if r.created else "", "canceled" if r.canceled else "", r.watch_id,
            revision, compact, r.cancel_reason,
        ))
        return True

    def expect(self, answers: int) -> None:
        """Waits until that many answers came and nothing is owed."""
        until = time.monotonic() + OWED_SECONDS_MAX
        while len(self.answers) < answers or any(t.owed() for t in self.watches.values()):
            assert self.take(until - time.monotonic()), (
                self.answers[-3:], [t.owed()[:2] for t in self.watches.values()])


class Site:
    """One server, driven by the same random steps as the other. Revisions are counted from the
    one it began at, so that both can be used again."""

    def __init__(self, endpoint: str, seed: int) -> None:
        self.channel = dial(endpoint)
        self.kv = Kv(self.channel)
        self.rng = random.Random(seed)
        self.prefix = b"%d/" % seed
        self.history = History()
        self.base = self.kv.put(self.prefix, b"") - 2
        self.history.revision = self.base + 2
        self.compacted = 0
        self.streams = [Stream(self) for _ in range(3)]
        self.expected = [0, 0, 0]

    def key(self) -> bytes:
        return self.prefix + bytes(self.rng.choice(b"ab") for _ in range(self.rng.randint(1, 3)))

    def write(self) -> None:
        rng, h = self.rng, self.history
        revision = h.revision + 1
        what = rng.random()
        if what < 0.5:
            key, put = self.key(), rng.randbytes(rng.choice([0, 5, 900]))
            assert self.kv.put(key, put) == revision
            h.write(revision, 0, key, put)
        elif what < 0.7:
            key, end = sorted([self.key(), self.key() + b"z"])
            self.kv.delete(key, end)
            sub = 0
            for name in h.scan(key, end):
                sub += h.write(revision, sub, name, None) is not None
        else:
            ops = {self.key(): rng.choice([None, b"x", b"yy" * 300]) for _ in range(4)}
            self.kv.txn(*ops.items())
            sub = 0
            for key, value in ops.items():
                sub += h.write(revision, sub, key, value) is not None

    def wish(self) -> Wish:
        rng, head = self.rng, self.history.revision
        key, end = self.key(), self.key()
        wish = Wish(
            key, rng.choice([b"", self.prefix[:-1] + b"0", end if end > key else b""]),
            start=rng.choice([0, 0, self.base + rng.randint(2, head - self.base), head + 3]),
            prev_kv=rng.random() < 0.4, noput=rng.random() < 0.1, nodelete=rng.random() < 0.1,
            fragment=rng.random() < 0.3,
        )
        if self.compacted <= wish.start <= head and not events(self.history, wish, wish.start):
            # etcd would look at it within 100 ms, unseen: a compaction before that ends it.
            return replace(wish, start=0)
        return wish

    def step(self) -> None:
        rng = self.rng
        number = rng.randrange(3)
        stream = self.streams[number]
        what = rng.random()
        if what < 0.55:
            self.write()
        elif what < 0.85:
            wish, watch_id = self.wish(), rng.choice([0, 0, 3, 9, -1, -7])
            if rng.random() < 0.05:
                wish = Wish(wish.key, wish.key[:-1] + b"\0")
            # An id ended by compaction stays in use until it is cancelled.
            taken = watch_id in stream.used - {0}
            stream.wishes.append(wish)
            stream.stream.send(wish.request(watch_id))
            doomed = bool(wish.start) and wish.start < self.compacted
            refused = taken or (wish.end and wish.end <= wish.key)
            self.expected[number] += 2 if doomed and not refused else 1
        elif what < 0.93 and stream.used:
            stream.stream.cancel(rng.choice(sorted(stream.used)))
            self.expected[number] += 1
        elif what < 0.96 and self.history.revision > self.compacted + 5:
            low = max(self.compacted, self.base + 2) + 1
            self.compacted = rng.randint(low, self.history.revision)
            self.kv.compact(self.compacted)
            self.history.compacted = self.compacted
        for one, answers in zip(self.streams, self.expected, strict=True):
            one.expect(answers)

    def close(self) -> None:
        for stream in self.streams:
            stream.stream.close()
        self.channel.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_answers_and_events(servers: list[tuple[str, Server, str]], seed: int) -> None:
    seed = int(os.environ.get("KVNODE_SEED", seed))
    answers = {}
    for name, _, endpoint in servers:
        site = Site(endpoint, seed)
        try:
            for _ in range(STEPS):
                site.step()
            answers[name] = [stream.answers for stream in site.streams]
        finally:
            site.close()
    for etcd, node in zip(answers["etcd"], answers["kvnode"], strict=True):
        for number, (expected, got) in enumerate(zip(etcd, node, strict=True)):
            assert got == expected, (number, etcd[:number + 1])


def test_progress_requests(servers: list[tuple[str, Server, str]]) -> None:
    for _, _, endpoint in servers:
        channel = dial(endpoint)
        kv, stream = Kv(channel), WatchStream(channel)
        stream.create(key=b"p", range_end=b"q")
        created = stream.get(10)
        assert created is not None and created.created
        revision = kv.put(b"p1", b"")
        event = stream.get(10)
        assert event is not None and event.header.revision == revision
        other = kv.put(b"z", b"")
        stream.ask_progress()
        progress = stream.get(10)
        assert progress is not None
        assert (progress.watch_id, progress.header.revision) == (-1, other)
        assert not progress.events and not progress.canceled
        # of a stream whose watch waits for a revision to come: nothing
        stream.create(key=b"p", start_revision=other + 1000)
        answer = stream.get(10)
        assert answer is not None and answer.created
        stream.ask_progress()
        assert stream.get(0.3) is None
        stream.close()
        channel.close()


def test_progress_notices_of_idle_watches(tmp_path: Path) -> None:
    if find("etcd") is None:
        pytest.skip(why_missing())
    flags = ("--watch-progress-notify-interval", "200ms")
    etcd, node = Etcd(tmp_path / "e", *flags), Node(tmp_path / "n", *flags)
    with etcd, node:
        for endpoint in (etcd.endpoint, f"127.0.0.1:{node.port}"):
            channel = dial(endpoint)
            kv, stream = Kv(channel), WatchStream(channel)
            stream.create(key=b"p", progress_notify=True)
            stream.create(key=b"p")
            assert all(r is not None and r.created for r in (stream.get(10), stream.get(10)))
            revision = kv.put(b"z", b"")
            seen = [stream.get(10) for _ in range(3)]
            assert [r.watch_id for r in seen if r] == [0, 0, 0]
            assert seen[-1] is not None and seen[-1].header.revision == revision
            stream.close()
            channel.close()


def test_fragments(servers: list[tuple[str, Server, str]]) -> None:
    """No response with `fragment` is larger than etcd makes it."""
    sizes = {}
    for name, _, endpoint in servers:
        channel = dial(endpoint)
        kv, stream = Kv(channel), WatchStream(channel)
        value = b"v" * 1_000_000
        revisions = [kv.put(b"f%02d" % i, value) for i in range(10)]
        for fragment in (True, False):
            stream.create(key=b"f", range_end=b"g", start_revision=revisions[0],
                          fragment=fragment)
        parts: dict[int, list[rpc_pb2.WatchResponse]] = {0: [], 1: []}
        while sum(len(r.events) for rs in parts.values() for r in rs) < 20:
            response = stream.get(20)
            assert response is not None
            if not response.created:
                parts[response.watch_id].append(response)
        assert all(r.ByteSize() < 2_100_000 or len(r.events) == 1 for r in parts[0])
        sizes[name] = [len(r.events) for r in parts[0]]
        for rs in parts.values():
            assert [e.kv.key for r in rs for e in r.events] == [b"f%02d" % i for i in range(10)]
        stream.close()
        channel.close()
    assert all(size <= 2 for size in sizes["kvnode"]) and all(size <= 2 for size in sizes["etcd"])
