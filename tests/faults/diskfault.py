"""Disks that fail on demand: a small tmpfs, a loop ext4 that freezes, strace that injects errors.

Each says by `why_not` what is missing on this machine. Only processes of the test's own node are
traced.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


def why_not(*tools: str) -> str:
    """Empty, or what is missing."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in tools if shutil.which(name) is None]
    return f"needs {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def small_disk(folder: Path, mib: int = 48) -> Iterator[Path]:
    """A tmpfs of `mib` MiB."""
    path = folder / "small"
    path.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)]
    subprocess.run(words, check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(folder: Path, leave_bytes: int) -> Path:
    """A file that leaves `leave_bytes` of the disk free."""
    info = os.statvfs(folder)
    path = folder / "filler"
    with path.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        left = info.f_bavail * info.f_frsize - leave_bytes
        while left > 0:
            left -= out.write(bytes(min(left, 1 << 20)))
    return path


class Injector:
    """strace on one process: the `when`-th and all further `call`s on `paths` fail with `error`.

    `injected_at`: wall clock of the first failed call, once there was one.
    """

    def __init__(
        self, pid: int, paths: Sequence[Path], call: str, error: str, log: Path, when: str = "1+"
    ) -> None:
        self.log = log
        words = ["strace", "-f", "-ttt", "-qq", "-o", str(log), "-p", str(pid)]
        for path in paths:
            words += ["-P", str(path)]
        words += ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 10
        while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            assert time.monotonic() < until, "strace did not attach"
            time.sleep(0.01)

    @property
    def injected_at(self) -> float:
        """Seconds since the epoch; 0.0 while nothing failed."""
        found = re.search(r"^\d+ +(\d+\.\d+) .*\(INJECTED\)", self.log.read_text(), re.M)
        return float(found[1]) if found else 0.0

    def close(self) -> None:
        """Detaches."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
