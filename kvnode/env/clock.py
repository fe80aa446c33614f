"""The real clock and the real source of randomness; the simulator hands in its own."""

from __future__ import annotations

import os
import time


def monotonic_us() -> int:
    """Microseconds of the monotonic clock, the same in all processes of the machine."""
    return time.monotonic_ns() // 1000


def random_u64() -> int:
    """A random number from 1 to 2**63 - 1: an id that is never 0 and fits a signed field."""
    while True:
        number = int.from_bytes(os.urandom(8), "little") >> 1
        if number:
            return number
