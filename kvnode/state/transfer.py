"""The transfer of a snapshot's file between two members, without network, disk or clock.

Role: `Sender` decides which piece goes next, `Receiver` what to do with one that came. Caller:
procs/feeding; tests drive both through a lossy network.

The sender asks first (a CHUNK without bytes); the answer says how much is there. So a receiver
that was restarted goes on where its disk stands, and a broken transfer is one that is asked anew.

Sender: asks -> sends, at most `chunks_max` pieces ahead of the last answer -> COMPLETE, or FAILED
when nothing is heard, nothing moves, or the receiver wants it no more. Receiver: nothing ->
opening (what is on the disk?) -> receiving -> checking -> complete.

Invariants
 1. A piece is written only if it continues what is there and its CRC is right.
 2. COMPLETE is said only of a file that the disk said was whole, checked and durable.
 3. One file at a time is received. A newer one takes its place; another one at the same place or
    an older one only when nothing came of the present one for STALE_SECONDS.
 4. A claimed file (Raft was told of it) has its place until `release`.

Messages may be lost, repeated or reordered. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from kvnode._core.crc32c import crc32c
from kvnode.base.limits import SNAPSHOT_CHUNK_BYTES, SNAPSHOT_CHUNKS_MAX
from kvnode.wire.peers import Chunk, ChunkAck, ChunkState
from kvnode.wire.snapfile import FileName

RETRY_SECONDS = 1.0      # without news, what was sent counts as lost
DEAF_SECONDS = 20.0      # without an answer
STUCK_SECONDS = 120.0    # with answers that say nothing new
STALE_SECONDS = 10.0
SETBACKS_MAX = 5         # the receiver has less than it had: it was restarted, or the file is bad


class Outcome(Enum):
    """How a transfer stands."""

    RUNNING = 0
    COMPLETE = 1
    FAILED = 2


class Sender:
    """One file to one member. `read(offset, size)` gives its bytes; `rate` bytes a second (0:
    no bound). Ask `take` for pieces until it gives None, after each ack and when `due_in` says."""

    def __init__(
        self,
        name: FileName,
        read: Callable[[int, int], bytes],
        now: float,
        rate: int = 0,
        chunk_bytes: int = SNAPSHOT_CHUNK_BYTES,
        chunks_max: int = SNAPSHOT_CHUNKS_MAX,
    ) -> None:
        self.name = name
        self.outcome = Outcome.RUNNING
        self.have = 0                # what the receiver said last
        self.sent_bytes = 0          # all pieces, repeated ones too
        self.setbacks = 0
        self._read = read
        self._rate = rate
        self._chunk_bytes = chunk_bytes
        self._window = chunk_bytes * chunks_max
        self._asking = True
        self._at = 0
        self._begun = self._heard = self._moved = now
        self._sent_at = now - RETRY_SECONDS

    def on_ack(self, ack: ChunkAck, now: float) -> None:
        """What the receiver says."""
        if (ack.index, ack.term, ack.file) != self.name[:3] or self.outcome != Outcome.RUNNING:
            return
        self._heard = now
        if ack.state == ChunkState.COMPLETE:
            self.outcome = Outcome.COMPLETE
        elif ack.state == ChunkState.UNWANTED:
            self.outcome = Outcome.FAILED
        elif self._asking:
            if ack.have != self.have:
                self._moved = now
            self.setbacks += ack.have < self.have
            if self.setbacks > SETBACKS_MAX:
                self.outcome = Outcome.FAILED
            self._asking = False
            self.have = self._at = min(ack.have, self.name.size)
        elif ack.have > self.have:
            self.have = min(ack.have, self.name.size)
            self._at = max(self._at, self.have)
            self._moved = self._sent_at = now

    def tick(self, now: float) -> None:
        """Time passes: gives up, or asks anew."""
        if self.outcome != Outcome.RUNNING:
            return
        if now - self._heard > DEAF_SECONDS or now - self._moved > STUCK_SECONDS:
            self.outcome = Outcome.FAILED
        elif (self._at > self.have or self.have == self.name.size) and (
            now - self._sent_at > RETRY_SECONDS
        ):
            self._asking = True

    def take(self, now: float) -> Chunk | None:
        """The next piece to send, or None: nothing for now."""
        if self.outcome != Outcome.RUNNING:
            return None
        index, term, file, size = self.name
        if self._asking:
            if now - self._sent_at < RETRY_SECONDS:
                return None
            self._sent_at = now
            return Chunk(index, term, file, size, 0, 0, b"")
        if self._at >= size or self._at - self.have >= self._window or self.due_in(now) > 0:
            return None
        data = self._read(self._at, min(self._chunk_bytes, size - self._at))
        chunk = Chunk(index, term, file, size, self._at, crc32c(data), data)
        self._at += len(data)
        self.sent_bytes += len(data)
        self._sent_at = now
        return chunk

    def not_sent(self, chunk: Chunk) -> None:
        """The network did not take it."""
        if chunk.data:
            self.sent_bytes -= len(chunk.data)
            self._at = chunk.offset

    def due_in(self, now: float) -> float:
        """Seconds until the rate allows a further piece."""
        if not self._rate:
            return 0.0
        return max(0.0, self._begun + self.sent_bytes / self._rate - now)


class IncomingFiles(Protocol):
    """The receiver's disk (env/incoming): does one thing after another, elsewhere, and tells."""

    def begin(self, name: FileName) -> None:
        """Then `on_opened`. A folder of another file is removed."""

    def write(self, offset: int, data: bytes) -> None:
        """Then `on_written`."""

    def finish(self) -> None:
        """Then `on_finished`."""


