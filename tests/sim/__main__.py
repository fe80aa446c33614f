"""`python -m tests.sim --seed 7 [--trace]` replays one seed; `--seconds 60` runs seeds for a time.

Prints seeds run, simulated hours and the faults they went through; exit code 1 with the first
seed that violates a check.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.sim.simulation import Report, Simulation
from tests.sim.world import SafetyError


def summary(reports: list[Report]) -> str:
    """One paragraph: coverage of many seeds."""
    faults: Counter[str] = Counter()
    for report in reports:
        faults += report.faults
    n = max(1, len(reports))
    total = sum(r.simulated_us for r in reports) / 3.6e9
    lines = [
        f"{len(reports)} seeds, {total:.1f} simulated hours, "
        f"{sum(r.operations for r in reports)} operations, "
        f"{sum(r.acknowledged for r in reports)} acknowledged, "
        f"{sum(r.retries for r in reports)} sent again",
        f"a seed: {sum(r.elections for r in reports) / n:.1f} elections, "
        f"{sum(r.snapshots for r in reports) / n:.2f} snapshots installed, "
        f"{sum(r.changes for r in reports) / n:.1f} changes of members, "
        f"{sum(r.faults.total() for r in reports) / n:.1f} faults",
        ", ".join(f"{name} {count}" for name, count in faults.most_common()),
    ]
    return "\n".join(lines)


def main() -> int:
    """Runs seeds."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1 << 30)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--trace", action="store_true", help="print every step of --seed")
    args = parser.parse_args()
    reports: list[Report] = []
    seeds = [args.seed] if args.seed is not None else range(args.first, args.first + args.count)
    end = time.monotonic() + args.seconds
    for seed in seeds:
        simulation = Simulation(seed, trace=args.trace)
        try:
            reports.append(simulation.run())
        except (SafetyError, AssertionError) as error:
            for line in (simulation.world.trace or [])[-200:]:
                print(line)
            print(error, file=sys.stderr)
            if not isinstance(error, SafetyError):
                raise
            return 1
        if time.monotonic() > end and args.seed is None:
            break
    print(summary(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
