"""Transfers of snapshot files over a network that loses, repeats, reorders and breaks off."""

from __future__ import annotations

import random

import pytest

from kvnode._core.crc32c import crc32c
from kvnode.base.errors import DecodeError
from kvnode.state import transfer
from kvnode.state.transfer import Answer, Outcome, Receiver, Sender
from kvnode.wire.peers import Chunk, ChunkAck, ChunkState, decode_ack, decode_chunk
from kvnode.wire.snapfile import FileName, Tail, decode_tail

CHUNK = 100


class Disk:
    """What a receiver wrote, done some steps after it was asked; `durable` outlives a restart."""

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self.name: FileName | None = None
        self.bytes = b""
        self.durable: dict[FileName, tuple[bytes, bool]] = {}
        self.jobs: list[tuple[str, object]] = []
        self.expected: dict[FileName, bytes] = {}
        self.flip = False

    def begin(self, name: FileName) -> None:
        self.jobs.append(("begin", name))

    def write(self, offset: int, data: bytes) -> None:
        self.jobs.append(("write", (offset, data)))

    def finish(self) -> None:
        self.jobs.append(("finish", None))

    def step(self, receiver: Receiver) -> list[Answer]:
        """Does one job."""
        if not self.jobs:
            return []
        what, job = self.jobs.pop(0)
        if what == "begin":
            assert isinstance(job, FileName)
            self.name = job
            self.durable = {n: d for n, d in self.durable.items() if n == job}
            self.bytes, complete = self.durable.get(job, (b"", False))
            return receiver.on_opened(job, len(self.bytes), complete)
        if self.name is None:
            return []
        if what == "write":
            offset, data = job  # type: ignore[misc]
            assert offset == len(self.bytes), "a piece that continues nothing"
            self.bytes += data
            if self.flip and self.random.random() < 0.1:
                self.bytes, self.flip = self.bytes[:-1] + b"?", False
            if self.random.random() < 0.3:
                self.durable[self.name] = (self.bytes, False)
            return receiver.on_written(self.name, len(self.bytes))
        name = self.name
        if self.bytes != self.expected[name]:
            del self.durable[name]
            self.name = None
            return receiver.on_broken(name)
        self.durable[name] = (self.bytes, True)
        return receiver.on_finished(name)


class Net:
    """Both directions between one sender and one receiver."""

    def __init__(self, seed: int, loss: float) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.disk = Disk(self.random)
        self.receiver = Receiver(self.disk, lambda index: True)
        self.flying: list[tuple[str, bytes]] = []
        self.sender: Sender | None = None
        self.content = b""

    def offer(self, name: FileName, content: bytes, rate: int = 0) -> None:
        self.disk.expected[name] = content
        self.content = content
        self.sender = Sender(
            name, lambda at, n: content[at : at + n], self.now, rate, CHUNK, 4
        )

    def restart_receiver(self) -> None:
        self.disk.jobs.clear()
        self.disk.name = None
        self.receiver = Receiver(self.disk, lambda index: True)

    def put(self, kind: str, raw: bytes) -> None:
        roll = self.random.random()
        if roll < self.loss:
            return
        self.flying.append((kind, raw))
        if roll < self.loss * 1.5:
            self.flying.append((kind, raw))

    def answer(self, answers: list[Answer]) -> None:
        for _, ack in answers:
            self.put("ack", ack.encode())

    def step(self) -> None:
        """A while passes: something moves."""
        self.now += 0.01
        sender = self.sender
        assert sender is not None
        sender.tick(self.now)
        while (chunk := sender.take(self.now)) is not None:
            assert len(chunk.data) <= CHUNK and chunk.offset - sender.have < 4 * CHUNK
            if self.random.random() < self.loss / 3:
                sender.not_sent(chunk)
                break
            self.put("chunk", chunk.encode())
        while self.flying and self.random.random() < 0.8:
            at = 0
            if self.loss and self.random.random() >= 0.8:
                at = self.random.randrange(len(self.flying))
            kind, raw = self.flying.pop(at)
            if kind == "ack":
                sender.on_ack(decode_ack(raw), self.now)
            else:
                piece = decode_chunk(raw)
                if self.random.random() < self.loss / 3 and piece.data:
                    piece = piece._replace(data=piece.data[:-1] + b"!")
                self.answer(self.receiver.on_chunk(1, piece, self.now))
        if self.random.random() < 0.7:
            self.answer(self.disk.step(self.receiver))

    def run(self, steps: int = 30_000) -> Outcome:
        assert self.sender is not None
        for _ in range(steps):
            self.step()
            if self.sender.outcome != Outcome.RUNNING:
                break
        return self.sender.outcome


