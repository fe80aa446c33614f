"""The fast lanes: what goes through them is what the long way does, to the byte."""

from __future__ import annotations

import select
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from threading import Thread

import pytest

from kvnode._core.envelope import build_batch
from kvnode._core.machine import Machine
from kvnode._core.sharedword import ANSWERED, APPLIED, COMMIT, SOLE, SharedWords
from kvnode.base.codes import Kind
from kvnode.base.errors import DiskError
from kvnode.base.ids import Index, MemberID, Term
from kvnode.env.disk import RealDisk
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.peer import GONE, Peer
from kvnode.env.unixlink import UnixEndpoint
from kvnode.procs.consensus import LogReader
from kvnode.procs.lanes import LANE_BYTES_MAX, ApplyLane, ProposeLane
from kvnode.procs.loop import Loop
from kvnode.raft import Configuration, HardState, Node, NodeConfig, encode_configuration
from kvnode.wal.log import Log
from kvnode.wal.state import LogState
from kvnode.wire.frames import Frame, encode_entries

MEMBER = MemberID(0xA1)
SECONDS = 5.0


class SameDisk(RealDisk):
    """Its segments have the same salts in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = 0

    def random_u32(self) -> int:
        self.drawn += 1
        return self.drawn


class Member:
    """The log and the node of a sole voter, with or without a lane in front of them."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        folder.mkdir()
        configuration = Configuration(voters=(MEMBER,))
        state = LogState(1, MEMBER, configuration=encode_configuration(configuration))
        self.folder = folder / "wal"
        self.wal = Log.create(SameDisk(), str(self.folder), state, segment_bytes=segment_bytes)
        self.node = Node(NodeConfig(
            id=MEMBER, random=Random(1), storage=LogReader(self.wal), configuration=configuration,
            configuration_index=Index(0), hard_state=HardState(Term(0), MemberID(0), Index(0)),
            snapshot_index=Index(0), snapshot_term=Term(0), applied=Index(0),
        ))
        self.node.campaign()
        self.turn()

    def turn(self) -> None:
        """The long way: everything that is ready, each synced by itself."""
        while (ready := self.node.ready()) is not None:
            if ready.configuration is not None:
                index, configuration = ready.configuration
                self.wal.save_configuration(encode_configuration(configuration), index)
            self.wal.append(ready.entries)
            if ready.hard_state is not None:
                self.wal.save_hard_state(*ready.hard_state)
            if ready.needs_persist:
                ticket = self.wal.submit(True)
                while self.wal.completed() < ticket:     # the writer's thread opens a segment
                    select.select([self.wal.fileno()], [], [], SECONDS)
                self.node.on_persisted(ready.number)

    def propose(self, batch: bytes) -> None:
        assert self.wal.has_room(len(batch))
        self.node.propose(batch)
        self.turn()

    def picture(self) -> dict[str, object]:
        """All that the node knows, the log's entries, and the bytes of its files."""
        node, log = self.node, self.node.log
        found: dict[str, object] = {
            f"log.{n}": getattr(log, n) for n in type(log).__slots__ if n != "storage"
        }
        for kind in type(node).__mro__:
            for name in getattr(kind, "__slots__", ()):
                if name not in ("config", "log", "reads"):
                    found[name] = getattr(node, name)
        found["entries"] = self.wal.entries(self.wal.first_index, self.wal.last_index + 1, 1 << 30)
        found["durable"] = (self.wal.durable_index, self.wal.state)
        return found

    def files(self) -> list[bytes]:
        self.wal.close()
        return [path.read_bytes() for path in sorted(self.folder.glob("*.wal"))]


class Links:
    """A listener with a gateway and an applier connected to it."""

    def __init__(self, folder: Path) -> None:
        self.server = UnixEndpoint.listen(str(folder / "socket"))
        self.gateway, self.to_server = UnixEndpoint.connect(str(folder / "socket"))
        self.gateway_peer = self.greet(self.gateway, self.to_server)
        self.applier, other = UnixEndpoint.connect(str(folder / "socket"))
        self.applier_peer = self.greet(self.applier, other)
        self.loop = Loop()
        self.loop.add(self.server.fileno(), lambda: None)

    def greet(self, endpoint: UnixEndpoint, listener: Peer) -> Peer:
        """The listener's peer for a new connection: accepted first, then heard."""
        endpoint.send(listener, Frame.HELLO, b"")
        assert self.server.receive() == []
        (hello,) = self.server.receive()
        return hello.peer


def goes_ahead(batch: bytes) -> bool:
    """One request that the applier may execute while the entry is being synced."""
    groups, requests = (int.from_bytes(batch[at : at + 4], "little") for at in (4, 12))
    lone = (Kind.PUT, Kind.DELETE_RANGE, Kind.TXN)
    return len(batch) > 88 and groups == requests == 1 and batch[88] in lone


