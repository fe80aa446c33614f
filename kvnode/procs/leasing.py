"""Leases between the processes of a node: what the applier tells, what consensus keeps and answers.

Role: `LeaseTeller` is the applier's side: what each batch did to leases goes to consensus before
its results go to gateways. `LeaseKeeper` is consensus' side: it holds the lessor's table while this
member leads, answers keep-alives and questions, and proposes what is due.
Callers: procs/applier, procs/consensus, a few lines each.

The keeper's life in a term: when this member leads, the applier has told where it stands and has
applied the term's first entry, the table is read from a read-only map, a slice a turn; the map is
closed again at once, so no generation is held. A store without leases needs no map.

Invariants:
  1. A question is answered from a table that holds everything which was acknowledged to anybody
     before the question's quorum round began. With one voter the round is the leader's knowledge
     that nobody else can commit; the table is complete when as many LEASES frames were received as
     the applier's word says, because that word is stored before the results leave.
  2. Keep-alives that arrived count before anything expires: `on_tick` renews them first, even
     those whose round is still under way.
  3. The rows of events are in apply order without a gap from the table's index on: they come on
     one link, whose first frame stands at or below the index that is read.

A member that doesn't lead passes its questions on (procs/leaseroute) and keeps them until they
are answered.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from kvnode._core.sharedword import (
    APPLIED,
    BEAT,
    LEASE_COUNT,
    LEASES,
    LEASES_EXPIRED,
    LEASES_GRANTED,
    LEASES_RENEWED,
    LEASES_REVOKED,
)
from kvnode.base.limits import LEASE_ASKS_BYTES_MAX
from kvnode.env.clock import monotonic_us
from kvnode.procs.leaseroute import Asker, LeaseRoute
from kvnode.raft import Role
from kvnode.state.lessor import CHECKPOINT_SECONDS, Lessor, Work
from kvnode.wire.frames import ONE, PAIR, Frame

if TYPE_CHECKING:
    from kvnode._core.storetxn import ReadTxn
    from kvnode.env.link import Peer
    from kvnode.env.lmdbstore import LmdbStore
    from kvnode.procs.applier import Applier
    from kvnode.procs.consensus import Consensus

log = logging.getLogger("consensus")

QUESTIONS = frozenset({Frame.KEEP_ALIVE, Frame.LEASE_TIMES, Frame.LEASE_IDS})
LEASE_FRAMES = QUESTIONS | {Frame.LEASES}
LOAD_COUNT = 20_000        # leases of one slice: about 5 ms
NOT_YET_SECONDS = 0.003
ROUND_FIRST = -1           # contexts of Raft's read rounds count down from here


class LeaseTeller:
    """The applier's side."""

    def __init__(self, applier: Applier) -> None:
        self.applier = applier
        self.sent = 0

    def greet(self) -> None:
        """First on a new link, behind HELLO: where the map stands and how many leases it has."""
        self.sent = 0
        machine = self.applier.machine
        self._send(PAIR.pack(machine.applied_index, machine.lease_count()), b"")

    def tell(self, rows: bytes) -> None:
        """What the last batch did; before its results leave."""
        if self.applier.consensus_peer is not None:
            self._send(PAIR.pack(self.applier.machine.applied_index, 0), rows)

    def _send(self, head: bytes, rows: bytes) -> None:
        applier = self.applier
        assert applier.consensus is not None and applier.consensus_peer is not None
        applier.consensus.send(applier.consensus_peer, Frame.LEASES, head, rows)
        self.sent += 1
        applier.words.set(LEASES, self.sent)


class Ask:
    """One question: `round` is 0 when its quorum round is done."""

    __slots__ = ("kind", "need", "payload", "peer", "renewed", "round", "sent", "waits")

    def __init__(self, peer: Peer, kind: int, payload: bytes) -> None:
        self.peer = peer
        self.kind = kind
        self.payload = payload
        self.round: int | None = None     # None: not begun
        self.renewed = False              # since it came, so that nothing expires before it
        self.waits = False                # for a checkpoint
        self.need = 0                     # index that the table must hold: the round's
        self.sent = (0, 0, 0.0)           # to which leader, by what number, when (leaseroute)


