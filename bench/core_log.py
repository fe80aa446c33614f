"""How fast is the log? Lone record (submit to done), the same by a Python thread, streaming, scan.

    python bench/core_log.py [folder]      the folder is on the disk to measure

Prints machine, commit and seed, then one line a figure. Rounds of the two threads interleave.
"""

from __future__ import annotations

import os
import platform
import queue
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from random import Random

import numpy as np

from kvnode._core.logwriter import LogWriter
from kvnode.env.disk import RealDisk
from kvnode.wal.log import Log
from kvnode.wal.recover import close_segments, scan_log
from kvnode.wal.state import LogState

SEED = 1
ROUNDS = 7
LONE = 200


class PythonWriter:
    """The alternative: a Python thread that releases the GIL in pwrite and fdatasync."""

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.done = self.tickets = 0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def submit(self, handle: int, offset: int, data: bytes, tail: int = 0) -> int:
        self.tickets += 1
        self.inbox.put((handle, offset, data, self.tickets))
        return self.tickets

    def run(self) -> None:
        while (op := self.inbox.get()) is not None:
            os.pwritev(op[0], [op[2]], op[1])
            os.fdatasync(op[0])
            self.done = op[3]
            os.eventfd_write(self.event, 1)

    def fileno(self) -> int:
        return self.event

    def completed(self) -> int:
        os.eventfd_read(self.event)
        return self.done

    def close(self) -> None:
        self.inbox.put(None)
        self.thread.join()


def lone(
    writer: LogWriter | PythonWriter, fd: int, offset: int, poller: select.epoll, busy: bool
) -> list[int]:
    """Microseconds from submit to the completion seen in a poll loop, one after another.

    `busy`: the loop has other Python work meanwhile, about 50 us between two polls.
    """
    data, out = b"r" * 348, []
    for i in range(LONE):
        begin = time.perf_counter_ns()
        ticket = writer.submit(fd, offset + i * 352, data, 48)
        while True:
            if busy:
                sum(range(1500))
            if not poller.poll(0 if busy else -1):
                continue
            if writer.completed() >= ticket:
                break
        out.append((time.perf_counter_ns() - begin) // 1000)
    return out


def inline(fd: int, offset: int) -> list[int]:
    """The floor: write and sync in the caller's thread, which heartbeats may not wait for."""
    out = []
    for i in range(LONE):
        begin = time.perf_counter_ns()
        os.pwrite(fd, b"r" * 300, offset + i * 304)
        os.fdatasync(fd)
        out.append((time.perf_counter_ns() - begin) // 1000)
    return out


CASES = (
    ("C thread", LogWriter, False),
    ("Python thread", PythonWriter, False),
    ("C thread, busy caller", LogWriter, True),
    ("Python thread, busy caller", PythonWriter, True),
)


def lone_records(folder: str) -> None:
    fd = os.open(f"{folder}/lone", os.O_RDWR | os.O_CREAT)
    RealDisk().fill_zeros(fd, 16 << 20)
    figures: dict[str, list[np.ndarray]] = {"inline": []}
    offset = 0
    for _ in range(ROUNDS):
        for name, kind, busy in CASES:
            writer = kind()
            poller = select.epoll()
            poller.register(writer.fileno(), select.EPOLLIN)
            times = lone(writer, fd, offset, poller, busy)
            figures.setdefault(name, []).append(np.percentile(times, [50, 99]))
            poller.close()
            writer.close()
            offset += LONE * 352
        figures["inline"].append(np.percentile(inline(fd, offset), [50, 99]))
        offset += LONE * 352
    for name, rounds in figures.items():
        p50, p99 = np.median(rounds, axis=0)
        low, high = np.array(rounds)[:, 0].min(), np.array(rounds)[:, 0].max()
        print(
            f"lone 300-byte record, {name}: p50 {p50:.0f} us [{low:.0f}-{high:.0f}], p99 {p99:.0f}"
        )
    os.close(fd)


def wait(log: Log, ticket: int) -> None:
    while log.completed() < ticket:
        select.select([log.fileno()], [], [])


def through_the_log(folder: str) -> None:
    log = Log.create(RealDisk(), f"{folder}/wal", LogState(1, 1))
    times = []
    for i in range(1, 1501):
        begin = time.perf_counter_ns()
        log.append([(i, 1, 0, b"r" * 300)])
        wait(log, log.submit())
        times.append((time.perf_counter_ns() - begin) // 1000)
    p50, p99 = np.percentile(times, [50, 99])
    print(
        f"lone 300-byte entry through Log (append, submit, select): p50 {p50:.0f} us, p99 {p99:.0f}"
    )
    data = Random(SEED).randbytes(256 << 10)
    rates, index = [], 1501
    for _ in range(ROUNDS):
        begin, before = time.perf_counter(), time.process_time()
        tickets = []
        for _ in range(256):
            log.append([(index, 1, 0, data)])
            index += 1
            tickets.append(log.submit())
            if len(tickets) > 16:
                wait(log, tickets[-16])
        wait(log, tickets[-1])
        rates.append(64 / (time.perf_counter() - begin))
        cpu = time.process_time() - before
        log.cut(index - 2)
    print(f"streaming 256 KiB entries, 16 in flight: {np.median(rates):.0f} MiB/s "
          f"[{min(rates):.0f}-{max(rates):.0f}], {cpu * 1000:.0f} ms CPU for 64 MiB")  # fmt: skip
    begin = time.perf_counter()
    for i in range(index, index + 200_000):
        log.append([(i, 1, 0, b"r" * 300)])
    spent = time.perf_counter() - begin
    wait(log, log.submit())
    print(f"append of one 300-byte entry a call: {spent / 200_000 * 1e6:.2f} us")
    index += 200_000
    batch = [(i, 1, 0, b"r" * 300) for i in range(index, index + 100_000)]
    begin = time.perf_counter()
    log.append(batch)
    spent = time.perf_counter() - begin
    wait(log, log.submit())
    print(f"append of 100,000 entries in one call: {spent / 100_000 * 1e6:.2f} us each")
    begin = time.perf_counter()
    got = len(log.entries(index, index + 50_000, 1 << 30))
    print(f"reading back: {(time.perf_counter() - begin) / got * 1e6:.2f} us an entry")
    stats = log.stats()
    print(f"syncs {stats['syncs']}, mean {stats['sync_us_sum'] / stats['syncs']:.0f} us, "
          f"max {stats['sync_us_max']} us")  # fmt: skip
    log.close()
    begin = time.perf_counter()
    disk = RealDisk()
    scan = scan_log(disk, f"{folder}/wal", index - 1)
    spent = time.perf_counter() - begin
    close_segments(disk, scan.segments)
    print(f"recovery scan: {scan.bytes >> 20} MiB, {scan.records} records in {spent * 1e3:.0f} ms, "
          f"{scan.bytes / spent / 2**20:.0f} MiB/s")  # fmt: skip


def main() -> None:
    folder = tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else ".")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"{platform.machine()} {os.cpu_count()} cores, {platform.release()}, "
          f"commit {commit}, seed {SEED}, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    try:
        lone_records(folder)
        through_the_log(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
