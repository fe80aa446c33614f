"""Keep-alives and questions about leases in a gateway: frames to consensus, answers to streams.

Role: routes the methods of `_core/leasecalls`, sends what a turn gathered as one frame a kind, and
hands the answers over. Shows life to the lessor while this gateway carries keep-alives.
Caller: procs/services; consensus' frames come through procs/gateway.

Invariants:
  1. What is open is asked again of each new consensus.
  2. A sign of life is written at most BEAT_SECONDS ago while the process runs, from its first
     keep-alive on: the lessor stops its time when there is none (state/lessor.py).
  3. Without streams a turn of the loop costs a look at a flag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode._core.h2 import Http2
from kvnode._core.leasecalls import METHODS, LeaseCalls
from kvnode._core.sharedword import BEAT, TERM
from kvnode.base.codes import Kind
from kvnode.env.clock import monotonic_us
from kvnode.wire.frames import Frame

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

BEAT_SECONDS = 0.2
FRAME_OF = {
    Kind.LEASE_KEEP_ALIVE: Frame.KEEP_ALIVE,
    Kind.LEASE_TIME_TO_LIVE: Frame.LEASE_TIMES,
    Kind.LEASE_LEASES: Frame.LEASE_IDS,
}
LEASE_ANSWERS = frozenset({Frame.KEPT, Frame.LEASE_TIMES_OK, Frame.LEASE_IDS_OK})


class KeepAlives:
    """What a gateway has to do with leases' time."""

    def __init__(self, gateway: Gateway, http2: Http2) -> None:
        self.gateway = gateway
        self.calls = LeaseCalls(
            http2, gateway.soon, cluster=gateway.start.cluster, member=gateway.start.member
        )
        self.beating = False
        for path, number, streams in METHODS:
            http2.route(path, self.calls, number, streams, streams)
        gateway.on_turn.append(self.turn)
        gateway.on_drain.append(self.calls.finish_streams)

    def turn(self) -> None:
        """Asks what has gathered; answers what waited for this gateway's map."""
        calls, gateway = self.calls, self.gateway
        if not calls.wants_turn:
            return
        if calls.keep_alives and not self.beating:
            self.beating = True
            self.beat()
        reader = gateway.snapshot()
        for kind, payload in calls.take_questions(reader.revision, gateway.words.get(TERM)):
            gateway.consensus.send(FRAME_OF[Kind(kind)], payload)
        if calls.wants_turn:
            calls.serve_late(gateway.snapshot(newest=True))

    def on_answer(self, payload: bytes) -> None:
        """A frame of consensus."""
        self.calls.on_answer(payload)

    def ask_again(self) -> None:
        """A (new) consensus."""
        for kind, payload in self.calls.questions_again():
            self.gateway.consensus.send(FRAME_OF[Kind(kind)], payload)

    def beat(self) -> None:
        """A sign of life."""
        gateway = self.gateway
        gateway.words.set(BEAT + gateway.start.number, monotonic_us())
        gateway.loop.call_later(BEAT_SECONDS, self.beat)
