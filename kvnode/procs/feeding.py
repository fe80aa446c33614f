"""Snapshots between members, on consensus' side: who is sent which file, what is received.

Role: answers Raft's `snapshot_requests` with a file that the applier made, and takes the files of
others until Raft may be told of them. The rules of a transfer are in state/transfer.
Caller: procs/consensus and procs/peering, a few lines each.

A member that is behind: `want` -> SNAPSHOT_MAKE to the applier (or a file made lately) -> pieces ->
COMPLETE -> the SNAPSHOT message -> `report_snapshot`. This member behind: pieces -> COMPLETE ->
SNAPSHOT message, `may_step` -> Ready.snapshot, `save` -> the record is durable, `on_durable` ->
INSTALL to the applier -> INSTALLED.

Invariants:
  1. A SNAPSHOT message reaches Raft only when its file is here, checked and durable; until it is
     installed, or Raft does not want it, no other file takes its place.
  2. The applier gets nothing between the record of a snapshot and INSTALL.
  3. What was asked of `want` is reported once, also when the leader's term ends.
  4. While a file is made or sent, the log is kept from its index on, within peering's bound.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kvnode._core.sharedword import APPLIED
from kvnode.base.errors import DecodeError, DiskError
from kvnode.base.failpoint import hit
from kvnode.base.ids import Index, MemberID
from kvnode.base.limits import MIB, SNAPSHOT_FILES_MAX
from kvnode.env.clock import monotonic_us, random_u64
from kvnode.env.incoming import IncomingThread, remove_obsolete
from kvnode.env.outgoing import OutgoingFile, clear
from kvnode.raft import CompactedError, Message, Role, Snapshot, encode_configuration
from kvnode.state.transfer import SETBACKS_MAX, Answer, Outcome, Receiver, Sender
from kvnode.wire.frames import ONE, PAIR, QUAD, Frame
from kvnode.wire.peers import PeerFrame, decode_ack, decode_chunk
from kvnode.wire.snapfile import FileName, generation_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvnode.env.peernet import Incoming
    from kvnode.procs.consensus import Consensus

log = logging.getLogger("consensus")

FEED_BYTES_PER_SECOND = 100 * MIB
KEEP_SECONDS = 60.0       # a file nobody reads, for the next member that is behind
MAKE_SECONDS = 3.0        # between the end of a copy that failed and the next


class _File:
    """A finished file, its place in the log, and when it was read last."""

    def __init__(self, file: OutgoingFile, snapshot: Snapshot, now: float) -> None:
        self.file = file
        self.snapshot = snapshot
        self.used_at = now


class Feeding:
    """Transfers of one member, out and in. At rest with one member."""

    def __init__(self, consensus: Consensus) -> None:
        self.consensus = consensus
        self.root = Path(consensus.start.layout.state)
        self.waiting: set[int] = set()
        self.transfers: dict[int, tuple[Sender, _File]] = {}
        self.files: list[_File] = []
        self.making = 0                     # id of the file that the applier makes
        self.not_before = 0.0
        self.thread: IncomingThread | None = None
        self.receiver: Receiver | None = None
        self.incoming = 0                   # index of what is here of a snapshot, 0: nothing
        self.claimed = False
        self.installing: tuple[int, Snapshot] | None = None
        self.install_due = False            # the record is durable, INSTALLED has not come
        slow = os.environ.get("KVNODE_TEST_FEED_BYTES_PER_SECOND")
        self.rate = int(slow) if slow else FEED_BYTES_PER_SECOND
        self.unpumped: set[int] = set()     # members whose next piece has its timer

    def open(self, applied: int) -> int:
        """At the log's opening: tidies, and gives the index that the applier goes on from.

        The record of a snapshot may be durable though the applier has not switched to it."""
        consensus = self.consensus
        assert consensus.wal is not None
        state = consensus.wal.state
        clear(self.root)
        if self.root.exists():
            self.incoming = remove_obsolete(self.root, applied)
        handlers = consensus.peering.handlers
        handlers[PeerFrame.CHUNK] = self.on_chunk
        handlers[PeerFrame.CHUNK_ACK] = self.on_ack
        return max(applied, state.snapshot_index)

    def close(self) -> None:
        """The node stops; what has come in stays."""
        if self.thread is not None:
            self.thread.close()

    @property
    def now(self) -> float:
        return monotonic_us() / 1e6

    # --- members that are behind ----------------------------------------------------------------

    def want(self, members: Iterable[int]) -> None:
        """Ready.snapshot_requests."""
        self.waiting.update(members)
        self.serve()

    def serve(self) -> None:
        """Starts transfers of a file that is there, or has one made."""
        if not self.waiting:
            return
        now = self.now
        found = self.usable()
        if found is not None:
            for member in self.waiting:
                sender = Sender(found.file.name, found.file.read, now, self.rate)
                self.transfers[member] = sender, found
                log.info(
                    "a member is sent a snapshot",
                    extra={"fields": {"member": f"{member:x}", "index": found.snapshot.index,
                                      "bytes": found.file.name.size}},
                )
            sent = self.waiting
            self.waiting = set()
            for member in sent:
                self.pump(member)
        elif not self.making and self.consensus.applier is not None and now >= self.not_before:
            self.making = random_u64() or 1
            self.consensus.server.send(
                self.consensus.applier, Frame.SNAPSHOT_MAKE, ONE.pack(self.making)
            )

    def usable(self) -> _File | None:
        """The newest file behind which the log goes on."""
        assert self.consensus.wal is not None
        first = self.consensus.wal.first_index
        good = [f for f in self.files if f.snapshot.index + 1 >= first]
        return max(good, key=lambda f: f.snapshot.index, default=None)

    def on_made(self, payload: bytes) -> None:
        """SNAPSHOT_MADE."""
        file, index, term, size = QUAD.unpack_from(payload)
        if file != self.making:
            return
        self.making = 0
        why = bytes(payload[QUAD.size :]).decode(errors="replace")
        node = self.consensus.node
        assert node is not None
        if index:
            try:
                snapshot = node.snapshot_at(Index(index))
                made = OutgoingFile(self.root, FileName(index, term, file, size))
            except (CompactedError, OSError) as error:
                why = str(error)
            else:
                self.files.append(_File(made, snapshot, self.now))
                self.tidy()
                self.serve()
                return
        log.warning(f"no snapshot for members that are behind: {why}")
        self.not_before = self.now + MAKE_SECONDS
        self.report_waiting()

    def report_waiting(self) -> None:
        """Nothing comes of what was asked: Raft asks again."""
        node = self.consensus.node
        assert node is not None
        for member in self.waiting:
            node.report_snapshot(MemberID(member), delivered=False)
        self.waiting.clear()

    def on_applier_gone(self) -> None:
        """What it was making is not made."""
        if self.making:
            self.making = 0
            self.report_waiting()

    def on_ack(self, frame: Incoming) -> None:
        """CHUNK_ACK."""
        transfer = self.transfers.get(frame.sender)
        if transfer is not None:
            try:
                transfer[0].on_ack(decode_ack(frame.payload), self.now)
            except DecodeError as error:
                log.warning(str(error))
            self.pump(frame.sender)

    def pump(self, member: int) -> None:
        """Sends one piece, the next in another turn: entries and heartbeats go between them."""
        self.unpumped.discard(member)
        if member not in self.transfers:
            return
        sender, file = self.transfers[member]
        net, now = self.consensus.peering.net, self.now
        file.used_at = now
        if sender.outcome == Outcome.RUNNING:
            try:
                chunk = sender.take(now)
            except (OSError, DiskError) as error:
                log.error(str(error))
                self.drop(file)
                return
            if chunk is not None:
                if net is None or not net.send(member, PeerFrame.CHUNK, chunk.encode()):
                    sender.not_sent(chunk)
                    return      # the next tick tries again
                hit("snapshot-chunk")
                if chunk.data:
                    self.pump_later(member, sender.due_in(now))
            elif (due := sender.due_in(now)) > 0:
                self.pump_later(member, due)
            return
        self.ended(member, sender, file)

    def pump_later(self, member: int, seconds: float) -> None:
        """Once, however often it is asked."""
        if member not in self.unpumped:
            self.unpumped.add(member)
            self.consensus.loop.after(seconds, lambda: self.pump(member))

    def ended(self, member: int, sender: Sender, file: _File) -> None:
        """A transfer is over: Raft hears of it, and says the rest itself."""
        node = self.consensus.node
        assert node is not None
        del self.transfers[member]
        delivered = sender.outcome == Outcome.COMPLETE
        if delivered:
            # The configuration of now: a member that joined since the copy must find itself.
            snapshot = file.snapshot._replace(
                configuration=node.configuration, configuration_index=node.configuration_index
            )
            hit("snapshot-told")
            delivered = node.send_snapshot(MemberID(member), snapshot)
        elif sender.setbacks > SETBACKS_MAX:
            self.drop(file)
        node.report_snapshot(MemberID(member), delivered)
        log.info(
            "a snapshot's transfer has ended",
            extra={"fields": {"member": f"{member:x}", "index": file.snapshot.index,
                              "delivered": delivered, "sent-bytes": sender.sent_bytes}},
        )

    def drop(self, file: _File) -> None:
        """A file that is of no use: those that were sent it are asked for again."""
        node = self.consensus.node
        assert node is not None
        for member in [m for m, (_, used) in self.transfers.items() if used is file]:
            del self.transfers[member]
            node.report_snapshot(MemberID(member), delivered=False)
        if file in self.files:
            self.files.remove(file)
            file.file.remove()

    def tidy(self) -> None:
        """Files that nobody reads go after a while, or when there are too many."""
        reading = {id(file) for _, file in self.transfers.values()}
        now = self.now
        for file in list(self.files):
            idle = id(file) not in reading
            old = now - file.used_at > KEEP_SECONDS or len(self.files) > SNAPSHOT_FILES_MAX
            if idle and old:
                self.files.remove(file)
                file.file.remove()

    def keep_from(self, checkpoint: int) -> int:
        """The log is needed from here, for what is being made or sent (peering bounds it)."""
        assert self.consensus.wal is not None
        if self.making:
            return min(checkpoint, self.consensus.wal.first_index)
        using = [file.snapshot.index for _, file in self.transfers.values()]
        return min([checkpoint, *using])

    def on_tick(self) -> None:
        """Time passes."""
        node = self.consensus.node
        if self.incoming and self.consensus.words.get(APPLIED) >= self.incoming and not (
            self.claimed or self.install_due
        ):
            self.discard()
        if node is None or not (self.waiting or self.transfers or self.files):
            return
        if node.role != Role.LEADER:
            self.transfers.clear()
            self.waiting.clear()
        for member, (sender, _) in list(self.transfers.items()):
            sender.tick(self.now)
            self.pump(member)
        self.tidy()
        self.serve()

    # --- this member is behind ------------------------------------------------------------------

    def on_chunk(self, frame: Incoming) -> None:
        """CHUNK."""
        consensus = self.consensus
        if consensus.node is None:
            return
        try:
            chunk = decode_chunk(frame.payload)
        except DecodeError as error:
            log.warning(str(error))
            return
        receiver = self.start_receiver()
        self.answer(receiver.on_chunk(frame.sender, chunk, self.now))
        if receiver.name is not None:
            self.incoming = receiver.name.index

    def start_receiver(self) -> Receiver:
        """Made with the first frame that needs it."""
        consensus = self.consensus
        if self.receiver is None:
            self.thread = IncomingThread(self.root, consensus.start.cluster)
            self.receiver = Receiver(self.thread, self.wanted)
            consensus.loop.add(self.thread.fileno(), self.on_news)
        return self.receiver

    def wanted(self, index: int) -> bool:
        """Not while one is being installed, also one from before a restart: the beginning of
        another removes what is here."""
        busy = self.claimed or self.install_due or self.installing is not None
        return index > self.consensus.committed and not busy

    def discard(self) -> None:
        """What is here of a snapshot is of no use any more."""
        receiver, applied = self.start_receiver(), self.consensus.words.get(APPLIED)
        assert self.thread is not None
        self.claimed, self.incoming = False, 0
        receiver.release()
        self.thread.discard(max(applied, self.consensus.committed))

    def on_news(self) -> None:
        """The thread has done something."""
        assert self.thread is not None and self.receiver is not None
        for what, name, *rest in self.thread.poll():
            name = cast(FileName, name)
            if what == "opened":
                answers = self.receiver.on_opened(name, *rest)  # type: ignore[arg-type]
                log.info(
                    "a snapshot is on its way to this member",
                    extra={"fields": {"index": name.index, "bytes": name.size, "here": rest[0]}},
                )
            elif what == "written":
                answers = self.receiver.on_written(name, *rest)  # type: ignore[arg-type]
            elif what == "finished":
                answers = self.receiver.on_finished(name)
            else:
                answers = self.receiver.on_broken(name)
                log.error(f"a snapshot could not be received: {rest[0]}")
            self.answer(answers)

    def answer(self, answers: list[Answer]) -> None:
        """CHUNK_ACKs leave; a lost one is asked for."""
        net = self.consensus.peering.net
        for member, ack in answers:
            if net is not None:
                net.send(member, PeerFrame.CHUNK_ACK, ack.encode(), urgent=True)

    def may_step(self, message: Message) -> bool:
        """Whether a SNAPSHOT message may go to Raft now."""
        snapshot, receiver = message.snapshot, self.receiver
        if (
            snapshot is None
            or receiver is None
            or self.claimed
            or not receiver.holds(snapshot.index, snapshot.term)
        ):
            return False
        receiver.claim()
        self.claimed = True
        return True

    def turn_ended(self) -> None:
        """After all Readies of a turn: Raft did not take the claimed file. It may have been a
        deposed leader's word: the file stays until the state has passed it."""
        if self.claimed and self.installing is None and not self.install_due:
            assert self.receiver is not None
            self.claimed = False
            self.receiver.unclaim()

    def save(self, number: int, snapshot: Snapshot) -> None:
        """Ready.snapshot: its record goes to the log."""
        wal = self.consensus.wal
        assert wal is not None and self.claimed
        wal.save_snapshot(
            snapshot.index, snapshot.term, encode_configuration(snapshot.configuration),
            snapshot.configuration_index, generation_name(snapshot.index, snapshot.term),
        )
        self.installing = number, snapshot
        hit("snapshot-saved")

    def on_durable(self, number: int) -> None:
        """Readies up to `number` are durable, maybe the snapshot's record."""
        if self.installing is None or self.installing[0] > number:
            return
        _, snapshot = self.installing
        self.installing = None
        consensus = self.consensus
        hit("snapshot-durable")
        consensus.committed = max(consensus.committed, snapshot.index)
        self.greet(0)
        consensus.sent_index = consensus.border = snapshot.index

    def greet(self, applied: int) -> int:
        """INSTALL to an applier that has not got the log's snapshot; where it goes on from."""
        consensus = self.consensus
        assert consensus.wal is not None
        state = consensus.wal.state
        if state.snapshot_index <= applied:
            if self.install_due:
                self.installed()    # and the applier ended before it could say so
            return applied
        if self.installing is None:
            self.install_due = True
            if consensus.applier is not None:
                place = PAIR.pack(state.snapshot_index, state.snapshot_term)
                consensus.server.send(consensus.applier, Frame.INSTALL, place)
                hit("snapshot-install")
        return state.snapshot_index

    def on_installed(self, payload: bytes) -> None:
        """INSTALLED: the folder is a generation now."""
        index, _ = PAIR.unpack(payload)
        consensus = self.consensus
        assert consensus.node is not None
        self.installed()
        # What it says of leases begins anew with another map.
        consensus.leases.on_link()
        consensus.node.on_applied(Index(index))

    def installed(self) -> None:
        """Another file may come."""
        self.install_due = False
        self.incoming = 0
        if self.claimed:
            assert self.receiver is not None and self.thread is not None
            self.claimed = False
            self.receiver.release()
            self.thread.forget()
