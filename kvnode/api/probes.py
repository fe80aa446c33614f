"""/health, /livez and /readyz: is this member well, in etcd's words.

Role: ASGI applications by path (`paths`), each over a `Site`.
Callers: api/http, for the client port and for --listen-metrics-urls.

`GET /health`: `{"health":"true","reason":""}`, or 503 with one of the reasons `ALARM NOSPACE`,
`ALARM CORRUPT`, `RAFT NO LEADER`, `RANGE ERROR:...`. `?exclude=NOSPACE` passes over an alarm,
`?serializable=true` asks this member alone.
`GET /livez`: `ok`; checks serializable_read.
`GET /readyz`: `ok`; checks data_corruption, serializable_read, linearizable_read, non_learner.
`GET /livez/CHECK`, `GET /readyz/CHECK`: one check alone.

`?verbose` lists the checks, `?exclude=CHECK` leaves one out; a failed check gives 503 and the list.

Invariants:
  1. linearizable_read and /health without serializable read through the same barrier as a
     client's Range: they fail when the member can't serve such a read.
  2. A check that takes longer than etcd's request timeout (5 s + two election timeouts) fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from kvnode.api.asgi import TEXT, App, Receive, Scope, Send, answer, only_get, refuse
from kvnode.api.site import Site
from kvnode.base.codes import STATUS, Code
from kvnode.proto import rpc_pb2 as rpcpb

REQUEST_SECONDS = 5.0
_ALARMS = {
    rpcpb.NOSPACE: "ALARM NOSPACE",
    rpcpb.CORRUPT: "ALARM CORRUPT",
}

Check = Callable[[], Awaitable[str]]
"""What is wrong; empty: nothing."""


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)


class Probes:
    """The checks of one member."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.timeout = REQUEST_SECONDS + 2 * site.config.election_timeout / 1000
        self.checks: dict[str, dict[str, Check]] = {
            "livez": {"serializable_read": self.serializable_read},
            "readyz": {
                "data_corruption": self.data_corruption,
                "serializable_read": self.serializable_read,
                "linearizable_read": self.linearizable_read,
                "non_learner": self.non_learner,
            },
        }

    def paths(self) -> dict[str, App]:
        """Every path with its application."""
        served: dict[str, App] = {"/health": self.health}
        for kind, checks in self.checks.items():
            served[f"/{kind}"] = self._page(kind, list(checks))
            for name in checks:
                served[f"/{kind}/{name}"] = self._page(kind, [name])
        return served

    # --- checks ---------------------------------------------------------------------------------

    async def read(self, serializable: bool) -> str:
        """Reads one key's name; the text of the refusal, if it is refused.

        One key, not the first of all as etcd does: counting a large range takes its time.
        """
        request = rpcpb.RangeRequest(key=b"\0", keys_only=True, serializable=serializable)
        code = asyncio.get_running_loop().create_future()

        def done(refusal: int, body: bytes) -> None:
            if not code.done():
                code.set_result(refusal)

        self.site.read(request.SerializeToString(), done)
        try:
            async with asyncio.timeout(self.timeout):
                return STATUS[Code(await code)][1]
        except TimeoutError:
            return STATUS[Code.TIMEOUT][1]

    async def serializable_read(self) -> str:
        """Whether this member's own data can be read."""
        return await self.read(True)

    async def linearizable_read(self) -> str:
        """Whether the cluster agrees."""
        return await self.read(False)

    async def data_corruption(self) -> str:
        """Whether the alarm CORRUPT stands."""
        alarms = [alarm for alarm, _ in self.site.facts().alarms]
        return "alarm activated: CORRUPT" if rpcpb.CORRUPT in alarms else ""

    async def non_learner(self) -> str:
        """Whether this member votes; all do, so far."""
        return ""

    # --- pages ----------------------------------------------------------------------------------

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/health."""
        if not await only_get(scope, send):
            return
        query = _query(scope)
        reason = await self.ill(
            set(query.get("exclude", [])), query.get("serializable", [""])[0] == "true"
        )
        self.site.count_probe("health", "", not reason)
        quoted = reason.replace("\\", "\\\\").replace('"', '\\"')
        if reason:
            await refuse(send, 503, f'{{"health":"false","reason":"{quoted}"}}')
        else:
            await answer(send, 200, b'{"health":"true","reason":""}', TEXT)

    async def ill(self, excluded: set[str], serializable: bool) -> str:
        """Why the member is not well, in /health's words."""
        facts = self.site.facts()
        for alarm, _ in facts.alarms:
            if rpcpb.AlarmType.Name(alarm) not in excluded:  # type: ignore[arg-type]
                return _ALARMS.get(alarm, "ALARM UNKNOWN")  # type: ignore[call-overload]
        if not serializable and not facts.leader:
            return "RAFT NO LEADER"
        wrong = await self.read(serializable)
        return f"RANGE ERROR:{wrong}" if wrong else ""

    def _page(self, kind: str, names: list[str]) -> App:
        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            if not await only_get(scope, send):
                return
            query = _query(scope)
            # Only the page of all checks leaves some out.
            excluded = set(query.get("exclude", [])) if len(scope["path"]) == len(kind) + 1 else ()
            lines = []
            good = True
            for name in names:
                if name in excluded:
                    continue
                wrong = await self.checks[kind][name]()
                self.site.count_probe(kind, name, not wrong)
                good = good and not wrong
                lines.append(f"[-]{name} failed: {wrong}\n" if wrong else f"[+]{name} ok\n")
            if not good:
                await refuse(send, 503, "".join(lines))
                return
            text = "".join(lines) if "verbose" in query else ""
            nosniff = [(b"x-content-type-options", b"nosniff")]
            await answer(send, 200, f"{text}ok\n".encode(), TEXT, nosniff)

        return page
