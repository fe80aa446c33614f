"""Questions about leases on their way to the leader's keeper, and answers on their way back.

Role: only the leader knows how long leases live. A member that follows passes its gateways'
keep-alives and questions on (`forward`), the leader answers them as its own (`on_ask`); a quorum
round begun after they came stands behind each answer. The answer names an index, and the gateway
waits until its own map holds it.
Caller: procs/leasing, which keeps the questions; procs/peering brings the frames.

Invariants:
  1. A question stays with its own member until it is answered; it is sent again to another leader,
     and after RETRY_SECONDS. A keep-alive that comes twice is harmless.
  2. A question of another member dies with this member's leadership.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kvnode.env.link import Peer
from kvnode.raft import Role
from kvnode.wire.peers import PeerFrame

if TYPE_CHECKING:
    from kvnode.env.peernet import Incoming
    from kvnode.procs.leasing import LeaseKeeper

RETRY_SECONDS = 1.0
HEAD = struct.Struct("<QQ")   # the asker's number of the question, the kind of frame


class Asker(Peer):
    """Another member's question, as the keeper sees it."""

    __slots__ = ("member", "number")

    def __init__(self, member: int, number: int) -> None:
        super().__init__((member, number))
        self.member = member
        self.number = number


class LeaseRoute:
    """Both ends of the way, of one keeper."""

    def __init__(self, keeper: LeaseKeeper) -> None:
        self.keeper = keeper
        self.numbers = 0
        handlers = keeper.consensus.peering.handlers
        handlers[PeerFrame.LEASE_ASK] = self.on_ask
        handlers[PeerFrame.LEASE_ANSWER] = self.on_answer

    def forward(self) -> None:
        """This member follows: what was not sent to this leader, or long ago, is sent."""
        keeper, consensus = self.keeper, self.keeper.consensus
        node, net = consensus.node, consensus.peering.net
        if node is None or net is None or node.role == Role.LEADER:
            return
        if any(isinstance(ask.peer, Asker) for ask in keeper.asks):
            keeper.asks = [ask for ask in keeper.asks if not isinstance(ask.peer, Asker)]
            keeper.count_asks()
        if not node.leader:
            return
        now = consensus.loop.now
        for ask in keeper.asks:
            to, number, when = ask.sent
            if to == node.leader and now - when < RETRY_SECONDS:
                continue
            if not number:
                number = self.numbers = self.numbers + 1
            ask.sent = (node.leader, number, now)
            net.send(node.leader, PeerFrame.LEASE_ASK, HEAD.pack(number, ask.kind) + ask.payload)

    def on_ask(self, frame: Incoming) -> None:
        """Another member's question; answered while this one leads."""
        consensus = self.keeper.consensus
        node = consensus.node
        if len(frame.payload) < HEAD.size or node is None or node.role != Role.LEADER:
            return
        number, kind = HEAD.unpack_from(frame.payload)
        self.keeper.on_question(Asker(frame.sender, number), kind, frame.payload[HEAD.size :])

    def answer(self, asker: Asker, kind: int, payload: bytes) -> None:
        """The keeper's answer goes back."""
        net = self.keeper.consensus.peering.net
        if net is not None:
            head = HEAD.pack(asker.number, kind)
            net.send(asker.member, PeerFrame.LEASE_ANSWER, head + payload)

    def on_answer(self, frame: Incoming) -> None:
        """The leader's answer, for the gateway that asked."""
        if len(frame.payload) < HEAD.size:
            return
        keeper = self.keeper
        number, kind = HEAD.unpack_from(frame.payload)
        for ask in keeper.asks:
            if ask.sent[1] == number:
                keeper.consensus.server.send(ask.peer, kind, frame.payload[HEAD.size :])
                keeper.asks = [other for other in keeper.asks if other is not ask]
                keeper.count_asks()
                return
