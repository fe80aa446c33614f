"""gRPC over HTTP/2 against an independent HTTP/2 implementation; no socket, no clock."""

from __future__ import annotations

import base64
import gzip
import os
import random
import struct

import h2.errors
import h2.events
import h2.exceptions
import pytest

from kvnode._core.echocalls import CHAT, ECHO, FLOOD, LONG, SHARED, EchoMethods
from kvnode._core.h2 import Http2
from tests.fuzz.fuzz_h2 import fuzz, mutate, session
from tests.support.h2client import Answer, Pair, message

START = 1_000_000_000
SECOND = 1_000_000


class Server:
    """An Http2 whose methods echo, and what they noted."""

    def __init__(self, **options: int) -> None:
        self.http2 = Http2(**options)
        self.http2.set_clock(START)
        self.now = START
        self.log: list[tuple[str, int, int]] = []
        methods = EchoMethods(self.http2, self.log)
        self.http2.route(b"/t.T/Echo", methods, ECHO)
        self.http2.route(b"/t.T/Chat", methods, CHAT, True, True)
        self.http2.route(b"/t.T/Long", methods, LONG, False, True)
        self.http2.route(b"/t.T/Flood", methods, FLOOD, False, True)
        self.http2.route(b"/t.T/Shared", methods, SHARED, True, True)

    def later(self, us: int) -> None:
        """Time passes, in ticks as the door's."""
        end = self.now + us
        while self.now < end:
            self.now = min(end, self.now + max(10_000, us // 50))
            self.http2.set_clock(self.now)
            self.http2.tick()
        self.http2.flush()

    def upcalls(self) -> list[str]:
        return [what for what, _, _ in self.log]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def pair(server: Server) -> Pair:
    return Pair(server.http2)


# --- calls ----------------------------------------------------------------------------------------


def test_unary(server: Server, pair: Pair) -> None:
    answer = pair.call("/t.T/Echo", message(b"hello"))
    assert answer.headers == {":status": "200", "content-type": "application/grpc"}
    assert answer.messages == [b"hello"]
    assert answer.trailers == {"grpc-status": "0"}
    assert answer.ended and answer.reset is None
    assert server.upcalls() == ["open", "message"]
    assert server.http2.open_streams == 0


def test_unary_message_waits_for_the_half_close(server: Server, pair: Pair) -> None:
    stream = pair.open("/t.T/Echo")
    pair.send(stream, message(b"x"))
    pair.run()
    assert server.upcalls() == ["open"]
    pair.client.end_stream(stream)
    pair.run()
    assert pair.answers[stream].messages == [b"x"]


def test_byte_by_byte(server: Server, pair: Pair) -> None:
    stream = pair.open("/t.T/Echo")
    body = message(b"y" * 300)
    for at in range(0, len(body), 7):
        pair.client.send_data(stream, body[at : at + 7])
    pair.client.end_stream(stream)
    for byte in pair.client.data_to_send():
        pair.give(bytes([byte]))
    pair.run()
    assert pair.answers[stream].messages == [b"y" * 300]


def test_large_messages_both_ways(pair: Pair) -> None:
    body = bytes(range(256)) * 6000
    assert pair.call("/t.T/Echo", message(body)).messages == [body]


def test_many_streams_at_once(server: Server, pair: Pair) -> None:
    streams = [pair.open("/t.T/Echo") for _ in range(500)]
    for stream in streams:
        pair.client.send_data(stream, message(b"%d" % stream), end_stream=True)
    pair.run()
    for stream in streams:
        assert pair.answers[stream].messages == [b"%d" % stream]
    assert server.http2.open_streams == 0


def test_messages_of_a_stream(server: Server, pair: Pair) -> None:
    stream = pair.open("/t.T/Chat")
    pair.send(stream, message(b"1") + message(b"") + message(b"333")[:4])
    pair.run()
    assert pair.answers[stream].messages == [b"1", b""]
    pair.send(stream, message(b"333")[4:])
    pair.run()
    assert pair.answers[stream].messages == [b"1", b"", b"333"]
    assert not pair.answers[stream].ended
    pair.client.end_stream(stream)
    pair.run()
    assert pair.answers[stream].trailers == {"grpc-status": "0"}
    assert server.upcalls() == ["open", "message", "message", "message", "half_close"]


def test_shared_message_goes_to_all(server: Server, pair: Pair) -> None:
    other = Pair(server.http2)
    streams = [(p, p.open("/t.T/Shared")) for p in (pair, pair, other)]
    pair.run()
    other.run()
    body = b"event" * 1000
    pair.send(streams[0][1], message(body))
    pair.run()
    other.run()
    for p, stream in streams:
        assert p.answers[stream].messages == [body]
    assert server.http2.out_bytes == server.http2.shared_bytes == 0


def test_shared_messages_that_nobody_takes(server: Server) -> None:
    pair = Pair(server.http2, ack_data=False, window=0)
    writer = Pair(server.http2)
    for _ in range(10):
        pair.open("/t.T/Shared")
    pair.run()
    stream = writer.open("/t.T/Shared")
    for n in range(20):
        writer.send(stream, message(b"%05d" % n * 2000))
        writer.run()
    assert server.http2.shared_bytes == 10 * 20 * 10_005
    assert server.http2.out_bytes == 0
    server.http2.lost(pair.number)
    assert server.http2.shared_bytes == 0
    assert len(writer.answers[stream].messages) == 20


# --- what a client may do wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "cardinality violation: received no request message from non-client-streaming RPC"),
        (b"\0\0\0", "unexpected EOF"),
        (message(b"abc")[:-1], "unexpected EOF"),
        (
            message(b"a") + message(b"b"),
            "cardinality violation: received multiple request messages for "
            "non-client-streaming RPC",
        ),
        (message(b"a", flag=2), "grpc: received unexpected payload format 2"),
        (message(b"a", flag=1), "grpc: compressed flag set with identity or empty encoding"),
    ],
)
def test_bad_bodies(pair: Pair, body: bytes, text: str) -> None:
    answer = pair.call("/t.T/Echo", body)
    assert (answer.status, answer.text) == (13, text)
    assert pair.call("/t.T/Echo", message(b"next")).messages == [b"next"]


