"""The sockets between members: who is heard, who is refused, what is dropped."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Iterator

import pytest
import zmq

from kvnode.base.errors import ConfigError, DecodeError
from kvnode.env.peernet import Incoming, PeerNet
from kvnode.wire.peers import (
    Chunk,
    ChunkAck,
    ChunkState,
    Header,
    PeerFrame,
    decode_ack,
    decode_chunk,
    decode_header,
)
from tests.support.process import free_ports

CLUSTER = 7
SECONDS_MAX = 10.0


def wait(net: PeerNet, count: int = 1) -> list[Incoming]:
    """Receives until `count` frames are there."""
    got: list[Incoming] = []
    end = time.monotonic() + SECONDS_MAX
    while len(got) < count:
        assert time.monotonic() < end, got
        if not net.pending():
            select.select([net], [], [], 0.05)
        got += net.receive()
    return got


def send(net: PeerNet, member: int, payload: bytes, urgent: bool = False) -> None:
    """Sends once the peer is connected."""
    end = time.monotonic() + SECONDS_MAX
    while not net.send(member, PeerFrame.MESSAGE, payload, urgent):
        assert time.monotonic() < end
        select.select([net], [], [], 0.01)


@pytest.fixture
def pair() -> Iterator[tuple[PeerNet, PeerNet, dict[int, list[str]]]]:
    ports = free_ports(2)
    urls = {1: [f"http://127.0.0.1:{ports[0]}"], 2: [f"http://127.0.0.1:{ports[1]}"]}
    nets = [PeerNet(CLUSTER, member, 10 + member, urls[member]) for member in (1, 2)]
    for net in nets:
        net.set_members(urls)
    yield nets[0], nets[1], urls
    for net in nets:
        net.close()


def test_frames_arrive_with_their_sender(pair: tuple[PeerNet, PeerNet, object]) -> None:
    one, two, _ = pair
    send(one, 2, b"bulk" * 100_000)
    send(one, 2, b"urgent", urgent=True)
    got = wait(two, 2)
    assert {(g.sender, g.kind, g.payload) for g in got} == {
        (1, PeerFrame.MESSAGE, b"bulk" * 100_000), (1, PeerFrame.MESSAGE, b"urgent")}
    send(two, 1, b"back")
    assert wait(one)[0].payload == b"back"


def test_nothing_waits_for_a_peer_that_is_gone(pair: tuple[PeerNet, PeerNet, object]) -> None:
    one, two, _ = pair
    send(one, 2, b"x")
    wait(two)
    two.close()
    before = one.dropped
    end = time.monotonic() + SECONDS_MAX
    while one.send(2, PeerFrame.MESSAGE, b"y" * 1000):
        assert time.monotonic() < end
        select.select([one], [], [], 0.005)
    assert one.dropped == before + 1
    assert not one.send(3, PeerFrame.MESSAGE, b"")


def test_queues_are_bounded() -> None:
    """A peer that is connected and reads nothing: frames are dropped, not kept."""
    listener: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    listener.setsockopt(zmq.RCVHWM, 1)
    port = listener.bind_to_random_port("tcp://127.0.0.1")
    [own] = free_ports(1)
    net = PeerNet(CLUSTER, 1, 1, [f"http://127.0.0.1:{own}"])
    net.set_members({2: [f"http://127.0.0.1:{port}"]})
    send(net, 2, b"first")
    before = net.dropped
    sent = 0
    while net.send(2, PeerFrame.MESSAGE, bytes(1 << 20)):
        sent += 1
        assert sent < 2000
    assert net.dropped == before + 1
    net.close()
    listener.close(0)


@pytest.mark.parametrize(("cluster", "meant", "words"), [
    (CLUSTER + 1, 2, "is not this member's cluster 7"),
    (CLUSTER, 3, "a frame for member 3 came to member 2"),
])
def test_a_wrong_peer_is_refused_and_named(
    pair: tuple[PeerNet, PeerNet, dict[int, list[str]]], cluster: int, meant: int, words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, two, urls = pair
    [port] = free_ports(1)
    wrong = PeerNet(cluster, 9, 1, [f"http://127.0.0.1:{port}"])
    wrong.set_members({meant: urls[2]})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            send(wrong, meant, b"x")
        end = time.monotonic() + SECONDS_MAX
        while not any("refuses this one" in m for m in caplog.messages):
            assert time.monotonic() < end
            select.select([two, wrong], [], [], 0.05)
            assert two.receive() == [] and wrong.receive() == []
    assert sum(words in m and "member 9 is refused" in m for m in caplog.messages) == 1
    assert sum(words in m and "refuses this one" in m for m in caplog.messages) == 1
    wrong.close()


def test_garbage_reaches_nobody(pair: tuple[PeerNet, PeerNet, dict[int, list[str]]]) -> None:
    one, two, urls = pair
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    sock.connect(urls[2][0].replace("http", "tcp"))
    header = Header(PeerFrame.MESSAGE, CLUSTER, 1, 2, 0).encode()
    for parts in ([b""], [b"x" * 40, b""], [header], [header, b"", b""],
                  [header[:4] + b"\2" + header[5:], b""], [header[:-1], b""]):
        sock.send_multipart(parts)
    sock.send_multipart([header, b"good"])
    assert [g.payload for g in wait(two)] == [b"good"]
    sock.close(0)
    del one


def test_a_busy_port_is_an_error(pair: tuple[PeerNet, PeerNet, dict[int, list[str]]]) -> None:
    with pytest.raises(ConfigError, match="can't listen on"):
        PeerNet(CLUSTER, 3, 1, pair[2][1])


def test_whoever_asks_for_the_cluster_is_answered(
    pair: tuple[PeerNet, PeerNet, dict[int, list[str]]],
) -> None:
    _, two, urls = pair
    [port] = free_ports(1)
    joiner = PeerNet(0, 0, 5, [f"http://127.0.0.1:{port}"])
    joiner.set_members({2: urls[2]})
    end = time.monotonic() + SECONDS_MAX
    while not joiner.send(2, PeerFrame.ASK_CLUSTER, b""):
        assert time.monotonic() < end
        select.select([joiner], [], [], 0.01)
    asked = wait(two)[0]
    assert (asked.sender, asked.kind) == (0, PeerFrame.ASK_CLUSTER)
    two.answer(asked, PeerFrame.CLUSTER, b"members")
    assert wait(joiner)[0][:3] == (2, PeerFrame.CLUSTER, b"members")
    joiner.close()


def test_layouts() -> None:
    header = Header(PeerFrame.CHUNK, 1, 2, 3, 4)
    assert header.encode().hex() == "4b56503101050000" + "".join(
        f"{n:02x}" + "00" * 7 for n in (1, 2, 3, 4))
    assert decode_header(header.encode()) == header
    chunk = Chunk(1, 2, 7, 9, 3, 5, b"sixbyt")
    assert decode_chunk(chunk.encode()) == chunk
    ack = ChunkAck(1, 2, 7, 3, ChunkState.UNWANTED)
    assert decode_ack(ack.encode()) == ack
    for broken in (chunk._replace(offset=4).encode(), b"", bytes(35)):
        with pytest.raises(DecodeError):
            decode_chunk(broken)
    for broken in (b"", ack.encode()[:-1] + b"\x09", ack.encode() + b"\0"):
        with pytest.raises(DecodeError):
            decode_ack(broken)
