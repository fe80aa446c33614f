"""The structure and style of the house, held by the same checks that `make lint` runs."""

from __future__ import annotations

import pytest

from tools.checks import CHECKS


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_house(name: str) -> None:
    found = CHECKS[name]()
    assert not found, "\n".join(found)