def test_unfinished_message_of_a_stream(server: Server, pair: Pair) -> None:
    answer = pair.call("/t.T/Chat", message(b"abc")[:-1])
    assert (answer.status, answer.text) == (13, "unexpected EOF")
    assert server.upcalls() == ["open", "gone"]


@pytest.mark.parametrize("path", ["/t.T/Echo", "/t.T/Chat"])
def test_message_limit(path: str) -> None:
    server = Server(max_message_bytes=1000)
    pair = Pair(server.http2)
    stream = pair.open(path)
    pair.client.send_data(stream, struct.pack(">BI", 0, 1001))
    pair.run()
    answer = pair.answers[stream]
    assert answer.status == 8
    assert answer.text == "grpc: received message larger than max (1001 vs. 1000)"
    assert answer.reset == h2.errors.ErrorCodes.NO_ERROR
    assert pair.call("/t.T/Echo", message(b"a" * 1000)).messages == [b"a" * 1000]


@pytest.mark.parametrize(
    ("replace", "http", "status", "text"),
    [
        ({"content_type": ""}, "415", 3, 'invalid gRPC request content-type ""'),
        ({"content_type": "application/json"}, "415", 3,
         'invalid gRPC request content-type "application/json"'),
        ({"content_type": "application/grpcx"}, "415", 3,
         'invalid gRPC request content-type "application/grpcx"'),
        ({"method": "GET"}, "405", 13,
         'Received a HEADERS frame with :method "GET" which should be POST'),
        ({"grpc_timeout": "5"}, "400", 13, None),
        ({"grpc_timeout": "123456789S"}, "400", 13, None),
        ({"grpc_timeout": "5x"}, "400", 13, None),
        ({"grpc_timeout": "0S"}, "200", 4, "context deadline exceeded"),
        ({"grpc_encoding": "snappy"}, "200", 12,
         'grpc: Decompressor is not installed for grpc-encoding "snappy"'),
        ({"trace_bin": "!!"}, "400", 13, None),
    ],
)  # fmt: skip
def test_bad_headers(
    server: Server, pair: Pair, replace: dict[str, str], http: str, status: int, text: str | None
) -> None:
    answer = pair.call("/t.T/Echo", message(b"x"), **replace)
    assert answer.headers[":status"] == http
    assert answer.status == status
    assert text is None or answer.text == text
    assert server.upcalls() == []
    assert pair.call("/t.T/Echo", message(b"next")).messages == [b"next"]


