"""A gRPC client on the PyPI package `h2`, against an Http2 without any socket.

`Pair` moves bytes between the two. What came is kept by stream: `Answer`. `Server` is an Http2
whose methods echo and whose clock stands.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

from kvnode._core.echocalls import CHAT, ECHO, FLOOD, LONG, SHARED, EchoMethods
from kvnode._core.h2 import Http2

START = 1_000_000_000
SECOND = 1_000_000
SETTINGS_FRAME = bytes.fromhex("000000040000000000")


def message(data: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", flag, len(data)) + data


@dataclass
class Answer:
    """What a client has of one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def messages(self) -> list[bytes]:
        out, at = [], 0
        while at + 5 <= len(self.data):
            (n,) = struct.unpack_from(">I", self.data, at + 1)
            if at + 5 + n > len(self.data):
                break
            out.append(bytes(self.data[at + 5 : at + 5 + n]))
            at += 5 + n
        return out

    @property
    def status(self) -> int | None:
        got = {**self.headers, **self.trailers}.get("grpc-status")
        return None if got is None else int(got)

    @property
    def text(self) -> str:
        return {**self.headers, **self.trailers}.get("grpc-message", "")


class Transport:
    """What Http2 sees of a connection."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.total = 0
        self.closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.total += len(data)

    def close(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Pair:
    """One connection: a client and its number at `server`."""

    def __init__(self, server: Http2, ack_data: bool = True, window: int = 65535) -> None:
        self.server = server
        self.ack_data = ack_data
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.client = h2.connection.H2Connection(config)
        if window != 65535:
            self.client.local_settings = h2.settings.Settings(
                client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            )
        self.transport = Transport()
        self.answers: dict[int, Answer] = {}
        self.events: list[h2.events.Event] = []
        self.goaway: tuple[int, bytes | None] | None = None
        self.number = server.connection_made(self.transport)
        self.client.initiate_connection()
        self.run()

    def give(self, data: bytes) -> None:
        """Raw bytes of a client."""
        self.server.received(self.number, data)

    def take(self) -> bytes:
        """What the server has written since."""
        data = b"".join(self.transport.written)
        self.transport.written.clear()
        return data

    def run(self, rounds: int = 1000) -> None:
        """Until neither has anything to say."""
        for _ in range(rounds):
            data = self.client.data_to_send()
            if data:
                self.give(data)
            self.server.flush()
            came = self.take()
            if came:
                self.on_bytes(came)
            if not data and not came:
                return

    def on_bytes(self, data: bytes) -> None:
        for event in self.client.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = (event.error_code, event.additional_data)
            stream = getattr(event, "stream_id", None)
            if not stream:
                continue
            answer = self.answers.setdefault(stream, Answer())
            if isinstance(event, h2.events.ResponseReceived):
                answer.headers = dict(event.headers)
            elif isinstance(event, h2.events.TrailersReceived):
                answer.trailers = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                answer.data += event.data
                if self.ack_data and event.flow_controlled_length:
                    self.client.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded):
                answer.ended = True
            elif isinstance(event, h2.events.StreamReset):
                answer.reset = event.error_code

    def open(self, path: str, *more: tuple[str, str], end: bool = False, **replace: str) -> int:
        """Headers of a call; returns its stream."""
        stream = self.client.get_next_available_stream_id()
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        for name, value in replace.items():
            headers[{"method": ":method"}.get(name, name.replace("_", "-"))] = value
        fields = [(n, v) for n, v in headers.items() if v != ""] + list(more)
        self.client.send_headers(stream, fields, end_stream=end)
        self.answers[stream] = Answer()
        return stream

    def send(self, stream: int, data: bytes, end: bool = False) -> None:
        """Bytes of a call, as windows allow."""
        answer = self.answers[stream]
        while data:
            if answer.ended or answer.reset is not None:
                return
            n = min(
                len(data),
                self.client.local_flow_control_window(stream),
                self.client.max_outbound_frame_size,
            )
            if n < len(data):
                self.run()
                n = min(n, len(data))
                if answer.ended or answer.reset is not None:
                    return
            assert n, "no window"
            self.client.send_data(stream, data[:n])
            data = data[n:]
        if end:
            self.client.end_stream(stream)

    def call(self, path: str, body: bytes, *more: tuple[str, str], **replace: str) -> Answer:
        """A whole unary call with these bytes as its body."""
        stream = self.open(path, *more, **replace)
        self.send(stream, body)
        answer = self.answers[stream]
        if not answer.ended and answer.reset is None:
            self.client.end_stream(stream)
        self.run()
        return self.answers[stream]


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
