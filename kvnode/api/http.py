"""The HTTP/1.1 side of the client port: an ASGI application made of Starlette's router.

Role: `client_app` is what the client port serves, `metrics_app` what --listen-metrics-urls do.
Callers: api/httpwire, which runs it under uvicorn's protocol.

| path | answer |
|---|---|
| `POST /v3/...` | the JSON gateway (jsongateway); `/v3beta/...` is the same; off with --enable-grpc-gateway=false |
| `GET /health`, `/livez`, `/readyz` | probes |
| `GET /version` | `{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}` |
| `/metrics` | Prometheus text (metrics) |
| `GET /members` | the members, as etcd's peer port tells them |
| `GET /debug/vars` | command line, descriptor limit, memory and Raft's state as JSON |
| else | 404 in Go's words |

The metrics listeners serve `/metrics`, the probes, `/members` and `/version`.

What comes before a path is looked at, as in etcd: `/v3beta/` becomes `/v3/`; without TLS a Host
that is not in --host-whitelist is refused with 421 (DNS rebinding); --cors headers are added and
OPTIONS is answered; a path with `//` or `..` is redirected to its clean form.
"""

# ruff: noqa: E501

from __future__ import annotations

import asyncio
import json
import os
import posixpath
import resource
from email.utils import formatdate
from urllib.parse import quote

from starlette.routing import Mount, Route, Router

from kvnode.api.asgi import (
    JSON,
    App,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    answer,
    header,
    not_found,
    only_get,
    refuse,
)
from kvnode.api.errors import Refused
from kvnode.api.jsongateway import Gateway
from kvnode.api.probes import Probes
from kvnode.api.site import Site, invoke
from kvnode.base.versions import ETCD_CLUSTER_VERSION, ETCD_STORAGE_VERSION, ETCD_VERSION
from kvnode.proto import rpc_pb2 as rpcpb

METRICS_KIND = b"text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
_CORS: Headers = [
    (b"access-control-allow-headers", b"accept, content-type, authorization"),
    (b"access-control-allow-methods", b"POST, GET, OPTIONS, PUT, DELETE"),
]
_REBINDING = """
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist %s

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).
"""


