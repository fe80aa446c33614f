"""Watches in a gateway: when the hub gets its turns.

Role: makes the hub (`_core/watchhub`) and routes the Watch method to it; gives it a turn whenever
this member's head has moved, requests have come, it said that there is more to do, or progress
notifications are due. The hub itself reads no clock.
Caller: procs/services.

Invariants:
  1. A turn's snapshot is taken after the requests that it answers have come.
  2. Without open streams a turn of the loop costs two looks at flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode._core.h2 import Http2
from kvnode._core.sharedword import TERM
from kvnode._core.watchcalls import Watches
from kvnode._core.watchhub import WatchHub
from kvnode.base.codes import STATUS, Code
from kvnode.base.limits import GRPC_OVERHEAD_BYTES, WATCH_SLICE_BYTES, WATCH_SLICE_WORK
from kvnode.env.clock import monotonic_us, random_u64

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

WATCH = b"/etcdserverpb.Watch/Watch"
PROGRESS_SECONDS_DEFAULT = 600.0
PROGRESS_SECONDS_MIN = 0.1


def progress_seconds(asked: float) -> float:
    """etcd takes 0 for its default, and less than 100 ms for 100 ms."""
    return max(PROGRESS_SECONDS_MIN, asked) if asked > 0 else PROGRESS_SECONDS_DEFAULT


class Watching:
    """The Watch service of one gateway."""

    def __init__(self, gateway: Gateway, http2: Http2) -> None:
        config = gateway.config
        self.gateway = gateway
        self.hub = WatchHub(
            http2,
            seed=random_u64(),
            slice_work=WATCH_SLICE_WORK,
            slice_bytes=WATCH_SLICE_BYTES,
            fragment_bytes=config.max_request_bytes + GRPC_OVERHEAD_BYTES,
            progress_us=int(progress_seconds(config.watch_progress_notify_interval) * 1e6),
        )
        self.hub.identify(gateway.start.cluster, gateway.start.member)
        self.watches = Watches(self.hub)
        self.moved = False
        self.timer_due_us: int | None = None
        http2.route(WATCH, self.watches, 0, True, True)
        gateway.on_head.append(self.on_head)
        gateway.on_turn.append(self.turn)
        gateway.on_drain.append(self.drain)

    def on_head(self) -> None:
        """The map has moved."""
        self.moved = True

    def turn(self) -> None:
        """The hub's turn, if it has anything to do."""
        watches, gateway = self.watches, self.gateway
        if not (self.moved or watches.wants_turn) or watches.idle or gateway.reader is None:
            return
        reader = gateway.snapshot(newest=watches.wants_turn)
        self.hub.set_term(gateway.words.get(TERM))
        self.moved = watches.turn(reader, monotonic_us())
        if self.moved:
            gateway.soon()
        self._set_timer()

    def _set_timer(self) -> None:
        due = self.hub.next_due_us
        if due is None or (self.timer_due_us is not None and self.timer_due_us <= due):
            return
        self.timer_due_us = due
        self.gateway.loop.call_later(max(0.0, (due - monotonic_us()) / 1e6), self._on_timer, due)

    def _on_timer(self, due: int) -> None:
        if due != self.timer_due_us:
            return
        self.timer_due_us = None
        self.moved = True
        self.gateway.soon()

    def drain(self) -> None:
        """The process is going away: clients go on elsewhere."""
        status, text = STATUS[Code.STOPPED]
        self.watches.finish_all(int(status), text.encode())