@pytest.mark.parametrize("kind", ["application/grpc+proto", "application/grpc;charset=utf-8"])
def test_content_types_that_are_grpc(pair: Pair, kind: str) -> None:
    assert pair.call("/t.T/Echo", message(b"x"), content_type=kind).messages == [b"x"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/t.T/Nope", "unknown method Nope for service t.T"),
        ("/t.X/Echo", "unknown service t.X"),
        ("/nothing", 'malformed method name: "/nothing"'),
    ],
)
def test_unknown_paths(pair: Pair, path: str, text: str) -> None:
    answer = pair.call(path, message(b"x"))
    assert (answer.headers[":status"], answer.status, answer.text) == ("200", 12, text)


def test_percent_encoding(server: Server, pair: Pair) -> None:
    def handler(call) -> None:  # type: ignore[no-untyped-def]
        call.finish(9, "100% nö\n")

    server.http2.route_python("/t.T/Fail", handler)
    assert pair.call("/t.T/Fail", message(b"")).text == "100%25 n%C3%B6%0A"


def test_gzip(pair: Pair) -> None:
    body = message(gzip.compress(b"squeeze"), flag=1)
    assert pair.call("/t.T/Echo", body, grpc_encoding="gzip").messages == [b"squeeze"]
    plain = pair.call("/t.T/Echo", message(b"plain"), grpc_encoding="gzip")
    assert plain.messages == [b"plain"]


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(b"\0" * (3 << 20)), 8),
        (gzip.compress(b"abc")[:-6], 13),
        (b"not gzip", 13),
    ],
)
def test_bad_gzip(pair: Pair, packed: bytes, status: int) -> None:
    answer = pair.call("/t.T/Echo", message(packed, flag=1), grpc_encoding="gzip")
    assert answer.status == status


def test_header_list_limit() -> None:
    server = Server(header_bytes_max=8192)
    pair = Pair(server.http2)
    stream = pair.open("/t.T/Echo", *[(f"x-{i}", "v" * 200) for i in range(60)])
    pair.run()
    assert pair.answers[stream].reset == h2.errors.ErrorCodes.FRAME_SIZE_ERROR
    assert server.upcalls() == []
    assert pair.call("/t.T/Echo", message(b"next")).messages == [b"next"]


def test_max_concurrent_streams() -> None:
    server = Server(max_streams=3)
    pair = Pair(server.http2)
    assert pair.client.remote_settings.max_concurrent_streams == 3
    for _ in range(3):
        pair.open("/t.T/Chat")
    pair.run()
    # A client that doesn't care.
    pair.client.remote_settings[3] = 100
    pair.client.remote_settings.acknowledge()
    stream = pair.open("/t.T/Chat")
    pair.run()
    # It knew the limit: nghttp2 takes this for a connection error.
    assert pair.goaway is not None and pair.goaway[0] == h2.errors.ErrorCodes.PROTOCOL_ERROR
    assert server.upcalls() == ["open"] * 3 and not pair.answers[stream].ended


# --- ends -----------------------------------------------------------------------------------------


def test_reset_by_the_client(server: Server, pair: Pair) -> None:
    stream = pair.open("/t.T/Chat")
    pair.run()
    pair.client.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
    pair.run()
    assert server.upcalls() == ["open", "gone"]
    assert server.http2.open_streams == 0


