"""What the HTTP/1.1 side asks of the process that it runs in, and calls over it.

Role: `Site` is the border; the gateway implements it, tests do over values. `invoke` is one call
of an RPC with one answer, whoever serves it.
Callers: api/http, jsongateway, probes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from kvnode.api.errors import Refused
from kvnode.api.node import Facts
from kvnode.base.codes import Grpc
from kvnode.base.config import Config

DEADLINE = "context deadline exceeded"


class LocalCall(Protocol):
    """A call of this process to itself (`_core/h2`)."""

    def send(self, message: bytes) -> None: ...

    def half_close(self) -> None: ...

    def cancel(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Site(Protocol):
    """One gateway process, seen from HTTP/1.1."""

    config: Config

    @property
    def command(self) -> list[str]:
        """How the node was started."""
        ...

    @property
    def member_id(self) -> int: ...

    @property
    def cluster_id(self) -> int: ...

    def facts(self) -> Facts:
        """What Status tells."""
        ...

    def read(self, body: bytes, done: Callable[[int, bytes], None]) -> None:
        """A RangeRequest of the process's own, counted nowhere: done(code, response)."""
        ...

    def open_local(
        self,
        path: str,
        on_message: Callable[[bytes], None],
        on_end: Callable[[int, str], None],
        metadata: dict[str, str] | None = None,
    ) -> LocalCall:
        """Begins a call of the RPC at `path`; `on_end(gRPC status, text)` comes once."""
        ...

    def exposition(self) -> Callable[[], bytes]:
        """What makes the body of /metrics, in any thread."""
        ...

    def count_probe(self, kind: str, name: str, good: bool) -> None:
        """Counts a health check; `name` is empty for /health itself."""
        ...


async def invoke(
    site: Site,
    path: str,
    message: bytes,
    metadata: dict[str, str] | None = None,
    timeout: float | None = None,
) -> bytes:
    """One request, one answer. Errors: Refused, also when `timeout` (seconds) is over."""
    done: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
    answers: list[bytes] = []

    def on_end(status: int, text: str) -> None:
        if not done.done():
            done.set_result((status, text))

    call = site.open_local(path, answers.append, on_end, metadata)
    call.send(message)
    call.half_close()
    try:
        async with asyncio.timeout(timeout):
            status, text = await done
    except TimeoutError:
        call.cancel()
        raise Refused(Grpc.DEADLINE_EXCEEDED, DEADLINE) from None
    except asyncio.CancelledError:
        call.cancel()
        raise
    if status != Grpc.OK:
        raise Refused(Grpc(status), text)
    if not answers:
        raise Refused(Grpc.INTERNAL, "the call ended without an answer")
    return answers[0]
