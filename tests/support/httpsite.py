"""A site for the HTTP/1.1 side without a node: RPCs answered by functions, connections by pipes.

`FakeSite` serves RPCs by path: a function of the request message that returns the answer, raises
Refused, or for a stream is called with the `FakeCall`. `Wire` is a client's end of a real
loopback connection to an HttpDoor on the running loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from kvnode.api.errors import Refused
from kvnode.api.httpwire import HttpDoor
from kvnode.api.node import Facts
from kvnode.api.service import RPCS
from kvnode.base.config import Config
from kvnode.proto import rpc_pb2

FACTS = Facts(4096, 2048, 1 << 31, 7, 20, 20, 2)


class FakeCall:
    """One local call as the site's functions see it."""

    def __init__(self, site: FakeSite, path: str, on_message: Any, on_end: Any) -> None:
        self.site = site
        self.rpc = RPCS[path]
        self.reply = on_message
        self.end = on_end
        self.got: list[Any] = []
        self.half_closed = self.cancelled = self.paused = False
        self.on_got: Callable[[FakeCall, Any], None] | None = None

    def send(self, raw: bytes) -> None:
        request = self.rpc.request.FromString(raw)
        self.got.append(request)
        handler = self.site.handlers[self.rpc.path]
        if self.rpc.client_streams or self.rpc.server_streams:
            handler(self, request)
            return
        try:
            answer = handler(request)
        except Refused as refused:
            self.end(int(refused.status), refused.text)
            return
        if answer is not None:
            self.reply(answer.SerializeToString())
            self.end(0, "")

    def half_close(self) -> None:
        self.half_closed = True

    def cancel(self) -> None:
        self.cancelled = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class FakeSite:
    """Serves `handlers`; everything it was asked stays in `calls`."""

    member_id = 7
    cluster_id = 11
    command: ClassVar[list[str]] = ["kvnode", "serve"]

    def __init__(self, **flags: Any) -> None:
        self.config = Config(**flags)
        self.handlers: dict[str, Any] = {}
        self.calls: list[FakeCall] = []
        self.metadata: list[dict[str, str] | None] = []
        self.state = FACTS
        self.reads: list[rpc_pb2.RangeRequest] = []
        self.read_code: int | None = 0
        self.probes: list[tuple[str, str, bool]] = []

    def facts(self) -> Facts:
        return self.state

    def alarm(self, *alarms: int) -> None:
        self.state = dataclasses.replace(self.state, alarms=tuple((a, 7) for a in alarms))

    def open_local(
        self, path: str, on_message: Any, on_end: Any, metadata: dict[str, str] | None = None
    ) -> FakeCall:
        call = FakeCall(self, path, on_message, on_end)
        self.calls.append(call)
        self.metadata.append(metadata)
        return call

    def read(self, body: bytes, done: Any) -> None:
        self.reads.append(rpc_pb2.RangeRequest.FromString(body))
        if self.read_code is not None:
            done(self.read_code, b"")

    def exposition(self) -> Callable[[], bytes]:
        return lambda: b"# HELP up x\n"

    def count_probe(self, kind: str, name: str, good: bool) -> None:
        self.probes.append((kind, name, good))


class _First(asyncio.Protocol):
    """What procs/door does of its own: the first bytes decide."""

    def __init__(self, door: HttpDoor) -> None:
        self.door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.door(self.transport, data)  # type: ignore[arg-type]


class Served:
    """An HttpDoor on a free port; `async with`."""

    def __init__(self, site: Any, metrics_only: bool = False) -> None:
        self.site = site
        self.metrics_only = metrics_only

    async def __aenter__(self) -> Served:
        loop = asyncio.get_running_loop()
        self.door = HttpDoor(loop, self.site, self.metrics_only)
        self.server = await loop.create_server(lambda: _First(self.door), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.server.close()
        self.door.drain()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)

    async def raw(self, request: bytes) -> bytes:
        """Sends bytes, reads until the server closes."""
        reader, writer = await self.open()
        writer.write(request)
        try:
            return await asyncio.wait_for(reader.read(-1), 20)
        finally:
            writer.close()

    async def ask(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers in lower case, body."""
        given = {"host": "x", "connection": "close"}
        given |= {k.replace("_", "-"): v for k, v in headers.items()}
        if body is not None:
            given["content-length"] = str(len(body))
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items())]
        raw = await self.raw("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        return parse_response(raw)


def parse_response(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, body with its chunks joined."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        parts = []
        while body:
            size, _, body = body.partition(b"\r\n")
            length = int(size, 16)
            parts.append(body[:length])
            body = body[length + 2 :]
        body = b"".join(parts)
    return int(status.split()[1]), headers, body
