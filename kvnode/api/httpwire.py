"""HTTP/1.1 connections: uvicorn's protocol (httptools' parser) on a transport that is there.

Role: `HttpDoor` is called with a connection whose first bytes were not HTTP/2's; no server of
uvicorn's, its signals or its sockets take part.
Callers: procs/door and the metrics listeners.

The stack is imported by the first connection, in a thread: a gateway that nobody speaks HTTP/1.1
to starts and lives without it, and gRPC's clients do not wait while it loads (0.2 s). With
--listen-metrics-urls it is imported once the gateway serves, for probes that wait a second only.

Invariants:
  1. Request line and headers: HTTP_HEADER_BYTES_MAX, HTTP_HEADER_SECONDS; above, 431 or 408.
  2. A body whose Content-Length is above the cap is answered with 413 before a byte of it is
     read. uvicorn buffers 64 KiB of a body and then stops reading the socket.
  3. A client that reads nothing of its answer for HTTP_STALL_SECONDS is cut off; until then the
     transport holds its high-water mark (64 KiB) and the application waits.
  4. A connection that closes with the request half read goes on discarding for
     HTTP_LINGER_SECONDS, so that the client sees the answer instead of a reset.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from kvnode.api.asgi import App
from kvnode.api.site import Site

log = logging.getLogger("gateway")


class HttpDoor:
    """Takes over HTTP/1.1 connections; `make_app` is called once, when the stack is loaded."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, site: Site, metrics_only: bool = False
    ) -> None:
        self.loop = loop
        self.site = site
        self.metrics_only = metrics_only
        self.adopt: Callable[[asyncio.Transport, bytes], None] | None = None
        self.connections: set[Any] = set()
        self.waiting: list[tuple[asyncio.Transport, bytes]] | None = None
        self.closing = False

    def __call__(self, transport: asyncio.Transport, first: bytes) -> None:
        """Serves the connection; `first` is what was read of it."""
        if self.closing:
            transport.close()
        elif self.adopt is not None:
            self.adopt(transport, first)
        else:
            transport.pause_reading()
            self.load()
            assert self.waiting is not None
            self.waiting.append((transport, first))

    def load(self) -> None:
        """Loads the stack in a thread, if that has not begun: before the first connection where
        one is sure to come."""
        if self.adopt is None and self.waiting is None:
            self.waiting = []
            loading = self.loop.run_in_executor(None, self._load)
            loading.add_done_callback(self._on_loaded)

    def _load(self) -> App:
        from kvnode.api import http, httpstack  # noqa: F401

        return http.metrics_app(self.site) if self.metrics_only else http.client_app(self.site)

    def _on_loaded(self, loading: asyncio.Future[App]) -> None:
        waiting, self.waiting = self.waiting or [], None
        try:
            app = loading.result()
            from kvnode.api.httpstack import Stack

            self.adopt = Stack(self.loop, app, self.site.config, self.connections).adopt
        except Exception:
            log.exception("HTTP/1.1 can't be served")
            for transport, _ in waiting:
                transport.abort()
            return
        for transport, first in waiting:
            if not transport.is_closing():
                transport.resume_reading()
                self.adopt(transport, first)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return any(connection.answering for connection in self.connections)

    def drain(self) -> None:
        """No further requests: idle connections close now, the others after their answer."""
        self.closing = True
        for connection in list(self.connections):
            connection.shutdown()
