"""The JSON gateway: `POST /v3/...`, every RPC of etcd's that has a path there.

Role: ASGI over a `Site`: a body of JSON becomes a request message, the RPC is called inside the
process just as over gRPC, its answer becomes JSON.
Callers: api/http.

A call with one request and one answer: a JSON object each way. A stream (watch, keep-alive,
observe, snapshot): the body is JSON objects one after the other, read as they come; the answer is
chunked, a line `{"result": ...}` a message, at the end `{"error": ...}` if it failed. `GET` with
a WebSocket upgrade does the same with a message a line. Headers: `Authorization` and
`Grpc-Metadata-NAME` become the call's metadata, `Grpc-Timeout` its deadline.

A refusal: the HTTP status of its gRPC code (HTTP_STATUS) and `{"code": ..., "message": ...}`.
An unknown path is 404 with code 5, a method other than POST 501 with code 12, a body that is not
JSON of the message 400 with code 3, one above the cap 413.

Invariants:
  1. A body is refused by its Content-Length before a byte of it is read, or where it exceeds the
     cap; a stream's client message has a cap of its own.
  2. A stream to a client that does not read holds HTTP_QUEUE_BYTES and one message at most.
  3. A Range over many keys is read as a RangeStream: its answer is never in memory as a whole.
  4. Answers are turned into JSON in pieces, large bodies are parsed in a thread: neither holds up
     the loop.
  5. When the client goes, its calls are cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from google.protobuf.message import Message as Protobuf

from kvnode.api import jsonmap
from kvnode.api.asgi import JSON, Bodies, BodyError, GoneError, Headers, Receive, Scope, Send
from kvnode.api.asgi import answer as whole_answer
from kvnode.api.errors import Refused
from kvnode.api.service import RPCS, Rpc
from kvnode.api.site import DEADLINE, Site, invoke
from kvnode.base.codes import Grpc
from kvnode.base.limits import (
    GRPC_OVERHEAD_BYTES,
    HTTP_QUEUE_BYTES,
    HTTP_STREAM_BYTES_MAX,
    KIB,
)
from kvnode.proto import rpc_pb2 as rpcpb

THREAD_BYTES = 64 * KIB
"""A body above this is parsed in a thread."""

SMALL_LIMIT = 10
"""A Range of so many keys at most is answered by one message."""

log = logging.getLogger("gateway")

_ETCD = "/etcdserverpb."
_RANGE, _RANGE_STREAM = f"{_ETCD}KV/Range", f"{_ETCD}KV/RangeStream"
_AUTH = {
    "enable": "AuthEnable", "disable": "AuthDisable", "status": "AuthStatus",
    "authenticate": "Authenticate", "user/add": "UserAdd", "user/get": "UserGet",
    "user/list": "UserList", "user/delete": "UserDelete", "user/changepw": "UserChangePassword",
    "user/grant": "UserGrantRole", "user/revoke": "UserRevokeRole", "role/add": "RoleAdd",
    "role/get": "RoleGet", "role/list": "RoleList", "role/delete": "RoleDelete",
    "role/grant": "RoleGrantPermission", "role/revoke": "RoleRevokePermission",
}
PATHS: dict[str, str] = {
    "/v3/kv/range": f"{_ETCD}KV/Range",
    "/v3/kv/put": f"{_ETCD}KV/Put",
    "/v3/kv/deleterange": f"{_ETCD}KV/DeleteRange",
    "/v3/kv/txn": f"{_ETCD}KV/Txn",
    "/v3/kv/compaction": f"{_ETCD}KV/Compact",
    "/v3/watch": f"{_ETCD}Watch/Watch",
    "/v3/lease/grant": f"{_ETCD}Lease/LeaseGrant",
    "/v3/lease/revoke": f"{_ETCD}Lease/LeaseRevoke",
    "/v3/kv/lease/revoke": f"{_ETCD}Lease/LeaseRevoke",
    "/v3/lease/keepalive": f"{_ETCD}Lease/LeaseKeepAlive",
    "/v3/lease/timetolive": f"{_ETCD}Lease/LeaseTimeToLive",
    "/v3/kv/lease/timetolive": f"{_ETCD}Lease/LeaseTimeToLive",
    "/v3/lease/leases": f"{_ETCD}Lease/LeaseLeases",
    "/v3/kv/lease/leases": f"{_ETCD}Lease/LeaseLeases",
    "/v3/maintenance/alarm": f"{_ETCD}Maintenance/Alarm",
    "/v3/maintenance/status": f"{_ETCD}Maintenance/Status",
    "/v3/maintenance/defragment": f"{_ETCD}Maintenance/Defragment",
    "/v3/maintenance/hash": f"{_ETCD}Maintenance/Hash",
    "/v3/maintenance/hashkv": f"{_ETCD}Maintenance/HashKV",
    "/v3/maintenance/snapshot": f"{_ETCD}Maintenance/Snapshot",
    "/v3/maintenance/transfer-leadership": f"{_ETCD}Maintenance/MoveLeader",
    "/v3/maintenance/downgrade": f"{_ETCD}Maintenance/Downgrade",
    "/v3/lock/lock": "/v3lockpb.Lock/Lock",
    "/v3/lock/unlock": "/v3lockpb.Lock/Unlock",
    "/v3/election/campaign": "/v3electionpb.Election/Campaign",
    "/v3/election/proclaim": "/v3electionpb.Election/Proclaim",
    "/v3/election/leader": "/v3electionpb.Election/Leader",
    "/v3/election/observe": "/v3electionpb.Election/Observe",
    "/v3/election/resign": "/v3electionpb.Election/Resign",
}
PATHS |= {
    f"/v3/cluster/member/{verb}": f"{_ETCD}Cluster/Member{verb.title()}"
    for verb in ("add", "remove", "update", "list", "promote")
}
PATHS |= {f"/v3/auth/{name}": f"{_ETCD}Auth/{method}" for name, method in _AUTH.items()}

HTTP_STATUS: dict[int, int] = {
    Grpc.OK: 200, Grpc.CANCELLED: 499, Grpc.UNKNOWN: 500, Grpc.INVALID_ARGUMENT: 400,
    Grpc.DEADLINE_EXCEEDED: 504, Grpc.NOT_FOUND: 404, Grpc.ALREADY_EXISTS: 409,
    Grpc.PERMISSION_DENIED: 403, Grpc.RESOURCE_EXHAUSTED: 429, Grpc.FAILED_PRECONDITION: 400,
    Grpc.ABORTED: 409, Grpc.OUT_OF_RANGE: 400, Grpc.UNIMPLEMENTED: 501, Grpc.INTERNAL: 500,
    Grpc.UNAVAILABLE: 503, Grpc.DATA_LOSS: 500, Grpc.UNAUTHENTICATED: 401,
}
"""grpc-gateway's."""