def file(seed: int, size: int, index: int = 50, term: int = 2) -> tuple[FileName, bytes]:
    content = random.Random(seed).randbytes(size)
    return FileName(index, term, seed, size), content


@pytest.mark.parametrize("seed", range(60))
def test_a_file_arrives_whole_whatever_the_network_does(seed: int) -> None:
    net = Net(seed, loss=(seed % 4) * 0.1)
    name, content = file(seed, 1 + seed * 137)
    net.offer(name, content)
    assert net.run() == Outcome.COMPLETE
    assert net.disk.durable[name] == (content, True)
    assert net.receiver.holds(50, 2) and not net.receiver.holds(50, 3)


@pytest.mark.parametrize("seed", range(30))
def test_restarts_of_both_ends_resume(seed: int) -> None:
    net = Net(seed, loss=0.1)
    name, content = file(seed, 6000)
    net.offer(name, content)
    sent = 0
    for _ in range(4):
        for _ in range(net.random.randrange(200)):
            net.step()
        net.restart_receiver()
        if net.random.random() < 0.5 and net.sender is not None:
            sent += net.sender.sent_bytes
            net.offer(name, content)
    assert net.run() == Outcome.COMPLETE and net.disk.durable[name] == (content, True)


def test_a_resumed_file_is_not_sent_again() -> None:
    net = Net(1, loss=0.0)
    name, content = file(1, 10_000)
    net.disk.durable[name] = (content[:9_000], False)
    net.offer(name, content)
    assert net.run() == Outcome.COMPLETE
    assert net.sender is not None and net.sender.sent_bytes == 1_000
    net.restart_receiver()
    net.offer(name, content)
    assert net.run() == Outcome.COMPLETE and net.sender.sent_bytes == 0


def test_a_damaged_file_begins_anew() -> None:
    net = Net(3, loss=0.0)
    net.disk.flip = True
    name, content = file(3, 9_000)
    net.offer(name, content)
    assert net.run() == Outcome.COMPLETE
    assert not net.disk.flip and net.disk.durable[name] == (content, True)
    assert net.sender is not None and net.sender.sent_bytes > 9_000 and net.sender.setbacks == 1


def test_a_file_that_is_never_whole_is_given_up() -> None:
    net = Net(4, loss=0.0)
    name, content = file(4, 3_000)
    net.offer(name, content)
    net.disk.expected[name] = b"something else"
    assert net.run() == Outcome.FAILED
    assert net.sender is not None and net.sender.setbacks > transfer.SETBACKS_MAX


def test_the_rate_is_kept() -> None:
    net = Net(5, loss=0.0)
    name, content = file(5, 20_000)
    net.offer(name, content, rate=5_000)
    assert net.run() == Outcome.COMPLETE and 3.5 < net.now < 5.0


def test_nobody_there_ends_the_transfer() -> None:
    sender = Sender(FileName(1, 1, 1, 500), lambda at, n: b"x" * n, 0.0, chunk_bytes=CHUNK)
    asked = 0
    now = 0.0
    while sender.outcome == Outcome.RUNNING:
        now += 0.1
        sender.tick(now)
        asked += sender.take(now) is not None
    assert 19 < now < 21 and 15 < asked < 25


# --- two files --------------------------------------------------------------------------------


def chunk_of(name: FileName, data: bytes = b"", offset: int = 0) -> Chunk:
    return Chunk(*name, offset, crc32c(data), data)


