"""Calls of Python handlers without HTTP/2: what `kvnode.api` registers, called by path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvnode.api.service import RPCS


class Call:
    """One call, as a handler sees it, and what came of it."""

    def __init__(self) -> None:
        self.on_message: Callable[[bytes], None] = lambda data: None
        self.on_half_close: Callable[[], None] = lambda: None
        self.on_gone: Callable[[], None] = lambda: None
        self.sent: list[bytes] = []
        self.status: int | None = None
        self.text = ""

    def send(self, message: bytes) -> None:
        assert self.status is None, "a message after the end"
        self.sent.append(message)

    def finish(self, status: int = 0, text: str = "") -> None:
        assert self.status is None, "finished twice"
        self.status, self.text = status, text


class Router:
    """Keeps handlers; `open` and `call` stand for a client."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Any], None]] = {}
        self.client_streams: set[str] = set()

    def route_python(
        self,
        path: str,
        handler: Callable[[Any], None],
        client_streams: bool = False,
        server_streams: bool = False,
    ) -> None:
        assert path not in self.handlers, f"{path} twice"
        assert server_streams == RPCS[path].server_streams
        self.handlers[path] = handler
        if client_streams:
            self.client_streams.add(path)

    def open(self, path: str) -> Call:
        """A call of which only the headers have come."""
        call = Call()
        self.handlers[path](call)
        return call

    def call(self, path: str, request: Any) -> Any:
        """One request: the decoded response, or (status, text)."""
        call = self.open(path)
        if call.status is None:
            data = request if isinstance(request, bytes) else request.SerializeToString()
            call.on_message(data)
        assert call.status is not None, "not answered"
        if call.status:
            return call.status, call.text
        (body,) = call.sent
        return RPCS[path].response.FromString(body)
