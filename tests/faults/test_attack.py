"""The native port under attack: the gateway lives, its memory is bounded, others are served."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.base.codes import Kind
from kvnode.client import Client
from kvnode.client.messages import put_request, range_request
from kvnode.wire import native
from kvnode.wire.native import Opcode
from tests.faults.zmtp import MORE, Raw, frame
from tests.support.bystander import MIB, Target
from tests.support.node import Node


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    node = Node(tmp_path / "data")
    node.start()
    try:
        yield Target(node)
    finally:
        node.stop()
    node.fsck()


def requests(*items: bytes, count: int | None = None, session: int = 0) -> bytes:
    """A REQUESTS message of items as they are."""
    head = b"KVN1" + bytes((Opcode.REQUESTS, 0, 0, 0))
    head += struct.pack("<IIQQ", len(items) if count is None else count, 0, session, 0)
    return head + b"".join(items)


def item(
    body: bytes, kind: int = Kind.PUT, flags: int = 0, size: int | None = None, zero: int = 0
) -> bytes:
    length = len(body) if size is None else size
    return struct.pack("<IIBBHIQ", 7, length, kind, flags, zero, 0, 0) + body


def header(magic: bytes = b"KVN1", opcode: int = 3, flags: int = 0, zero: int = 0) -> bytes:
    return magic + bytes((opcode, flags)) + struct.pack("<HIIQQ", zero, 0, 0, 0, 0)


PUT = put_request(b"k", b"v")
MALFORMED = {
    "empty message": b"",
    "cut header": header()[:31],
    "wrong magic": header(magic=b"KVN2"),
    "unknown opcode": header(opcode=99),
    "gateway's opcode": header(opcode=Opcode.ANSWERS),
    "unknown header flags": header(flags=1),
    "header zero not zero": header(zero=1),
    "item cut": requests(item(PUT)[:20]),
    "body cut": requests(item(PUT, size=len(PUT) + 1)),
    "length lies": requests(item(PUT, size=0xFFFFFFFF)),
    "count lies": requests(item(PUT), count=0xFFFFFFFF),
    "count too small": requests(item(PUT), item(PUT), count=1),
    "item flags": requests(item(PUT, flags=1)),
    "item zero not zero": requests(item(PUT, zero=1)),
    "another's session": requests(item(PUT), session=12345),
}


def test_malformed_messages_end_the_connection(target: Target) -> None:
    for what, body in MALFORMED.items():
        with Raw(target.port) as raw:
            raw.greet()
            raw.message(body)
            assert raw.ended(), what
    with Raw(target.port) as raw:
        raw.message(requests(item(PUT)))
        assert "HELLO" in raw.ended()
    for body in (b"\xff" * 40, b"\x08\x02\x10\x02"):
        with Raw(target.port) as raw:
            raw.message(header(opcode=Opcode.HELLO) + body)
            assert raw.ended(), body
    target.check(f"{len(MALFORMED) + 3} kinds of malformed messages")


def test_bad_requests_are_refused(target: Target) -> None:
    """Bodies that are no messages of their kind: a refusal each, the connection stays."""
    bodies = [
        (Kind.PUT, b"\xff\xff"), (Kind.RANGE, b"\x0a\x7f"), (Kind.TXN, b"\x0a\x80\x80"),
        (99, b""), (Kind.PUT, b""), (Kind.SESSION_OPEN, b""), (Kind.STATUS, b"\xff"),
    ]  # fmt: skip
    with Raw(target.port) as raw:
        raw.greet()
        for kind, body in bodies[:5]:
            raw.message(requests(item(body, kind=kind)))
            answer = raw.read_frame()
            code = next(native.decode_answers(answer, 1).__iter__())[1]
            assert code, (kind, body)
    target.check("bodies that are no messages")


def test_random_bytes(target: Target) -> None:
    rng = random.Random(1)
    for number in range(300):
        raw = Raw(target.port, handshake=bool(number % 2))
        try:
            if number % 4 == 1:
                raw.message(rng.randbytes(rng.randint(0, 2000)))
            elif number % 4 == 3:
                raw.greet()
                mutated = bytearray(requests(item(PUT), item(PUT)))
                for _ in range(rng.randint(1, 4)):
                    mutated[rng.randrange(len(mutated))] = rng.randrange(256)
                raw.message(bytes(mutated))
            else:
                raw.send(rng.randbytes(rng.randint(1, 3000)))
        except OSError:
            pass
        raw.close()
    target.check("300 connections of random bytes")


def test_cut_and_huge_frames(target: Target) -> None:
    open_ones = []
    for number in range(50):
        raw = Raw(target.port)
        raw.greet()
        raw.send(frame(requests(item(put_request(b"k", b"v" * 5000))))[: 100 + number])
        open_ones.append(raw)
    for size in (1 << 27, 1 << 40, (1 << 63) - 1):
        raw = Raw(target.port)
        raw.greet()
        raw.send(b"\x02" + size.to_bytes(8, "big") + b"x" * 100)
        open_ones.append(raw)
    assert all(raw.ended() == "closed" for raw in open_ones[-3:])
    for raw in open_ones:
        raw.close()
    target.check("cut frames, frames of 2^27 to 2^63 bytes")


def test_endless_multipart(target: Target) -> None:
    """libzmq keeps the parts of an unfinished message: the connection must be ended."""
    limit = 200 * MIB
    part = frame(bytes(MIB), MORE)
    with Raw(target.port) as raw:
        raw.greet()
        raw.sock.settimeout(1)
        sent = 0
        try:
            while sent < 2000 * MIB:
                raw.send(part)
                sent += MIB
                if sent % (16 * MIB) == 0:
                    target.look()
        except OSError:
            pass
    assert sent < 2000 * MIB, "the connection was not ended"
    until = time.monotonic() + 10
    while target.look() > 40 * MIB and time.monotonic() < until:
        time.sleep(0.05)
    print(f"\nendless message: ended after {sent >> 20} MiB, {target.look() >> 20} MiB left held")
    assert target.look() < 40 * MIB
    target.check("an endless multipart message", limit)


def test_silent_connections(target: Target) -> None:
    """300 that say nothing, or greet and say nothing: others connect and are served."""
    silent = [Raw(target.port, handshake=number % 2 == 0) for number in range(300)]
    for raw in silent[:20:2]:
        raw.message(b"")
    with Client(target.node.endpoint) as client:
        client.put(b"new", b"client")
    target.look()
    for raw in silent:
        raw.close()
    target.check("300 silent connections")


def unread(target: Target, body: bytes, kind: int, most: int) -> int:
    """Sends the request again and again without ever reading; bytes sent until it was ended."""
    raw = Raw(target.port, timeout=1.0)
    raw.greet()
    message = frame(requests(*[item(body, kind=kind)] * 50))
    sent = 0
    try:
        for number in range(most // len(message)):
            raw.send(message)
            sent += len(message)
            if number % 8 == 0 and target.look() > 2048 * MIB:
                break
    except OSError:
        pass
    target.look()
    raw.close()
    return sent


def test_clients_that_never_read(target: Target) -> None:
    """Answers of 1 MiB nobody takes: bounded, however many are asked for."""
    with Client(target.node.endpoint) as client:
        client.put(b"large", bytes(MIB))
    sent = unread(target, range_request(b"large"), Kind.RANGE, 2 * MIB)
    print(f"\nsent {sent} bytes of requests for 1 MiB each")
    target.check("a client that never reads its answers", 400 * MIB)
