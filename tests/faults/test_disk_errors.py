"""Errors of the disk under log and map: EIO, a full disk, a frozen disk.

After a failed sync nothing is acknowledged and the node stops with a message; a full disk refuses
writes, serves reads, and works again by itself when there is room.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from kvnode.base.codes import Code
from kvnode.base.errors import KvnodeError, RequestError
from kvnode.client import Client
from tests.faults.cutdisk import CutDisk, available
from tests.faults.diskfault import Injector, fill, small_disk, why_not
from tests.support.node import Node

MIB = 1 << 20


class LoneWriter(threading.Thread):
    """Puts one after another; remembers when each was sent and answered (wall clock)."""

    def __init__(self, endpoint: str, timeout: float = 4) -> None:
        super().__init__(daemon=True)
        self.endpoint = endpoint
        self.timeout = timeout
        self.sent: list[float] = []
        self.answered: list[float] = []
        self.error = ""
        self.ending = threading.Event()

    def run(self) -> None:
        with Client(self.endpoint, timeout=self.timeout) as client:
            while not self.ending.is_set():
                begun = time.time()
                try:
                    client.put(b"lone/%d" % len(self.sent), b"v" * 100)
                except KvnodeError as error:
                    self.error = str(error)
                    return
                self.sent.append(begun)
                self.answered.append(time.time())

    def acknowledged_after(self, moment: float) -> int:
        """Writes sent after `moment` and acknowledged all the same."""
        return sum(begun > moment for begun in self.sent)


def wait_end(node: Node, seconds: float) -> tuple[int, float]:
    """Exit status of the node, and how long it took."""
    begun = time.monotonic()
    status = node._process.wait(seconds) if node._process is not None else 0
    took = time.monotonic() - begun
    node.kill()
    return status, took


def wait_until(what: str, condition, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def inject(tmp_path: Path, role: str, call: str, error: str) -> tuple[Node, LoneWriter, float, int]:
    """A node whose `role` gets `error` from `call`; its writer, the moment, the exit status."""
    node = Node(tmp_path / "data", "--checkpoint-interval", "200ms")
    node.start()
    member = tmp_path / "data" / "member"
    if role == "consensus":
        paths = list((member / "wal").iterdir())
    else:
        paths = [member / "state" / "00000001" / "data.mdb"]
    pid = node.process_ids()[role]
    writer = LoneWriter(node.endpoint)
    writer.start()
    wait_until("a hundred puts", lambda: len(writer.answered) > 100)
    injector = Injector(pid, paths, call, error, tmp_path / "strace.log")
    try:
        wait_until("the error", lambda: injector.injected_at)
        moment = injector.injected_at
        if role == "consensus":
            status, _ = wait_end(node, 15)
        else:
            wait_until("another applier", lambda: node.process_ids().get(role, pid) != pid)
            status = 0
    finally:
        injector.close()
    return node, writer, moment, status


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("fdatasync", "EIO"),
        pytest.param("pwritev", "EIO", marks=pytest.mark.slow),
        pytest.param("pwritev", "ENOSPC", marks=pytest.mark.slow),
    ],
)
def test_log_errors_are_fatal(tmp_path: Path, call: str, error: str) -> None:
    if reason := why_not("strace"):
        print(f"skipped: {reason}")
        pytest.skip(reason)
    node, writer, moment, status = inject(tmp_path, "consensus", call, error)
    writer.join(20)
    after = writer.acknowledged_after(moment)
    said = "\n".join(node.tail)
    print(
        f"\n{error} from {call} of the log: {len(writer.answered)} acknowledged, after the error "
        f"{after}; exit status {status}"
    )
    assert status == 1, said
    assert "can't be written" in said and "The node must stop: check the disk" in said
    assert after == 0
    node.start()
    with Client(node.endpoint) as client:
        found = client.range(b"lone/", prefix=True, count_only=True).count
    node.stop()
    node.fsck()
    assert found >= len(writer.answered)


@pytest.mark.parametrize(
    ("call", "error"),
    [("fdatasync,msync,fsync,sync_file_range", "EIO"), ("pwrite64,pwritev,write,writev", "ENOSPC")],
)
def test_map_errors_restart_the_applier(tmp_path: Path, call: str, error: str) -> None:
    """The log has all of it: a new applier opens the map anew and applies what was not there."""
    if reason := why_not("strace"):
        print(f"skipped: {reason}")
        pytest.skip(reason)
    node, writer, moment, _ = inject(tmp_path, "applier", call, error)
    wait_until("writes again", lambda: len(writer.answered) and writer.answered[-1] > moment + 0.5)
    writer.ending.set()
    writer.join(10)
    with Client(node.endpoint) as client:
        found = client.range(b"lone/", prefix=True, count_only=True).count
    stall = max(
        after - before
        for before, after in zip(writer.answered, writer.answered[1:], strict=False)
    )
    said = "\n".join(node.tail)
    node.stop()
    node.fsck()
    print(
        f"\n{error} from {call.split(',')[0]} of the map: {len(writer.answered)} acknowledged, "
        f"{found} found, longest stall {stall * 1000:.0f} ms"
    )
    assert not writer.error, writer.error
    assert found == len(writer.answered)
    assert "applier" in said and ("lmdb" in said or "checkpoint" in said), said


def put_until_refused(client: Client, size: int, name: bytes) -> tuple[int, Exception | None]:
    for number in range(5000):
        try:
            client.put(b"%s/%d" % (name, number), os.urandom(size))
        except KvnodeError as error:
            return number, error
    return 5000, None


def test_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    if reason := why_not("mount"):
        print(f"skipped: {reason}")
        pytest.skip(reason)
    with small_disk(tmp_path) as disk:
        node = Node(disk / "data", "--wal-segment-bytes", "1MiB")
        node.start()
        pids = node.process_ids()
        client = Client(node.endpoint, timeout=5)
        client.put(b"first", b"there")
        filler = fill(disk, 16 * MIB)
        number, error = put_until_refused(client, 60_000, b"full")
        assert isinstance(error, RequestError) and error.code == Code.NO_SPACE, error
        assert client.get(b"first").value == b"there"
        assert client.get(b"full/%d" % (number - 1)) is not None
        assert any("almost full" in text for text in client.status().errors)
        assert any("almost full" in line for line in node.tail)
        client.delete_range(b"full/0")
        filler.unlink()
        client.put(b"again", b"works")
        assert not client.status().errors
        assert node.process_ids() == pids
        node.stop()
        node.fsck()
        print(f"\nfull disk: {number} puts, then NO_SPACE; reads and deletes served; then again")


def test_disk_that_fills_up_at_once(tmp_path: Path) -> None:
    """Somebody else takes the last byte: what is in the log waits for room, nothing is lost."""
    if reason := why_not("mount"):
        print(f"skipped: {reason}")
        pytest.skip(reason)
    with small_disk(tmp_path) as disk:
        node = Node(disk / "data", "--wal-segment-bytes", "4MiB", "--checkpoint-interval", "200ms")
        node.start()
        writer = LoneWriter(node.endpoint, timeout=20)
        writer.start()
        wait_until("a hundred puts", lambda: len(writer.answered) > 100)
        filler = fill(disk, 0)
        client = Client(node.endpoint, timeout=5, session=False)
        wait_until("the refusal", lambda: writer.error or "almost full" in "".join(node.tail))
        time.sleep(0.5)
        assert client.get(b"lone/0", serializable=True) is not None
        node.kill_process("applier")
        filler.unlink()
        client = Client(node.endpoint, timeout=10)
        client.put(b"again", b"works")
        acknowledged = len(writer.answered)   # the writer goes on
        found = client.range(b"lone/", prefix=True, count_only=True).count
        node.stop()
        node.fsck()
        print(f"\ndisk filled to the last byte: {acknowledged} acknowledged, {found} found")
        assert found >= acknowledged


def test_frozen_disk(tmp_path: Path) -> None:
    """Nothing is acknowledged while the disk is frozen; then all goes on.

    The sleep is the fault itself, not a synchronisation.
    """
    if reason := why_not("fsfreeze") or available(tmp_path):
        print(f"skipped: {reason}")
        pytest.skip(reason)
    disk = CutDisk(tmp_path / "frozen", 160)
    disk.mount()
    node = Node(disk.path / "data", "--wal-segment-bytes", "4MiB")
    try:
        node.start()
        writer = LoneWriter(node.endpoint, timeout=30)
        writer.start()
        wait_until("fifty puts", lambda: len(writer.answered) > 50)
        subprocess.run(["fsfreeze", "-f", str(disk.path)], check=True)
        try:
            frozen = time.time()
            time.sleep(2.5)
            said = "\n".join(node.tail)
            acknowledged = writer.acknowledged_after(frozen)
        finally:
            subprocess.run(["fsfreeze", "-u", str(disk.path)], check=True)
        thawed = time.time()
        wait_until("writes again", lambda: writer.answered[-1] > thawed + 0.1)
        wait_until("the all-clear", lambda: "acknowledged again" in "\n".join(node.tail))
        writer.ending.set()
        writer.join(10)
        took = min(t for t in writer.answered if t > thawed) - thawed
        print(
            f"\nfrozen for 2.5 s: acknowledged meanwhile {acknowledged}, "
            f"first put after the thaw in {took * 1000:.0f} ms"
        )
        assert acknowledged == 0 and not writer.error
        assert "nothing was acknowledged for 1 s" in said and "may not answer" in said, said
        assert "acknowledged again" in "\n".join(node.tail)
        node.stop()
        node.fsck()
    finally:
        node.kill()
        disk.close()
