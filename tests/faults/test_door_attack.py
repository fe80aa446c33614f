"""The client port of a whole node under attack: floods, silence, clients that stop reading.

What each frame of HTTP/2 may do stands in tests/unit/test_h2.py; here a running node must live
through it, keep its memory bounded and go on serving the client beside the attacker.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import h2.config
import h2.connection
import pytest

from kvnode._core.loadcore import encode_put_batches
from kvnode.loadgen import bulk
from kvnode.proto import rpc_pb2 as pb
from tests.support.bystander import MIB, ROUNDS, Target
from tests.support.node import Node

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")
PING = bytes.fromhex("0000080600000000000000000000000000")
KEYS = 4000
VALUE_BYTES = 16 << 10
SECONDS_MAX = 30


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    node = Node(tmp_path / "data")
    node.start()
    try:
        yield Target(node, grpc=True)
    finally:
        node.stop()
    node.fsck()


def connect(target: Target) -> socket.socket:
    return socket.create_connection(("127.0.0.1", target.client_port), timeout=SECONDS_MAX)


def ended(sock: socket.socket) -> bool:
    """Reads until the node ends the connection; False: it went on for SECONDS_MAX."""
    until = time.monotonic() + SECONDS_MAX
    try:
        while time.monotonic() < until:
            if not sock.recv(1 << 16):
                return True
    except OSError:
        return True
    return False


def client() -> h2.connection.H2Connection:
    return h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))


def headers(path: str) -> list[tuple[str, str]]:
    return [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", path),
            ("content-type", "application/grpc"), ("te", "trailers")]


def test_ten_thousand_resets(target: Target) -> None:
    http2 = client()
    http2.initiate_connection()
    with connect(target) as sock, contextlib.suppress(OSError):
        for number in range(10_000):
            stream = http2.get_next_available_stream_id()
            http2.send_headers(stream, headers("/etcdserverpb.KV/Put"))
            http2.reset_stream(stream)
            if number % 100 == 0:
                sock.sendall(http2.data_to_send())
        sock.sendall(http2.data_to_send())
        assert ended(sock)
    target.check("10,000 rapid resets")


@pytest.mark.parametrize(("name", "frame"), [
    ("PING", PING), ("SETTINGS", SETTINGS),
    ("empty DATA", bytes.fromhex("000000000000000001")),
    ("CONTINUATION", bytes.fromhex("000001090000000001") + b"\x84"),
])
def test_frame_floods(target: Target, name: str, frame: bytes) -> None:
    begin = PREFACE + SETTINGS
    if name == "CONTINUATION":
        begin += bytes.fromhex("000001010000000001") + b"\x82"
    with connect(target) as sock:
        sent = 0
        with contextlib.suppress(OSError):
            sock.sendall(begin)
            for _ in range(200):
                sock.sendall(frame * 500)
                sent += 500
        assert sent < 100_000 or ended(sock)
    target.check(f"a flood of {name} frames")


def test_thousand_idle_connections(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            sock = stack.enter_context(connect(target))
            if number % 2:
                sock.sendall(PREFACE + SETTINGS)
        target.check("1,000 idle connections", growth_max=60 * MIB)


def test_random_bytes_and_cut_streams(target: Target) -> None:
    rng = random.Random(11)
    for number in range(300):
        with connect(target) as sock, contextlib.suppress(OSError):
            body = rng.randbytes(rng.randrange(1, 2000))
            if number % 3 == 0:
                sock.sendall(body)
                continue
            http2 = client()
            http2.initiate_connection()
            stream = http2.get_next_available_stream_id()
            method = rng.choice(["KV/Put", "KV/Txn", "Watch/Watch", "KV/No"])
            http2.send_headers(stream, headers(f"/etcdserverpb.{method}"))
            http2.send_data(stream, b"\0" + struct.pack(">I", rng.choice([0, 5, 1 << 31]))
                            + body[:1000], end_stream=number % 3 == 1)
            sock.sendall(http2.data_to_send() + (body[:20] if number % 5 == 0 else b""))
    target.check("300 connections of random bytes and unfinished streams")


def nested(depth: int) -> bytes:
    """A Txn within a Txn within a Txn."""
    body = b""
    for _ in range(depth):
        op = b"\x22" + _size(len(body)) + body       # RequestOp.request_txn
        body = b"\x12" + _size(len(op)) + op         # TxnRequest.success
    return body


def _size(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes((number,))


def test_deeply_nested_transactions(target: Target) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{target.client_port}") as channel:
        txn = channel.unary_unary("/etcdserverpb.KV/Txn")
        txn(nested(20), timeout=SECONDS_MAX)
        for depth in (1000, 100_000):
            with pytest.raises(grpc.RpcError) as refused:
                txn(nested(depth), timeout=SECONDS_MAX)
            assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT,
                                            grpc.StatusCode.INTERNAL)
    target.check("transactions nested 100,000 deep")


def fill(target: Target) -> None:
    """64 MiB under big/."""
    records = b"".join(
        struct.pack("<II", 12, VALUE_BYTES) + b"big/%08d" % number + bytes(VALUE_BYTES)
        for number in range(KEYS)
    )
    bulk.feed(target.node.endpoint, encode_put_batches(records, 40))
    target.before = target.peak = 0
    target.before = target.look()


def test_clients_that_stop_reading_a_large_range(target: Target) -> None:
    """Thirty of them: 2 GB of answers that nobody takes."""
    fill(target)
    with contextlib.ExitStack() as stack:
        http2 = client()
        body = pb.RangeRequest(key=b"big/", range_end=b"big0").SerializeToString()
        for number in range(30):
            sock = stack.enter_context(connect(target))
            http2 = client()
            http2.initiate_connection()
            if number % 2:
                http2.increment_flow_control_window(1 << 30)
            stream = http2.get_next_available_stream_id()
            http2.send_headers(stream, headers("/etcdserverpb.KV/Range"))
            if number % 2:
                http2.increment_flow_control_window(1 << 30, stream)
            http2.send_data(stream, b"\0" + struct.pack(">I", len(body)) + body, end_stream=True)
            sock.sendall(http2.data_to_send())
        rounds = len(target.bystander.times)
        until = time.monotonic() + SECONDS_MAX
        while len(target.bystander.times) < rounds + ROUNDS and time.monotonic() < until:
            target.look()
            target.bystander.join(0.05)
        target.check("30 clients that stop reading a range of 64 MiB", growth_max=120 * MIB)


def test_watchers_that_stop_reading(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(connect(target))
            http2 = client()
            http2.initiate_connection()
            stream = http2.get_next_available_stream_id()
            http2.send_headers(stream, headers("/etcdserverpb.Watch/Watch"))
            body = pb.WatchRequest(create_request=pb.WatchCreateRequest(
                key=b"big/", range_end=b"big0", prev_kv=True)).SerializeToString()
            http2.send_data(stream, b"\0" + struct.pack(">I", len(body)) + body)
            sock.sendall(http2.data_to_send())
        fill(target)
        target.check("20 watchers that stop reading 64 MiB of events", growth_max=120 * MIB)


def test_silent_handshakes_beside_plain_clients(target: Target) -> None:
    """A TLS hello on a port without TLS, and half of a preface: neither holds up anybody."""
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(30)
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            with contextlib.ExitStack() as stack:
                for number in range(50):
                    sock = stack.enter_context(connect(target))
                    sock.sendall(PREFACE[: number % 24] if number % 2 else hello)

    attacker = threading.Thread(target=attack, daemon=True)
    attacker.start()
    try:
        target.check("silent handshakes")
    finally:
        stop.set()
        attacker.join(SECONDS_MAX)
