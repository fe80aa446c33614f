"""What every benchmark script shares: options, rounds, ratios, and how a row is printed.

A measurement is a `Sample`: the figure, CPU seconds of server and of tool, a note. Rounds are
interleaved (etcd, kvnode, etcd, kvnode, ...) because the machine's speed drifts; a row's ratio is
the median of the rounds' ratios kvnode / etcd, never the ratio of two medians of different times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("etcd", "kvnode")


@dataclass(frozen=True)
class Sample:
    """One measurement of one side."""

    value: float
    server_cpu: float = 0.0
    tool_cpu: float = 0.0
    note: str = ""


@dataclass
class Row:
    """A line of the table. `least` and `aim` bound the ratio from the side `higher` says."""

    name: str
    unit: str
    least: float
    aim: float
    higher: bool
    etcd: list[Sample] = field(default_factory=list)
    kvnode: list[Sample] = field(default_factory=list)
    # Rows of kvnode beside itself (p99 under stress against quiet) give their ratios directly.
    ratios: list[float] | None = None
    note: str = ""

    def ratio(self) -> float | None:
        """Median of the rounds' ratios; None if a side is missing."""
        ratios = self.ratios
        if ratios is None:
            ratios = [k.value / e.value for e, k in zip(self.etcd, self.kvnode, strict=False)]
        return statistics.median(ratios) if ratios else None

    def verdict(self) -> str:
        """aim, ok, or BELOW (the least is not reached)."""
        ratio = self.ratio()
        if ratio is None:
            return "-"
        for word, bound in (("aim", self.aim), ("ok", self.least)):
            if (ratio >= bound) if self.higher else (ratio <= bound):
                return word
        return "BELOW"


def options(description: str, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """The command line of a script."""
    parser = parser or argparse.ArgumentParser(description=description)
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys preloaded or fed")
    parser.add_argument("--large-keys", type=int, default=5_000_000, help="keys of the p99 row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=SIDES, help="measure one side only")
    parser.add_argument("--dir", type=Path, default=ROOT / "build" / "bench", help="data files")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    parser.add_argument("--node-flag", action="append", default=[], help="flag for kvnode serve")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    return args


def sides(args: argparse.Namespace) -> Sequence[str]:
    """The sides to measure, in the order of a round."""
    return (args.only,) if args.only else SIDES


def interleave(
    args: argparse.Namespace, measures: dict[str, Callable[[int], Sample]]
) -> dict[str, list[Sample]]:
    """Runs the measures of both sides in turn, `--rounds` times."""
    samples: dict[str, list[Sample]] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        for side in sides(args):
            sample = measures[side](number)
            samples[side].append(sample)
            progress(f"round {number + 1} {side}: {figure(sample.value)} {sample.note}".rstrip())
    return samples


def progress(text: str) -> None:
    """A line on standard error: standard output carries only the table."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def machine() -> str:
    """Processor, cores, memory, kernel and load: one line."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((x.split(":", 1)[1].strip() for x in info.splitlines() if "model name" in x), "?")
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return (
        f"{model}, {os.cpu_count()} cores, {total_kib / (1 << 20):.0f} GiB, Linux "
        f"{platform.release()}, load {os.getloadavg()[0]:.1f}"
    )


def commit() -> str:
    """The commit measured, with + if the work tree differs from it."""
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    dirty = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", "HEAD") + dirty


def figure(value: float) -> str:
    """A number with three or so telling digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"


def _side(samples: list[Sample], unit: str) -> tuple[str, str]:
    if not samples:
        return "-", "-"
    values = [s.value for s in samples]
    text = f"{figure(statistics.median(values))} {unit}"
    if len(values) > 1:
        text += f" [{figure(min(values))}-{figure(max(values))}]"
    server = statistics.median(s.server_cpu for s in samples)
    tool = statistics.median(s.tool_cpu for s in samples)
    return text, f"{server:.2f}+{tool:.2f}"


def print_header(args: argparse.Namespace) -> None:
    """Machine, commit, seed, scale; then the table's head."""
    print(f"machine: {machine()}\ncommit: {commit()}   seed: {args.seed}   "
          f"keys: {args.keys:,}   rounds: {args.rounds}   {time.strftime('%Y-%m-%d %H:%M')}\n")
    print("CPU: seconds of server + tool in a round, medians. Ratio: median of rounds.\n")
    print("| measure | etcd | CPU | kvnode | CPU | ratio | least | aim | |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)


def print_rows(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    """The rows, and their samples into --json."""
    for row in rows:
        etcd, etcd_cpu = _side(row.etcd, row.unit)
        kvnode, kvnode_cpu = _side(row.kvnode, row.unit)
        ratio = row.ratio()
        sign = "≥" if row.higher else "≤"
        print(
            f"| {row.name} | {etcd} | {etcd_cpu} | {kvnode} | {kvnode_cpu} "
            f"| {'-' if ratio is None else f'{ratio:.2f}'} | {sign} {row.least} | {row.aim} "
            f"| {row.verdict()}{' ' + row.note if row.note else ''} |", flush=True,
        )
    if args.json:
        with args.json.open("a") as out:
            for row in rows:
                record = {
                    "name": row.name, "unit": row.unit, "ratio": row.ratio(),
                    "verdict": row.verdict(), "commit": commit(), "seed": args.seed,
                    "keys": args.keys,
                    "etcd": [s.__dict__ for s in row.etcd],
                    "kvnode": [s.__dict__ for s in row.kvnode],
                }
                out.write(json.dumps(record) + "\n")


def script(description: str, rows: Callable[[argparse.Namespace], list[Row]]) -> None:
    """The main of a script that answers one question."""
    args = options(description)
    print_header(args)
    print_rows(args, rows(args))
