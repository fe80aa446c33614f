"""Fuzz target: any bytes of a client are served or end the connection; memory stays bounded."""

from __future__ import annotations

import random

from kvnode._core.echocalls import CHAT, ECHO, EchoMethods
from kvnode._core.h2 import Http2
from tests.support.h2client import Pair, Transport, message

BYTES_MAX = 40 << 20


def new_server() -> Http2:
    """An Http2 whose clock stands still."""
    server = Http2(max_message_bytes=1 << 20, header_bytes_max=16384)
    server.set_clock(1_000_000_000)
    methods = EchoMethods(server)
    server.route(b"/t.T/Echo", methods, ECHO)
    server.route(b"/t.T/Chat", methods, CHAT, True, True)

    def counted(send: bytes, times: int):  # type: ignore[no-untyped-def]
        def handler(call) -> None:  # type: ignore[no-untyped-def]
            left = [times]

            def go() -> None:
                while left[0] and call.room() > 0:
                    call.send(send)
                    left[0] -= 1
                if not left[0]:
                    call.finish()

            call.on_message = lambda data: go()
            call.on_room = go

        return handler

    server.route_python("/t.T/Long", counted(b"x" * 100_000, 30), server_streams=True)
    server.route_python("/t.T/Flood", counted(b"y" * 100, 3000), server_streams=True)
    return server


def session() -> bytes:
    """What a client sends that does a little of everything."""
    sent = bytearray()
    pair = Pair(new_server(), window=1 << 20)
    give = pair.give

    def keep(data: bytes) -> None:
        sent.extend(data)
        give(data)

    pair.give = keep  # type: ignore[method-assign]
    sent += b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
    for path in ("/t.T/Echo", "/t.T/Long", "/t.T/Flood", "/t.T/Nope"):
        pair.call(path, message(b"123"), ("token", "abc"), grpc_timeout="5S")
    stream = pair.open("/t.T/Chat", ("hasleader", "true"))
    for n in range(5):
        pair.send(stream, message(b"m" * n * 100))
    pair.client.ping(b"12345678")
    gone = pair.open("/t.T/Chat")
    pair.client.reset_stream(gone)
    pair.client.increment_flow_control_window(1000)
    pair.client.end_stream(stream)
    pair.run()
    return bytes(sent)


def fuzz(data: bytes, chunk: int = 0) -> None:
    """Gives the bytes to a new connection, whole or in pieces."""
    server = new_server()
    transport = Transport()
    number = server.connection_made(transport)
    step = chunk or len(data) or 1
    for at in range(0, len(data), step):
        server.received(number, data[at : at + step])
        server.flush()
        transport.written.clear()
        assert server.in_bytes + server.out_bytes < BYTES_MAX
        if transport.closed:
            break
    if not transport.closed:
        for _ in range(50):
            server.flush()
    server.lost(number)
    server.flush()
    assert server.open_streams == server.in_bytes == server.out_bytes == 0


def mutate(data: bytes, source: random.Random) -> bytes:
    """Some bytes changed, taken out, doubled or moved."""
    out = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 5, 20))):
        at = source.randrange(24 if source.random() < 0.9 else 0, len(out))
        kind = source.randrange(5)
        if kind == 0:
            out[at] = source.randrange(256)
        elif kind == 1:
            out[at] ^= 1 << source.randrange(8)
        elif kind == 2:
            del out[at : at + source.choice((1, 4, 9, 100))]
        elif kind == 3:
            n = source.choice((1, 9, 17, 300))
            out[at:at] = out[at : at + n]
        else:
            other = source.randrange(len(out))
            out[at : at + 9] = out[other : other + 9]
        if len(out) < 30:
            break
    return bytes(out)
