"""NOSPACE: raised at the quota, cleared well below it."""

from __future__ import annotations

import pytest

from kvnode.base.limits import MIB, QUOTA_CLEAR_PART
from kvnode.state.quota import wanted_alarm


@pytest.mark.parametrize(
    ("used", "raised", "wanted"),
    [
        (99 * MIB, False, None),
        (100 * MIB, False, True),
        (100 * MIB, True, None),
        (int(100 * MIB * QUOTA_CLEAR_PART), True, None),
        (int(100 * MIB * QUOTA_CLEAR_PART) - 1, True, False),
        (0, False, None),
    ],
)
def test_quota_raises_at_the_limit_and_clears_well_below(
    used: int, raised: bool, wanted: bool | None
) -> None:
    assert wanted_alarm(used, 100 * MIB, raised) is wanted


def test_no_quota_raises_nothing() -> None:
    assert wanted_alarm(1 << 60, 0, False) is None
    assert wanted_alarm(0, 0, True) is False
