"""Runs a slice of the long tests that fits a time limit, chosen by a commit's hash.

    python tools/slow_slice.py HASH --minutes 20

The long tests are collected, shuffled by the hash, and run one after another until the time is
up; what ran and what did not is printed. Exit status 1 if one failed. Each test is a process of
its own with the time that is left as its limit: one that does not end in time is printed as cut,
not as failed, because the limit is this tool's and not the test's.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time

PYTEST = [sys.executable, "-m", "pytest", "-q"]


def collect() -> list[str]:
    """Node ids of the long tests."""
    done = subprocess.run(
        [*PYTEST, "--collect-only", "-m", "slow", "-o", "addopts="], capture_output=True, text=True
    )
    if done.returncode not in (0, 5):
        sys.exit(f"collecting the long tests failed\n{done.stdout}{done.stderr}")
    return sorted(line for line in done.stdout.splitlines() if "::" in line and " " not in line)


def main() -> int:
    """Runs the slice; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hash")
    parser.add_argument("--minutes", type=float, default=20.0)
    options = parser.parse_args()
    tests = collect()
    random.Random(options.hash).shuffle(tests)
    print(f"slice of {len(tests)} long tests by {options.hash}, {options.minutes:g} minutes")
    deadline = time.monotonic() + options.minutes * 60
    passed = failed = cut = 0
    for number, test in enumerate(tests):
        left = deadline - time.monotonic()
        if left < 20:
            print(f"time is up: {len(tests) - number} not run")
            break
        began = time.monotonic()
        try:
            done = subprocess.run([*PYTEST, test], timeout=left, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            cut += 1
            print(f"cut     {test} after {left:.0f} s: the slice's time is up")
            continue
        took = time.monotonic() - began
        if done.returncode == 0:
            passed += 1
            print(f"passed  {test} in {took:.0f} s", flush=True)
        else:
            failed += 1
            print(f"FAILED  {test} in {took:.0f} s\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    print(f"slice: {passed} passed, {failed} failed, {cut} cut")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
