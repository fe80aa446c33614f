"""Named places where a process of a test's node dies or drops a message; nothing otherwise.

Role: `hit("name")` stands at places whose failure must be survivable. In normal runs it is one
look into an empty dictionary.
Callers: procs/. Set by the fault tests through the environment, which children inherit:

    KVNODE_FAILPOINT      ROLE:NAME:N[:drop], several separated by commas
    KVNODE_FAILPOINT_DIR  folder of the marks of points that fired

ROLE is gateway, consensus, applier or supervisor. Without `drop` the process sends itself SIGKILL
at the N-th pass, once for all incarnations: the mark ROLE:NAME:N in the folder says that it did.
With `drop`, `hit` is True at every N-th pass, and its caller leaves out the message.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

VARIABLE = "KVNODE_FAILPOINT"
FOLDER_VARIABLE = "KVNODE_FAILPOINT_DIR"


@dataclass
class _Point:
    """One armed point. `mark`: the file to leave before dying; empty: drop instead."""

    every: int
    mark: str
    passes: int = 0


_armed: dict[str, _Point] = {}


def arm(role: str) -> None:
    """Arms this process' points. ValueError for a point that can't be read."""
    _armed.clear()
    for text in filter(None, os.environ.get(VARIABLE, "").split(",")):
        words = text.split(":")
        if len(words) not in (3, 4) or not words[2].isdigit() or words[3:] not in ([], ["drop"]):
            raise ValueError(f'{VARIABLE} has "{text}", not ROLE:NAME:N or ROLE:NAME:N:drop')
        if words[0] != role:
            continue
        mark = ""
        if len(words) == 3:
            mark = os.path.join(os.environ[FOLDER_VARIABLE], ":".join(words))
            if os.path.exists(mark):
                continue
        _armed[words[1]] = _Point(int(words[2]), mark)


def points() -> frozenset[str]:
    """Names of the armed points: where one stands only in the long way, that way is taken."""
    return frozenset(_armed)


def hit(name: str) -> bool:
    """The process passes `name`: True when its message is to be dropped; may not return."""
    if name not in _armed:
        return False
    point = _armed[name]
    point.passes += 1
    if point.passes % point.every:
        return False
    if not point.mark:
        return True
    os.close(os.open(point.mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    os.kill(os.getpid(), signal.SIGKILL)
    return False
