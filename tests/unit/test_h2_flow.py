"""Flow control, fairness, keep-alive, Python's calls and any bytes, over Http2 without a socket."""

from __future__ import annotations

import base64
import os
import random
import struct

import h2.events
import pytest

from tests.fuzz.fuzz_h2 import fuzz, mutate, session
from tests.support.h2client import SECOND, SETTINGS_FRAME, Answer, Pair, Server, message


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def pair(server: Server) -> Pair:
    return Pair(server.http2)


# --- flow control and fairness --------------------------------------------------------------------


def test_long_message_waits_for_the_window(server: Server) -> None:
    pair = Pair(server.http2, ack_data=False)
    stream = pair.open("/t.T/Long")
    pair.client.send_data(stream, message(b"5000000"), end_stream=True)
    pair.run()
    assert len(pair.answers[stream].data) == 65535
    assert server.http2.out_bytes <= 600_000
    for _ in range(200):
        if pair.answers[stream].ended:
            break
        for unit in (None, stream):
            pair.client.increment_flow_control_window(60_000, unit)
        pair.run()
        assert server.http2.out_bytes <= 600_000
    answer = pair.answers[stream]
    assert [len(m) for m in answer.messages] == [5_000_000]
    assert answer.status == 0
    assert "room" in server.upcalls()


def test_transport_that_takes_nothing(server: Server) -> None:
    pair = Pair(server.http2, window=1 << 30)
    pair.client.increment_flow_control_window(1 << 30)
    pair.run()
    stream = pair.open("/t.T/Long")
    pair.client.send_data(stream, message(b"20000000"), end_stream=True)
    server.http2.pause_writing(pair.number)
    pair.give(pair.client.data_to_send())
    before = pair.transport.total
    for _ in range(20):
        server.http2.flush()
    assert pair.transport.total == before
    assert server.http2.out_bytes <= 700_000
    server.http2.resume_writing(pair.number)
    pair.run()
    assert [len(m) for m in pair.answers[stream].messages] == [20_000_000]


def test_a_flush_writes_a_bounded_part(server: Server) -> None:
    pair = Pair(server.http2, window=1 << 30)
    pair.client.increment_flow_control_window(1 << 30)
    pair.run()
    stream = pair.open("/t.T/Long")
    pair.client.send_data(stream, message(b"50000000"), end_stream=True)
    pair.give(pair.client.data_to_send())
    while True:
        before = pair.transport.total
        server.http2.flush()
        wrote = pair.transport.total - before
        assert wrote <= 300_000
        if wrote == 0:
            break


def test_small_streams_beside_a_long_one(server: Server) -> None:
    """Behind a stream that always has data, a small answer waits for one write."""
    pair = Pair(server.http2, window=1 << 30)
    pair.client.increment_flow_control_window(1 << 30)
    chat = pair.open("/t.T/Chat")
    pair.run()
    long = pair.open("/t.T/Long")
    pair.client.send_data(long, message(b"200000000"), end_stream=True)
    pair.give(pair.client.data_to_send())
    for _ in range(10):
        server.http2.flush()
    waits = []
    for turn in range(20):
        pair.on_bytes(pair.take())
        pair.client.send_data(chat, message(b"%d" % turn))
        pair.give(pair.client.data_to_send())
        before = len(pair.answers[long].data)
        while len(pair.answers[chat].messages) == turn:
            server.http2.flush()
            pair.on_bytes(pair.take())
        waits.append(len(pair.answers[long].data) - before)
    assert max(waits) <= 600_000
    assert len(pair.answers[long].data) > 1_000_000


def test_many_answers_that_nobody_takes(server: Server) -> None:
    """Above its bound a connection's new calls are refused; others are served."""
    pair = Pair(server.http2, ack_data=False)
    body = message(b"z" * 1_000_000)
    refused = None
    for _ in range(100):
        answer = pair.call("/t.T/Echo", body)
        if answer.status == 8:
            refused = answer
            break
    assert refused is not None and refused.text == "etcdserver: too many requests"
    assert 64 << 20 < server.http2.out_bytes < 70 << 20
    assert Pair(server.http2).call("/t.T/Echo", message(b"x")).messages == [b"x"]
    server.http2.lost(pair.number)
    assert server.http2.out_bytes == 0


def test_many_messages_that_never_end(server: Server, pair: Pair) -> None:
    body = message(b"z" * 1_500_000)[:-1]
    streams = []
    for _ in range(60):
        stream = pair.open("/t.T/Echo")
        streams.append(stream)
        for at in range(0, len(body), 16384):
            pair.run()
            if pair.answers[stream].ended:
                break
            pair.client.send_data(stream, body[at : at + 16384])
        assert server.http2.in_bytes <= 66 << 20
    assert pair.answers[streams[-1]].status == 8
    assert Pair(server.http2).call("/t.T/Echo", message(b"x")).messages == [b"x"]
    server.http2.lost(pair.number)
    assert server.http2.in_bytes == 0