class ThroughLane:
    """Feeds proposals to the lane, and to the long way what it leaves."""

    def __init__(self, folder: Path, member: Member) -> None:
        self.member = member
        self.links = Links(folder)
        self.words = SharedWords(str(folder / "words"), create=True)
        self.passed = self.left = self.ahead = 0
        self.lane = ProposeLane(
            self.links.loop.fileno(), self.settle, 1, self.links.server, self.words
        )

    def settle(self, passes: int) -> None:
        member, lane = self.member, self.lane
        self.passed += passes
        member.wal.lone_appended(
            lane.ticket, member.node.lone_appended(passes, lane.last_commits)
        )

    def propose(self, batch: bytes) -> None:
        links, node, wal = self.links, self.member.node, self.member.wal
        entry, log = node.lone_entry(), wal.lane()
        assert entry is not None and log is not None
        passed = self.passed
        self.lane.arm(links.gateway_peer, links.applier_peer, log, entry)
        links.gateway.send(links.to_server, Frame.PROPOSE, batch)
        assert self.lane.wait(SECONDS)
        if self.passed == passed:
            # What the lane leaves is found by `receive`, once and whole.
            (message,) = links.server.receive()
            assert (message.kind, message.payload) == (Frame.PROPOSE, batch)
            self.left += 1
            self.member.propose(batch)
            return
        assert links.server.receive() == []
        assert self.words.get(COMMIT) == wal.last_index | SOLE
        mark = struct.pack("<QQ", wal.last_index, node.term)
        sent = b"".join(encode_entries([(wal.last_index, node.term, 0, batch)]))
        told = [(m.kind, m.payload) for m in links.applier.receive()]
        if goes_ahead(batch):
            assert told == [(Frame.LONE, sent), (Frame.BORDER, mark)]
            self.ahead += 1
        else:
            assert told == [(Frame.COMMITTED, mark + sent)]


@pytest.mark.parametrize("segment_bytes", [1 << 20, 8192])
def test_lane_and_long_way_write_the_same(tmp_path: Path, segment_bytes: int) -> None:
    """Sizes around every border; the small segments end inside the run again and again."""
    rng = Random(7)
    sizes = [1, 7, 8, 9, 300, 301, 4096, LANE_BYTES_MAX - 1, LANE_BYTES_MAX, LANE_BYTES_MAX + 1]
    sizes += [rng.choice((1, 90, 300, 900, 3000)) for _ in range(80)]
    batches = [rng.randbytes(size) for size in sizes]
    batches[20::4] = [
        batch_of(rng.choice((Kind.PUT, Kind.TXN, Kind.COMPACT)), rng.randbytes(size), 1)
        for size in sizes[20::4]
    ]
    long, short = (Member(tmp_path / name, segment_bytes) for name in ("long", "short"))
    lane = ThroughLane(tmp_path, short)
    for batch in batches:
        long.propose(batch)
        lane.propose(batch)
        assert short.picture() == long.picture()
    assert lane.passed > 50 and lane.left >= 1 and lane.ahead > 5
    if segment_bytes == 8192:
        assert lane.left > 10, "records at the end of a segment take the long way"
    assert short.files() == long.files()
    again = Log.open(RealDisk(), str(short.folder), segment_bytes=segment_bytes)
    assert [e[3] for e in again.entries(again.first_index, again.last_index + 1, 1 << 30)][
        -len(batches) :
    ] == batches
    again.close()


def test_only_a_node_at_rest_says_what_comes_next(tmp_path: Path) -> None:
    member = Member(tmp_path / "m", 1 << 20)
    assert member.node.lone_entry() is not None
    member.node.propose(b"x")
    assert member.node.lone_entry() is None
    ready = member.node.ready()
    assert ready is not None and member.node.lone_entry() is None
    member.wal.append(ready.entries)
    member.wal.submit(True)
    member.node.on_persisted(ready.number)
    assert member.node.lone_entry() is None, "not handed out for applying"
    member.turn()
    assert member.node.lone_entry() is not None
    member.node.read_index(1)
    assert member.node.lone_entry() is None
    member.wal.close()


def batch_of(kind: Kind, body: bytes, slot: int) -> bytes:
    """One group of one request without a session, from gateway incarnation 5."""
    return build_batch([{
        "flags": 0, "user": 0, "session": 0, "sequence": 0, "lowest": 0, "member": MEMBER,
        "incarnation": 5, "slot": slot, "auth_revision": 0, "requests": [(kind, body)],
    }])


def committed(index: int, batch: bytes) -> bytes:
    return struct.pack("<QQ", index, 1) + b"".join(encode_entries([(index, 1, 0, batch)]))


def border(index: int, term: int = 1) -> bytes:
    return struct.pack("<QQ", index, term)


def never(*_: object) -> None:
    raise AssertionError("not to be called")


def lone_then(
    links: Links, lane: ApplyLane, frame: bytes, then: Callable[[], None]
) -> list[tuple[int, int]]:
    """LONE of the entry in a COMMITTED frame, then, when the lane is at it, what else comes."""
    done: list[list[tuple[int, int]]] = []
    links.gateway.send(links.to_server, Frame.LONE, frame[16:])
    waiter = Thread(target=lambda: done.append(lane.wait(0.0)))
    waiter.start()
    poll = select.poll()
    poll.register(links.server.fileno(), select.POLLIN)
    while poll.poll(0) and waiter.is_alive():
        pass
    assert not done and links.applier.receive() == [], "nothing before the border"
    then()
    waiter.join(SECONDS)
    (found,) = done
    return found


