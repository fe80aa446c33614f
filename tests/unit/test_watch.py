"""The watch hub over a store in memory: full streams, compaction, progress, fragments."""

from __future__ import annotations

import random

import pytest

from kvnode.proto import rpc_pb2
from tests.oracle.watch import Wish
from tests.support.watching import Client, Site

PREFIX = Wish(b"a", b"b")


def created(site: Site, *wishes: Wish) -> Client:
    client = Client(site)
    for wish in wishes:
        client.watch(wish)
    site.settle()
    assert not any(r.canceled for r in client.read())
    return client


def keys(response: rpc_pb2.WatchResponse) -> list[bytes]:
    return [event.kv.key for event in response.events]


def test_events_come_once_and_in_order() -> None:
    site = Site()
    client = created(site, Wish(b"a1"), PREFIX, Wish(b"a2", b"\0"))
    site.write((b"a1", b"x"), (b"a2", b"y"), (b"b", b"z"))
    site.settle()
    got = {r.watch_id: keys(r) for r in client.read()}
    assert got == {0: [b"a1"], 1: [b"a1", b"a2"], 2: [b"a2", b"b"]}
    site.write((b"a1", None))
    site.settle()
    got = {r.watch_id: keys(r) for r in client.read()}
    assert got == {0: [b"a1"], 1: [b"a1"]}
    site.settle()
    assert client.read() == []


def test_a_start_in_the_past_and_one_to_come() -> None:
    site = Site()
    for i in range(20):
        site.write((b"a%d" % i, b"v"))
    client = created(site, Wish(b"a", b"b", start=2), Wish(b"a", b"b", start=25))
    told = [k for r in client.seen for k in keys(r)]
    assert len(told) == 20 and client.watches[1].upto == 24
    for i in range(5):
        site.write((b"a", b"%d" % i))
    site.settle()
    client.read()
    assert not client.watches[0].owed() and not client.watches[1].owed()
    assert [e.kv.mod_revision for r in client.seen if r.watch_id == 1 for e in r.events] == [25, 26]


def test_joining_groups_share_one_pass() -> None:
    site = Site()
    for i in range(300):
        site.write((b"a%d" % i, b"v"))
    client = Client(site)
    for i in range(200):
        client.watch(Wish(b"a", b"b", start=2 + i))
    site.settle()
    client.read()
    assert all(not told.owed() for told in client.watches.values())
    # one pass over 300 records, not 200
    assert site.hub.events_read < 700
    assert site.hub.slow == 0


def test_a_full_stream_lags_and_others_do_not() -> None:
    site = Site(limit=2000)
    slow, fast = created(site, PREFIX), created(site, PREFIX)
    for i in range(200):
        site.write((b"a%d" % i, b"v" * 50))
        site.settle()
        fast.read()
    assert not fast.watches[0].owed() and site.hub.slow == 1
    assert site.calls.pending(slow.handle) < 2000 + 200
    for _ in range(500):
        site.settle()
        if not slow.read():
            break
    assert not slow.watches[0].owed() and site.hub.slow == 0


def test_compacted_while_its_stream_was_full() -> None:
    site = Site(limit=500)
    client = created(site, PREFIX)
    for i in range(50):
        site.write((b"a%d" % i, b"v" * 50))
        site.settle()
    site.compact(40, free=True)
    site.settle()
    while client.read():
        site.settle()
    last = client.seen[-1]
    assert last.canceled and last.compact_revision == 40 and last.header.revision == 0
    client.watch(Wish(b"a", b"b", start=40))
    site.settle()
    while client.read():
        site.settle()
    (told,) = client.watches.values()
    assert not told.owed()


@pytest.mark.parametrize("start", [5, 6, 7])
def test_the_compact_revision_itself_is_served(start: int) -> None:
    site = Site()
    for i in range(8):
        site.write((b"a%d" % i, b"v"))
    site.compact(6, free=True)
    client = Client(site)
    client.watch(Wish(b"a", b"b", start=start))
    site.settle()
    responses = client.read()
    assert responses[0].created and not responses[0].canceled
    assert (responses[1].compact_revision == 6) == (start < 6)


def test_watchers_at_the_head_outlive_a_compaction_of_what_they_were_not_yet_given() -> None:
    site = Site()
    client = created(site, PREFIX)
    site.writer.write((b"a1", b"1"))
    site.writer.write((b"a1", b"2"))
    site.compact(3)
    site.settle()
    (response,) = client.read()
    assert [e.kv.value for e in response.events] == [b"1", b"2"]


