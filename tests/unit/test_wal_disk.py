"""The log on the real disk: the writer thread, its failures, kill -9, files and their modes."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvnode._core.logwriter import LogWriter
from kvnode.base.errors import CorruptionError, DiskError
from kvnode.env.disk import RealDisk
from kvnode.wal import tools
from kvnode.wal.disk import LogFailedError
from kvnode.wal.log import Log
from kvnode.wal.state import LogState

STATE = LogState(1, 2)


def wait(log: Log | LogWriter, ticket: int) -> int:
    done = log.completed()
    while done < ticket:
        assert select.select([log.fileno()], [], [], 20)[0], "the writer said nothing for 20 s"
        done = log.completed()
    return done


@pytest.fixture
def file(tmp_path: Path):
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_writer_writes_in_order_and_marks_only_the_last(file: int, tmp_path: Path) -> None:
    writer = LogWriter()
    for i in range(600):
        ticket = writer.submit(file, i * 10, b"%010dMARK" % i, 4)
        assert ticket == i + 1
    wait(writer, 600)
    assert writer.in_flight_bytes == 0 and writer.in_flight_age_us() == 0
    want = b"".join(b"%010d" % i for i in range(600)) + b"MARK"
    assert (tmp_path / "f").read_bytes() == want
    stats = writer.stats()
    assert stats["bytes"] == 6000 and 1 <= stats["syncs"] <= 600
    assert stats["buckets"].sum() == stats["syncs"] and stats["sync_us_max"] > 0
    assert not select.select([writer.fileno()], [], [], 0)[0], "nothing new: not readable"
    writer.close()
    assert writer.completed() == 600
    with pytest.raises(DiskError):
        writer.submit(file, 0, b"x")


def test_writer_renames_between_files(file: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    folder = os.open(tmp_path, os.O_RDONLY)
    other = os.open(tmp_path / "a", os.O_RDWR)
    writer = LogWriter()
    writer.submit(file, 0, b"one")
    writer.rename(str(tmp_path / "a"), str(tmp_path / "b"), folder)
    wait(writer, writer.submit(other, 0, b"two"))
    writer.close()
    assert (tmp_path / "b").read_bytes() == b"two" and not (tmp_path / "a").exists()
    os.close(folder)
    os.close(other)


@pytest.mark.parametrize(
    ("device", "code", "call"),
    [("/dev/full", errno.ENOSPC, "pwritev"), ("/dev/zero", errno.EINVAL, "fdatasync")],
)
def test_writer_latches_the_first_failure(
    device: str, code: int, call: str, file: int, tmp_path: Path
) -> None:
    bad = os.open(device, os.O_WRONLY)
    writer = LogWriter()
    wait(writer, writer.submit(file, 0, b"good"))
    ticket = writer.submit(bad, 0, b"bad")
    assert select.select([writer.fileno()], [], [], 20)[0]
    assert writer.completed() == ticket - 1
    assert writer.error is not None and writer.error[0] == code and call in writer.error[1]
    writer.submit(file, 4, b"never written")
    assert writer.in_flight_age_us() > 0
    writer.close()
    assert writer.completed() == ticket - 1
    assert (tmp_path / "f").read_bytes() == b"good"
    os.close(bad)


def test_writer_that_is_let_go_ends_its_thread(file: int) -> None:
    writer = LogWriter()
    writer.submit(file, 0, b"x" * 1000)
    before = len(os.listdir("/proc/self/task"))
    del writer
    assert len(os.listdir("/proc/self/task")) == before - 1
    assert os.fstat(file).st_size == 1000, "what was submitted was written"


def test_files_and_modes(tmp_path: Path) -> None:
    log = Log.create(RealDisk(), str(tmp_path / "wal"), STATE, segment_bytes=8192)
    log.append([(i, 1, 0, b"v" * 500) for i in range(1, 60)])
    wait(log, log.submit())
    log.cut(50)
    log.close()
    assert stat.S_IMODE((tmp_path / "wal").stat().st_mode) == 0o700
    for p in (tmp_path / "wal").iterdir():
        assert stat.S_IMODE(p.stat().st_mode) == 0o600 and not p.name.endswith(".fresh")
    log = Log.open(RealDisk(), str(tmp_path / "wal"), segment_bytes=8192, known_durable_index=59)
    assert log.last_index == 59 and log.term(50) == 1
    assert len(log.entries(log.first_index, 60, 1 << 20)) == 60 - log.first_index
    log.close()
    assert tools.verify(RealDisk(), str(tmp_path / "wal"), 59).ok
    victim = next(p for p in (tmp_path / "wal").iterdir() if p.suffix == ".wal")
    data = bytearray(victim.read_bytes())
    data[300] ^= 1
    victim.write_bytes(data)
    with pytest.raises(CorruptionError, match="data directory"):
        Log.open(RealDisk(), str(tmp_path / "wal"), segment_bytes=8192, known_durable_index=59)


CHILD = """
import os, select, sys
from kvnode.env.disk import RealDisk
from kvnode.wal.log import Log
from kvnode.wal.state import LogState
log = Log.create(RealDisk(), sys.argv[1], LogState(1, 2), segment_bytes=16384)
log.save_hard_state(5, 3, 0)
index = 0
while True:
    log.append([(index + i, 5, 0, b"v" * 900) for i in range(1, 9)])
    index += 8
    ticket = log.submit()
    while log.completed() < ticket:
        select.select([log.fileno()], [], [])
    log.cut(max(0, index - 12))
    while len(os.listdir(sys.argv[1])) > 6:
        log.completed()  # the background is behind: renames and their syncs
    os.write(1, b"%d\\n" % log.durable_index)