def test_apply_lane_answers_as_the_machine_does(tmp_path: Path) -> None:
    """The same entries through the lane and through `Machine.apply`: results, state, words."""
    links = Links(tmp_path)
    words = SharedWords(str(tmp_path / "words"), create=True)
    stores = []
    for name in ("lane", "long"):
        (tmp_path / name).mkdir()
        stores.append(LmdbStore(tmp_path / name, 1 << 28))
    machine, long = (Machine(store, MEMBER, 1) for store in stores)
    settled: list[int] = []
    lane = ApplyLane(
        links.loop.fileno(), settled.append, 4, links.server, words, lambda: None, never
    )
    gateways = {5: links.applier_peer}
    for index in range(1, 30):
        kind = Kind.COMPACT if index == 20 else Kind.PUT
        body = b"\x08\x05" if kind == Kind.COMPACT else b"\x0a\x02k%d\x12\x01v" % (index % 10)
        batch = batch_of(kind, body, index)
        # A frame of another kind, or of an entry that is not the next, is left.
        lane.arm(links.server, links.gateway_peer, machine, gateways)
        links.gateway.send(links.to_server, Frame.COMMITTED, committed(index + 1, batch))
        assert lane.wait(SECONDS) and not settled
        assert [m.payload for m in links.server.receive()] == [committed(index + 1, batch)]
        lane.arm(links.server, links.gateway_peer, machine, gateways)
        tell = partial(links.gateway.send, links.to_server, Frame.BORDER, border(index))
        if index % 3 == 0:
            links.gateway.send(links.to_server, Frame.COMMITTED, committed(index, batch))
            assert lane.wait(0.0)
        elif index % 3 == 1:
            lone_then(links, lane, committed(index, batch), tell)
        else:
            # The applier was late: both are there.
            links.gateway.send(links.to_server, Frame.LONE, committed(index + 1, batch)[16:])
            tell()
            assert lane.wait(0.0) and not settled
            assert [m.kind for m in links.server.receive()] == [Frame.LONE, Frame.BORDER]
            lane.arm(links.server, links.gateway_peer, machine, gateways)
            links.gateway.send(links.to_server, Frame.LONE, committed(index, batch)[16:])
            tell()
            assert lane.wait(0.0)
        assert settled == [1]
        settled.clear()
        ((_, results),) = long.apply(committed(index, batch)[16:])
        (answer,) = links.applier.receive()
        assert (answer.kind, answer.payload) == (Frame.RESULTS, results)
        assert machine.state_hash == long.state_hash and machine.revision == long.revision
        assert words.get(APPLIED) == machine.applied_index == index
        assert words.get(ANSWERED) == (index if kind == Kind.PUT else index - 1)
    assert words.wait_applied(29, 1000) and not words.wait_applied(30, 1000)


@pytest.mark.parametrize("case", ["late", "gone", "another term", "another index", "entries"])
def test_an_entry_without_its_border_leaves_nothing(tmp_path: Path, case: str) -> None:
    """It was executed, and is undone: in the map, in memory, and nobody heard of it. What came is
    found by `receive`, so the entry is applied once when its border does come."""
    links = Links(tmp_path)
    words = SharedWords(str(tmp_path / "words"), create=True)
    for name in ("lane", "long"):
        (tmp_path / name).mkdir()
    store = LmdbStore(tmp_path / "lane", 1 << 28)
    machine, long = Machine(store, MEMBER, 1), Machine(LmdbStore(tmp_path / "long", 1 << 28),
                                                       MEMBER, 1)
    anew: list[Machine] = []
    lane = ApplyLane(
        links.loop.fileno(), never, 4, links.server, words, never,
        lambda: anew.append(Machine(store, MEMBER, 1)),
    )
    first, second = (
        committed(n, batch_of(Kind.PUT, b"\x0a\x01k\x12\x01%d" % n, n)) for n in (1, 2)
    )
    assert machine.apply(first[16:]) == long.apply(first[16:])
    other = {
        "another term": (Frame.BORDER, border(2, 2)), "another index": (Frame.BORDER, border(1)),
        "entries": (Frame.ENTRIES, second[16:]),
    }.get(case)

    def then() -> None:
        if other is not None:
            links.gateway.send(links.to_server, *other)
        elif case == "gone":
            links.gateway.close()

    lane.arm(links.server, links.gateway_peer, machine, {5: links.applier_peer})
    assert lone_then(links, lane, second, then)
    assert (words.get(ANSWERED), words.get(APPLIED)) == (0, 0)
    assert links.applier.receive() == []
    left = [(m.kind, m.payload) for m in links.server.receive()]
    end = [other] if other else [(GONE, b"")] if case == "gone" else []
    assert left == [(Frame.LONE, second[16:]), *end]
    with pytest.raises(DiskError):
        machine.apply(second[16:])
    (again,) = anew
    assert (again.applied_index, again.revision) == (1, 2)
    assert again.apply(second[16:]) == long.apply(second[16:])
    assert again.state_hash == long.state_hash
