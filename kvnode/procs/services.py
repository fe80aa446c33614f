"""etcd's services inside a gateway: which method is answered by what.

Role: makes the HTTP/2 floor (`_core/h2`) and routes the methods of etcd's API to it: hot ones to
Cython (`_core/grpckv`), the others to Python's handlers. It works without any connection:
`http2.open_local` calls every method.
Caller: procs/gateway. The sockets are the client door's.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from kvnode._core.grpckv import METHODS, GrpcSink, KvMethods
from kvnode._core.h2 import Http2
from kvnode.api.attach import attach
from kvnode.base.codes import Grpc
from kvnode.base.config import Config
from kvnode.base.limits import GRPC_OVERHEAD_BYTES, MIB
from kvnode.env.clock import random_u64
from kvnode.procs.keepalives import KeepAlives
from kvnode.procs.watching import Watching

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

log = logging.getLogger("gateway")

# Above door.OPEN_BYTES_MAX: by then clients are no longer read, and this is seldom met.
HELD_BYTES_MAX = 160 * MIB
SLOW_SECONDS = 1.0


def lease_ttl_min(config: Config) -> int:
    """Seconds: one and a half election timeouts, so that a new leader expires nothing early."""
    ticks = 3 * (config.election_timeout // config.heartbeat_interval) // 2
    return math.ceil(ticks * config.heartbeat_interval / 1000)


class Services:
    """etcd's API over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        config = gateway.config
        self.gateway = gateway
        self.http2 = Http2(
            max_streams=config.max_concurrent_streams,
            max_message_bytes=config.max_request_bytes + GRPC_OVERHEAD_BYTES,
            ping_min_us=int(config.grpc_keepalive_min_time * 1e6),
            ping_interval_us=int(config.grpc_keepalive_interval * 1e6),
            ping_timeout_us=int(config.grpc_keepalive_timeout * 1e6),
        )
        self.http2.on_work = gateway.soon
        self.loop = gateway.loop
        self.http2.set_slow(int(config.warning_unary_request_duration * 1e6))
        gateway.on_serving.append(self.watch_slow)
        self.grpc_sink = GrpcSink(self.http2)
        gateway.sinks.add(self.grpc_sink)
        self.kv = KvMethods(
            self.grpc_sink,
            gateway.front,
            self.wake,
            held_bytes_max=HELD_BYTES_MAX,
        )
        gateway.front.complete_grants(random_u64(), lease_ttl_min(config))
        for path, number, streams in METHODS:
            self.http2.route(path, self.kv, number, False, streams)
        self.health = attach(self.http2, gateway.member)
        gateway.on_drain += [self.health.drain, self.http2.drain]
        gateway.busy.append(lambda: not self.http2.idle)
        self.keep_alives = KeepAlives(gateway, self.http2)
        self.watching = Watching(gateway, self.http2)

    def wake(self) -> None:
        """Requests have come. What is read from a connection asks for its turn at its end."""
        if not self.http2.reading:
            self.gateway.soon()

    def watch_slow(self) -> None:
        """Says which unary calls took longer than --warning-unary-request-duration."""
        calls, count = self.http2.take_slow()
        for path, us, status in calls:
            fields = {"method": path, "time spent": f"{us / 1e6:.6f}s", "code": Grpc(status).name}
            log.warning("request stats", extra={"fields": fields})
        if count > len(calls):
            log.warning("more slow requests", extra={"fields": {"count": count - len(calls)}})
        self.loop.call_later(SLOW_SECONDS, self.watch_slow)