def state_of(answers: list[Answer]) -> ChunkState:
    ((_, ack),) = answers
    return ack.state


def test_a_newer_file_takes_the_place_of_an_older_one() -> None:
    disk = Disk(random.Random(1))
    receiver = Receiver(disk, lambda index: index > 10)
    old, new = FileName(50, 2, 1, 500), FileName(60, 2, 2, 500)
    assert receiver.on_chunk(1, chunk_of(old), 0.0) == []
    disk.step(receiver)
    assert receiver.on_chunk(2, chunk_of(new), 0.1) == []
    assert disk.step(receiver) == [(2, ChunkAck(60, 2, 2, 0, ChunkState.WANTED))]
    assert state_of(receiver.on_chunk(1, chunk_of(old), 0.2)) == ChunkState.UNWANTED
    # The newer one's sender is gone: another leader's older file is better than none.
    later = transfer.STALE_SECONDS + 1
    assert receiver.on_chunk(1, chunk_of(old), later) == []
    assert state_of(disk.step(receiver)) == ChunkState.WANTED
    assert receiver.on_written(new, 100) == [], "news of the file before"
    assert state_of(receiver.on_chunk(1, chunk_of(FileName(9, 1, 3, 5)), 99.0)) == (
        ChunkState.UNWANTED
    )


def test_another_file_at_the_same_place_waits() -> None:
    disk = Disk(random.Random(1))
    receiver = Receiver(disk, lambda index: True)
    one, two = FileName(50, 2, 1, 500), FileName(50, 2, 2, 500)
    receiver.on_chunk(1, chunk_of(one), 0.0)
    disk.step(receiver)
    assert state_of(receiver.on_chunk(2, chunk_of(two), 1.0)) == ChunkState.UNWANTED


def test_a_claimed_file_keeps_its_place() -> None:
    net = Net(6, loss=0.0)
    name, content = file(6, 1_000)
    net.offer(name, content)
    assert net.run() == Outcome.COMPLETE
    receiver = net.receiver
    receiver.claim()
    newer = chunk_of(FileName(70, 3, 9, 500))
    assert state_of(receiver.on_chunk(2, newer, 1000.0)) == ChunkState.UNWANTED
    assert receiver.holds(50, 2)
    receiver.unclaim()
    assert receiver.holds(50, 2)
    receiver.release()
    assert not receiver.holds(50, 2)
    assert receiver.on_chunk(2, newer, 1000.0) == []


def test_pieces_out_of_order_and_damaged_ones_are_not_written() -> None:
    disk = Disk(random.Random(1))
    receiver = Receiver(disk, lambda index: True)
    name = FileName(50, 2, 1, 300)
    receiver.on_chunk(1, chunk_of(name), 0.0)
    disk.step(receiver)
    assert state_of(receiver.on_chunk(1, chunk_of(name, b"b" * 100, 100), 0.0)) == 0
    bad = chunk_of(name, b"a" * 100)._replace(crc=1)
    assert state_of(receiver.on_chunk(1, bad, 0.0)) == ChunkState.WANTED
    assert disk.jobs == [] and receiver.damaged == 1


# --- layouts ----------------------------------------------------------------------------------


def test_layouts() -> None:
    chunk = Chunk(1, 2, 3, 500, 7, 9, b"abc")
    assert decode_chunk(chunk.encode()) == chunk
    with pytest.raises(DecodeError, match="beyond"):
        decode_chunk(chunk._replace(offset=498).encode())
    ack = ChunkAck(1, 2, 3, 4, ChunkState.COMPLETE)
    assert decode_ack(ack.encode()) == ack
    tail = Tail(crc32c(bytes(4096)), 5, 2, 1, 3, 4096)
    raw = tail.encode()
    assert raw[:16].hex() == "4b564e534e415031" + "01000000" + raw[12:16].hex()
    assert decode_tail(raw) == tail
    for at in range(len(raw)):
        with pytest.raises(DecodeError):
            decode_tail(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