def test_prev_kv_ends_at_the_compact_revision() -> None:
    site = Site()
    wish = Wish(b"a", prev_kv=True)
    client = created(site, wish)
    for i in range(4):
        site.write((b"a", b"%d" % i))
    site.write((b"a", None))
    site.write((b"a", b"new"))
    site.settle()
    client.read()
    values = [e.prev_kv.value for r in client.seen for e in r.events]
    assert values == [b"", b"0", b"1", b"2", b"3", b""]
    site.compact(4)
    client.watch(Wish(b"a", start=4, prev_kv=True))
    site.settle()
    client.read()
    values = [e.prev_kv.value for r in client.seen if r.watch_id == 1 for e in r.events]
    assert values == [b"", b"2", b"3", b""]


def test_filters() -> None:
    site = Site()
    client = created(
        site, Wish(b"a", noput=True), Wish(b"a", nodelete=True),
        Wish(b"a", noput=True, nodelete=True),
    )
    site.write((b"a", b"1"))
    site.write((b"a", None))
    site.settle()
    client.read()
    types = [[e.type for r in client.seen if r.watch_id == i for e in r.events] for i in range(3)]
    assert types == [[1], [0], []]


def etcds_fragments(whole: rpc_pb2.WatchResponse, limit: int) -> list[rpc_pb2.WatchResponse]:
    """What etcd's loop makes of a response."""
    made, index = [], 0
    while not made or made[-1].fragment:
        part = rpc_pb2.WatchResponse(header=whole.header, fragment=True)
        for event in whole.events[index:]:
            part.events.append(event)
            if len(part.events) > 1 and part.ByteSize() >= limit:
                del part.events[-1]
                break
            index += 1
        if index == len(whole.events):
            part.fragment = False
        made.append(part)
    return made


@pytest.mark.parametrize("limit", [1, 4200, 5000, *range(900, 1150)])
def test_fragments_as_etcd_makes_them(limit: int) -> None:
    site = Site(fragment_bytes=limit)
    client = created(site, Wish(b"a", b"b", fragment=True), PREFIX)
    site.write(*((b"a%02d" % i, b"v" * 200) for i in range(20)))
    site.settle()
    parsed = [rpc_pb2.WatchResponse.FromString(m) for m in site.calls.take(client.handle)]
    whole = next(r for r in parsed if r.watch_id == 1)
    parts = [r for r in parsed if r.watch_id == 0]
    whole.watch_id = 0
    expected = [whole] if whole.ByteSize() < limit else etcds_fragments(whole, limit)
    assert parts == expected


def test_a_revision_larger_than_a_slice_is_one_response() -> None:
    site = Site(slice_work=50, slice_bytes=500)
    client = created(site, PREFIX, Wish(b"a", b"b", start=1))
    site.write(*((b"a%03d" % i, b"v" * 20) for i in range(300)))
    assert site.settle() > 3
    assert client.read()
    assert sorted(len(r.events) for r in client.seen)[-2:] == [300, 300]


def test_a_watcher_made_during_a_long_slice_gets_the_whole_revision() -> None:
    site = Site(slice_work=50, slice_bytes=500)
    client = created(site, PREFIX)
    revision = site.write(*((b"a%03d" % i, b"v" * 20) for i in range(300)))
    site.turn()
    site.turn()
    client.watch(Wish(b"a0", b"b", start=revision))
    site.settle()
    client.read()
    assert not client.watches[0].owed() and not client.watches[1].owed()


def test_progress_requests() -> None:
    site = Site()
    client = Client(site)
    client.ask_progress()
    site.settle()
    assert client.read() == []
    client.watch(PREFIX)
    site.settle()
    client.read()
    site.write((b"x", b"1"))
    client.ask_progress()
    site.settle()
    (r,) = client.read()
    assert (r.watch_id, r.header.revision, len(r.events)) == (-1, 2, 0)
    site.write((b"a", b"1"))
    client.ask_progress()
    site.settle()
    events, progress = client.read()
    assert events.events and (progress.watch_id, progress.header.revision) == (-1, 3)
    client.watch(Wish(b"a", start=1000))
    client.ask_progress()
    site.settle()
    assert [r.created for r in client.read()] == [True]


def test_progress_waits_for_a_full_stream() -> None:
    site = Site(limit=300)
    client = created(site, PREFIX)
    for i in range(30):
        site.write((b"a%d" % i, b"v" * 50))
        site.settle()
    client.ask_progress()
    while client.read():
        site.settle()
    assert client.progress == 1 and client.seen[-1].header.revision == 31