def test_connection_lost(server: Server, pair: Pair) -> None:
    for _ in range(5):
        pair.open("/t.T/Chat")
    pair.run()
    server.http2.lost(pair.number)
    assert server.upcalls() == ["open"] * 5 + ["gone"] * 5
    assert server.http2.open_streams == server.http2.connections == 0
    server.http2.flush()
    again = Pair(server.http2)
    assert again.number == pair.number
    assert again.call("/t.T/Echo", message(b"x")).messages == [b"x"]


def test_deadline(server: Server, pair: Pair) -> None:
    stream = pair.open("/t.T/Chat", grpc_timeout="100m")
    late = pair.open("/t.T/Chat", grpc_timeout="90S")
    pair.run()
    server.later(90_000)
    pair.run()
    assert not pair.answers[stream].ended
    server.later(30_000)
    pair.run()
    assert (pair.answers[stream].status, pair.answers[stream].text) == (
        4, "context deadline exceeded")  # fmt: skip
    assert server.upcalls() == ["open", "open", "gone"]
    server.later(60 * SECOND)
    pair.run()
    assert not pair.answers[late].ended
    server.later(30 * SECOND)
    pair.run()
    assert pair.answers[late].status == 4


def test_no_leader(server: Server, pair: Pair) -> None:
    wants = pair.open("/t.T/Chat", ("hasleader", "true"))
    plain = pair.open("/t.T/Chat")
    pair.run()
    server.http2.set_leader(False, end_streams=False)
    pair.run()
    assert not pair.answers[wants].ended
    refused = pair.call("/t.T/Echo", message(b"x"), ("hasleader", "true"))
    assert (refused.status, refused.text) == (14, "etcdserver: no leader")
    assert pair.call("/t.T/Echo", message(b"x")).messages == [b"x"]
    server.http2.set_leader(False)
    pair.run()
    assert (pair.answers[wants].status, pair.answers[wants].text) == (14, "etcdserver: no leader")
    assert not pair.answers[plain].ended
    server.http2.set_leader(True)
    assert pair.call("/t.T/Echo", message(b"x"), ("hasleader", "true")).messages == [b"x"]


def test_drain(server: Server, pair: Pair) -> None:
    server.http2.drain()
    server.http2.flush()
    first = pair.take()
    # The first GOAWAY names no last stream: what was on its way is still served.
    stream = pair.open("/t.T/Chat")
    echo = pair.open("/t.T/Echo")
    pair.client.send_data(echo, message(b"x"), end_stream=True)
    pair.give(pair.client.data_to_send())
    server.http2.flush()
    second = pair.take()
    assert GOAWAY_HEAD in first and GOAWAY_HEAD not in second
    assert message(b"x") in second
    assert not server.http2.idle and not pair.transport.closed
    # The ping behind the first GOAWAY is answered: the second names the last stream.
    ack = bytearray(PING_FRAME)
    ack[4] = 1
    pair.give(bytes(ack))
    server.http2.flush()
    assert GOAWAY_HEAD in (last := pair.take())
    assert last[last.index(GOAWAY_HEAD) :][9:13] == struct.pack(">I", echo)
    # Its last call ends: so does the connection.
    assert not pair.transport.closed
    pair.give(bytes.fromhex("000000000100000001")[:5] + struct.pack(">I", stream))
    server.http2.flush()
    assert server.upcalls()[-1] == "half_close"
    assert server.http2.open_streams == 0
    assert pair.transport.closed


def test_end_streams(server: Server, pair: Pair) -> None:
    chat = pair.open("/t.T/Chat")
    echo = pair.open("/t.T/Echo")
    pair.run()
    server.http2.end_streams(14, "etcdserver: server stopped")
    pair.run()
    answer = pair.answers[chat]
    assert (answer.status, answer.text) == (14, "etcdserver: server stopped")
    assert server.upcalls() == ["open", "open", "gone"]
    pair.send(echo, message(b"x"), end=True)
    pair.run()
    assert pair.answers[echo].messages == [b"x"]


def test_drain_of_a_silent_client(server: Server, pair: Pair) -> None:
    server.http2.drain()
    server.http2.flush()
    pair.take()
    assert not pair.transport.closed
    server.later(2 * SECOND)
    assert pair.transport.closed


