"""The shared meters: regions, buckets against a plain computation, what survives a restart."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from bisect import bisect_left
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode._core import meters
from kvnode._core.meters import BOUNDS, HISTOGRAM, OPERATIONS, SLOT, Region
from kvnode.base.codes import Code, Kind

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from kvnode._core import meters
path, number, *actions = sys.argv[1:]
meters.add(meters.SLOT["puts"], 5)
meters.attach(path, int(number), 1234567)
for action in actions:
    exec(action)
"""


def write(path: str, number: int, *actions: str) -> int:
    """Another process counts; its id."""
    done = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(number), *actions], cwd=ROOT
    )
    assert done.wait() == 0
    return done.pid


def test_a_region_is_read_by_others_and_survives_its_writer(tmp_path: Path) -> None:
    path = str(tmp_path / "words")
    Path(path).write_bytes(b"\7" * 64)
    meters.create(path, 2)
    pid = write(
        path, meters.GATEWAY + 1,
        "meters.add(meters.SLOT['puts'], 2)", "meters.put(meters.SLOT['watchers'], 9)",
        "meters.observe(meters.HISTOGRAM['wal_fsync'], 1_500_000, 3)",
    )
    region = Region(path, meters.GATEWAY + 1)
    assert region.process_id == pid
    assert region.get(SLOT["puts"]) == 7
    assert region.get(SLOT["watchers"]) == 9
    counts, total = region.histogram(HISTOGRAM["wal_fsync"])
    assert (counts[:3], sum(counts), total) == ([0, 3, 0], 3, 4_500_000)
    again = write(path, meters.GATEWAY + 1)
    assert region.process_id == again != pid
    assert region.get(SLOT["puts"]) == 12, "counters go on"
    assert region.get(SLOT["watchers"]) == 0, "gauges do not"
    assert Region(path, meters.GATEWAY).process_id == 0
    raw = Path(path).read_bytes()
    assert raw[:64] == b"\7" * 64, "the words stay"
    at = 4096 + (meters.GATEWAY + 1) * 8192
    magic, _, began = struct.unpack_from("<8sQQ", raw, at)
    assert (magic, began) == (b"METERS01", 1234567)


def test_in_memory_of_nobody_s(tmp_path: Path) -> None:
    words = os.memfd_create("words")
    meters.create(f"fd:{words}", 1)
    assert Region(f"fd:{words}", 3).process_id == 0
    os.close(words)


def test_names_have_slots_of_their_own() -> None:
    taken: set[int] = set()
    for name, slot in SLOT.items():
        wide = set(range(slot, slot + (15 if name == "probes" else 1)))
        assert not wide & taken, name
        taken |= wide
    assert set(SLOT.values()) >= meters.GAUGES
    for name, first, count in (
        ("wal_fsync", 1e6, 14), ("wal_write", 1e6, 14), ("commit", 1e6, 14),
        ("defrag", 1e8, 13), ("range", 1e5, 20), ("range_failed", 1e5, 20), ("apply", 1e5, 20),
        ("hash", 1e7, 15), ("hash_kv", 1e7, 15),
    ):  # fmt: skip
        assert BOUNDS[HISTOGRAM[name]] == [first * 2**k for k in range(count)], name


def observed(seen: list[tuple[int, int]]) -> tuple[list[int], int]:
    """The histogram of a fork that observed these, on top of what this process had."""
    fd = os.memfd_create("words")
    path = f"fd:{fd}"
    meters.create(path, 1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            meters.attach(path, 0, 1)
            for ns, times in seen:
                meters.observe(HISTOGRAM["commit"], ns, times)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    got = Region(path, 0).histogram(HISTOGRAM["commit"])
    os.close(fd)
    return got


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 5)), max_size=20))
def test_buckets(seen: list[tuple[int, int]]) -> None:
    """One process's own memory is not readable from Python, so a region of a fork is compared."""
    before, sum_before = observed([])
    counts, total = observed(seen)
    expected = [0] * 15
    for ns, times in seen:
        expected[bisect_left(BOUNDS[HISTOGRAM["commit"]], ns)] += times
    assert [now - then for now, then in zip(counts, before, strict=True)] == expected
    assert total - sum_before == sum(ns * times for ns, times in seen)


def test_requests_are_told_in_batches(tmp_path: Path) -> None:
    path = str(tmp_path / "words")
    Path(path).write_bytes(bytes(8))
    meters.create(path, 1)
    write(
        path, meters.APPLIER,
        *[f"meters.count_request({int(Kind.PUT)}, 0)"] * 3,
        f"meters.count_request({int(Kind.PUT)}, {int(Code.NO_SPACE)})",
        f"meters.count_request({int(Kind.TXN)}, 0)",
        f"meters.count_request({int(Kind.LEASE_GRANT)}, 0)",
        "meters.count_applied(6_000_000)",
        "meters.count_applied(6_000_000)",
    )  # fmt: skip
    region = Region(path, meters.APPLIER)

    def counted(operation: str, refused: int = 0) -> tuple[int, int]:
        at = HISTOGRAM["apply"] + 2 * OPERATIONS.index(operation) + refused
        counts, total = region.histogram(at)
        return sum(counts), total

    assert counted("Put") == (3, 3_000_000)
    assert counted("Put", 1) == (1, 1_000_000)
    assert counted("Txn") == (1, 1_000_000)
    assert counted("DeleteRange") == (0, 0)
    assert region.get(SLOT["txns"]) == 1
    assert region.get(SLOT["leases_granted"]) == 1
    assert region.get(SLOT["slow_applies"]) == 0