def test_progress_notify() -> None:
    site = Site(progress_us=1_000_000)
    client = created(
        site, Wish(b"a", progress_notify=True), Wish(b"b", progress_notify=True), PREFIX
    )
    due = site.hub.next_due_us
    assert due is not None and 1_000_000 <= due <= 1_100_000
    site.write((b"a", b"1"))
    site.settle()
    client.read()
    site.now = due
    site.settle()
    # 0 has heard something since, 2 did not ask
    assert [(r.watch_id, r.header.revision) for r in client.read()] == [(1, 2)]
    site.now = site.hub.next_due_us or 0
    site.settle()
    assert sorted((r.watch_id, r.header.revision) for r in client.read()) == [(0, 2), (1, 2)]
    client.cancel(0)
    client.cancel(1)
    site.now = site.hub.next_due_us or 0
    site.settle()
    site.now += 2_000_000
    site.settle()
    assert site.hub.next_due_us is None


def test_ids_and_refusals_in_etcds_words() -> None:
    site = Site()
    client = Client(site)

    def answer(wish: Wish, watch_id: int = 0) -> tuple[int, bool, str]:
        client.watch(wish, watch_id)
        site.settle()
        (r,) = client.read()
        assert r.created
        return r.watch_id, r.canceled, r.cancel_reason

    a = Wish(b"a")
    assert answer(a) == (0, False, "")
    assert answer(a) == (1, False, "")
    assert answer(a, 1) == (
        -1, True, "mvcc: duplicate watch ID provided on the WatchStream")
    assert answer(Wish(b"a", start=-3), 7) == (
        -1, True, "etcdserver: mvcc: required revision has been compacted")
    assert answer(Wish(b"b", b"a")) == (-1, True, "mvcc: watcher range is empty")
    assert answer(Wish(b"b", b"b")) == (-1, True, "mvcc: watcher range is empty")
    assert answer(a, 3) == (3, False, "")
    assert answer(a) == (2, False, "")
    assert answer(a) == (4, False, "")
    assert answer(Wish(b""), 9) == (9, False, "")
    client.cancel(0)
    site.settle()
    (r,) = client.read()
    assert (r.watch_id, r.canceled, r.created, r.compact_revision) == (0, True, False, 0)
    client.send(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=77)))
    client.send(b"")
    site.settle()
    assert client.read() == []
    assert answer(a) == (5, False, "")
    assert answer(a, -5) == (-5, False, "")


def test_an_id_ended_by_compaction_is_in_use_until_it_is_cancelled() -> None:
    site = Site()
    for i in range(9):
        site.write((b"a", b"%d" % i))
    site.compact(8)
    client = Client(site)
    client.watch(Wish(b"a", start=2), 5)
    site.settle()
    assert [r.compact_revision for r in client.read()] == [0, 8]
    client.watch(Wish(b"a"), 5)
    client.cancel(5)
    client.watch(Wish(b"a"), 5)
    site.settle()
    assert [(r.created, r.canceled) for r in client.read()] == [
        (True, True), (False, True), (True, False)]


def test_bad_bytes_and_requests_without_end_end_the_stream() -> None:
    site = Site(limit=1000)
    client = Client(site)
    client.send(b"\x0a\x05\x0a")
    ended = site.calls.status(client.handle)
    assert ended is not None and ended[0] == 13
    flood = Client(site)
    for _ in range(200_000):
        flood.watch(Wish(b"k" * 100))
        if site.calls.status(flood.handle):
            break
    assert site.calls.status(flood.handle) == (8, "etcdserver: too many requests")
    assert site.hub.stream_count == 0


def test_requests_wait_while_the_stream_is_full() -> None:
    site = Site(limit=200)
    client = Client(site)
    for _ in range(100):
        client.watch(PREFIX)
    site.settle()
    assert site.hub.watchers < 20
    while client.read():
        site.settle()
    assert site.hub.watchers == len(client.watches) == 100


def test_watchers_are_bounded_in_number_and_in_bytes() -> None:
    site = Site(watchers_max=5, interest_bytes_max=100)
    client = Client(site)
    for key in (b"k" * 90, b"k" * 11, b"k" * 10):
        client.watch(Wish(key))
    site.settle()
    assert [r.cancel_reason for r in client.read()] == ["", "etcdserver: too many requests", ""]
    client.cancel(0)
    for _ in range(5):
        client.watch(Wish(b"k"))
    site.settle()
    assert [bool(r.cancel_reason) for r in client.read()][1:] == [False] * 4 + [True]