# --- floods ---------------------------------------------------------------------------------------


def calm(pair: Pair) -> bytes | None:
    """The text of an ENHANCE_YOUR_CALM; None: there was none."""
    if pair.goaway is None:
        return None
    assert pair.goaway[0] == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    return pair.goaway[1]


def test_rapid_reset(server: Server) -> None:
    pair = Pair(server.http2)
    bystander = Pair(server.http2)
    for _ in range(10_000):
        stream = pair.open("/t.T/Echo")
        pair.client.reset_stream(stream)
        if stream % 1001 == 0:
            pair.run()
        if pair.goaway:
            break
    pair.run()
    assert calm(pair) == b"too many resets"
    assert server.http2.open_streams == 0
    server.later(2 * SECOND)
    assert pair.transport.closed
    assert bystander.call("/t.T/Echo", message(b"x")).messages == [b"x"]


def test_resets_at_a_bearable_rate(server: Server, pair: Pair) -> None:
    for _ in range(60):
        for _ in range(100):
            stream = pair.open("/t.T/Echo")
            pair.client.reset_stream(stream)
        pair.run()
        server.later(SECOND)
    assert pair.goaway is None


def test_ping_strikes(server: Server, pair: Pair) -> None:
    pair.open("/t.T/Chat")
    pair.run()
    pair.client.ping(b"12345678")
    pair.run()
    for _ in range(5):
        server.later(5 * SECOND)
        pair.client.ping(b"12345678")
        pair.run()
    assert pair.goaway is None
    for _ in range(3):
        server.later(SECOND)
        pair.client.ping(b"12345678")
        pair.run()
    assert calm(pair) == b"too_many_pings"


def test_pings_are_forgiven_while_answers_flow(server: Server, pair: Pair) -> None:
    for _ in range(20):
        assert pair.call("/t.T/Echo", message(b"x")).messages == [b"x"]
        pair.client.ping(b"12345678")
        pair.run()
    assert pair.goaway is None


def test_pings_without_a_call(server: Server, pair: Pair) -> None:
    for _ in range(4):
        pair.client.ping(b"12345678")
        pair.run()
        server.later(10 * SECOND)
    assert calm(pair) == b"too_many_pings"


GOAWAY_HEAD = bytes.fromhex("0000080700000000")
SETTINGS_FRAME = bytes.fromhex("000000040000000000")
PING_FRAME = bytes.fromhex("0000080600000000000000000000000000")
PRIORITY_FRAME = bytes.fromhex("0000050200000000030000000010")


@pytest.mark.parametrize("frame", [SETTINGS_FRAME, PING_FRAME, PRIORITY_FRAME])
def test_control_frame_floods(server: Server, pair: Pair, frame: bytes) -> None:
    for _ in range(30):
        pair.give(frame * 1000)
        server.http2.flush()
        assert pair.transport.total < 1 << 20
    server.later(2 * SECOND)
    assert pair.transport.closed
    assert server.http2.goaways == 1


def test_control_frame_flood_to_a_client_that_reads_nothing(server: Server, pair: Pair) -> None:
    server.http2.pause_writing(pair.number)
    for _ in range(100):
        pair.give(SETTINGS_FRAME * 1000)
        server.http2.flush()
    server.later(2 * SECOND)
    assert pair.transport.closed


def test_continuation_flood(server: Server, pair: Pair) -> None:
    headers = bytes.fromhex("000001010000000001") + b"\x82"
    more = bytes.fromhex("000001090000000001") + b"\x84"
    pair.give(headers)
    for _ in range(50):
        pair.give(more)
    server.http2.flush()
    assert server.upcalls() == []
    assert pair.transport.closed or b"\x00\x00" in pair.take()
    server.later(2 * SECOND)
    assert pair.transport.closed


def test_no_http2_at_all(server: Server) -> None:
    pair = Pair(server.http2)
    pair.give(b"\xff" * 100)
    server.http2.flush()
    server.later(2 * SECOND)
    assert pair.transport.closed


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
