"""A watcher that stops reading: the node's memory stays bounded, and it misses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.slow_watcher import load
from tests.support.etcd import find, why_missing


def check(folder: Path, puts: int, watchers: int) -> None:
    if find("benchmark") is None:
        pytest.skip(why_missing())
    with_it = load(folder / "stalled", puts, watchers, stall=True)
    without = load(folder / "reading", puts, watchers, stall=False)
    print(f"\none of {watchers} stalled: {with_it}\nall read: {without}")
    assert with_it.caught_up == puts
    assert with_it.peak_mib < without.peak_mib + 32


@pytest.mark.timeout(120)
def test_one_of_ten_stops_reading(tmp_path: Path) -> None:
    check(tmp_path, 40_000, 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_of_a_thousand_stops_reading(tmp_path: Path) -> None:
    check(tmp_path, 500_000, 1000)