"""


@pytest.mark.parametrize("lines", [1, 5, 40])
def test_kill_9_keeps_vote_and_entries(tmp_path: Path, lines: int) -> None:
    """40 turns fill and recycle some 20 segments; the vote was saved once, in the first."""
    path = str(tmp_path / "wal")
    child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(lines):
        acknowledged = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split()
    child.wait()
    acknowledged = max([acknowledged, *map(int, rest[:-1])])
    log = Log.open(RealDisk(), path, segment_bytes=16384, known_durable_index=acknowledged)
    assert (log.state.term, log.state.vote) == (5, 3)
    assert log.last_index >= acknowledged
    got = log.entries(log.first_index, log.last_index + 1, 1 << 30)
    assert all(e[1:] == (5, 0, b"v" * 900) for e in got)
    assert len(list(Path(path).iterdir())) <= 6, "segments are recycled, not piled up"
    log.close()


LIMITED = """
import os, resource, select, signal, sys
from kvnode.env.disk import RealDisk
from kvnode.wal.disk import LogFailedError
from kvnode.wal.log import Log
from kvnode.wal.state import LogState
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
disk = RealDisk()
log = Log.create(disk, sys.argv[1], LogState(1, 2), segment_bytes=65536)
log.append([(1, 1, 0, b"first")])
ticket = log.submit()
while log.completed() < ticket:
    select.select([log.fileno()], [], [])
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
log.append([(2, 1, 0, b"a" * 40_000)])
ticket = log.submit()
try:
    while log.completed() < ticket:
        select.select([log.fileno()], [], [])
except LogFailedError as e:
    print(log.durable_index, e)
"""


def test_short_write_is_taken_up_and_its_error_ends_the_log(tmp_path: Path) -> None:
    """The limit lets 30,000 bytes of the record through (a short write), then EFBIG."""
    path = str(tmp_path / "wal")
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True)
    assert done.stdout.startswith("1 the log in") and "File too large" in done.stdout, done
    log = Log.open(RealDisk(), path, segment_bytes=65536, known_durable_index=1)
    assert log.last_index == 1
    log.append([(2, 1, 0, b"again")])
    wait(log, log.submit())
    log.close()


def test_failed_log_closes(tmp_path: Path) -> None:
    log = Log.create(RealDisk(), str(tmp_path / "wal"), STATE, segment_bytes=8192)
    bad = os.open("/dev/full", os.O_WRONLY)
    log._segments[-1].handle, good = bad, log._segments[-1].handle
    log.append([(1, 1, 0, b"x")])
    ticket = log.submit()
    with pytest.raises(LogFailedError, match="No space left"):
        wait(log, ticket)
    assert log.durable_index == 0
    log.close()
    os.close(good)
