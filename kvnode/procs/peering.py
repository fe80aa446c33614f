"""This member among the others: Raft's messages on the peer port, proposals for the leader.

Role: what consensus does only because there are other members. Owns the peer sockets
(env/peernet), which exist once the cluster has more than one member: encodes and decodes
messages, says what was lost, keeps the log for members that are behind, and silences a leader
whose applier shows no life.
Caller: procs/consensus.

Two ways to a peer: `urgent` for what is small and must not wait, `bulk` for APPEND, PROPOSE and
what snapshots need. All APPENDs go one way: one without entries would else arrive before those
with entries that it stands behind, and be refused.

A proposal of a follower's gateway goes to the leader's consensus, which merges it with its own
(`take`). Nothing waits for an answer: what became of it is seen in the log by the origin's
applier. What got lost, the gateway proposes again: all of it when the leader changed (LEADER),
single ones after a while.

Invariants:
  1. A proposal is passed on once: from a gateway's member to the member it takes for the leader.
  2. Proposals of gateways that wait when the leader changes are dropped: gateways send all that is
     open again behind the LEADER frame, in order.
  3. A message's sender is the member that the frame names.
  4. Frames of another kind belong to `handlers`; nothing here touches a snapshot's bytes.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kvnode._core.envelope import merge
from kvnode._core.sharedword import APPLIED, LIFE
from kvnode.base.errors import DecodeError
from kvnode.base.limits import MIB
from kvnode.env.clock import monotonic_us, random_u64
from kvnode.env.link import Peer
from kvnode.raft import Entry, Message, MessageError, ProposalRefusedError, Role
from kvnode.raft.codec import decode_message, encode_message
from kvnode.raft.types import APPEND, PROPOSE, SNAPSHOT
from kvnode.wire.peers import PeerFrame

if TYPE_CHECKING:
    from kvnode.env.peernet import Incoming, PeerNet
    from kvnode.procs.consensus import Consensus

log = logging.getLogger("consensus")

REMOTE = Peer("remote")
"""Whose proposal it is when another member passed it on."""

BULK = frozenset({APPEND, PROPOSE, SNAPSHOT})
FORWARD_BYTES = 4 * MIB
TAIL_BYTES = 64 * MIB          # of the log, kept for whoever comes back
BEHIND_BYTES = 512 * MIB       # kept by a leader for members that it knows to be behind
MARK_BYTES = 4 * MIB
HAND_OVER_SECONDS = 0.5
LOOK_SECONDS = 0.005


class Peering:
    """Consensus' side of the cluster; at rest with one member."""

    def __init__(self, consensus: Consensus) -> None:
        self.consensus = consensus
        self.net: PeerNet | None = None
        self.handlers: dict[int, Callable[[Incoming], None]] = {}
        self.unreachable: set[int] = set()
        self.appended_bytes = 0
        small = os.environ.get("KVNODE_TEST_LOG_KEPT_BYTES")   # both: a test needs a snapshot
        self.tail_bytes = int(small) if small else TAIL_BYTES
        self.behind_bytes = int(small) if small else BEHIND_BYTES
        self.mark_bytes = min(MARK_BYTES, self.tail_bytes // 8)
        self.marks: deque[tuple[int, int]] = deque()   # (bytes appended before, index)
        self.life = (0, 0)
        self.life_us = 0
        self.muted = False

    # --- who is there ---------------------------------------------------------------------------

    def set_members(self, urls: Mapping[int, Sequence[str]]) -> None:
        """Peer URLs of all members by id; the port is bound with the second one."""
        start = self.consensus.start
        if self.net is None:
            if len(urls) < 2:
                return
            from kvnode.env.peernet import PeerNet  # libzmq: only where there are peers

            self.net = PeerNet(
                start.cluster, start.member, random_u64(), start.config.listen_peer_urls
            )
            self.consensus.loop.add_source(self.net, self.on_net)
            self.life_us = monotonic_us()
        self.net.set_members(urls)

    def close(self) -> None:
        """Lets go of the peer port."""
        if self.net is not None:
            self.consensus.loop.remove(self.net.fileno())
            self.net.close()
            self.net = None

    # --- messages -------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> None:
        """Messages of a Ready leave, or are lost."""
        net = self.net
        for message in messages:
            bulk = message.type in BULK
            sent = net is not None and net.send(
                message.to, PeerFrame.MESSAGE, encode_message(message), urgent=not bulk
            )
            if bulk and not sent:
                self.unreachable.add(message.to)

    def report(self) -> None:
        """Between two Readies: the node hears whom nothing reached, and who can't be helped."""
        node = self.consensus.node
        assert node is not None
        while self.unreachable:
            node.report_unreachable(self.unreachable.pop())  # type: ignore[arg-type]

    def on_net(self) -> None:
        """Frames of other members."""
        assert self.net is not None
        for frame in self.net.receive():
            if frame.kind == PeerFrame.MESSAGE:
                self.on_message(frame)
                continue
            handler = self.handlers.get(frame.kind)
            if handler is not None:
                handler(frame)

    def on_message(self, frame: Incoming) -> None:
        """A message for the node. LogLostError ends the process."""
        node = self.consensus.node
        if node is None:
            return
        try:
            message = decode_message(frame.payload)
            if message.sender != frame.sender:
                raise DecodeError(f"a message of {message.sender:x} came from {frame.sender:x}")
            if message.type == SNAPSHOT and not self.consensus.feeding.may_step(message):
                return
            if message.type == PROPOSE and node.role == Role.LEADER:
                self.take(message.entries)
                return
            node.step(message)
        except (DecodeError, MessageError) as error:
            log.warning(
                "a peer's message is ignored",
                extra={"fields": {"peer": f"{frame.sender:x}", "error": str(error)}},
            )

    # --- proposals ------------------------------------------------------------------------------

    def take(self, entries: Sequence[Entry]) -> None:
        """A follower's proposals, to be merged with those of this member's gateways."""
        consensus = self.consensus
        for entry in entries:
            if entry.data:
                consensus.proposals.append((REMOTE, entry.data))
                consensus.gathered_bytes += len(entry.data)

    def forward(self) -> None:
        """This member follows: what its gateways propose goes to the leader."""
        consensus, node = self.consensus, self.consensus.node
        assert node is not None
        batches = [batch for peer, batch in consensus.proposals if peer is not REMOTE]
        consensus.proposals.clear()
        consensus.gathered_bytes = 0
        at = 0
        while at < len(batches):
            first, size = at, 0
            while at < len(batches) and (at == first or size + len(batches[at]) <= FORWARD_BYTES):
                size += len(batches[at])
                at += 1
            taken = batches[first:at]
            try:
                node.propose(taken[0] if len(taken) == 1 else merge(taken))
            except ProposalRefusedError:
                return   # the gateways propose again

    # --- the end --------------------------------------------------------------------------------

    def hand_over(self, done: Callable[[], None]) -> None:
        """A leader that stops asks the best follower to lead; `done` when it does, or soon."""
        consensus, node = self.consensus, self.consensus.node
        if self.net is None or node is None or node.role != Role.LEADER:
            done()
            return
        able = [
            member
            for member in node.status().members
            if member.active and member.member in node.configuration.voters
        ]
        if not able:
            done()
            return
        best = max(able, key=lambda member: member.match)
        try:
            node.transfer_leadership(best.member)
        except ProposalRefusedError:
            done()
            return
        until = consensus.loop.now + HAND_OVER_SECONDS

        def look() -> None:
            if node.role == Role.LEADER and consensus.loop.now < until:
                consensus.loop.after(LOOK_SECONDS, look)
            else:
                done()

        consensus.loop.after(LOOK_SECONDS, look)

    # --- the log, kept for others ---------------------------------------------------------------

    def on_appended(self, entries: Sequence[Entry]) -> None:
        """Notes how many bytes lie behind which index."""
        if self.net is None:
            return
        if not self.marks or self.appended_bytes - self.marks[-1][0] > self.mark_bytes:
            self.marks.append((self.appended_bytes, entries[0].index))
        self.appended_bytes += sum([len(entry.data) for entry in entries])
        while self.appended_bytes - self.marks[0][0] > self.behind_bytes + 2 * self.mark_bytes:
            self.marks.popleft()

    def keep_from(self, checkpoint: int) -> int:
        """The log is cut below this index, which is not above the checkpoint."""
        consensus, node = self.consensus, self.consensus.node
        assert node is not None and consensus.wal is not None
        if self.net is None:
            return checkpoint
        keep = min(checkpoint, self._index_before(self.tail_bytes))
        needed = min(
            [member.needs_from for member in node.status().members if member.needs_from],
            default=keep,
        )
        needed = min(needed, consensus.feeding.keep_from(keep))
        return min(keep, max(needed, self._index_before(self.behind_bytes)))

    def _index_before(self, size: int) -> int:
        """An index behind which at most about `size` bytes lie."""
        assert self.consensus.wal is not None
        for before, index in self.marks:
            if self.appended_bytes - before <= size:
                # Nothing was forgotten: what was there at the start is kept, too.
                return index if before else self.consensus.wal.first_index
        return self.consensus.wal.first_index

    # --- time -----------------------------------------------------------------------------------

    def on_tick(self) -> None:
        """A leader whose applier has work and shows no life stops its heartbeats."""
        consensus, node = self.consensus, self.consensus.node
        if self.net is None or node is None:
            return
        words, now = consensus.words, monotonic_us()
        life = (words.get(APPLIED), words.get(LIFE))
        if life != self.life or (
            consensus.applier is not None and consensus.border <= life[0]
        ):
            self.life, self.life_us = life, now
        patience = consensus.start.config.election_timeout * 500
        muted = now - self.life_us > patience
        if muted != self.muted:
            self.muted = muted
            node.mute(muted)
            if muted and node.role == Role.LEADER:
                log.warning("the applier shows no life: no heartbeats until it does")