def test_room_is_small_while_a_connection_has_much(server: Server) -> None:
    pair = Pair(server.http2, ack_data=False, window=0)
    streams = []
    for _ in range(200):
        stream = pair.open("/t.T/Flood")
        pair.client.send_data(stream, message(b"100000"), end_stream=True)
        streams.append(stream)
    pair.run()
    assert server.http2.out_bytes < 20 << 20


def test_streams_that_starved_go_on() -> None:
    server = Server()
    pair = Pair(server.http2, window=100_000)
    pair.client.increment_flow_control_window(1 << 28)
    streams = []
    for _ in range(120):
        stream = pair.open("/t.T/Flood")
        pair.client.send_data(stream, message(b"1000"), end_stream=True)
        streams.append(stream)
    pair.run(100_000)
    for stream in streams:
        assert len(pair.answers[stream].messages) == 1000
        assert pair.answers[stream].status == 0


def test_stream_that_had_no_room_at_all(server: Server) -> None:
    """It has sent nothing itself, so nothing of its own makes room for it."""
    pair = Pair(server.http2, ack_data=False)
    streams = []
    for _ in range(35):
        stream = pair.open("/t.T/Echo")
        pair.send(stream, message(b"z" * 1_000_000), end=True)
        pair.run()
        streams.append(stream)
    assert server.http2.out_bytes > 32 << 20
    late = pair.open("/t.T/Flood")
    pair.client.send_data(late, message(b"1000"), end_stream=True)
    pair.run()
    assert pair.answers[late].messages == []
    pair.client.increment_flow_control_window(1 << 30)
    for stream in [*streams, late]:
        pair.client.increment_flow_control_window(2 << 20, stream)
    pair.run()
    assert all(len(pair.answers[stream].data) == 1_000_005 for stream in streams)
    assert len(pair.answers[late].messages) == 1000 and pair.answers[late].status == 0


def test_hold(server: Server, pair: Pair) -> None:
    server.http2.hold(True)
    assert not pair.transport.reading
    assert not Pair(server.http2).transport.reading
    server.http2.hold(False)
    assert pair.transport.reading


# --- keep-alive -----------------------------------------------------------------------------------


def test_server_pings_silent_connections() -> None:
    server = Server(ping_interval_us=60 * SECOND, ping_timeout_us=20 * SECOND)
    pair, dead = Pair(server.http2), Pair(server.http2)
    server.later(61 * SECOND)
    assert any(len(d) >= 17 for d in dead.transport.written)
    pair.run()
    assert any(isinstance(e, h2.events.PingReceived) for e in pair.events)
    server.later(25 * SECOND)
    assert dead.transport.closed and not pair.transport.closed


@pytest.mark.skipif("KVNODE_SANITIZE" in os.environ, reason="a sanitizer takes memory of its own")
def test_idle_connections_are_cheap(server: Server) -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    class Nothing:
        def write(self, data: bytes) -> None: ...
        def close(self) -> None: ...

    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS_FRAME
    before = resident()
    for _ in range(2000):
        server.http2.received(server.http2.connection_made(Nothing()), preface)
    server.http2.flush()
    assert (resident() - before) / 2000 < 24_000


# --- Python's calls -------------------------------------------------------------------------------


def test_python_handler(server: Server, pair: Pair) -> None:
    seen = {}

    def handler(call) -> None:  # type: ignore[no-untyped-def]
        seen.update(call.metadata)
        call.on_message = lambda data: (call.send(data * 2), call.finish(0))

    server.http2.route_python("/t.T/Py", handler)
    raw = base64.b64encode(b"\0\xff").decode().rstrip("=")
    answer = pair.call("/t.T/Py", message(b"ab"), ("token", "t"), ("blob-bin", raw))
    assert answer.messages == [b"abab"]
    assert seen["token"] == "t" and seen["blob-bin"] == b"\0\xff"
    assert "te" not in seen and ":path" not in seen


def test_python_handler_that_fails(server: Server, pair: Pair) -> None:
    def handler(call) -> None:  # type: ignore[no-untyped-def]
        call.on_message = lambda data: 1 / 0

    server.http2.route_python("/t.T/Py", handler)
    answer = pair.call("/t.T/Py", message(b"ab"))
    assert answer.status == 13 and "internal error" in answer.text


def test_python_stream(server: Server, pair: Pair) -> None:
    gone = []

    def handler(call) -> None:  # type: ignore[no-untyped-def]
        call.on_message = call.send
        call.on_half_close = lambda: call.finish(0)
        call.on_gone = lambda: gone.append(call.path)

    server.http2.route_python("/t.T/Py", handler, client_streams=True, server_streams=True)
    stream = pair.open("/t.T/Py")
    pair.send(stream, message(b"1") + message(b"2"))
    pair.run()
    assert pair.answers[stream].messages == [b"1", b"2"] and not gone
    pair.client.reset_stream(stream)
    pair.run()
    assert gone == ["/t.T/Py"]


