"""Runs a client's program against a server, and reads the line it prints for each case.

A program prints `ok NAME ...`, `skip NAME: why` or `FAIL NAME: why` for each case (further lines of
a failure are indented), and last `cases N failed M`. Callers: the tests beside it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.clients import programs

SECONDS_MAX = 240


@dataclass
class Result:
    """What a client's run on one server came to."""

    client: str
    server: str
    ok: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """The result in one line."""
        text = f"{self.client} on {self.server}: {self.ok} ok"
        for name, of in (("failed", self.failed), ("skipped", self.skipped),
                         ("not supported as planned", self.expected)):
            if of:
                text += f", {len(of)} {name} ({', '.join(entry.split(':')[0] for entry in of)})"
        return f"{text}; {self.seconds:.1f} s"


RESULTS: list[Result] = []


def say(result: Result) -> None:
    """Keeps a result for the summary that ends the run; see conftest.py."""
    RESULTS.append(result)


def run(
    client: str, server: str, argv: Sequence[str | Path], cases_min: int,
    env: Mapping[str, str] | None = None, cwd: Path | None = None, seconds_max: int = SECONDS_MAX,
) -> None:
    """Runs a program of cases; fails with what failed, or if it ended before `cases_min` cases."""
    begun = time.monotonic()
    done = subprocess.run(
        [str(word) for word in argv], env=os.environ | dict(env or {}), cwd=cwd,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=seconds_max, errors="replace",
    )
    result = Result(client, server, seconds=time.monotonic() - begun)
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word == "ok":
            result.ok += 1
        elif word == "FAIL":
            result.failed.append(rest)
        elif word == "skip":
            result.skipped.append(rest)
    say(result)
    last = (done.stdout.splitlines() or [""])[-1]
    counted = len(result.failed) + result.ok + len(result.skipped)
    if result.failed or done.returncode != 0 or not last.startswith("cases "):
        pytest.fail(f"{result.line()}\n{done.stdout[-8000:]}", pytrace=False)
    assert counted >= cases_min, f"only {counted} cases\n{done.stdout[-4000:]}"


def need(make: object, *words: object) -> object:
    """What a function of programs.py makes; a skip with its reason if this machine can't."""
    try:
        return make(*words)  # type: ignore[operator]
    except programs.Missing as reason:
        pytest.skip(str(reason))