class LeaseKeeper:
    """Consensus' side."""

    def __init__(self, consensus: Consensus) -> None:
        self.consensus = consensus
        interval = os.environ.get("KVNODE_TEST_LEASE_CHECKPOINT_SECONDS")
        self.lessor = Lessor(int(interval) if interval else CHECKPOINT_SECONDS)
        self.asks: list[Ask] = []
        self.asks_bytes = 0
        self.term = 0                      # that the table is for; 0: none
        self.received = 0
        self.linked = False
        self.empty = False                 # the applier's first word: no leases
        self.told_index = 0
        self.next_round = ROUND_FIRST
        self.store: LmdbStore | None = None
        self.snapshot: ReadTxn | None = None
        self.load_at = b""
        self.proposed: dict[int, Work] = {}
        self.route = LeaseRoute(self)
        self.beats = range(BEAT, BEAT + consensus.start.config.gateways)

    # --- frames ---------------------------------------------------------------------------------

    def on_frame(self, peer: Peer, kind: int, payload: bytes) -> None:
        """LEASES of the applier, or a gateway's question."""
        if kind != Frame.LEASES:
            self.on_question(peer, kind, payload)
            return
        index, count = PAIR.unpack_from(payload)
        self.received += 1
        if self.received == 1:
            self.linked = True
            self.empty = count == 0
            self.told_index = index
        elif self.lessor.loaded:
            self.lessor.told(payload, PAIR.size, monotonic_us())
            self._count()
        elif self.term:
            self.lessor.loading(payload, PAIR.size)
        else:
            self.empty = False

    def on_question(self, peer: Peer, kind: int, payload: bytes) -> None:
        """A gateway's question, or another member's."""
        if kind in QUESTIONS and self.asks_bytes + len(payload) <= LEASE_ASKS_BYTES_MAX:
            self.asks.append(Ask(peer, kind, payload))
            self.asks_bytes += len(payload)

    def count_asks(self) -> None:
        """After questions were taken away."""
        self.asks_bytes = sum([len(ask.payload) for ask in self.asks])

    def on_link(self) -> None:
        """The applier came or went: what it says next begins anew."""
        self.linked = False
        self.received = 0
        self._drop()

    def on_gone(self, peer: Peer) -> None:
        """A gateway is gone, and its questions with it."""
        self.asks = [ask for ask in self.asks if ask.peer is not peer]
        self.asks_bytes = sum(len(ask.payload) for ask in self.asks)

    def on_round(self, context: int, index: int) -> None:
        """A quorum round is over: questions that it carried may be answered once the applier has
        told of everything up to `index`, which another member may have acknowledged."""
        for ask in self.asks:
            if ask.round == context:
                ask.round = 0
                ask.need = index
        self.consensus.loop.after(0, lambda: None)

    def on_role(self) -> None:
        """Raft's role has changed: a table of a term that is over goes, and what it proposed."""
        if self.term:
            self._leads()

    # --- the table ------------------------------------------------------------------------------

    def _leads(self) -> bool:
        """Whether the table is that of this term; begins or drops it as the role says."""
        node = self.consensus.node
        leads = node is not None and node.role == Role.LEADER and node.term_committed()
        if self.term and (not leads or node is None or node.term != self.term):
            self._drop()
        if not leads or not self.linked or node is None:
            return False
        if not self.term:
            if self.consensus.words.get(APPLIED) < node.term_first_index:
                self.consensus.loop.after(NOT_YET_SECONDS, lambda: None)
                return False
            self._begin(node.term)
        if not self.lessor.loaded:
            self._load()
        return self.lessor.loaded

    def _begin(self, term: int) -> None:
        self.term = term
        self.lessor.tick(monotonic_us())
        if self.empty:
            # Nothing there when the link began, and no row came since.
            self.lessor.load_done(self.told_index, monotonic_us())
            return
        from kvnode._core.storetxn import TREE_META  # only with leases: LMDB is loaded here
        from kvnode.env.store import open_for_read

        start = self.consensus.start
        self.store, _ = open_for_read(start.layout.state, start.config.quota_backend_bytes)
        self.snapshot = self.store.begin_read()
        head = self.snapshot.get(TREE_META, b"applied")
        self.told_index = PAIR.unpack(head)[0] if head else 0
        self.load_at = bytes(8)

    def _load(self) -> None:
        """One slice of the stored leases."""
        assert self.snapshot is not None
        now = monotonic_us()
        after = self.lessor.load(self.snapshot, self.load_at, LOAD_COUNT, now)
        if after is not None:
            self.load_at = after
            self.consensus.loop.after(0, lambda: None)
            return
        self._close_map()
        self.lessor.load_done(self.told_index, now)
        self._count()
        log.info("leases loaded", extra={"fields": {"leases": self.lessor.clock.count,
                 "applied": self.told_index, "term": self.term}})

    def _close_map(self) -> None:
        if self.snapshot is not None:
            self.snapshot.end()
            self.snapshot = None
        if self.store is not None:
            self.store.close()
            self.store = None

    def _drop(self) -> None:
        self._close_map()
        self.lessor.reset()
        self.term = 0
        self.empty = False
        consensus = self.consensus
        if self.proposed:
            # A revoke for another leader's time to propose: this lease may live on there.
            consensus.proposals = [p for p in consensus.proposals if id(p[1]) not in self.proposed]
            consensus.gathered_bytes = sum(len(p[1]) for p in consensus.proposals)
            self.proposed.clear()
        for ask in self.asks:
            ask.round = None

    # --- turns ----------------------------------------------------------------------------------

    def on_tick(self) -> None:
        """Time passes: what has ended, and what is to be written down, is proposed."""
        now = monotonic_us()
        lessor = self.lessor
        words = self.consensus.words
        lessor.tick(now, [beat for slot in self.beats if (beat := words.get(slot))])
        if not self._leads():
            return
        for ask in self.asks:
            if ask.kind == Frame.KEEP_ALIVE and not ask.renewed:
                lessor.renew(ask.payload, ONE.size, now, count=False)
                ask.renewed = True
        if lessor.clock.count:
            for work in lessor.work(now):
                self._propose(work)
        self._count()

    def turn(self) -> None:
        """The end of a turn with questions: begins rounds, answers those whose round is over."""
        if not self._leads():
            self.route.forward()
            return
        consensus = self.consensus
        node = consensus.node
        assert node is not None
        applied = consensus.words.get(APPLIED)   # stored behind the word that is read next
        complete = self.received >= consensus.words.get(LEASES)
        sole = node.sole_voter
        begun = False
        left: list[Ask] = []
        for ask in self.asks:
            if ask.round is None and not sole:
                ask.round = self.next_round
                begun = True
            late = not sole and (ask.round or ask.need > applied)
            if late or not complete or not self._answer(ask):
                left.append(ask)
                if late and not ask.round:
                    consensus.loop.after(NOT_YET_SECONDS, lambda: None)
        if begun:
            node.read_index(self.next_round)
            self.next_round -= 1
        self.asks = left
        self.asks_bytes = sum([len(ask.payload) for ask in left])

    def _answer(self, ask: Ask) -> bool:
        """False: not yet."""
        now = monotonic_us()
        lessor, payload = self.lessor, ask.payload
        head = payload[: ONE.size] + ONE.pack(self.consensus.committed)
        if ask.kind == Frame.KEEP_ALIVE:
            kept, clear = lessor.renew(payload, ONE.size, now, count=not ask.waits)
            if clear:
                ask.renewed = ask.waits = True
                work = lessor.clearing(payload, ONE.size)
                if work is not None:
                    self._propose(work)
                return False
            answer, body = Frame.KEPT, kept
        elif ask.kind == Frame.LEASE_TIMES:
            answer, body = Frame.LEASE_TIMES_OK, lessor.times(payload, ONE.size, now)
        else:
            answer, body = Frame.LEASE_IDS_OK, lessor.clock.ids()
        if isinstance(ask.peer, Asker):
            self.route.answer(ask.peer, answer, head + body)
        else:
            self.consensus.server.send(ask.peer, answer, head, body)
        return True

    def _propose(self, work: Work) -> None:
        consensus = self.consensus
        consensus.proposals.append((None, work.batch))
        consensus.gathered_bytes += len(work.batch)
        self.proposed[id(work.batch)] = work

    def proposed_to_log(self, batches: list[bytes]) -> None:
        """These are in the log: what they were for is under way."""
        if self.proposed:
            for batch in batches:
                self.proposed.pop(id(batch), None)

    def refused(self, batch: bytes) -> None:
        """The log did not take it: what it was for is due again."""
        work = self.proposed.pop(id(batch), None)
        if work is not None:
            self.lessor.not_proposed(work)

    def _count(self) -> None:
        words, lessor = self.consensus.words, self.lessor
        words.set(LEASE_COUNT, lessor.clock.count)
        words.set(LEASES_GRANTED, lessor.granted)
        words.set(LEASES_REVOKED, lessor.revoked)
        words.set(LEASES_RENEWED, lessor.clock.renewed)
        words.set(LEASES_EXPIRED, lessor.expired)

    def stop(self) -> None:
        """An orderly end: what time each lease has left goes into the log."""
        if self.term and self.lessor.loaded:
            for work in self.lessor.last_words(monotonic_us()):
                self._propose(work)
            consensus, node = self.consensus, self.consensus.node
            assert node is not None
            for _ in range(len(self.proposed)):
                consensus.propose()
                while (ready := node.ready()) is not None:
                    consensus.on_ready(ready)
        self._close_map()
