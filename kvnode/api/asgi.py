"""The little that every HTTP endpoint shares: answers in Go's words, bodies under a cap.

Callers: api/http, jsongateway, probes. Types are ASGI's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kvnode.base.limits import HTTP_BODIES_BYTES_MAX, HTTP_BODY_SECONDS

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

TEXT = b"text/plain; charset=utf-8"
JSON = b"application/json"


class GoneError(Exception):
    """The client went away: there is nobody to answer."""


class BodyError(Exception):
    """The body is refused; `status` and `text` are the answer."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(text)


async def answer(
    send: Send, status: int, body: bytes, kind: bytes = TEXT, more: Headers | None = None
) -> None:
    """A whole answer."""
    headers = [(b"content-type", kind)] if kind else []
    headers += [(b"content-length", b"%d" % len(body)), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, text: str, more: Headers | None = None) -> None:
    """An error as Go's net/http words it: plain text with a line's end."""
    nosniff: Headers = [(b"x-content-type-options", b"nosniff")]
    await answer(send, status, f"{text}\n".encode(), TEXT, nosniff + (more or []))


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """For a path that nobody serves."""
    await refuse(send, 404, "404 page not found")


async def only_get(scope: Scope, send: Send) -> bool:
    """True for a GET; anything else is answered with 405, HEAD too, as etcd does."""
    if scope["method"] == "GET":
        return True
    await refuse(send, 405, "Method Not Allowed", [(b"allow", b"GET")])
    return False


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


class Bodies:
    """Reads whole bodies, each under a cap and in a time, all together under a budget that they
    count in until their call has ended (`release`)."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held = 0

    async def read(self, receive: Receive) -> bytes:
        """The body of a request, to be released. Errors: BodyError, GoneError."""
        parts: list[bytes] = []
        size = 0
        whole = False
        try:
            async with asyncio.timeout(HTTP_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise GoneError
                    part = message.get("body", b"")
                    size += len(part)
                    self.held += len(part)
                    if size > self.bytes_max:
                        raise BodyError(
                            413, f"the body is larger than this server takes ({self.bytes_max})"
                        )
                    if self.held > HTTP_BODIES_BYTES_MAX:
                        raise BodyError(503, "too many bodies are being received")
                    parts.append(part)
                    if not message.get("more_body", False):
                        whole = True
                        return b"".join(parts)
        except TimeoutError:
            raise BodyError(408, "the body did not come in time") from None
        finally:
            if not whole:
                self.held -= size

    def release(self, body: bytes) -> None:
        """The call that this body was for has ended."""
        self.held -= len(body)