class Pages:
    """What is told about the member beside its health."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def version(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/version."""
        if await only_get(scope, send):
            text = (
                f'{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_CLUSTER_VERSION}",'
                f'"storage":"{ETCD_STORAGE_VERSION}"}}'
            )
            await answer(send, 200, text.encode(), JSON)

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/metrics, whatever the method, as etcd's handler."""
        # A thousand lines take some milliseconds, and everybody else's requests go on.
        text = await asyncio.to_thread(self.site.exposition())
        await answer(send, 200, text, METRICS_KIND)

    async def members(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/members."""
        if not await only_get(scope, send):
            return
        cluster: Headers = [(b"x-etcd-cluster-id", b"%x" % self.site.cluster_id)]
        try:
            raw = await invoke(self.site, "/etcdserverpb.Cluster/MemberList", b"", timeout=5.0)
        except Refused as refused:
            await refuse(send, 503, refused.text, cluster)
            return
        members = []
        for member in rpcpb.MemberListResponse.FromString(raw).members:
            one: dict[str, object] = {"id": member.ID, "peerURLs": list(member.peerURLs)}
            if member.isLearner:
                one["isLearner"] = True
            if member.name:
                one["name"] = member.name
            if member.clientURLs:
                one["clientURLs"] = list(member.clientURLs)
            members.append(one)
        text = json.dumps(members, separators=(",", ":"), ensure_ascii=False) + "\n"
        await answer(send, 200, text.encode(), JSON, cluster)

    async def variables(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/debug/vars, in the form of Go's expvar."""
        if not await only_get(scope, send):
            return
        facts = self.site.facts()
        member = f"{self.site.member_id:x}"
        usage = resource.getrusage(resource.RUSAGE_SELF)
        values = {
            "cmdline": self.site.command,
            "file_descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "memstats": {"Sys": usage.ru_maxrss << 10, "Alloc": _resident_bytes()},
            "raft.status": {
                "id": member,
                "term": facts.term,
                "vote": f"{facts.leader:x}",
                "commit": facts.committed_index,
                "lead": f"{facts.leader:x}",
                "raftState": "StateLeader" if facts.leader == self.site.member_id
                else "StateFollower",
                "applied": facts.applied_index,
                "progress": {},
                "leadtransferee": "0",
            },
        }
        lines = [
            f'"{name}": {json.dumps(value, separators=(",", ":"))}'
            for name, value in values.items()
        ]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        await answer(send, 200, text.encode(), b"application/json; charset=utf-8")


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Entrance:
    """What is done to every request before its path decides."""

    def __init__(self, site: Site, inner: App) -> None:
        self.inner = inner
        self.cors = set(site.config.cors)
        self.hosts = set(site.config.host_whitelist)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        path = scope["path"]
        if path.startswith("/v3beta/"):
            scope["path"] = path = "/v3/" + path[len("/v3beta/"):]
            scope["raw_path"] = path.encode()
        if scope["type"] == "websocket":
            if self._known(scope):
                await self.inner(scope, receive, send)
            else:
                await send({"type": "websocket.close"})
            return
        more = self._cors(scope)

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = (b"date", formatdate(usegmt=True).encode())
                message["headers"] = [*more, *message["headers"], date]
            await send(message)

        if not self._known(scope):
            host = json.dumps(_host(scope))
            await refuse(dated, 421, _REBINDING % host)
        elif scope["method"] == "OPTIONS":
            await answer(dated, 200, b"", b"")
        elif (clean := _clean(path)) != path:
            await self._redirect(scope, clean, dated)
        else:
            await self.inner(scope, receive, dated)

    def _known(self, scope: Scope) -> bool:
        """Whether the Host may be one: any under TLS, else what --host-whitelist says."""
        if scope["scheme"] in ("https", "wss") or not self.hosts or "*" in self.hosts:
            return True
        return _host(scope) in self.hosts

    def _cors(self, scope: Scope) -> Headers:
        origin = header(scope, b"origin") or ""
        if not self.cors or "*" in self.cors:
            allowed = "*"
        elif origin in self.cors:
            allowed = origin
        else:
            return []
        return [*_CORS, (b"access-control-allow-origin", allowed.encode("latin-1"))]

    async def _redirect(self, scope: Scope, clean: str, send: Send) -> None:
        target = quote(clean, safe="/~!$&'()*+,;=:@")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        location: Headers = [(b"location", target.encode("latin-1"))]
        if scope["method"] in ("GET", "HEAD"):
            shown = target.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&#34;")
            text = f'<a href="{shown}">Temporary Redirect</a>.\n\n'
            await answer(send, 307, text.encode(), b"text/html; charset=utf-8", location)
        else:
            await answer(send, 307, b"", b"", location)


def _host(scope: Scope) -> str:
    host = header(scope, b"host") or ""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _clean(path: str) -> str:
    """As Go's mux cleans a path: `//`, `.` and `..` go, a slash at the end stays."""
    if path == "/v3":
        return "/v3/"
    if not path.startswith("/"):
        path = "/" + path
    clean = posixpath.normpath(path).replace("//", "/", 1)
    if path.endswith("/") and clean != "/":
        clean += "/"
    return clean


def _routes(paths: dict[str, App]) -> list[Route]:
    return [Route(path, endpoint=Endpoint(app)) for path, app in paths.items()]


class Endpoint:
    """An ASGI application as Starlette takes one: an object, so that it gets every method."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def client_app(site: Site) -> App:
    """What the client port serves over HTTP/1.1."""
    pages = Pages(site)
    paths = _told(site, pages) | {"/debug/vars": pages.variables}
    routes: list[Route | Mount] = [*_routes(paths)]
    if site.config.enable_grpc_gateway:
        routes.append(Mount("/v3", app=Gateway(site)))
    router = Router(routes=routes, redirect_slashes=False, default=_default)
    return Entrance(site, router)


def metrics_app(site: Site) -> App:
    """What --listen-metrics-urls serve."""
    router = Router(
        routes=_routes(_told(site, Pages(site))), redirect_slashes=False, default=_default
    )
    return Entrance(site, router)


def _told(site: Site, pages: Pages) -> dict[str, App]:
    return {
        **Probes(site).paths(),
        "/metrics": pages.metrics,
        "/version": pages.version,
        "/members": pages.members,
    }


async def _default(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})
    else:
        await not_found(scope, receive, send)
