"""Both links: whole frames in order, large ones, many at once, and the news of a dead peer."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from kvnode.env.link import GONE, KINDS, Endpoint, Message, Peer


def wait(endpoint: Endpoint, done: Callable[[list[Message]], bool]) -> list[Message]:
    """Receives until `done` says so; fails after ten seconds."""
    got: list[Message] = []
    for _ in range(2000):
        got += endpoint.receive()
        if done(got):
            return got
        if not endpoint.pending():
            select.select([endpoint.fileno()], [], [], 0.005)
    raise AssertionError(f"only {[(m.kind, len(m.payload)) for m in got]}")


@pytest.fixture(params=sorted(KINDS))
def pair(request, tmp_path):  # type: ignore[no-untyped-def]
    """(listener, its peer, connector, its peer), connected."""
    kind = KINDS[request.param]
    path = str(tmp_path / "s")
    assert kind.connect(path) is None
    server = kind.listen(path)
    made = kind.connect(path)
    assert made is not None
    client, to_server = made
    client.send(to_server, 1, b"hello")
    hello = wait(server, lambda got: len(got) == 1)[0]
    assert hello.kind == 1 and hello.payload == b"hello"
    yield server, hello.peer, client, to_server
    client.close()
    server.close()


def test_frames_arrive_whole_and_in_order(pair) -> None:  # type: ignore[no-untyped-def]
    server, to_client, client, to_server = pair
    sizes = [0, 1, 7, 4096, 4097, 262_144, 262_145, 3_000_000, 5]
    for number, size in enumerate(sizes):
        client.send(to_server, 10 + number, bytes([number]) * size)
    total = 0
    got: list[Message] = []

    def done(news: list[Message]) -> bool:
        client.receive()  # lets a full socket go on
        return len(news) >= len(sizes)

    got = wait(server, done)
    assert [m.kind for m in got] == [10 + n for n in range(len(sizes))]
    for number, (message, size) in enumerate(zip(got, sizes, strict=True)):
        assert message.payload == bytes([number]) * size
        total += len(message.payload)
    server.send(to_client, 5, b"a", b"", memoryview(b"bc"))
    assert wait(client, lambda got: bool(got))[0].payload == b"abc"
    assert total == sum(sizes)


def test_many_small_frames(pair) -> None:  # type: ignore[no-untyped-def]
    server, _, client, to_server = pair
    count = 20_000
    for number in range(count):
        client.send(to_server, 3, number.to_bytes(4, "little") * 5)

    def done(got: list[Message]) -> bool:
        client.receive()
        return len(got) >= count

    got = wait(server, done)
    assert [int.from_bytes(m.payload[:4], "little") for m in got] == list(range(count))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_death_of_a_peer_is_told_once(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = str(tmp_path / "s")
    server = KINDS[kind].listen(path)
    code = (
        "import sys, select\n"
        "from kvnode.env.link import KINDS\n"
        f"e, p = KINDS[{kind!r}].connect({path!r})\n"
        "e.send(p, 1, b'hi')\n"
        "while True:\n"
        "    e.receive(); select.select([e.fileno()], [], [], 1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        peer: Peer = wait(server, lambda got: bool(got))[0].peer
        server.send(peer, 2, b"still there")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        got = wait(server, lambda got: any(m.kind == GONE for m in got))
        assert [m.peer for m in got if m.kind == GONE] == [peer]
        server.send(peer, 2, b"to nobody")
        assert not [m for m in server.receive() if m.kind == GONE]
    finally:
        process.kill()
        process.wait()
        server.close()


@pytest.mark.parametrize("kind", ["unix"])
def test_garbage_ends_the_peer(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import socket

    path = str(tmp_path / "s")
    server = KINDS[kind].listen(path)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.send(b"\xff" * 64)
    assert wait(server, lambda got: bool(got))[0].kind == GONE
    sock.close()
    server.close()