class Local:
    """A local call and what came of it."""

    def __init__(self, server: Server, path: str, **more: object) -> None:
        self.messages: list[bytes] = []
        self.ends: list[tuple[int, str]] = []
        self.call = server.http2.open_local(
            path, self.messages.append, lambda *end: self.ends.append(end), **more
        )


def test_local_unary(server: Server) -> None:
    local = Local(server, "/t.T/Echo")
    local.call.send(b"hello")
    assert local.messages == []
    local.call.half_close()
    server.http2.flush()
    assert (local.messages, local.ends) == ([b"hello"], [(0, "")])
    server.http2.flush()
    assert local.ends == [(0, "")] and server.http2.open_streams == 0


def test_local_unknown(server: Server) -> None:
    local = Local(server, "/t.T/Nope")
    server.http2.flush()
    assert local.ends == [(12, "unknown method Nope for service t.T")]


def test_local_pause(server: Server) -> None:
    local = Local(server, "/t.T/Flood")
    local.call.pause()
    local.call.send(b"5000")
    local.call.half_close()
    for _ in range(10):
        server.http2.flush()
    assert local.messages == [] and server.http2.out_bytes <= 530_000
    local.call.resume()
    for _ in range(100):
        server.http2.flush()
    assert len(local.messages) == 5000 and local.ends == [(0, "")]


def test_local_cancel(server: Server) -> None:
    local = Local(server, "/t.T/Chat")
    local.call.send(b"1")
    server.http2.flush()
    local.call.cancel()
    server.http2.flush()
    assert (local.messages, local.ends) == ([b"1"], [])
    assert server.upcalls() == ["open", "message", "gone"]
    assert server.http2.open_streams == 0


def test_local_cancel_within_a_message(server: Server) -> None:
    calls = []
    call = server.http2.open_local(
        "/t.T/Flood", lambda data: (calls.append(data), call.cancel()), calls.append
    )
    call.send(b"5000")
    call.half_close()
    server.http2.flush()
    assert len(calls) == 1 and server.http2.open_streams == 0 and server.http2.out_bytes == 0


def test_local_long_message(server: Server) -> None:
    local = Local(server, "/t.T/Long")
    local.call.send(b"3000000")
    local.call.half_close()
    for _ in range(100):
        server.http2.flush()
    assert [len(m) for m in local.messages] == [3_000_000] and local.ends == [(0, "")]


def test_counters(server: Server, pair: Pair) -> None:
    pair.call("/t.T/Echo", message(b"abc"))
    stream = pair.open("/t.T/Chat", grpc_timeout="1S")
    pair.run()
    server.later(2 * SECOND)
    pair.run()
    assert pair.answers[stream].status == 4
    counters = server.http2.counters()
    echo = counters["/t.T/Echo"]
    assert echo["type"] == "unary"
    assert (echo["started"], echo["received"], echo["sent"]) == (1, 1, 1)
    assert (echo["received_bytes"], echo["sent_bytes"]) == (3, 3)
    assert echo["handled"]["OK"] == 1 and sum(echo["seconds"]) == 1
    chat = counters["/t.T/Chat"]
    assert chat["type"] == "bidi_stream" and chat["handled"]["DeadlineExceeded"] == 1
    assert chat["seconds"][7] == 1 and 1.0 <= chat["seconds_sum"] < 1.2


def test_answer_reader_reads_half_messages() -> None:
    """The helper of these tests: an incomplete message is none."""
    assert Answer(data=bytearray(message(b"ab") + message(b"cd")[:-1])).messages == [b"ab"]


# --- any bytes ------------------------------------------------------------------------------------


def test_fuzz_mutated_sessions() -> None:
    valid = session()
    fuzz(valid)
    fuzz(valid, 1)
    for seed in range(300):
        source = random.Random(seed)
        fuzz(mutate(valid, source), source.choice((0, 0, 7, 1000)))


def test_fuzz_random_bytes() -> None:
    head = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS_FRAME
    for seed in range(200):
        source = random.Random(seed)
        noise = source.randbytes(source.randrange(1, 2000))
        fuzz(noise)
        fuzz(head + noise)
        frames = b""
        for _ in range(40):
            n = source.randrange(64)
            kind, flags = source.randrange(11), source.choice((0, 1, 4, 5, 8, 0x20, 0x25))
            frames += struct.pack(
                ">BHBBI", 0, n, kind, flags, source.choice((0, 0, 1, 1, 3, 5))
            ) + source.randbytes(n)
        fuzz(head + frames)
