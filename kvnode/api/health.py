"""grpc.health.v1.Health: whether this port serves.

As etcd registers it: one name, the empty one, for the server as a whole. Another name is
NOT_FOUND for Check and SERVICE_UNKNOWN for Watch, whose call stays open.
"""

from __future__ import annotations

from kvnode.api.calls import Answer, Router, serve
from kvnode.api.errors import STOPPED, UNKNOWN_SERVICE
from kvnode.proto import health_pb2 as healthpb

WHOLE = ""


class Health:
    """The handlers; `set` changes what they say."""

    def __init__(self) -> None:
        self.serving = True
        self.watchers: set[Answer] = set()

    def attach(self, router: Router) -> None:
        """Registers them."""
        serve(router, "/grpc.health.v1.Health/Check", self.check)
        serve(router, "/grpc.health.v1.Health/List", self.list)
        serve(router, "/grpc.health.v1.Health/Watch", self.watch)

    def set(self, serving: bool) -> None:
        """Tells those who watch, if it is a change."""
        if serving == self.serving:
            return
        self.serving = serving
        for answer in list(self.watchers):
            answer.send(self._status())

    def drain(self) -> None:
        """The server stops: those who watch hear it, and their calls end."""
        self.set(False)
        watchers, self.watchers = self.watchers, set()
        for answer in watchers:
            answer.refuse(STOPPED)

    def _status(self) -> healthpb.HealthCheckResponse:
        serving = healthpb.HealthCheckResponse.SERVING
        return healthpb.HealthCheckResponse(
            status=serving if self.serving else healthpb.HealthCheckResponse.NOT_SERVING
        )

    def check(self, request: healthpb.HealthCheckRequest, answer: Answer) -> None:
        """The status now."""
        if request.service != WHOLE:
            answer.refuse(UNKNOWN_SERVICE)
        else:
            answer.end(self._status())

    def list(self, request: healthpb.HealthListRequest, answer: Answer) -> None:
        """The status now of every name."""
        answer.end(healthpb.HealthListResponse(statuses={WHOLE: self._status()}))

    def watch(self, request: healthpb.HealthCheckRequest, answer: Answer) -> None:
        """The status now and after each change, until the client ends the call."""
        if request.service != WHOLE:
            unknown = healthpb.HealthCheckResponse.SERVICE_UNKNOWN
            answer.send(healthpb.HealthCheckResponse(status=unknown))
            return
        self.watchers.add(answer)
        answer.on_gone = lambda: self.watchers.discard(answer)
        answer.send(self._status())