_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_FROM_GRPC: Headers = [(b"grpc-metadata-content-type", b"application/grpc")]
_FORWARD = "grpc-metadata-"
NOT_FOUND = Refused(Grpc.NOT_FOUND, "Not Found")
NOT_ALLOWED = Refused(Grpc.UNIMPLEMENTED, "Method Not Allowed")

Emit = Callable[[str], Awaitable[None]]


def refusal_json(refused: Refused) -> str:
    """A status as the gateway writes it."""
    parts = [f'"code":{int(refused.status)}'] if refused.status else []
    if refused.text:
        parts.append(f'"message":{jsonmap.quote(refused.text)}')
    return f"{{{','.join(parts)}}}"


def metadata_of(scope: Scope) -> tuple[dict[str, str], float | None]:
    """A request's metadata and its timeout in seconds. Errors: Refused."""
    metadata: dict[str, str] = {}
    timeout = None
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        text = value.decode("latin-1")
        if name == "authorization":
            metadata[name] = text
        elif name.startswith(_FORWARD) and len(name) > len(_FORWARD):
            metadata[name[len(_FORWARD):]] = text
        elif name == "grpc-timeout":
            found = _TIMEOUT.fullmatch(text)
            if found is None:
                raise Refused(Grpc.INVALID_ARGUMENT, f"invalid grpc-timeout: {text}")
            timeout = int(found[1]) * _UNITS[found[2]]
    return metadata, timeout


