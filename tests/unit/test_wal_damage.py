"""Damage: every byte of the last record, every byte of a segment, power cuts, missing files.

The question is always the same: is it refused, or was what is lost never acknowledged?
"""

from __future__ import annotations

import io
import json
from random import Random

import pytest

from kvnode._core.logrec import find_proof
from kvnode.base.errors import CorruptionError
from kvnode.wal import tools
from kvnode.wal.log import Log
from kvnode.wal.recover import close_segments, list_segments, scan_log
from kvnode.wal.state import LogState
from tests.support.memdisk import MemDisk, MemFile
from tests.unit.test_wal import all_entries, entries, make, reopen, save

BIG = 65536


def files(disk: MemDisk) -> list[str]:
    return sorted(n for n in disk.names if n.endswith(".wal"))


def last_index_of(disk: MemDisk, known: int = 0) -> int:
    """Last index that a reader of the damaged log accepts; CorruptionError otherwise."""
    scan = scan_log(disk, "/wal", known)
    close_segments(disk, [*scan.segments, *([scan.headless] if scan.headless else [])])
    return scan.table.last


def lone_tail(mark: bool) -> tuple[MemDisk, str, int, int]:
    """A log whose last record (entry 6) was written; with `mark` also synced and acknowledged."""
    disk = MemDisk(lazy=True)
    log = make(disk)
    log.append(entries(1, 5, size=20))
    log.submit()
    disk.writers[-1].step()
    log.completed()
    start = log._encoder.offset
    log.append([(6, 1, 0, b"last record of all")])
    log.submit()
    end = log._encoder.offset
    disk.writers[-1].step(sync=mark)
    return disk.crash(), files(disk)[0], start, end


def test_torn_at_every_byte_of_the_last_record() -> None:
    """Not synced: boots without it, keeps what was acknowledged, and takes new entries."""
    disk, path, start, end = lone_tail(mark=False)
    whole = bytes(disk.names[path].data)
    assert last_index_of(disk) == 6
    for at in range(start, end):
        for torn in (
            whole[:at] + bytes(len(whole) - at),
            whole[:at],
            whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :],
            whole[:start] + bytes(at - start) + whole[at:],
        ):
            disk.names[path] = MemFile(bytearray(torn), bytearray(torn))
            if torn == whole:
                continue
            zeros_after = at == end - 1 and whole[at] == 0
            log = reopen(disk.crash(), known_durable_index=5)
            assert log.last_index == 5 or zeros_after
            if at % 16 == 0:
                save(log, entries(6, 3, term=9))
                again = reopen(log._disk.crash(power=True), known_durable_index=8)
                assert all_entries(again) == entries(1, 5, size=20) + entries(6, 3, term=9)


def test_damage_in_the_last_acknowledged_record_is_no_torn_tail() -> None:
    """Synced and acknowledged: the mark behind it proves that, no later record is needed."""
    disk, path, start, end = lone_tail(mark=True)
    whole = bytes(disk.names[path].data)
    for at in range(start, end):
        for bit in (1, 128):
            damaged = bytearray(whole)
            damaged[at] ^= bit
            disk.names[path] = MemFile(damaged, damaged)
            with pytest.raises(CorruptionError, match="synced") as e:
                last_index_of(disk)
            assert (e.value.path, e.value.offset) == (path, start)


def test_known_durable_index_bounds_the_cut() -> None:
    """Without the mark (lost with the power) only the applied index can tell."""
    disk, path, start, _ = lone_tail(mark=False)
    disk.names[path].data[start + 3] ^= 1
    assert last_index_of(disk, known=5) == 5
    with pytest.raises(CorruptionError, match="6 was known durable"):
        last_index_of(disk, known=6)


def test_a_torn_mark_loses_nothing() -> None:
    disk, path, _, end = lone_tail(mark=True)
    whole = bytes(disk.names[path].data)
    for at in range(end, end + 48):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        disk.names[path] = MemFile(damaged, damaged)
        assert last_index_of(disk) == 6


