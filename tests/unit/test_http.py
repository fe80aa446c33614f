"""HTTP/1.1 over a site of values: pages, the JSON gateway, limits, streams, WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import websockets

from kvnode.api import httpstack
from kvnode.api.errors import Refused
from kvnode.api.jsongateway import PATHS, may_be_large
from kvnode.api.service import RPCS
from kvnode.base import limits
from kvnode.base.codes import Code, Grpc
from kvnode.proto import kv_pb2
from kvnode.proto import rpc_pb2 as rpcpb
from tests.support.httpsite import FakeSite, Served, parse_response

PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
WATCH, ALIVE = "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"
Case = Callable[[FakeSite, Served], Awaitable[None]]


def serve(case: Case, site: FakeSite | None = None, metrics_only: bool = False) -> None:
    """Runs a case against a door of its own."""

    async def run() -> None:
        made = site or FakeSite()
        made.handlers.setdefault(PUT, lambda request: rpcpb.PutResponse())
        async with Served(made, metrics_only) as served:
            await asyncio.wait_for(case(made, served), 30)

    asyncio.run(run())


def test_every_rpc_with_a_path_in_etcd_has_one() -> None:
    without = set(RPCS) - set(PATHS.values())
    assert {path for path in without if path.startswith(("/etcdserverpb", "/v3"))} == {
        "/etcdserverpb.KV/RangeStream"
    }
    assert set(PATHS.values()) <= set(RPCS)


def test_a_call_and_its_refusals() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        got = await served.ask("POST", "/v3/kv/put", b'{"key":"Zm9v","lease":"7"}')
        assert got[0] == 200 and got[2] == b"{}"
        assert got[1]["content-type"] == "application/json"
        assert got[1]["grpc-metadata-content-type"] == "application/grpc"
        assert site.calls[0].got == [rpcpb.PutRequest(key=b"foo", lease=7)]
        assert (await served.ask("POST", "/v3beta/kv/put", b"{}"))[0] == 200
        refused = Refused(Grpc.NOT_FOUND, 'a "text"\n')

        def refuse(request: Any) -> Any:
            raise refused

        site.handlers[PUT] = refuse
        for status, http in ((5, 404), (16, 401), (8, 429), (14, 503), (11, 400), (12, 501)):
            refused = Refused(Grpc(status), 'a "text"\n')
            got = await served.ask("POST", "/v3/kv/put", b"{}")
            assert got[0] == http
            assert json.loads(got[2]) == {"code": status, "message": 'a "text"\n'}
        for method, path, body, answer in (
            ("GET", "/v3/kv/put", None, (501, b'{"code":12,"message":"Method Not Allowed"}')),
            ("POST", "/v3/kv/none", b"{}", (404, b'{"code":5,"message":"Not Found"}')),
            ("POST", "/v3/kv/put", b"x", (400, None)),
        ):
            got = await served.ask(method, path, body)
            assert (got[0], answer[1] and got[2]) == answer

    serve(case)


def test_metadata_and_deadlines() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        await served.ask(
            "POST", "/v3/kv/put", b"{}", authorization="token", grpc_metadata_hasleader="true",
            x_other="1",
        )
        assert site.metadata == [{"authorization": "token", "hasleader": "true"}]
        site.handlers[PUT] = lambda request: None
        got = await served.ask("POST", "/v3/kv/put", b"{}", grpc_timeout="10m")
        assert got[0] == 504
        assert got[2] == b'{"code":4,"message":"context deadline exceeded"}'
        assert site.calls[-1].cancelled
        got = await served.ask("POST", "/v3/kv/put", b"{}", grpc_timeout="x")
        assert (got[0], got[2]) == (400, b'{"code":3,"message":"invalid grpc-timeout: x"}')

    serve(case)


def test_the_gateway_can_be_switched_off() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        got = await served.ask("POST", "/v3/kv/put", b"{}")
        assert (got[0], got[2]) == (404, b"404 page not found\n")
        assert (await served.ask("GET", "/version"))[0] == 200

    serve(case, FakeSite(enable_grpc_gateway=False))


def test_a_large_answer_is_chunked_and_whole() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        kvs = [kv_pb2.KeyValue(key=b"%06d" % n, value=b"x" * 300) for n in range(3000)]
        whole = rpcpb.RangeResponse(kvs=kvs, count=3000)
        site.handlers[RANGE] = lambda request: whole
        status, headers, body = await served.ask("POST", "/v3/kv/range", b'{"key":"AA=="}')
        assert status == 200 and headers["transfer-encoding"] == "chunked"
        assert len(json.loads(body)["kvs"]) == 3000

    serve(case)


def test_a_range_of_many_keys_is_read_as_a_stream() -> None:
    stream = "/etcdserverpb.KV/RangeStream"

    def part(first: int, keys: int, **more: Any) -> bytes:
        kvs = [kv_pb2.KeyValue(key=b"%06d" % n) for n in range(first, first + keys)]
        response = rpcpb.RangeResponse(kvs=kvs, **more)
        return rpcpb.RangeStreamResponse(range_response=response).SerializeToString()

    async def case(site: FakeSite, served: Served) -> None:
        header = rpcpb.ResponseHeader(revision=5)
        body = b'{"key":"AA==","range_end":"AA=="}'

        def three(call: Any, request: Any) -> None:
            call.reply(part(0, 10))
            call.reply(part(10, 20))
            call.reply(part(30, 1, header=header, more=True, count=50))
            call.end(0, "")

        site.handlers[stream] = three
        status, headers, raw = await served.ask("POST", "/v3/kv/range", body)
        assert status == 200 and headers["transfer-encoding"] == "chunked"
        got = json.loads(raw)
        assert len(got["kvs"]) == 31
        assert got | {"kvs": 0} == {
            "kvs": 0, "header": {"revision": "5"}, "more": True, "count": "50"
        }

        def one(call: Any, request: Any) -> None:
            call.reply(part(0, 2, header=header, count=2))
            call.end(0, "")

        site.handlers[stream] = one
        status, headers, raw = await served.ask("POST", "/v3/kv/range", body)
        assert int(headers["content-length"]) == len(raw)
        assert len(json.loads(raw)["kvs"]) == 2
        site.handlers[stream] = lambda call, request: call.end(11, "compacted")
        got_refused = await served.ask("POST", "/v3/kv/range", body)
        assert (got_refused[0], got_refused[2]) == (400, b'{"code":11,"message":"compacted"}')

        def broken(call: Any, request: Any) -> None:
            call.reply(part(0, 10))
            call.end(11, "compacted")

        site.handlers[stream] = broken
        reader, writer = await served.open()
        writer.write(
            b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        raw = await reader.read(-1)
        assert b" 200 " in raw and not raw.endswith(b"0\r\n\r\n"), "no end, so no whole answer"
        writer.close()

    serve(case)


def test_which_ranges_are_read_as_a_stream() -> None:
    for given, large in (
        ({"range_end": b"z"}, True),
        ({"range_end": b"z", "limit": 10}, False),
        ({"range_end": b"z", "limit": 11}, True),
        ({"range_end": b"z", "limit": -1}, True),
        ({}, False),
        ({"range_end": b"z", "count_only": True}, False),
        ({"range_end": b"z", "sort_order": 1}, False),
        ({"range_end": b"z", "sort_target": 1}, False),
        ({"range_end": b"z", "max_mod_revision": 1}, False),
        ({"range_end": b"z", "keys_only": True, "serializable": True, "revision": 4}, True),
    ):
        request = rpcpb.RangeRequest(key=b"a", **given)  # type: ignore[arg-type]
        assert may_be_large(request.SerializeToString()) is large, given


# --- limits -----------------------------------------------------------------------------


def cap() -> int:
    return 2 * (limits.REQUEST_BYTES_DEFAULT + limits.GRPC_OVERHEAD_BYTES)


def test_a_body_above_the_cap_is_refused_before_it_is_read() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        head = "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        raw = await served.raw((head % (256 << 20)).encode())
        status, headers, body = parse_response(raw)
        assert status == 413 and headers["connection"] == "close"
        assert json.loads(body)["code"] == 8
        assert not site.calls
        assert (await served.ask("POST", "/v3/kv/put", b" " * cap()))[0] == 200

    serve(case)


def test_a_chunked_body_is_cut_at_the_cap() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        reader, writer = await served.open()
        writer.write(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        sent = 0
        try:
            for _ in range(4096):
                writer.write(chunk)
                sent += 65536
                await writer.drain()
                if reader.at_eof() or sent > 2 * cap():
                    break
        except ConnectionError:
            pass
        raw = await reader.read(1 << 16)
        assert b" 413 " in raw.split(b"\r\n")[0]
        writer.close()
        assert not site.calls

    serve(case)


def test_bodies_have_a_budget_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.api.asgi.HTTP_BODIES_BYTES_MAX", 100)

    async def case(site: FakeSite, served: Served) -> None:
        site.handlers[PUT] = lambda request: None
        first, writer = await served.open()
        body = b'{"key":"%s"}' % (b"A" * 80)
        head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        while not site.calls:
            await asyncio.sleep(0.01)
        got = await served.ask("POST", "/v3/kv/put", body)
        assert got[0] == 503 and json.loads(got[2])["code"] == 14
        site.calls[0].reply(b"")
        site.calls[0].end(0, "")
        assert b" 200 " in await first.readline()
        site.handlers[PUT] = lambda request: rpcpb.PutResponse()
        assert (await served.ask("POST", "/v3/kv/put", body))[0] == 200
        writer.close()

    serve(case)


def test_what_asks_first_is_told_before_it_sends() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        head = (
            "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            "Content-Length: %d\r\n\r\n"
        )
        reader, writer = await served.open()
        writer.write((head % (cap() + 1)).encode())
        assert b" 413 " in (await reader.readline())
        writer.close()
        reader, writer = await served.open()
        writer.write((head % 2).encode())
        assert b" 100 " in (await reader.readline())
        writer.close()

    serve(case)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 700_000, 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
         400),
    ],
)
def test_what_is_no_request(raw: bytes, status: int) -> None:
    async def case(site: FakeSite, served: Served) -> None:
        answer = await served.raw(raw)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]

    serve(case)


def test_slow_headers_and_bodies_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpstack, "HTTP_HEADER_SECONDS", 0.05)
    monkeypatch.setattr("kvnode.api.asgi.HTTP_BODY_SECONDS", 0.05)

    async def case(site: FakeSite, served: Served) -> None:
        assert b" 408 " in await served.raw(b"GET / HTTP/1.1\r\nHost:")
        raw = await served.raw(
            b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        )
        assert b" 408 " in raw

    serve(case)


def test_idle_connections_end_and_pipelined_requests_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(httpstack, "HTTP_IDLE_SECONDS", 0.05)

    async def case(site: FakeSite, served: Served) -> None:
        one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        two = b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n"
        raw = await served.raw(one + two + one)
        assert [line[9:12] for line in raw.split(b"HTTP/1.1")[1:]] != []
        statuses = [part.split()[0] for part in raw.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [b"200", b"404", b"200"]

    serve(case)


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpstack, "HTTP_STALL_SECONDS", 0.2)

    async def case(site: FakeSite, served: Served) -> None:
        kvs = [kv_pb2.KeyValue(key=b"%06d" % n, value=b"x" * 8000) for n in range(3000)]
        whole = rpcpb.RangeResponse(kvs=kvs)
        site.handlers[RANGE] = lambda request: whole
        _, writer = await served.open()
        writer.transport.pause_reading()
        body = b'{"key":"AA=="}'
        writer.write(
            b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        while not served.door.connections:
            await asyncio.sleep(0.01)
        (connection,) = served.door.connections
        most = 0
        while served.door.connections:
            most = max(most, connection.transport.get_write_buffer_size())
            await asyncio.sleep(0.01)
        assert most < 2 << 20
        writer.close()

    serve(case)


# --- pages -----------------------------------------------------------------------------


def test_health_and_its_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnode.api.probes.REQUEST_SECONDS", -1.9)

    async def case(site: FakeSite, served: Served) -> None:
        got = await served.ask("GET", "/health")
        assert (got[0], got[2]) == (200, b'{"health":"true","reason":""}')
        assert got[1]["content-type"] == "text/plain; charset=utf-8"
        assert not site.reads[-1].serializable
        await served.ask("GET", "/health?serializable=true")
        assert site.reads[-1].serializable
        site.alarm(rpcpb.NOSPACE)
        got = await served.ask("GET", "/health")
        assert (got[0], got[2]) == (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
        assert (await served.ask("GET", "/health?exclude=NOSPACE"))[0] == 200
        assert (await served.ask("GET", "/readyz"))[0] == 200
        site.alarm(rpcpb.CORRUPT)
        got = await served.ask("GET", "/health")
        assert (got[0], got[2]) == (503, b'{"health":"false","reason":"ALARM CORRUPT"}\n')
        got = await served.ask("GET", "/readyz")
        assert got[0] == 503
        assert got[2].startswith(b"[-]data_corruption failed: alarm activated: CORRUPT\n[+]ser")
        assert (await served.ask("GET", "/readyz?exclude=data_corruption"))[0] == 200
        site.alarm()
        site.read_code = Code.TIMEOUT
        got = await served.ask("GET", "/health")
        assert (got[0], got[2]) == (
            503, b'{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}\n'
        )
        got = await served.ask("GET", "/livez")
        assert (got[0], got[2]) == (
            503, b"[-]serializable_read failed: etcdserver: request timed out\n\n"
        )
        assert ("livez", "serializable_read", False) in site.probes
        site.read_code = None
        assert (await served.ask("GET", "/readyz/linearizable_read"))[2] == (
            b"[-]linearizable_read failed: etcdserver: request timed out\n\n"
        )

    serve(case)


def test_whose_origin_and_host() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        got = await served.ask("GET", "/version", host="good:2379", origin="http://a")
        assert got[1]["access-control-allow-origin"] == "http://a"
        got = await served.ask("GET", "/version", host="good", origin="http://b")
        assert got[0] == 200 and "access-control-allow-origin" not in got[1]
        got = await served.ask("GET", "/version", host="evil:2379")
        assert got[0] == 421
        assert b'etcd --host-whitelist "evil"' in got[2]
        got = await served.ask("OPTIONS", "/v3/kv/put", host="good", origin="http://a")
        assert (got[0], got[2]) == (200, b"")

    serve(case, FakeSite(cors=("http://a",), host_whitelist=("good",)))


def test_metrics_listeners_serve_no_requests_of_clients() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        assert (await served.ask("GET", "/metrics"))[2] == b"# HELP up x\n"
        assert (await served.ask("GET", "/readyz"))[0] == 200
        assert (await served.ask("POST", "/v3/kv/put", b"{}"))[0] == 404
        assert (await served.ask("GET", "/debug/vars"))[0] == 404

    serve(case, metrics_only=True)


# --- streams -----------------------------------------------------------------------------


def echo(call: Any, request: rpcpb.LeaseKeepAliveRequest) -> None:
    call.reply(rpcpb.LeaseKeepAliveResponse(ID=request.ID).SerializeToString())
    if request.ID == 99:
        call.end(0, "")
    if request.ID == 98:
        call.end(int(Grpc.UNAVAILABLE), "etcdserver: no leader")


def test_a_stream_both_ways() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        site.handlers[ALIVE] = echo
        got = await served.ask("POST", "/v3/lease/keepalive", b'{"ID":1} {"ID":"2"}\n{"ID":99}x')
        assert got[0] == 200
        assert got[2].splitlines() == [
            b'{"result":{"ID":"1"}}', b'{"result":{"ID":"2"}}', b'{"result":{"ID":"99"}}'
        ]
        got = await served.ask("POST", "/v3/lease/keepalive", b'{"ID":98}')
        assert got[2].splitlines()[1] == b'{"error":{"code":14,"message":"etcdserver: no leader"}}'
        reader, writer = await served.open()
        writer.write(
            b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(5):
            text = b'{"ID":%d}' % number
            writer.write(b"%x\r\n%s\r\n" % (len(text[:4]), text[:4]))
            await asyncio.sleep(0)
            writer.write(b"%x\r\n%s\r\n" % (len(text[4:]), text[4:]))
            line = b""
            while b"result" not in line:
                line = await reader.readline()
            assert line.startswith(b'{"result":{' + (b'"ID":"%d"' % number if number else b""))
        writer.close()
        while not site.calls[-1].cancelled:
            await asyncio.sleep(0.01)

    serve(case)


def test_a_stream_that_fails_before_anything_came() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        site.handlers[WATCH] = lambda call, request: call.end(14, "etcdserver: no leader")
        got = await served.ask("POST", "/v3/watch", b'{"create_request":{}}')
        assert got[0] == 503
        assert got[2] == b'{"error":{"code":14,"message":"etcdserver: no leader"}}\n'
        site.handlers[WATCH] = lambda call, request: None
        got = await served.ask("POST", "/v3/watch", b"{}", grpc_timeout="10m")
        assert got[0] == 504

    serve(case)


def test_a_stream_to_a_slow_client_pauses_its_call() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        event = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"k", value=b"v" * 20_000))
        message = rpcpb.WatchResponse(events=[event]).SerializeToString()
        site.handlers[WATCH] = lambda call, request: None
        _, writer = await served.open()
        writer.transport.pause_reading()
        body = b'{"create_request":{}}'
        writer.write(
            b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        while not site.calls:
            await asyncio.sleep(0.01)
        call = site.calls[0]
        sent = 0
        while not call.paused and sent < 4000:
            call.reply(message)
            sent += 1
            await asyncio.sleep(0)
        assert call.paused, "nothing ever paused"
        writer.transport.resume_reading()
        while call.paused:
            await asyncio.sleep(0.01)
        writer.close()

    serve(case)


def test_a_stream_s_client_message_has_a_cap() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        site.handlers[WATCH] = lambda call, request: None
        body = b'{"create_request":{"key":"' + b"A" * 100_000
        got = await served.ask("POST", "/v3/watch", body, grpc_timeout="100m")
        assert got[0] == 504
        assert site.calls[0].got == [] and site.calls[0].half_closed

    serve(case)


def test_over_a_websocket() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        site.handlers[ALIVE] = echo
        url = f"ws://127.0.0.1:{served.port}"
        async with websockets.connect(f"{url}/v3/lease/keepalive") as socket:
            await socket.send('{"ID":1}')
            assert await socket.recv() == '{"result":{"ID":"1"}}'
            await socket.send(b'{"ID":2}')
            assert await socket.recv() == '{"result":{"ID":"2"}}'
            await socket.send('{"ID":98}')
            await socket.recv()
            assert json.loads(await socket.recv())["error"]["code"] == 14
            with pytest.raises(websockets.ConnectionClosedOK):
                await socket.recv()
        async with websockets.connect(f"{url}/v3/kv/put") as socket:
            await socket.send('{"key":"Zm9v"}')
            assert await socket.recv() == "{}"
        async with websockets.connect(f"{url}/v3/lease/keepalive") as socket:
            await socket.send('{"ID":3}')
            await socket.recv()
        while not site.calls[-1].cancelled:
            await asyncio.sleep(0.01)
        for path in ("/v3/nope", "/health"):
            with pytest.raises(websockets.InvalidStatus):
                async with websockets.connect(f"{url}{path}"):
                    pass

    serve(case)


def test_draining_ends_idle_connections_and_lets_answers_out() -> None:
    async def case(site: FakeSite, served: Served) -> None:
        site.handlers[PUT] = lambda request: None
        reader, writer = await served.open()
        writer.write(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        idle, idle_writer = await served.open()
        idle_writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        await idle.readline()
        while not site.calls:
            await asyncio.sleep(0.01)
        assert served.door.busy
        served.door.drain()
        await idle.read(-1)
        site.calls[0].reply(b"")
        site.calls[0].end(0, "")
        assert b" 200 " in await reader.read(-1)
        assert not served.door.busy
        for one in (writer, idle_writer):
            one.close()

    serve(case)