async def parse(kind: type[Protobuf], body: bytes) -> bytes:
    """The encoded message that a body says. Errors: Refused."""

    def work() -> bytes:
        return jsonmap.decode(kind, body).SerializeToString()

    try:
        if len(body) > THREAD_BYTES:
            return await asyncio.to_thread(work)
        return work()
    except jsonmap.JsonError as error:
        raise Refused(Grpc.INVALID_ARGUMENT, str(error)) from None


class Gateway:
    """ASGI application of everything below /v3/."""

    def __init__(self, site: Site) -> None:
        self.site = site
        # base64 is 4/3 of its bytes; the rest is for names and small numbers.
        self.bodies = Bodies(2 * (site.config.max_request_bytes + GRPC_OVERHEAD_BYTES))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.on_websocket(scope, receive, send)
            return
        try:
            path = PATHS.get(scope["path"])
            if path is None:
                raise NOT_FOUND
            if scope["method"] != "POST":
                raise NOT_ALLOWED
            metadata, timeout = metadata_of(scope)
            rpc = RPCS[path]
            if rpc.client_streams or rpc.server_streams:
                await self.on_stream(rpc, metadata, timeout, receive, send)
            else:
                await self.on_single(rpc, metadata, timeout, receive, send)
        except Refused as refused:
            await self.refuse(send, refused)
        except BodyError as error:
            await refuse_body(send, error)
        except GoneError:
            return

    async def refuse(self, send: Send, refused: Refused) -> None:
        """An error before anything was answered."""
        more: Headers = []
        if refused.status == Grpc.UNAUTHENTICATED:
            text = re.sub(r"[\x00-\x1f\x7f]", " ", refused.text)
            more = [(b"www-authenticate", text.encode("latin-1", "replace"))]
        status = HTTP_STATUS[refused.status]
        await whole_answer(send, status, refusal_json(refused).encode(), JSON, more)

    # --- one request, one answer ----------------------------------------------------------------

    async def on_single(
        self, rpc: Rpc, metadata: dict[str, str], timeout: float | None, receive: Receive,
        send: Send,
    ) -> None:
        """Reads, calls, answers."""
        body = await self.bodies.read(receive)
        try:
            request = await parse(rpc.request, body)
            await self.call(rpc, request, metadata, timeout, receive, send)
        finally:
            self.bodies.release(body)

    async def call(
        self, rpc: Rpc, request: bytes, metadata: dict[str, str], timeout: float | None,
        receive: Receive, send: Send,
    ) -> None:
        """One call, answered."""
        if rpc.path == _RANGE and may_be_large(request):
            await self.on_large_range(request, metadata, timeout, receive, send)
            return
        raw = await invoke(self.site, rpc.path, request, metadata, timeout)
        await self.answer(send, rpc.response.FromString(raw))

    async def answer(self, send: Send, message: Protobuf) -> None:
        """A whole answer: with its length, or in chunks when it is large."""
        pieces = jsonmap.encode_pieces(message)
        first = next(pieces)
        second = next(pieces, None)
        if second is None:
            await whole_answer(send, 200, first.encode(), JSON, _FROM_GRPC)
            return
        headers: Headers = [(b"content-type", JSON), *_FROM_GRPC]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in (first, second):
            await put(send, piece)
        for piece in pieces:
            await put(send, piece)
        await send({"type": "http.response.body", "body": b""})

    async def on_large_range(
        self, request: bytes, metadata: dict[str, str], timeout: float | None, receive: Receive,
        send: Send,
    ) -> None:
        """A Range whose answer comes in messages of RangeStream: their keys in one list, then
        what the last one says beside them. A message that is not the last has keys."""
        started = False
        between = ""

        async def on_message(raw: bytes) -> None:
            nonlocal between, started
            part = rpcpb.RangeStreamResponse.FromString(raw).range_response
            last = part.HasField("header")
            if last and not started:
                started = True
                await self.answer(send, part)
                return
            if not started:
                started = True
                between = '{"kvs":['
                headers: Headers = [(b"content-type", JSON), *_FROM_GRPC]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            for piece in jsonmap.encode_items(part.kvs):
                await put(send, between + piece)
                between = ","
            if last:
                del part.kvs[:]
                await put(send, "]," + jsonmap.encode(part)[1:])
                await send({"type": "http.response.body", "body": b""})

        async def wait_gone() -> None:
            while (await receive())["type"] == "http.request":
                pass

        stream = Stream(self.site, RPCS[_RANGE_STREAM], metadata, timeout)
        try:
            await stream.run(request, wait_gone, on_message)
        except Refused as refused:
            if not started:
                raise
            # Too late for a status: the connection ends before the answer does.
            log.warning("a range over HTTP/1.1 broke off: %s", refused.text)

    # --- streams --------------------------------------------------------------------------------

    async def on_stream(
        self, rpc: Rpc, metadata: dict[str, str], timeout: float | None, receive: Receive,
        send: Send,
    ) -> None:
        """JSON lines; the headers go out with the first, as etcd's do."""
        started = False

        async def start(status: int, headers: Headers) -> None:
            nonlocal started
            started = True
            await send({"type": "http.response.start", "status": status, "headers": headers})

        async def emit(line: str) -> None:
            if not started:
                await start(200, [(b"content-type", JSON), *_FROM_GRPC])
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})

        async def give(raw: bytes) -> None:
            pieces = jsonmap.encode_pieces(rpc.response.FromString(raw))
            text = f'{{"result":{next(pieces)}'
            for piece in pieces:
                await emit(text)
                await asyncio.sleep(0)
                text = piece
            await emit(f"{text}}}\n")

        async def body() -> AsyncIterator[bytes]:
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise GoneError
                yield message.get("body", b"")
                more = message.get("more_body", False)

        async def wait_gone() -> None:
            while (await receive())["type"] == "http.request":
                pass

        try:
            await Stream(self.site, rpc, metadata, timeout).run(body(), wait_gone, give)
        except Refused as refused:
            if not started:
                await start(HTTP_STATUS[refused.status], [(b"content-type", JSON)])
            await emit(f'{{"error":{refusal_json(refused)}}}\n')
        if not started:
            await start(200, [])
        await send({"type": "http.response.body", "body": b""})

    async def on_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A message for a line, both ways; a single call takes one message."""
        path = PATHS.get(scope["path"])
        if path is None:
            await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b""})
            return
        await receive()
        await send({"type": "websocket.accept"})
        rpc = RPCS[path]

        async def emit(line: str) -> None:
            await send({"type": "websocket.send", "text": line})

        async def give(raw: bytes) -> None:
            await emit(f'{{"result":{jsonmap.encode(rpc.response.FromString(raw))}}}')

        async def body() -> AsyncIterator[bytes]:
            while True:
                message = await receive()
                if message["type"] != "websocket.receive":
                    raise GoneError
                text = message.get("text")
                yield (text.encode() if text is not None else message["bytes"]) + b"\n"

        async def wait_gone() -> None:
            while (await receive())["type"] == "websocket.receive":
                pass

        try:
            metadata, timeout = metadata_of(scope)
            if rpc.client_streams or rpc.server_streams:
                await Stream(self.site, rpc, metadata, timeout).run(body(), wait_gone, give)
            else:
                request = await parse(rpc.request, await anext(body()))
                raw = await invoke(self.site, path, request, metadata, timeout)
                await emit(jsonmap.encode(rpc.response.FromString(raw)))
        except Refused as refused:
            streams = rpc.client_streams or rpc.server_streams
            text = refusal_json(refused)
            await emit(f'{{"error":{text}}}' if streams else text)
        except GoneError:
            return
        await send({"type": "websocket.close", "code": 1000})


async def put(send: Send, piece: str) -> None:
    """A piece of a body, then everybody else's turn: the client may read faster than we write."""
    await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
    await asyncio.sleep(0)


