"""What httpwire loads with the first connection: uvicorn's protocol with this server's limits."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.config import Config as Settings
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from kvnode._core import meters
from kvnode.api.asgi import App, BodyError, Receive, Scope, Send, refuse
from kvnode.api.jsongateway import refuse_body
from kvnode.base.config import Config
from kvnode.base.limits import (
    GRPC_OVERHEAD_BYTES,
    HTTP_HEADER_BYTES_MAX,
    HTTP_HEADER_SECONDS,
    HTTP_IDLE_SECONDS,
    HTTP_LINGER_SECONDS,
    HTTP_STALL_SECONDS,
)

TOO_LARGE = b"431 Request Header Fields Too Large"


class Stack:
    """uvicorn's settings and state, shared by all connections of one application."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, app: App, config: Config, connections: set[Any]
    ) -> None:
        self.loop = loop
        self.body_bytes_max = 2 * (config.max_request_bytes + GRPC_OVERHEAD_BYTES)
        self.settings = Settings(
            app,  # type: ignore[arg-type]
            loop="none",
            http=HttpToolsProtocol,
            ws=WebSocket,
            ws_max_size=self.body_bytes_max,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            interface="asgi3",
            timeout_keep_alive=HTTP_IDLE_SECONDS,
        )
        self.settings.load()
        self.state = ServerState()
        self.state.connections = connections

    def adopt(self, transport: asyncio.Transport, first: bytes) -> None:
        """Gives the transport a protocol and that its first bytes."""
        connection = Connection(self)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(first)


class WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's, as the door counts it."""

    answering = False
    """A WebSocket is not waited for at the end: it would never end."""


class Lingering:
    """A transport whose close() lets the client finish sending first; see httpwire, invariant 4."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self.transport = transport
        self.connection = connection
        self.ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def is_closing(self) -> bool:
        return self.ended or self.transport.is_closing()

    def close(self) -> None:
        if self.ended:
            return
        self.ended = True
        transport = self.transport
        if transport.is_closing():
            return
        if self.connection.message_open and transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
            self.connection.loop.call_later(HTTP_LINGER_SECONDS, transport.close)
        else:
            transport.close()


class Connection(HttpToolsProtocol):
    """One connection. Counting of headers and bodies is per read and per header, not per byte."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack.settings, stack.state, {}, stack.loop)
        self.stack = stack
        self.in_headers = True
        self.message_open = False
        self.header_bytes = 0
        self.refusal = b"400 Bad Request"
        self.header_timer: asyncio.TimerHandle | None = None
        self.stall_timer: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a request is under way."""
        return self.cycle is not None and not self.cycle.response_complete

    # --- transport ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        super().connection_made(Lingering(transport, self))  # type: ignore[arg-type]
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.header_timer, self.stall_timer):
            if timer is not None:
                timer.cancel()
        self.message_open = False
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self.in_headers:
            self.header_bytes += len(data)
            if self.header_timer is None:
                self._start_header_timer()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._stop_header_timer()
                self.handle_websocket_upgrade()
                return
        except httptools.HttpParserError:
            self._end(self.refusal)
            return
        if self.in_headers and self.header_bytes > HTTP_HEADER_BYTES_MAX:
            self._end(TOO_LARGE)

    def handle_websocket_upgrade(self) -> None:
        # The other protocol knows nothing of lingering.
        self.transport = self.transport.transport  # type: ignore[attr-defined]
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stall_timer = self.loop.call_later(HTTP_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self.stall_timer is not None:
            self.stall_timer.cancel()
            self.stall_timer = None
        super().resume_writing()

    # --- parser ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.message_open = True
        self.in_headers = True
        if self.header_timer is None:
            self._start_header_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.in_headers = False
        self.header_bytes = 0
        self._stop_header_timer()
        meters.add(meters.SLOT["http_requests"])
        self.app = self._application()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.message_open = False
        self.in_headers = True
        super().on_message_complete()

    def _application(self) -> Any:
        """The application, or one that refuses what the headers say."""
        size = len(self.url)
        length = -1
        hosts = 0
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"content-length":
                # The parser has checked that it is a number.
                length = int(value[:20])
            elif name == b"host":
                hosts += 1
        if size > HTTP_HEADER_BYTES_MAX:
            self.refusal = TOO_LARGE
            raise ValueError("the headers are too large")
        if hosts != 1 and self.parser.get_http_version() != "1.0":
            return _refuses(400, "400 Bad Request: missing required Host header")
        if length > self.stack.body_bytes_max:
            return self._too_large
        return self.config.loaded_app

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self.stack.body_bytes_max
        error = BodyError(413, f"the body is larger than this server takes ({limit})")
        await refuse_body(send, error)

    # --- ends -----------------------------------------------------------------------------------

    def _start_header_timer(self) -> None:
        self.header_timer = self.loop.call_later(HTTP_HEADER_SECONDS, self._on_slow)

    def _stop_header_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def _on_slow(self) -> None:
        self.header_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self._end(b"408 Request Timeout")

    def _end(self, status: bytes) -> None:
        """Answers what is no request, or an endless one, unless an answer is under way."""
        self._stop_header_timer()
        self.message_open = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        self.transport.write(
            b"HTTP/1.1 " + status + b"\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Connection: close\r\n\r\n" + status
        )
        self.transport.close()


def _refuses(status: int, text: str) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(send, status, text, [(b"connection", b"close")])

    return app
