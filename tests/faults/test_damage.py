"""Flipped bytes in the map: found by `kvnode verify`, and by the scrubber of a running node."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from kvnode.client import Client
from tests.support.node import CLI, Node

SCRUB_SECONDS = 2.0
KEYS = 300
MARK = b"needle-in-the-map-"


def map_file(node: Node) -> Path:
    return node.data_dir / "member" / "state" / "00000001" / "data.mdb"


def load(node: Node) -> None:
    with Client(node.endpoint) as client:
        for number in range(KEYS):
            client.submit(1, _put(number))
        client.drain()


def _put(number: int) -> bytes:
    from kvnode.client.messages import put_request

    return put_request(b"key/%d" % number, MARK + b"%d" % number + b"x" * 500)


def flip(path: Path, seed: int) -> int:
    """Changes one byte inside a stored value; its offset."""
    data = path.read_bytes()
    places = []
    at = data.find(MARK)
    while at >= 0:
        places.append(at)
        at = data.find(MARK, at + 1)
    offset = random.Random(seed).choice(places) + len(MARK) + 50
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes((data[offset] ^ 0x20,)))
        file.flush()
        os.fsync(file.fileno())
    return offset


def test_verify_finds_a_flipped_byte(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.start()
    load(node)
    node.stop()
    node.fsck()
    found = 0
    for seed in range(5):
        offset = flip(map_file(node), seed)
        done = subprocess.run(
            [*CLI, "verify", str(node.data_dir)], capture_output=True, text=True, env=node.env
        )
        assert done.returncode == 1, f"byte {offset}: {done.stdout}"
        assert "damaged" in done.stderr and "key/" in done.stderr, done.stderr
        found += 1
    print(f"\nflipped bytes of a stopped node's map: {found} of 5 found by verify")


def test_scrubber_finds_a_flipped_byte(tmp_path: Path) -> None:
    node = Node(
        tmp_path / "data", "--scrub-period", f"{SCRUB_SECONDS:g}s", "--checkpoint-interval", "100ms"
    )
    node.start()
    load(node)
    with Client(node.endpoint) as client:
        assert not client.status().errors
        flip(map_file(node), 9)
        begun = time.monotonic()
        while not (errors := client.status().errors):
            assert time.monotonic() - begun < 3 * SCRUB_SECONDS, "not found"
            time.sleep(0.02)
        took = time.monotonic() - begun
    said = "\n".join(node.tail)
    node.stop()
    print(f"\nscrubber, period {SCRUB_SECONDS:g} s: found after {took:.2f} s: {errors[0]}")
    assert "damaged" in errors[0]
    assert "stored data is damaged" in said and "restore" in said and "CRC" in said
    assert took < 2 * SCRUB_SECONDS


def test_repeated_crashes_in_the_map_stop_the_node(tmp_path: Path) -> None:
    """SIGSEGV or SIGBUS again and again is damage: no restart loop."""
    node = Node(tmp_path / "data")
    node.start()
    for number in range(3):
        pid = node.process_ids()["applier"]
        os.kill(pid, (signal.SIGSEGV, signal.SIGBUS)[number % 2])
        until = time.monotonic() + 10
        while node.process_ids().get("applier", pid) == pid and node._process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
    status = node._process.wait(10)
    said = "\n".join(node.tail)
    node.kill()
    print(f"\nthree crashes in the map: exit status {status}")
    assert status == 1
    assert "its file is damaged" in said and "kvnode verify" in said


def test_verify_of_a_cut_log(tmp_path: Path) -> None:
    """A log whose beginning the checkpoint made superfluous is sound."""
    node = Node(
        tmp_path / "data", "--wal-segment-bytes", "64KiB", "--checkpoint-interval", "50ms"
    )
    node.start()
    load(node)
    with Client(node.endpoint) as client:
        for _ in range(5):
            client.put(b"large", b"v" * 60_000)
            time.sleep(0.06)
    node.stop()
    report = node.fsck()
    assert "entries 1 to" not in report, report
    done = subprocess.run(
        [*CLI, "wal", "verify", str(node.data_dir)], capture_output=True, text=True, env=node.env
    )
    assert done.returncode == 0, done.stderr