def may_be_large(request: bytes) -> bool:
    """Whether a Range is better read as a RangeStream, which takes it and answers alike."""
    asked = rpcpb.RangeRequest.FromString(request)
    return bool(
        asked.range_end and not 0 < asked.limit <= SMALL_LIMIT and not asked.count_only
        and not asked.sort_order and not asked.sort_target
        and not asked.min_mod_revision and not asked.max_mod_revision
        and not asked.min_create_revision and not asked.max_create_revision
    )


async def refuse_body(send: Send, error: BodyError) -> None:
    """A body that was not read to its end: the connection closes after this."""
    status = Grpc.RESOURCE_EXHAUSTED if error.status == 413 else Grpc.UNAVAILABLE
    text = refusal_json(Refused(status, error.text)).encode()
    await whole_answer(send, error.status, text, JSON, [(b"connection", b"close")])


class Stream:
    """One streaming call: JSON values in, lines out."""

    def __init__(
        self, site: Site, rpc: Rpc, metadata: dict[str, str], timeout: float | None
    ) -> None:
        self.rpc = rpc
        self.timeout = timeout
        self.messages: deque[bytes] = deque()
        self.held = 0
        self.paused = False
        self.end: tuple[int, str] | None = None
        self.wake = asyncio.Event()
        self.call = site.open_local(rpc.path, self.on_message, self.on_end, metadata)

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)
        self.held += len(message)
        if self.held > HTTP_QUEUE_BYTES and not self.paused:
            self.paused = True
            self.call.pause()
        self.wake.set()

    def on_end(self, status: int, text: str) -> None:
        self.end = (status, text)
        self.wake.set()

    async def run(
        self,
        body: AsyncIterator[bytes] | bytes,
        wait_gone: Callable[[], Awaitable[None]],
        give: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Until the call ends or the client goes; `body` is JSON as it comes, or one encoded
        message, `give` takes each encoded answer. Errors: Refused."""
        reader = asyncio.create_task(self.read(body, wait_gone))
        # Whatever ends it, the writer looks.
        reader.add_done_callback(lambda _: self.wake.set())
        try:
            async with asyncio.timeout(self.timeout):
                await self.write(reader, give)
        except TimeoutError:
            raise Refused(Grpc.DEADLINE_EXCEEDED, DEADLINE) from None
        finally:
            if self.end is None:
                self.call.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def read(
        self, body: AsyncIterator[bytes] | bytes, wait_gone: Callable[[], Awaitable[None]]
    ) -> None:
        """Sends each value of the body as it comes; returns when the client is gone."""
        if isinstance(body, bytes):
            self.call.send(body)
            self.call.half_close()
            await wait_gone()
            return
        try:
            async for request in self.requests(body):
                self.call.send(request)
                if not self.rpc.client_streams:
                    break
        except GoneError:
            return
        except Refused:
            # etcd's gateway ends the client's side at the first value it can't read.
            pass
        self.call.half_close()
        await wait_gone()

    async def requests(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body's values as encoded messages. Errors: Refused, GoneError."""
        held = b""
        async for piece in body:
            held += piece
            # A value ends with a brace: without one there is nothing new to find.
            if b"}" not in piece and held.lstrip()[:1] in (b"", b"{"):
                if len(held) > HTTP_STREAM_BYTES_MAX:
                    raise Refused(Grpc.RESOURCE_EXHAUSTED, "the message is too large")
                continue
            text = held.decode("utf-8", "surrogateescape")
            at = 0
            while True:
                try:
                    value, end = jsonmap.parse_value(text, at)
                    if end < 0:
                        at = len(text)
                        break
                    message = self.rpc.request()
                    jsonmap.fill(message, value)
                except jsonmap.JsonError as error:
                    if str(error) == jsonmap.UNFINISHED:
                        break
                    raise Refused(Grpc.INVALID_ARGUMENT, str(error)) from None
                at = end
                yield message.SerializeToString()
            held = text[at:].encode("utf-8", "surrogateescape")
            if len(held) > HTTP_STREAM_BYTES_MAX:
                raise Refused(Grpc.RESOURCE_EXHAUSTED, "the message is too large")

    async def write(
        self, reader: asyncio.Task[None], give: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Gives messages on as they come, until the end. Errors: Refused."""
        while True:
            while self.messages:
                raw = self.messages.popleft()
                self.held -= len(raw)
                await give(raw)
                if self.paused and self.held <= HTTP_QUEUE_BYTES // 2:
                    self.paused = False
                    self.call.resume()
            if self.end is not None:
                status, text = self.end
                if status != Grpc.OK:
                    raise Refused(Grpc(status), text)
                return
            if reader.done():
                reader.result()
                return
            self.wake.clear()
            await self.wake.wait()
