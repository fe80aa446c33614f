"""Consensus: the log and Raft's Ready loop, as one process.

Role: proposals of one turn become one log entry; entries are written and synced by the log's
thread while the applier already decodes them; what is committed is told to the applier as a
border. One voter is a configuration like any other here.
Started by: the supervisor. Owns: `member/wal`.

Life of a proposal: `on_server` gathers it, `turn` merges what came and proposes one entry, `pump`
takes the Ready: entries to the log (`submit`) and to the applier (ENTRIES); `on_log` hears that
they are durable, the node commits, `pump` stores the shared word and sends BORDER.

Invariants:
  1. The log is opened after the applier said how far it is: what is applied was durable.
  2. The shared word's commit index is stored before that index leaves for anyone.
  3. The applier gets entries in order without a gap; the border never passes what it was sent.
  4. While a sync is in flight, small proposals gather for the next entry (group commit); large
     ones do not wait.
  5. A failed log ends the process; nothing is acknowledged after it.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from typing import cast

from kvnode._core import meters
from kvnode._core.envelope import merge
from kvnode._core.sharedword import COMMIT, SOLE, TERM, SharedWords
from kvnode.base.codes import Code, Kind
from kvnode.base.errors import CallerError, CorruptionError, DiskError
from kvnode.base.failpoint import hit, points
from kvnode.base.ids import Index, MemberID, Term
from kvnode.base.limits import GATHER_BYTES, MIB
from kvnode.env.clock import random_u64
from kvnode.env.disk import RealDisk
from kvnode.env.link import GONE, KINDS, Endpoint, Peer
from kvnode.env.room import Room
from kvnode.env.unixlink import UnixEndpoint
from kvnode.procs.alarms import SpaceWatch
from kvnode.procs.feeding import Feeding
from kvnode.procs.lanes import FAILED, ProposeLane
from kvnode.procs.leasing import LEASE_FRAMES, LeaseKeeper
from kvnode.procs.loop import Loop
from kvnode.procs.peering import REMOTE, Peering
from kvnode.procs.process import EXIT_FATAL, Start, begin
from kvnode.raft import (
    CompactedError,
    Configuration,
    Entry,
    HardState,
    Message,
    Node,
    NodeConfig,
    ProposalRefusedError,
    Ready,
    decode_configuration,
    encode_configuration,
)
from kvnode.raft import (
    Role as RaftRole,
)
from kvnode.wal.disk import LogFailedError, NoSpaceError
from kvnode.wal.log import Log
from kvnode.wal.state import LogState
from kvnode.wire.frames import (
    FIVE,
    NOSPACE_STANDS,
    ONE,
    PAIR,
    Frame,
    Hello,
    Role,
    decode_hello,
    encode_entries,
)
from kvnode.wire.members import Member, encode_members

log = logging.getLogger("consensus")

SEND_BYTES = 4 * MIB
BACKLOG_BYTES = 32 * MIB
FETCH_BYTES = MIB // 8
HERE_BYTES = 16 * 1024
SPARES_SECONDS = 1.0
SLOW_DISK_US = 1_000_000
LANE_PASSES = 64
LANE_POINTS = frozenset({"lane", "lone-sent", "lone-synced"})
LITTLE_BYTES = 512
LITTLE_KINDS = frozenset(
    {
        Kind.DELETE_RANGE, Kind.COMPACT, Kind.SESSION_OPEN, Kind.SESSION_CLOSE, Kind.ALARM,
        Kind.LEASE_REVOKE,
    }
)
_FIRST_KIND_AT = 88  # behind the heads of the batch and of its first group


def needs_little(batch: bytes) -> bool:
    """A proposal of one request that makes room or opens a session: taken on a nearly full disk."""
    return len(batch) <= LITTLE_BYTES and batch[_FIRST_KIND_AT] in LITTLE_KINDS


class LogReader:
    """The durable log as Raft reads it (`raft.LogStorage`)."""

    def __init__(self, wal: Log) -> None:
        self._wal = wal

    @property
    def first_index(self) -> Index:
        return Index(self._wal.first_index)

    @property
    def last_index(self) -> Index:
        return Index(self._wal.last_index)

    def term(self, index: Index) -> Term:
        term = self._wal.term(index)
        if term is None:
            raise CompactedError(f"entry {index} is no longer in the log")
        return Term(term)

    def entries(self, lo: Index, hi: Index, max_bytes: int) -> list[Entry]:
        if lo < self._wal.first_index:
            raise CompactedError(f"entry {lo} is no longer in the log")
        return [Entry(*e) for e in self._wal.entries(lo, hi, max_bytes)]  # type: ignore[arg-type]


class Consensus:
    """One consensus process."""

    def __init__(self, start: Start, loop: Loop) -> None:
        self.start = start
        self.loop = loop
        self.words = SharedWords(start.layout.words)
        self.server: Endpoint = KINDS[start.config.link].listen(start.layout.consensus_socket)
        loop.add_source(self.server, self.on_server)
        self.applier: Peer | None = None
        self.gateways: list[Peer] = []
        self.proposals: list[tuple[Peer | None, bytes]] = []
        self.gathered_bytes = 0
        self.barriers: dict[int, tuple[Peer, int]] = {}
        self.barrier_count = 0
        self.wal: Log | None = None
        self.node: Node | None = None
        self.tickets: list[tuple[int, int, list[Message]]] = []
        self.fresh: list[Entry] = []
        self.sent_index = 0
        self.border = 0
        self.committed = 0
        self.room = Room(start.layout.wal)
        self.full = self.slow = self.roomy = False
        self.space = SpaceWatch(start.config.quota_backend_bytes, start.member)
        self.peering = Peering(self)
        self.leases = LeaseKeeper(self)
        self.feeding = Feeding(self)
        self.leader = 0
        self.led = False
        self.proposer: Peer | None = None
        self.lane: ProposeLane | None = None
        if isinstance(self.server, UnixEndpoint) and points() <= LANE_POINTS:
            self.lane = ProposeLane(
                loop.fileno(), self.on_lane, LANE_PASSES, self.server, self.words
            )
            loop.wait_with(self.lane.wait)
        loop.at_end(self.turn)

    # --- start ----------------------------------------------------------------------------------

    def open(self, applied: int) -> None:
        """Opens or makes the log, builds the node, and campaigns if it is the sole voter."""
        start = self.start
        disk = RealDisk()
        path = start.layout.wal
        segment_bytes = start.config.wal_segment_bytes
        if Log.exists(disk, path):
            wal = Log.open(
                disk, path, known_durable_index=applied, cluster_id=start.cluster,
                member_id=start.member, segment_bytes=segment_bytes,
            )
        else:
            if applied:
                raise CorruptionError(
                    f"the map has applied {applied} entries but there is no log: restore the "
                    "log, or start with an empty --data-dir", path,
                )
            configuration = Configuration(tuple(MemberID(f.id) for f in start.founders))
            wal = Log.create(
                disk, path,
                LogState(
                    cluster_id=start.cluster, member_id=start.member,
                    configuration=encode_configuration(configuration),
                ),
                segment_bytes=segment_bytes,
            )
        state = wal.state
        self.wal = wal
        heartbeat = start.config.heartbeat_interval
        applied = self.feeding.open(applied)
        self.node = Node(
            NodeConfig(
                id=MemberID(start.member),
                random=random.Random(random_u64()),
                storage=LogReader(wal),
                configuration=decode_configuration(state.configuration),
                bootstrap_context=encode_members(Member(*f) for f in start.founders),
                configuration_index=Index(state.configuration_index),
                hard_state=HardState(Term(state.term), MemberID(state.vote), Index(state.commit)),
                snapshot_index=Index(state.snapshot_index),
                snapshot_term=Term(state.snapshot_term),
                applied=Index(applied),
                election_ticks=start.config.election_timeout // heartbeat,
                pre_vote=start.config.pre_vote,
            )
        )
        self.committed = max(state.commit, applied)
        self.loop.add(wal.fileno(), self.on_log)
        self.loop.every(heartbeat / 1000, self.on_tick)
        self.loop.every(SPARES_SECONDS, self.retry_spares)
        self.peering.set_members({f.id: f.peer_urls for f in start.founders})
        if self.node.sole:
            self.node.campaign()
        log.info(
            "log opened",
            extra={"fields": {"first": wal.first_index, "last": wal.last_index,
                              "term": state.term, "applied": applied}},
        )
        start.ready()

    # --- peers ----------------------------------------------------------------------------------

    def on_server(self) -> None:
        """Frames of gateways and of the applier."""
        for message in self.server.receive():
            kind, peer = message.kind, message.peer
            if kind == Frame.PROPOSE:
                self.proposals.append((peer, message.payload))
                self.gathered_bytes += len(message.payload)
                self.proposer = peer
            elif kind == Frame.APPLIED:
                self.on_applied(*FIVE.unpack(message.payload))
            elif kind == Frame.FETCH:
                self.on_fetch(peer, *PAIR.unpack(message.payload))
            elif kind == Frame.READ_BARRIER:
                (number,) = ONE.unpack(message.payload)
                self.barrier_count += 1
                self.barriers[self.barrier_count] = (peer, number)
                if self.node is not None:
                    self.node.read_index(self.barrier_count)
            elif kind == Frame.SNAPSHOT_MADE:
                self.feeding.on_made(message.payload)
            elif kind == Frame.INSTALLED:
                self.feeding.on_installed(message.payload)
            elif kind in LEASE_FRAMES:
                self.leases.on_frame(peer, kind, message.payload)
            elif kind == Frame.HELLO:
                self.on_hello(peer, decode_hello(message.payload))
            elif kind == GONE:
                if peer is self.applier:
                    self.applier = None
                    self.leases.on_link()
                    self.feeding.on_applier_gone()
                self.leases.on_gone(peer)
                if peer is self.proposer:
                    self.proposer = None
                self.gateways = [g for g in self.gateways if g is not peer]
                self.proposals = [p for p in self.proposals if p[0] is not peer]
                self.gathered_bytes = sum(len(p[1]) for p in self.proposals)

    def on_hello(self, peer: Peer, hello: Hello) -> None:
        """A gateway or the applier; the applier is sent everything behind what it applied."""
        own = Hello(Role.CONSENSUS, os.getpid(), 1)
        self.server.send(peer, Frame.HELLO, own.encode())
        if hello.role != Role.APPLIER:
            self.gateways.append(peer)
            self.tell_leader(peer)
            return
        self.applier = peer
        self.leases.on_link()
        if self.node is None:
            self.open(hello.applied_index)
            for number in self.barriers:
                assert self.node is not None
                self.node.read_index(number)
        self.sent_index = self.border = self.feeding.greet(hello.applied_index)

    def on_applied(
        self, applied: int, used: int, checkpoint: int, state_hash: int, flags: int
    ) -> None:
        """The applier's progress: the log below its checkpoint is no longer needed."""
        assert self.node is not None and self.wal is not None
        self.node.on_applied(Index(applied))
        if checkpoint > self.wal.first_index:
            self.wal.cut(self.peering.keep_from(checkpoint))
        made = self.space.on_used(used, bool(flags & NOSPACE_STANDS), self.node.term)
        if made is not None:
            self.proposals.append((None, made))

    def on_fetch(self, peer: Peer, first: int, last: int) -> None:
        """Entries for a generation that catches up."""
        assert self.wal is not None
        entries: list[tuple[int, int, int, bytes]] = []
        if self.wal.first_index <= first <= last <= self.wal.last_index:
            entries = self.wal.entries(first, last + 1, FETCH_BYTES)
        self.server.send(peer, Frame.FETCHED, *encode_entries(entries))

    def on_tick(self) -> None:
        assert self.node is not None and self.wal is not None
        self.node.tick()
        self.peering.on_tick()
        self.feeding.on_tick()
        slow = self.wal.in_flight_age_us() > SLOW_DISK_US
        if slow and not self.slow:
            log.error(
                f"the disk under {self.start.layout.wal} has not finished a write for "
                f"{SLOW_DISK_US // 1_000_000} s: nothing is acknowledged until it does"
            )
        elif self.slow and not slow:
            log.info("the disk answers again")
        self.slow = slow
        self.leases.on_tick()
        self.look_at_room()

    def look_at_room(self) -> None:
        """Whether the disk has so much room that the lane need not ask at each proposal."""
        self.roomy = self.room.free() >= 2 * self.room.reserve

    def retry_spares(self) -> None:
        """The log prepares segments ahead again after a full disk."""
        assert self.wal is not None
        if self.wal.space_error is not None and not self.room.low():
            self.wal.retry_space()

    # --- the log --------------------------------------------------------------------------------

    def on_log(self) -> None:
        """Tickets of the log's thread are done: Readies up to there are durable."""
        assert self.wal is not None and self.node is not None
        done = self.wal.completed()
        number = 0
        while self.tickets and self.tickets[0][0] <= done:
            _, number, messages = self.tickets.pop(0)
            if messages:
                self.peering.send(messages)
        if number:
            self.node.on_persisted(number)
            hit("persisted")
            if self.feeding.installing is not None:
                self.feeding.on_durable(number)

    def turn(self) -> None:
        """The end of a turn: one entry of what gathered, then everything that is ready."""
        node = self.node
        if node is None:
            return
        if self.leases.asks:
            self.leases.turn()
        if (
            self.proposals
            and node.role == RaftRole.LEADER
            and (not self.tickets or self.gathered_bytes >= GATHER_BYTES)
        ):
            self.watch_room()
            if self.proposals:
                self.propose()
        elif self.proposals and node.leader and node.role != RaftRole.LEADER:
            self.peering.forward()
        while (ready := node.ready()) is not None:
            self.on_ready(ready)
        if self.feeding.claimed:
            self.feeding.turn_ended()
        self.feed_applier()
        if self.lane is not None:
            self.arm(self.lane, node)

    # --- the fast lane --------------------------------------------------------------------------

    def arm(self, lane: ProposeLane, node: Node) -> None:
        """Lets the next lone proposal through the lane, if everything is at rest."""
        assert self.wal is not None
        lane.disarm()
        if (
            self.proposer is None or self.applier is None or self.proposals or self.tickets
            or not self.roomy or self.sent_index != self.wal.last_index
            or self.border != self.sent_index
        ):
            return
        log, entry = self.wal.lane(), node.lone_entry()
        if log is not None and entry is not None:
            assert entry.at == self.sent_index + 1
            lane.arm(self.proposer, self.applier, log, entry)

    def on_lane(self, passes: int) -> None:
        """Takes in entries that went through the lane: durable, told and, behind that, proposed."""
        node, wal, lane = self.node, self.wal, self.lane
        assert node is not None and wal is not None and lane is not None
        if passes == FAILED:
            wal.completed()
            return
        hit("lane")
        wal.lone_appended(lane.ticket, node.lone_appended(passes, lane.last_commits))
        self.committed = self.sent_index = self.border = wal.last_index
        self.look_at_room()

    # --- proposals ------------------------------------------------------------------------------

    def propose(self) -> None:
        """Merges the gathered proposals into one entry."""
        node, wal = self.node, self.wal
        assert node is not None and wal is not None
        taken: list[bytes] = []
        size = 0
        for _, batch in self.proposals:
            if taken and size + len(batch) > SEND_BYTES:
                break
            taken.append(batch)
            size += len(batch)
        if not wal.has_room(size):
            self.refuse(len(taken), Code.NO_SPACE)
            return
        try:
            node.propose(taken[0] if len(taken) == 1 else merge(taken))
        except ProposalRefusedError:
            return
        hit("proposed")
        self.leases.proposed_to_log(taken)
        del self.proposals[: len(taken)]
        self.gathered_bytes = sum(len(p[1]) for p in self.proposals)
        if self.proposals:
            self.loop.after(0, lambda: None)

    def watch_room(self) -> None:
        """Below the disk's reserve only what needs little is proposed, below half of it nothing."""
        free = self.room.free()
        if free >= self.room.reserve:
            if self.full:
                self.full = False
                log.info("the disk has room again, writes are taken")
            return
        if not self.full:
            self.full = True
            log.error(self.room.text())
        kept = []
        for peer, batch in self.proposals:
            if peer is None or (free >= self.room.reserve // 2 and needs_little(batch)):
                kept.append((peer, batch))
            else:
                self.tell_refused(peer, Code.NO_SPACE, batch)
        self.proposals = kept
        self.gathered_bytes = sum(len(p[1]) for p in kept)

    def refuse(self, count: int, code: Code) -> None:
        """Tells gateways that proposals were not taken; they were executed nowhere."""
        for peer, batch in self.proposals[:count]:
            if peer is not None:
                self.tell_refused(peer, code, batch)
            else:
                self.space.forget()
                self.leases.refused(batch)
        del self.proposals[:count]
        self.gathered_bytes = sum(len(p[1]) for p in self.proposals)

    def tell_refused(self, peer: Peer, code: Code, batch: bytes) -> None:
        """Another member's gateway hears nothing, and asks again."""
        if peer is not REMOTE:
            self.server.send(peer, Frame.REFUSED, int(code).to_bytes(8, "little"), batch)

    def on_leader(self, leader: int) -> None:
        """Another leader, or none: gateways propose again what is open, behind this word."""
        self.leader = leader
        meters.tell_leader(leader, self.start.member)
        if leader:
            if self.led:
                self.proposals = [p for p in self.proposals if p[0] is None]
                self.gathered_bytes = sum(len(p[1]) for p in self.proposals)
            self.led = True
        for peer in self.gateways:
            self.tell_leader(peer)

    def tell_leader(self, peer: Peer) -> None:
        """LEADER to a gateway."""
        if self.node is not None:
            self.server.send(peer, Frame.LEADER, PAIR.pack(self.leader, self.node.term))

    def on_ready(self, ready: Ready) -> None:
        """Does what one Ready says, in the order of the node's contract."""
        node, wal = self.node, self.wal
        assert node is not None and wal is not None
        if ready.soft_state is not None:
            self.words.set(TERM, node.term)
            self.leases.on_role()
            if ready.soft_state.leader != self.leader:
                self.on_leader(ready.soft_state.leader)
        if ready.committed is not None:
            self.committed = ready.committed.last
        # Set, or cleared, before anything of this Ready leaves: another member may commit after it.
        self.words.set(COMMIT, self.committed | (SOLE if node.sole_voter else 0))
        if ready.messages:
            self.peering.send(ready.messages)
        if ready.needs_persist:
            if ready.snapshot is not None:
                self.feeding.save(ready.number, ready.snapshot)
            elif ready.configuration is not None:
                index, configuration = ready.configuration
                wal.save_configuration(encode_configuration(configuration), index)
            if ready.entries:
                wal.append(ready.entries)
            if ready.hard_state is not None:
                wal.save_hard_state(*ready.hard_state)
            alone = (
                node.sole_voter
                and not self.tickets
                and sum([len(entry.data) for entry in ready.entries]) <= HERE_BYTES
            )
            self.tickets.append((wal.submit(alone), ready.number, ready.messages_after_persist))
            hit("submitted")
            if alone:
                # Nobody waits for heartbeats, and what arrives during the sync is the next batch:
                # syncing here saves two wake-ups, sending the entry with its border a third.
                self.fresh = ready.entries
                self.on_log()
            elif ready.entries:
                self.on_appended(ready.entries)
                self.peering.on_appended(ready.entries)
        if ready.snapshot_requests:
            self.feeding.want(ready.snapshot_requests)
        if self.peering.unreachable:
            self.peering.report()
        for state in ready.read_states:
            if cast(int, state.context) < 0:
                self.leases.on_round(cast(int, state.context), state.index)
            waiting = self.barriers.pop(cast(int, state.context), None)
            if waiting is not None:
                peer, number = waiting
                self.server.send(peer, Frame.BARRIER_OK, PAIR.pack(number, state.index))

    # --- the applier ----------------------------------------------------------------------------

    def on_appended(self, entries: list[Entry]) -> None:
        """Entries go ahead to the applier while they are being synced."""
        first = entries[0].index
        if first <= self.sent_index:
            self.sent_index = first - 1
        if (
            self.applier is not None
            and self.feeding.installing is None
            and first == self.sent_index + 1
            and self.applier.backlog < BACKLOG_BYTES
        ):
            self.server.send(self.applier, Frame.ENTRIES, *encode_entries(entries))
            self.sent_index = entries[-1].index

    def feed_applier(self) -> None:
        """Sends what the applier has not got from the log, then the border."""
        wal, applier = self.wal, self.applier
        fresh, self.fresh = self.fresh, []
        if applier is None or wal is None or self.feeding.installing is not None:
            return
        if fresh:
            last = fresh[-1]
            if fresh[0].index == self.sent_index + 1 and self.committed == last.index:
                mark = PAIR.pack(last.index, last.term)
                self.sent_index = self.border = last.index
                hit("border")
                self.server.send(applier, Frame.COMMITTED, mark, *encode_entries(fresh))
                hit("bordered")
                return
            self.on_appended(fresh)
        while self.sent_index < wal.last_index and applier.backlog < BACKLOG_BYTES:
            entries = wal.entries(self.sent_index + 1, wal.last_index + 1, SEND_BYTES)
            self.server.send(applier, Frame.ENTRIES, *encode_entries(entries))
            self.sent_index = entries[-1][0]
        if self.sent_index < wal.last_index:
            self.loop.after(0.002, lambda: None)
        border = min(self.committed, self.sent_index)
        if border > self.border:
            term = wal.term(border)
            assert term is not None
            self.border = border
            hit("border")
            self.server.send(applier, Frame.BORDER, PAIR.pack(border, term))
            hit("bordered")

    def stop(self) -> None:
        """Gives leadership away, then closes the log with its closing mark."""
        if self.wal is not None:
            self.leases.stop()
        self.peering.hand_over(self.close)

    def close(self) -> None:
        """Nobody needs this process any more."""
        if self.wal is not None:
            self.feeding.close()
            self.words.set(COMMIT, 0)
            self.wal.close()
        self.peering.close()
        self.server.close()
        self.loop.stop()


def main() -> None:
    """Entry of the process."""
    start = begin("consensus")
    loop = Loop()
    consensus = Consensus(start, loop)
    loop.on_signal(consensus.stop, signal.SIGTERM)
    try:
        loop.run()
    except LogFailedError as error:
        log.error(str(error))
        sys.exit(EXIT_FATAL)
    except (CallerError, CorruptionError, NoSpaceError, DiskError) as error:
        log.error(str(error))
        sys.exit(EXIT_FATAL)


if __name__ == "__main__":
    main()
