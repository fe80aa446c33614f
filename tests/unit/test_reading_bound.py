"""Freeing waits for a long read, but not for ever."""

from __future__ import annotations

from types import SimpleNamespace

from kvnode._core.sharedword import READING
from kvnode.base.limits import READING_SECONDS_MAX
from kvnode.procs.applier import Applier


def applier(readings: dict[int, int], now: float) -> SimpleNamespace:
    """What `lowest_reading` looks at."""
    return SimpleNamespace(
        words=SimpleNamespace(get=lambda slot: readings.get(slot - READING, 0)),
        start=SimpleNamespace(config=SimpleNamespace(gateways=3)),
        loop=SimpleNamespace(now=now),
        reading_lowest=0,
        reading_since=0.0,
    )


def lowest(state: SimpleNamespace) -> int:
    return Applier.lowest_reading(state)  # type: ignore[arg-type]


def test_the_lowest_of_all_gateways_counts() -> None:
    assert lowest(applier({}, 100.0)) == 0
    assert lowest(applier({0: 70, 2: 50}, 100.0)) == 50


def test_a_read_that_holds_freeing_up_too_long_is_passed() -> None:
    readings = {1: 50}
    state = applier(readings, 100.0)
    assert lowest(state) == 50
    state.loop.now += READING_SECONDS_MAX
    assert lowest(state) == 50
    state.loop.now += 0.1
    assert lowest(state) == 0
    readings[1] = 60
    assert lowest(state) == 60, "another read has its own time"