def full_log(segment_bytes: int) -> tuple[MemDisk, str]:
    """A closed, full segment of random entries with another one behind it."""
    rng = Random(7)
    disk = MemDisk(7)
    log = make(disk, segment_bytes=segment_bytes)
    index = 0
    while len(log._segments) < 2:
        index += 1
        log.append([(index, 1, 0, rng.randbytes(rng.randrange(segment_bytes // 40)))])
        if index % 9 == 0:
            log.save_hard_state(1, 1, index - 3)
        log.submit()
        log.completed()
    log.close()
    last = disk.names[files(disk)[-1]].data
    del last[segment_bytes // 10 :]  # its empty rest only costs time
    return disk, files(disk)[0]


def flips(disk: MemDisk, path: str, places: list[int], rng: Random) -> tuple[int, int]:
    """(flips detected, flips behind the last record); any other outcome fails."""
    file, disk.share = disk.names[path], True
    good = last_index_of(disk)
    scan = scan_log(disk, "/wal")
    is_last = scan.segments[-1].path == path
    end = scan.end
    close_segments(disk, scan.segments)
    if not is_last:
        after = next(s for s in scan.segments if s.path != path)
        head = disk.names[after.path].data
        end = int.from_bytes(head[48 + 72 : 48 + 80], "little")
    detected = behind = 0
    for at in places:
        bit = 1 << rng.randrange(8)
        file.data[at] ^= bit
        try:
            assert last_index_of(disk) == good, f"flip at {at} changed the log in silence"
            assert at >= end, f"flip at {at} below the end {end} was not seen"
            behind += 1
        except CorruptionError as e:
            assert e.path and "data directory" in str(e)
            detected += 1
        file.data[at] ^= bit
    return detected, behind


def test_every_byte_of_a_small_last_segment_flipped() -> None:
    disk = MemDisk(9)
    log = make(disk, segment_bytes=8192)
    for i in range(1, 25):
        save(log, entries(i, 1, size=i * 7))
    path, end = log._segments[-1].path, log._encoder.offset
    disk = disk.crash()
    detected, _ = flips(disk, path, list(range(8192)), Random(2))
    assert detected == end and len(files(disk)) == 1


def test_every_byte_of_a_64_kib_segment_flipped() -> None:
    disk, path = full_log(BIG)
    detected, behind = flips(disk, path, list(range(BIG)), Random(3))
    print(f"flips: {detected} detected, {behind} behind the last record")
    assert detected + behind == BIG and detected > BIG * 0.9


@pytest.mark.slow
def test_2000_random_bytes_of_a_full_segment_flipped() -> None:
    size = 64 << 20
    disk, path = full_log(size)
    rng = Random(4)
    detected, behind = flips(disk, path, [rng.randrange(size) for _ in range(2000)], rng)
    print(f"flips: {detected} detected, {behind} behind the last record")
    assert detected + behind == 2000


def test_missing_files() -> None:
    disk = MemDisk(5)
    log = make(disk)
    save(log, entries(1, 60))
    log.close()
    names = files(disk)
    assert len(names) > 4
    for gone, what in ((2, "missing"), (0, "the store holds only"), (-1, "known durable")):
        other = disk.crash()
        del other.names[names[gone]]
        with pytest.raises(CorruptionError, match=what):
            reopen(other, known_durable_index=60 if gone == -1 else 0)
    other = disk.crash()
    other.names["/wal/mine.wal"] = MemFile()
    with pytest.raises(CorruptionError, match="not the name"):
        reopen(other)
    a, b = names[1], names[2]
    other = disk.crash()
    other.names[a], other.names[b] = other.names[b], other.names[a]
    with pytest.raises(CorruptionError, match="head"):
        reopen(other)


def test_segment_named_but_head_never_synced() -> None:
    """A cut between the rename and the head's sync: the new segment is dropped, nothing is lost."""
    disk = MemDisk(6, lazy=True)
    log = make(disk)
    log.append(entries(1, 10))
    log.submit()
    disk.writers[-1].step()
    log.completed()
    log.append(entries(11, 4))
    log.submit()
    writer = disk.writers[-1]
    while writer.queue[0][0] != "rename":
        _, handle, offset, data, tail, _ = writer.queue.pop(0)
        disk.pwrite(handle, offset, data[: len(data) - tail])
        disk.fdatasync(handle)
    _, src, dst, _, _ = writer.queue[0]
    disk.rename(src, dst)
    disk.names[dst].data[:100] = b"old bytes of a recycled segment".ljust(100, b"!")
    other = disk.crash()
    log = reopen(other, known_durable_index=10)
    kept = log.last_index
    assert kept >= 10 and len(files(other)) == len(list_segments(disk, "/wal")) - 1
    save(log, entries(kept + 1, 30))
    assert reopen(log._disk.crash(), known_durable_index=kept + 30).last_index == kept + 30

    lost = disk.crash()
    before = list_segments(lost, "/wal")[-2].path
    lost.names[before].data[-2000:] = bytes(2000)
    with pytest.raises(CorruptionError):
        reopen(lost)


def test_a_cut_zeroes_what_is_left_behind_it() -> None:
    """Records behind the torn one came to the disk whole: no life after may find them."""
    disk = MemDisk(11, lazy=True)
    log = make(disk)
    log.append(entries(1, 5))
    end = log._encoder.offset
    log.append(entries(6, 3))
    log.submit()
    disk.writers[-1].step(sync=False)
    path, seed = log._segments[0].path, log._segments[0].seed
    disk = disk.crash()
    disk.names[path].data[end + 4] ^= 1
    assert tools.verify(disk, "/wal").torn
    log = reopen(disk)
    assert log.last_index == 5
    after = disk.crash(power=True).names[path].data
    assert find_proof(after, end + 48, seed) == (-1, 0, end + 48)
    assert tools.verify(disk, "/wal").closed


def test_values_that_look_like_records_do_not_disturb() -> None:
    """A client stores a copy of the log's own bytes, marks and all; a tail is torn behind it."""
    disk = MemDisk(8)
    log = make(disk)
    save(log, entries(1, 2, size=8))
    segment = log._segments[-1]
    raw = bytes(disk.names[segment.path].data[: log._encoder.offset + 48])
    other = make(MemDisk(88))
    save(other, entries(1, 3))
    other_path = other._segments[-1].path
    foreign = bytes(other._disk.names[other_path].data[: other._encoder.offset + 48])
    save(log, [(3, 1, 0, foreign)])
    start = log._encoder.offset
    assert raw
    disk = disk.crash()
    data = disk.names[segment.path].data
    data[start - 8 - len(foreign) + 5] ^= 1
    data[start:] = bytes(len(data) - start)
    assert last_index_of(disk) == 2


def work_until_cut(
    log: Log, rng: Random, model: list, known: int, lying: bool = False
) -> tuple[MemDisk, int, tuple[int, int]]:
    """Random work until the node dies: (the disk as it is then, acknowledged index, vote)."""
    disk: MemDisk = log._disk  # type: ignore[assignment]
    disk.lazy = True
    if lying:
        disk.fdatasync = lambda handle: None  # type: ignore[method-assign]
    acked, vote = known, (log.state.term, log.state.vote)
    votes: list[tuple[int, tuple[int, int]]] = []
    for _ in range(rng.randrange(1, 60)):
        new = entries(len(model) + 1, rng.randrange(1, 5), 1, rng.randrange(700))
        log.append(new)
        model += new
        if rng.random() < 0.3:
            log.save_hard_state(log.state.term + 1, rng.randrange(5), acked)
            votes.append((0, (log.state.term, log.state.vote)))
        ticket = log.submit()
        votes = [(t or ticket, v) for t, v in votes]
        if rng.random() < 0.6:
            disk.writers[-1].step()
        done = log.completed()
        acked = log.durable_index
        vote = next((v for t, v in reversed(votes) if t <= done), vote)
        if acked > 30 and rng.random() < 0.3:
            log.cut(acked - 20)
    writer = disk.writers[-1]
    if rng.random() < 0.7:
        writer.step(sync=False)
    if writer.queue and writer.queue[0][0] == "rename" and rng.random() < 0.5:
        disk.rename(writer.queue[0][1], writer.queue[0][2])
    return disk, acked, vote


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_power_cuts_lose_nothing_acknowledged(first: int) -> None:
    """Four lives a seed, each ended by a kill or by a power cut, at any point of a rotation."""
    for seed in range(first, first + 50):
        rng = Random(seed)
        log, model, acked = make(MemDisk(seed)), [], 0
        for _ in range(4):
            disk, acked, vote = work_until_cut(log, rng, model, acked)
            log = reopen(
                disk.crash(power=rng.random() < 0.6), known_durable_index=max(0, acked - 20)
            )
            assert log.last_index >= acked
            del model[log.last_index :]
            assert all_entries(log) == model[log.first_index - 1 :]
            assert (log.state.term, log.state.vote) >= vote
            acked = log.durable_index
            assert acked == log.last_index


def test_killed_while_it_was_made_then_power_cut() -> None:
    """The first life dies between the rename and the folder's sync; the second acknowledges."""
    for seed in range(20):
        disk = MemDisk(seed)
        disk.fail("fsync_dir")
        with pytest.raises(OSError):
            make(disk)
        log = reopen(disk.crash(), spares=0)
        save(log, entries(1, 3))
        assert last_index_of(log._disk.crash(power=True)) == 3


def test_the_power_cut_check_sees_a_disk_that_lies() -> None:
    lost = 0
    for seed in range(30):
        log = make(MemDisk(seed))
        disk, acked, _ = work_until_cut(log, Random(seed), [], 0, lying=True)
        try:
            log = reopen(disk.crash(power=True))
            lost += log.last_index < acked
        except CorruptionError:
            lost += 1
    assert lost > 10


def test_dump_and_verify() -> None:
    disk = MemDisk(10)
    log = Log.create(disk, "/wal", LogState(1, 2, configuration=b"c"), segment_bytes=4096)
    save(log, entries(1, 20))
    log.save_hard_state(2, 3, 20)
    log.save_configuration(b"new", 5)
    log.save_snapshot(25, 2, b"newer", 24, "gen-2")
    log.close()
    report = tools.verify(disk, "/wal")
    assert report.ok and report.closed and not report.torn and "sound" in report.text()
    assert report.state["generation"] == "gen-2" and report.last_index == 25
    out = io.StringIO()
    assert tools.dump(disk, "/wal", out, as_json=True) == 0
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [x["index"] for x in lines if x["kind"] == "entry"] == list(range(1, 21))
    assert lines[-1]["kind"] == "mark"
    out = io.StringIO()
    tools.dump(disk, "/wal", out)
    assert "hard_state" in out.getvalue() and "vote=3" in out.getvalue()
    disk.names[files(disk)[0]].data[600] ^= 1
    report = tools.verify(disk, "/wal")
    assert not report.ok and report.path == files(disk)[0] and report.offset
    assert "backup" in report.text() and not disk.handles
    assert tools.dump(disk, "/wal", io.StringIO()) >= 1
