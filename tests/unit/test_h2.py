"""gRPC over HTTP/2 against an independent HTTP/2 implementation; no socket, no clock.

Calls, what a client may do wrong, how calls and connections end, floods.
"""

from __future__ import annotations

import gzip
import struct

import h2.errors
import h2.events
import h2.exceptions
import pytest

from tests.support.h2client import SECOND, SETTINGS_FRAME, Pair, Server, message


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
