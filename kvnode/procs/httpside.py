"""HTTP/1.1 inside a gateway: the site that its pages ask, and the listeners for metrics.

Role: implements `api.site.Site` over the gateway, gives the client door its `http1`, and serves
`--listen-metrics-urls`.
Caller: procs/gateway.

Invariants:
  1. Nothing of the HTTP stack is imported before the gateway serves.
  2. A scrape asks no other process: it reads their regions (`_core/meters`), the shared words and
     this gateway's map. Several gateways tell each other their counters of RPCs through files of
     the run folder, at most TELL_SECONDS old.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kvnode._core import meters
from kvnode._core.sharedword import LEASES_EXPIRED, LEASES_RENEWED
from kvnode._core.storetxn import TREE_KEYS
from kvnode.api.httpwire import HttpDoor
from kvnode.api.node import Facts
from kvnode.env.processes import read_use

if TYPE_CHECKING:
    from kvnode._core.pycalls import LocalCall
    from kvnode.procs.gateway import Gateway

TELL_SECONDS = 5.0
FIRST_BYTES_SECONDS = 20.0


class HttpSide:
    """The `Site` of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.config = gateway.config
        self.door = HttpDoor(gateway.loop, self)
        self.metrics_door = HttpDoor(gateway.loop, self, metrics_only=True)
        self.servers: list[asyncio.Server] = []
        self.regions: list[meters.Region] = []
        gateway.clients.door.http1 = self.door
        gateway.on_serving.append(self.serve)
        gateway.on_drain.append(self.drain)
        gateway.busy.append(lambda: self.door.busy or self.metrics_door.busy)

    # --- Site -----------------------------------------------------------------------------------

    @property
    def member_id(self) -> int:
        return self.gateway.start.member

    @property
    def cluster_id(self) -> int:
        return self.gateway.start.cluster

    def facts(self) -> Facts:
        """What Status tells."""
        return self.gateway.member.facts()

    def read(self, body: bytes, done: Callable[[int, bytes], None]) -> None:
        """A read of the gateway's own."""
        self.gateway.read(body, done)

    def open_local(
        self,
        path: str,
        on_message: Callable[[bytes], None],
        on_end: Callable[[int, str], None],
        metadata: dict[str, str] | None = None,
    ) -> _Turning:
        """A call of this gateway's own services."""
        gateway = self.gateway
        call = gateway.services.http2.open_local(path, on_message, on_end, metadata)
        gateway.soon()
        return _Turning(call, gateway.soon)

    @property
    def command(self) -> list[str]:
        """How the node was started."""
        return self.gateway.start.command

    def count_probe(self, kind: str, name: str, good: bool) -> None:
        """Counts a health check."""
        from kvnode.api.metrics import count_probe

        count_probe(kind, name, good)

    def exposition(self) -> Callable[[], bytes]:
        """What makes the body of /metrics from what is read here; it may run in a thread."""
        from kvnode.api.metrics import Readings, render

        gateway = self.gateway
        self.publish()
        facts = self.facts()
        keys = 0
        if gateway.store is not None:
            with gateway.store.begin_read() as txn:
                keys = txn.entries(TREE_KEYS)
        supervisor, applier, consensus, *gateways = self._regions()
        pids = [os.getppid(), *(region.process_id for region in self._regions()[1:])]
        calls: list[Mapping[str, Any]] = [gateway.services.http2.counters()]
        words = gateway.words
        renewed, expired = words.get(LEASES_RENEWED), words.get(LEASES_EXPIRED)
        pending = gateway.front.own_open_count

        def make() -> bytes:
            return render(
                Readings(
                    member_id=self.member_id,
                    facts=facts,
                    supervisor=supervisor,
                    applier=applier,
                    consensus=consensus,
                    gateways=gateways,
                    calls=calls + self._others(),
                    use=read_use(pid for pid in pids if pid),
                    keys=keys,
                    leases_renewed=renewed,
                    leases_expired=expired,
                    pending=pending,
                )
            )

        return make

    def _regions(self) -> list[meters.Region]:
        if not self.regions:
            path = self.gateway.start.layout.words
            count = meters.GATEWAY + self.config.gateways
            self.regions = [meters.Region(path, number) for number in range(count)]
        return self.regions

    def publish(self) -> None:
        """What is counted elsewhere in this process goes into its region."""
        slot, hub = meters.SLOT, self.gateway.services.watching.hub
        meters.put(slot["watchers"], hub.watchers)
        meters.put(slot["watch_streams"], hub.stream_count)
        meters.put(slot["slow_watchers"], hub.slow)
        meters.put(slot["pending_events"], hub.pending)
        meters.put(slot["events"], hub.events_sent)
        meters.put(slot["grpc_connections"], self.gateway.services.http2.connections)

    # --- several gateways -----------------------------------------------------------------------

    def _file(self, number: int) -> str:
        return os.path.join(self.gateway.start.layout.run, f"calls-{number}.json")

    def tell(self) -> None:
        """Writes this gateway's counters for the others."""
        self.publish()
        path = self._file(self.gateway.start.number)
        with open(f"{path}.tmp", "w", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            json.dump(self.gateway.services.http2.counters(), file)
        os.rename(f"{path}.tmp", path)
        self.gateway.loop.call_later(TELL_SECONDS, self.tell)

    def _others(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for number in range(self.config.gateways):
            if number != self.gateway.start.number:
                try:
                    with open(self._file(number)) as file:
                        found.append(json.load(file))
                except FileNotFoundError:
                    continue
        return found

    # --- listeners ------------------------------------------------------------------------------

    def serve(self) -> None:
        """The gateway serves: the metrics listeners do, too."""
        self.gateway.loop.create_task(self._serve())
        if self.config.gateways > 1:
            self.tell()

    async def _serve(self) -> None:
        if self.gateway.start.metrics_listeners:
            self.metrics_door.load()
        tls = None
        for url, numbers in self.gateway.start.metrics_listeners.items():
            if url.startswith("https://"):
                from kvnode.procs.door import tls_context

                tls = tls_context(self.config)
            for number in numbers:
                server = await self.gateway.loop.create_server(
                    lambda: _First(self.metrics_door),
                    sock=socket.socket(fileno=number),
                    ssl=tls if url.startswith("https://") else None,
                )
                self.servers.append(server)

    def drain(self) -> None:
        """No further requests."""
        for server in self.servers:
            server.close()
        self.door.drain()
        self.metrics_door.drain()


class _Turning:
    """A local call that asks for a turn after what it was told, as the door does after a read."""

    def __init__(self, call: LocalCall, soon: Callable[[], None]) -> None:
        self.call = call
        self.soon = soon
        self.pause = call.pause

    def send(self, message: bytes) -> None:
        self.call.send(message)
        self.soon()

    def half_close(self) -> None:
        self.call.half_close()
        self.soon()

    def cancel(self) -> None:
        self.call.cancel()
        self.soon()

    def resume(self) -> None:
        self.call.resume()
        self.soon()


class _First(asyncio.Protocol):
    """A connection of a metrics listener until its first bytes."""

    def __init__(self, door: HttpDoor) -> None:
        self.door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.timer = self.door.loop.call_later(FIRST_BYTES_SECONDS, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        self.timer.cancel()
        self.door(self.transport, data)

    def connection_lost(self, error: Exception | None) -> None:
        self.timer.cancel()
