"""Some hundred seeds of the simulated cluster, and the bugs that it must catch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.__main__ import summary
from tests.sim.bugs import BUGS, SEEDS_MAX, Patch, hunt
from tests.sim.simulation import Report, Simulation

FAST_SEEDS = 160
SLOW_SEEDS = 1500
OPERATIONS_MIN = 500
SIMULATED_US_MIN = 60_000_000


def run(first: int, count: int) -> list[Report]:
    reports = [Simulation(seed).run() for seed in range(first, first + count)]
    print("\n" + summary(reports))
    for report in reports:
        assert report.simulated_us >= SIMULATED_US_MIN
        assert report.faults.total() > 0
    return reports


@pytest.mark.parametrize("part", range(8))
def test_seeds(part: int) -> None:
    count = FAST_SEEDS // 8
    reports = run(part * count, count)
    assert sum(r.operations for r in reports) >= OPERATIONS_MIN * count


def test_a_seed_replays_exactly() -> None:
    traces = []
    for _ in range(2):
        simulation = Simulation(12, trace=True)
        report = simulation.run()
        traces.append((simulation.world.trace, report, simulation.world.steps))
    assert traces[0] == traces[1]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_many_seeds(part: int) -> None:
    run(10_000 + part * (SLOW_SEEDS // 5), SLOW_SEEDS // 5)


FAST_BUGS = BUGS[:5]


@pytest.mark.parametrize("bug", FAST_BUGS, ids=lambda bug: bug.__name__)
def test_bug_is_caught(bug: Callable[[Patch], None]) -> None:
    found = hunt(bug)
    assert found is not None, f"{bug.__name__} was not caught in {SEEDS_MAX} seeds"
    print(f"\n{bug.__name__}: {found[0]} seeds, {found[1]}")


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS[5:], ids=lambda bug: bug.__name__)
def test_further_bug_is_caught(bug: Callable[[Patch], None]) -> None:
    test_bug_is_caught(bug)
