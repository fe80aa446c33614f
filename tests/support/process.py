"""A server under test: started, waited for, looked at in /proc, and ended by its process ids.

Role: what real etcd and a kvnode node have in common for tests and benchmarks.
Callers: support/etcd.py, support/node.py, bench/.

Invariants:
1. Only processes started here, and their descendants, are ever signalled, each by its id.
2. Every wait has a bound; `ready` is a line the server printed, not a guess or a sleep.
3. All output is drained, so no server ever blocks on a full pipe; the last lines go into errors.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0


class Memory(NamedTuple):
    """Resident bytes of all processes of a server. Pss counts shared pages once."""

    rss: int
    pss: int
    pss_anon: int


@dataclass
class Peak:
    """Highest memory seen so far, bytes over all processes."""

    rss: int = 0
    pss_anon: int = 0


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listened on a moment ago; all different."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (index 0); None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def descendants(root: int) -> list[int]:
    """All live processes below `root`, parents first, zombies left out."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) and stat[0] != "Z":
            parents.setdefault(int(stat[1]), []).append(int(name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def alive(pid: int) -> bool:
    """True while the process runs; a zombie doesn't."""
    stat = _stat(pid)
    return stat is not None and stat[0] != "Z"


def cpu_seconds(pid: int) -> float:
    """User and system time of one process (10 ms ticks); 0.0 if it is gone."""
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) / TICKS_PER_SECOND if stat else 0.0


def memory(pids: Sequence[int]) -> Memory:
    """Sums of smaps_rollup over the processes."""
    sums = {"Rss": 0, "Pss": 0, "Pss_Anon": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in sums:
                sums[name] += int(rest.split()[0]) * 1024
    return Memory(sums["Rss"], sums["Pss"], sums["Pss_Anon"])


class Server:
    """One server: its process, the processes below it, and its output.

    `is_ready` looks at each line of output. `start` returns once it said yes; `ready_seconds` is
    the time from exec to that line.
    """

    name = "server"

    def __init__(self, argv: Sequence[str], is_ready: Callable[[str], bool],
                 env: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.env = dict(os.environ) | dict(env or {})
        self.ready_seconds = 0.0
        self.tail: deque[str] = deque(maxlen=60)
        self._is_ready = is_ready
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """Id of the process that was started."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, seconds_max: float = READY_SECONDS_MAX) -> None:
        """Starts it and waits for its ready line. RuntimeError with its output if that fails."""
        assert self._process is None, "started already"
        self._ready.clear()
        self.tail.clear()
        begun = time.monotonic()
        self._process = subprocess.Popen(
            self.argv, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )
        self._reader = threading.Thread(target=self._drain, args=(begun,), daemon=True)
        self._reader.start()
        if not self._ready.wait(seconds_max) or self.ready_seconds == 0.0:
            self.kill()
            raise RuntimeError(f"{self.name} did not become ready:\n" + "\n".join(self.tail))

    def _drain(self, begun: float) -> None:
        assert self._process is not None and self._process.stdout is not None
        self.ready_seconds = 0.0
        with self._process.stdout as lines:
            for line in lines:
                self.tail.append(line.rstrip("\n"))
                if not self._ready.is_set() and self._is_ready(line):
                    self.ready_seconds = time.monotonic() - begun
                    self._ready.set()
        self._ready.set()

    def pids(self) -> list[int]:
        """The process and all below it."""
        return [self.pid, *descendants(self.pid)]

    def cpu_seconds(self) -> float:
        """User and system time of all processes so far."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    def memory(self) -> Memory:
        """Resident memory of all processes."""
        return memory(self.pids())

    @contextlib.contextmanager
    def watch_memory(self, seconds: float = 0.05) -> Iterator[Peak]:
        """The highest memory of the time inside, looked at every `seconds`."""
        peak = Peak()
        ended = threading.Event()

        def look() -> None:
            while True:
                with contextlib.suppress(OSError):
                    now = self.memory()
                    peak.pss_anon = max(peak.pss_anon, now.pss_anon)
                    peak.rss = max(peak.rss, now.rss)
                if ended.wait(seconds):
                    return

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            ended.set()
            thread.join()

    def stop(self) -> float:
        """SIGTERM, then waits for the end; the seconds it took. Too long: SIGKILL and an error."""
        if self._process is None:
            return 0.0
        begun = time.monotonic()
        below = descendants(self.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"{self.name} ignored SIGTERM:\n" + "\n".join(self.tail)) from None
        took = time.monotonic() - begun
        self._end(below)
        return took

    def kill(self) -> None:
        """SIGKILL to every process of it, the first one first, and waits until all are gone."""
        if self._process is None:
            return
        below = descendants(self.pid)
        self._process.kill()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._end(below)

    def _end(self, below: Sequence[int]) -> None:
        """Waits for the descendants and the output; leftovers after a bound are an error."""
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while left := [pid for pid in below if alive(pid)]:
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise RuntimeError(f"{self.name} left processes behind: {left}")
            time.sleep(0.002)
        assert self._reader is not None
        self._reader.join(STOP_SECONDS_MAX)
        self._process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
