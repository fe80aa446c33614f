"""Runs a slice of the long tests that fits a time limit, chosen by a commit's hash.

    python tools/slow_slice.py HASH --minutes 20

The long tests are shuffled by the hash and run one after another until the time is up. Those that
did not get their turn, and the one that the end of the time cut, are counted as skipped and named:
the limit is this tool's, not theirs. The exit status and the last lines are pytest's own.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Iterator

import pytest

START_SECONDS_MIN = 20.0


class Slice:
    """The pytest plugin: order and time."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.deadline = time.monotonic() + seconds
        signal.signal(signal.SIGALRM, self._cut)

    def _cut(self, *_: object) -> None:
        pytest.skip("cut: the slice's time is up")

    def pytest_configure(self, config: pytest.Config) -> None:
        # pytest-timeout uses the same alarm; the slice's end bounds every test instead.
        config.addinivalue_line("markers", "timeout(seconds): no effect in a slice")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.nodeid)
        random.Random(self.name).shuffle(items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        left = self.deadline - time.monotonic()
        if left < START_SECONDS_MIN:
            pytest.skip("not run: the slice's time is up")
        signal.setitimer(signal.ITIMER_REAL, left)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> int:
    """Runs the slice; returns pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hash")
    parser.add_argument("--minutes", type=float, default=20.0)
    options = parser.parse_args()
    print(f"slice of the long tests by {options.hash}, {options.minutes:g} minutes", flush=True)
    return int(
        pytest.main(
            ["-vv", "-m", "slow or clients", "-p", "no:timeout", "-rs", "--durations=10",
             "-W", "ignore:Unknown config option"],
            plugins=[Slice(options.hash, options.minutes * 60)],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
