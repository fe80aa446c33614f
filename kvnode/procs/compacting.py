"""Automatic compaction: the clock and the log of `state.compactor`.

Role: the first gateway of a member asks for what is due, while its member leads; the request goes
through the log as a client's would. A gateway that is started anew begins to note revisions anew.
Caller: procs/gateway.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kvnode.base.codes import Code, Kind
from kvnode.proto import rpc_pb2 as rpcpb
from kvnode.state.compactor import Compactor, compactor

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

log = logging.getLogger("gateway")


class Compacting:
    """What compacts by itself in one gateway; nothing, unless it is the first."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.loop = gateway.loop
        self.mode, self.kept = gateway.config.compaction()
        self.compactor: Compactor | None = None
        if self.kept and gateway.start.number == 0:
            gateway.on_serving.append(self.begin)

    def begin(self) -> None:
        """The gateway serves: from here on the time counts."""
        self.compactor = compactor(self.mode, self.kept, self.loop.time(), self._revision())
        self._wait()

    def _revision(self) -> int:
        return int(self.gateway.member.header().revision)

    def _wait(self) -> None:
        assert self.compactor is not None
        self.loop.call_later(max(0.0, self.compactor.due - self.loop.time()), self.wake)

    def wake(self) -> None:
        """Something may be due."""
        gateway, made = self.gateway, self.compactor
        assert made is not None
        if gateway.stopping:
            return
        if gateway.reader is None:
            # The applier is being started anew: this note is made when it is back.
            self.loop.call_later(1.0, self.wake)
            return
        leading = gateway.member.leader() == gateway.start.member
        revision = made.wake(self.loop.time(), self._revision(), leading)
        if revision is None:
            self._wait()
            return
        fields = {"revision": revision, "kept": self.kept}
        log.info(f"starting auto {self.mode} compaction", extra={"fields": fields})
        begun = self.loop.time()

        def done(code: int, _: bytes) -> None:
            good = code in (Code.OK, Code.COMPACTED)
            now = self.loop.time()
            made.done(now, self._revision(), good)
            self._wait()
            if good:
                said = {**fields, "took": f"{now - begun:.6f}s"}
                log.info(f"completed auto {self.mode} compaction", extra={"fields": said})
            else:
                said = {**fields, "error": Code(code).name}
                log.warning(f"failed auto {self.mode} compaction", extra={"fields": said})

        body = rpcpb.CompactionRequest(revision=revision).SerializeToString()
        gateway.propose(Kind.COMPACT, body, done)
