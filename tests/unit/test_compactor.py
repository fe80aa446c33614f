"""Automatic compaction by a virtual clock: when, and at which revision."""

from __future__ import annotations

import pytest

from kvnode.state.compactor import NEVER, ByRevision, Compactor, Periodic, compactor

MINUTE = 60.0
HOUR = 3600.0


def run(
    made: Compactor, seconds: float, *, leads=lambda now: True, good=lambda now: True,
    revision=lambda now: int(now) + 1,
) -> list[tuple[float, int]]:
    """(minute, revision) of each compaction; the revision grows by one a second."""
    asked = []
    while made.due <= seconds:
        now = made.due
        wanted = made.wake(now, revision(now), leads(now))
        if wanted is not None:
            assert made.due == NEVER
            asked.append((now / MINUTE, wanted))
            made.done(now, revision(now), good(now))
    return asked


def periodic(period: float) -> Periodic:
    return Periodic(period, 0.0, 1)


def test_below_an_hour_every_period_at_what_was_current_a_period_ago():
    assert run(periodic(10 * MINUTE), 45 * MINUTE) == [
        (10, 1), (20, 9 * 60 + 1), (30, 19 * 60 + 1), (40, 29 * 60 + 1),
    ]  # fmt: skip


def test_an_hour():
    assert run(periodic(HOUR), 3 * HOUR + 1) == [
        (60, 1), (120, 54 * 60 + 1), (180, 114 * 60 + 1),
    ]  # fmt: skip


def test_above_an_hour_every_hour():
    made = periodic(24 * HOUR)
    assert (made.pause, made.notes_max) == (360, 241)
    assert run(made, 26 * HOUR + 1) == [
        (24 * 60, 1), (25 * 60, 54 * 60 + 1), (26 * 60, 114 * 60 + 1),
    ]  # fmt: skip


def test_ten_notes_a_period():
    assert (periodic(5).pause, periodic(5).notes_max) == (0.5, 11)
    assert periodic(0.3).notes_max == 11


def test_a_store_at_rest_is_compacted_once():
    assert run(periodic(10 * MINUTE), 2 * HOUR, revision=lambda now: 5) == [(10, 1), (20, 5)]


def test_a_refusal_is_tried_again_a_tenth_later():
    asked = run(periodic(10 * MINUTE), 14 * MINUTE, good=lambda now: now > 12 * MINUTE)
    assert asked == [(10, 1), (11, 1), (12, 61), (13, 121)]


def test_who_does_not_lead_notes_and_does_not_compact():
    asked = run(
        periodic(10 * MINUTE), 45 * MINUTE, leads=lambda now: not 5 * MINUTE < now < 33 * MINUTE
    )
    assert asked == [(33, 22 * 60 + 1), (43, 32 * 60 + 1)]


def test_a_timer_that_is_early_does_not_cost_a_turn():
    made = periodic(10.0)
    for _ in range(9):
        assert made.wake(made.due - 0.001, 7, True) is None
    assert made.wake(made.due - 0.001, 7, True) == 1


def test_by_revision_every_five_minutes():
    made = ByRevision(1000, 0.0)
    assert run(made, 31 * MINUTE) == [
        (20, 201), (25, 501), (30, 801),
    ]  # fmt: skip


def test_by_revision_the_same_one_once():
    made = ByRevision(100, 0.0)
    assert run(made, HOUR, revision=lambda now: 150) == [(5, 50)]
    refused = ByRevision(100, 0.0)
    assert run(refused, 16 * MINUTE, revision=lambda now: 150, good=lambda now: False) == [
        (5, 50), (10, 50), (15, 50),
    ]  # fmt: skip
    assert run(ByRevision(100, 0.0), HOUR, leads=lambda now: False) == []


@pytest.mark.parametrize("mode", ["periodic", "revision"])
def test_nothing_to_keep_means_off(mode):
    assert compactor(mode, 0, 0.0, 1) is None
    assert compactor(mode, 600, 0.0, 1) is not None
