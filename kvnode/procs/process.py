"""What every process of a node does first: its name, its parent, its log, its config.

Role: `begin` is called at the top of each child's `main`; `Layout` says where a node's files and
sockets are.
Callers: procs/.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

import setproctitle

from kvnode._core import meters
from kvnode.base import failpoint
from kvnode.base.config import Config, config_from_json

EXIT_FATAL = 78
"""Exit status of a child after which a restart can't help (bad configuration, damaged data)."""

EXIT_NO_ROOM = 79
"""Exit status of a child that met a full disk: it is started again and waits for room."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Layout:
    """Paths of one node below its data directory and its run folder."""

    data: str
    run: str
    words_fd: int = -1

    @property
    def member(self) -> str:
        return os.path.join(self.data, "member")

    @property
    def wal(self) -> str:
        return os.path.join(self.member, "wal")

    @property
    def state(self) -> str:
        return os.path.join(self.member, "state")

    @property
    def map_opened(self) -> str:
        """env/store's mark that this run of the node has opened the map."""
        return os.path.join(self.state, "RUNNING")

    @property
    def identity(self) -> str:
        return os.path.join(self.member, "identity.json")

    @property
    def lock(self) -> str:
        return os.path.join(self.data, "lock")

    @property
    def words(self) -> str:
        """The shared words: memory of the supervisor's that its children inherit."""
        if self.words_fd >= 0:
            return f"fd:{self.words_fd}"
        return os.path.join(self.run, "words")

    @property
    def consensus_socket(self) -> str:
        return os.path.join(self.run, "consensus")

    @property
    def applier_socket(self) -> str:
        return os.path.join(self.run, "applier")


class Founder(NamedTuple):
    """A member that the cluster began with."""

    id: int
    name: str
    peer_urls: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """How the supervisor starts a child; travels as one JSON argument."""

    config: Config
    layout: Layout
    member: int
    cluster: int
    founders: tuple[Founder, ...]
    restart: bool
    number: int
    status_fd: int
    listeners: dict[str, int]
    client_listeners: dict[str, list[int]]
    metrics_listeners: dict[str, list[int]]
    command: list[str]

    @classmethod
    def from_argument(cls, text: str) -> Start:
        """Reads what `argument` wrote."""
        raw = json.loads(text)
        return cls(
            config=config_from_json(raw["config"]),
            layout=Layout(raw["data"], raw["run"], raw["words_fd"]),
            member=int(raw["member"]),
            cluster=int(raw["cluster"]),
            founders=tuple(Founder(f[0], f[1], tuple(f[2])) for f in raw["founders"]),
            restart=raw["restart"],
            number=raw["number"],
            status_fd=raw["status_fd"],
            listeners=raw["listeners"],
            client_listeners=raw["client_listeners"],
            metrics_listeners=raw["metrics_listeners"],
            command=raw["command"],
        )

    def ready(self) -> None:
        """Tells the supervisor that this process serves."""
        os.write(self.status_fd, b"ready\n")


class JsonFormatter(logging.Formatter):
    """One JSON object a line with etcd's keys: level, ts, caller, msg, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "level": record.levelname.lower().replace("warning", "warn"),
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "caller": f"{record.name}/{record.filename}:{record.lineno}",
            "msg": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """For a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, "fields", {}).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname.lower():7} {record.getMessage()}"
        text = f"{text} {fields}" if fields else text
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text


def log_handler(output: str) -> logging.Handler:
    """What one of --log-outputs stands for; OSError when a file can't be opened.

    A file is appended to by all processes of a node, a line a write; under systemd, standard
    error is the journal.
    """
    if output == "stdout":
        return logging.StreamHandler(sys.stdout)
    if output in ("default", "stderr", "systemd/journal"):
        return logging.StreamHandler(sys.stderr)
    return logging.FileHandler(output, encoding="utf-8")


def set_up_log(config: Config) -> None:
    """Logs where --log-outputs says, JSON lines or for a person."""
    formatter = JsonFormatter() if config.log_json else TextFormatter()
    handlers = [log_handler(output) for output in config.log_outputs]
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = handlers
    level = config.log_level
    root.setLevel(level.replace("warn", "warning").upper() if level != "warning" else "WARNING")


def die_with_parent() -> None:
    """SIGKILL for this process when the supervisor ends, however it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() == 1:
        os._exit(1)


def begin(role: str) -> Start:
    """First call of a child's main: dies with its parent, has a title and a log."""
    if not __debug__:
        sys.exit("kvnode: assertions are part of its safety: do not run python with -O")
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = Start.from_argument(sys.argv[1])
    name = start.config.name
    number = f"-{start.number}" if role == "gateway" else ""
    setproctitle.setproctitle(f"kvnode: {role}{number} [{name}] {start.layout.data}")
    set_up_log(start.config)
    region = {"applier": meters.APPLIER, "consensus": meters.CONSENSUS}.get(role)
    if region is None:
        region = meters.GATEWAY + start.number
    meters.attach(start.layout.words, region, time.time_ns() // 1000)
    failpoint.arm(role)
    return start