class _Phase(Enum):
    OPENING = 0
    RECEIVING = 1
    CHECKING = 2
    COMPLETE = 3


Answer = tuple[int, ChunkAck]


class Receiver:
    """The files that others send here, one at a time. Answers are (member, CHUNK_ACK).

    `wanted(index)`: whether a snapshot there would be of use.
    """

    def __init__(self, disk: IncomingFiles, wanted: Callable[[int], bool]) -> None:
        self.name: FileName | None = None
        self.damaged = 0             # pieces whose CRC was wrong
        self._disk = disk
        self._wanted = wanted
        self._phase = _Phase.OPENING
        self._from = 0
        self._queued = 0
        self._written = 0
        self._heard = 0.0
        self._claimed = False

    def holds(self, index: int, term: int) -> bool:
        """Whether the snapshot is here, checked and durable."""
        return (
            self.name is not None
            and self._phase == _Phase.COMPLETE
            and self.name[:2] == (index, term)
        )

    def claim(self) -> None:
        """Raft is told of the complete file: nothing takes its place."""
        assert self._phase == _Phase.COMPLETE
        self._claimed = True

    def unclaim(self) -> None:
        """Raft did not want it, at least not now."""
        self._claimed = False

    def release(self) -> None:
        """The claimed file was installed, or is of no use."""
        self._claimed = False
        self.name = None

    def on_chunk(self, sender: int, chunk: Chunk, now: float) -> list[Answer]:
        """A piece, or a question."""
        name = FileName(chunk.index, chunk.term, chunk.file, chunk.size)
        if name != self.name:
            if not self._may_replace(name, now):
                return [(sender, self._say(name, 0, ChunkState.UNWANTED))]
            self.name, self._phase = name, _Phase.OPENING
            self._from, self._heard = sender, now
            self._queued = self._written = 0
            self._disk.begin(name)
            return []
        self._from, self._heard = sender, now
        if self._phase == _Phase.OPENING:
            return []
        if self._phase == _Phase.RECEIVING and chunk.data and chunk.offset == self._queued:
            if crc32c(chunk.data) == chunk.crc:
                self._disk.write(chunk.offset, chunk.data)
                self._queued += len(chunk.data)
                self._finish_if_whole()
                return []
            self.damaged += 1
        return self._answer()

    def _may_replace(self, name: FileName, now: float) -> bool:
        if self._claimed or not self._wanted(name.index):
            return False
        if self.name is None or now - self._heard > STALE_SECONDS:
            return True
        return name[:2] > self.name[:2] and self._phase != _Phase.CHECKING

    def _finish_if_whole(self) -> None:
        if self.name is not None and self._queued == self.name.size:
            self._phase = _Phase.CHECKING
            self._disk.finish()

    def _answer(self) -> list[Answer]:
        assert self.name is not None
        complete = self._phase == _Phase.COMPLETE
        state = ChunkState.COMPLETE if complete else ChunkState.WANTED
        return [(self._from, self._say(self.name, self._written, state))]

    def _say(self, name: FileName, have: int, state: ChunkState) -> ChunkAck:
        return ChunkAck(name.index, name.term, name.file, have, state)

    # --- the disk's news; those of a file that was replaced meanwhile count for nothing ----------

    def on_opened(self, name: FileName, have: int, complete: bool) -> list[Answer]:
        """How much of the file was here already."""
        if name != self.name or self._phase != _Phase.OPENING:
            return []
        self._queued = self._written = have
        self._phase = _Phase.COMPLETE if complete else _Phase.RECEIVING
        if not complete:
            self._finish_if_whole()
        return self._answer()

    def on_written(self, name: FileName, have: int) -> list[Answer]:
        """A piece is written."""
        if name != self.name:
            return []
        self._written = have
        return self._answer()

    def on_finished(self, name: FileName) -> list[Answer]:
        """The file is whole, checked and durable."""
        if name != self.name:
            return []
        self._phase = _Phase.COMPLETE
        return self._answer()

    def on_broken(self, name: FileName) -> list[Answer]:
        """The file was damaged or could not be written, and is gone. The sender asks again."""
        if name == self.name:
            self.name = None
            self._claimed = False
        return []
