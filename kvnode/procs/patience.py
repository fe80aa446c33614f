"""What a gateway does about requests that are not answered in time.

Role: on a member of several, a proposal may be lost on its way to the leader, and a leader may be
missing. Proposals are sent again when the leader changed, and after a while without an answer;
clients on the client port are told when etcd would tell them, while the proposal stays open until
its outcome is known. With one member nothing of this is ever needed.
Caller: procs/gateway, once a second and at each change.

Invariants:
  1. What is sent again are the same bytes: the sessions' windows make that safe.
  2. Giving up answers clients of gRPC only. A native client has a session, waits as long as it
     likes, and learns the outcome.
  3. No read is answered by a barrier that was begun for others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.base.codes import Code

if TYPE_CHECKING:
    from kvnode.procs.gateway import Gateway

REPEAT_SECONDS = 2.0
TIMEOUT_SECONDS = 5.0   # as etcd's: this and two election timeouts


class Patience:
    """The clocks of one gateway's open proposals and reads."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.needed = len(gateway.start.founders) > 1
        self.timeout = TIMEOUT_SECONDS + 2 * gateway.config.election_timeout / 1000
        # By proposal: when it was made (0: its clients were told), sent last, and is sent next.
        self.sent: dict[int, tuple[float, float, float]] = {}
        self.reads_since = 0.0

    def on_proposed(self, number: int) -> None:
        """A proposal leaves."""
        if self.needed:
            now = self.gateway.loop.time()
            self.sent[number] = (now, now, REPEAT_SECONDS)

    def on_answered(self, number: int) -> None:
        """All of it is answered."""
        self.sent.pop(number, None)

    def on_barrier(self) -> None:
        """A set of reads begins to wait."""
        self.reads_since = self.gateway.loop.time()

    def tick(self) -> None:
        """Looks at everything that is open."""
        if self.sent:
            self._look_at_proposals()
        gateway = self.gateway
        if (
            self.needed
            and gateway.reads.reads_waiting
            and gateway.read_need is None
            and gateway.loop.time() - self.reads_since > self.timeout
        ):
            self._refuse_reads()

    def _look_at_proposals(self) -> None:
        gateway = self.gateway
        now = gateway.loop.time()
        for number, (made, last, patience) in list(self.sent.items()):
            if made and now - made > self.timeout:
                made = 0.0
                gateway.front.give_up(
                    gateway.open[number], Code.TIMEOUT, gateway.services.grpc_sink
                )
                gateway.soon()
            # On the leader nothing is lost between the gateway and the log.
            if now - last > patience and gateway.leader not in (0, gateway.start.member):
                last, patience = now, 2 * patience
                gateway.repeated.add(number)
                gateway.repeat(number)
            self.sent[number] = (made, last, patience)

    def _refuse_reads(self) -> None:
        gateway = self.gateway
        gateway.barrier_open = False
        gateway.reads.refuse_waiting(Code.TIMEOUT)
        if not gateway.leader and gateway.reads.reads_gathering:
            gateway.reads.begin_barrier()
            gateway.reads.refuse_waiting(Code.NO_LEADER)
        gateway.soon()