def test_streams_that_go_leave_nothing() -> None:
    site = Site()
    clients = [created(site, PREFIX, Wish(b"a"), Wish(b"a", start=1)) for _ in range(5)]
    site.write((b"a", b"1"))
    clients[0].watch(PREFIX)
    clients[0].ask_progress()
    for client in clients:
        client.close()
    site.settle()
    assert site.hub.watchers == site.hub.stream_count == site.hub.slow == 0
    assert site.hub.lowest is None


def test_damage_ends_the_watchers_it_concerns() -> None:
    site = Site()
    client = created(site, PREFIX)
    site.writer.write((b"a", b"1"))
    txn = site.writer.txn
    key, value = next((k, v) for k, v in txn.items(1) if int.from_bytes(k[:8], "big") == 2)
    txn.put(1, key, value[:-1] + b"x")
    site.commit()
    site.settle()
    raw = [rpc_pb2.WatchResponse.FromString(m) for m in site.calls.take(client.handle)]
    assert [(r.canceled, r.cancel_reason) for r in raw] == [(True, "etcdserver: corrupt cluster")]
    assert site.hub.damaged == 1 and site.hub.watchers == 0


class Chaos:
    """Random histories, clients that read when they like, compaction at any time."""

    def __init__(self, seed: int) -> None:
        r = self.random = random.Random(seed)
        self.site = Site(
            limit=r.choice([200, 2_000, 100_000]), slice_work=r.choice([20, 200, 10_000]),
            slice_bytes=r.choice([100, 5_000, 1 << 18]), fragment_bytes=r.choice([300, 1 << 20]),
            progress_us=1_000_000, seed=seed,
        )
        self.clients = [Client(self.site) for _ in range(r.randint(1, 5))]
        self.compacted = 0

    def key(self) -> bytes:
        return bytes(self.random.choice(b"ab") for _ in range(self.random.randint(1, 3)))

    def wish(self) -> Wish:
        r, key, end = self.random, self.key(), self.key()
        head = self.site.writer.history.revision
        return Wish(
            key, r.choice([b"", b"\0", end if end > key else b""]),
            start=r.choice([0, 0, r.randint(1, head + 5),
                            max(1, self.compacted + r.randint(-2, 2))]),
            prev_kv=r.random() < 0.4, noput=r.random() < 0.1, nodelete=r.random() < 0.1,
            fragment=r.random() < 0.3, progress_notify=r.random() < 0.2,
        )

    def write(self) -> None:
        r = self.random
        for _ in range(r.choice([1, 1, 3, 30])):
            ops = {self.key(): r.choice([None, b"", b"v" * r.choice([1, 30, 400])])
                   for _ in range(r.choice([1, 1, 2, 6]))}
            self.site.writer.write(*ops.items())
        self.site.commit()

    def compact(self) -> None:
        head = self.site.writer.history.revision
        if head > self.compacted:
            self.compacted = self.random.randint(self.compacted + 1, head)
            self.site.compact(self.compacted, free=self.random.random() < 0.5)

    def step(self) -> None:
        r, site = self.random, self.site
        client = r.choice(self.clients)
        what = r.random()
        if what < 0.3:
            self.write()
        elif what < 0.6:
            site.now += r.choice([0, 1000, 400_000])
            site.turn()
        elif what < 0.75:
            client.read(r.choice([1, 3, -1]))
        elif what < 0.87:
            client.watch(self.wish())
        elif what < 0.91 and (ids := set(client.watches) - set(client.cancelling)):
            client.cancel(r.choice(sorted(ids)))
        elif what < 0.94:
            client.ask_progress()
        elif what < 0.97:
            self.compact()
        elif what < 0.98 and len(self.clients) > 1:
            client.close()
            self.clients.remove(client)
        elif what < 0.99:
            self.clients.append(Client(site))

    def finish(self) -> None:
        quiet = False
        while not quiet:
            self.site.settle()
            quiet = not any([client.read() for client in self.clients])
        for client in self.clients:
            for told in client.watches.values():
                assert not told.owed(), (told.wish, told.next, told.owed()[:3])
            assert not client.creating and not client.cancelling
        live = sum(len(client.watches) for client in self.clients)
        assert self.site.hub.watchers == live and self.site.hub.slow == 0


@pytest.mark.parametrize("seed", range(60))
def test_any_history(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(250):
        chaos.step()
    chaos.finish()
