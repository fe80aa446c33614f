"""`_core/codes.pxd` and `base/codes.py` are one table written down twice."""

from __future__ import annotations

import re
from pathlib import Path

import kvnode._core
from kvnode.base.codes import STATUS, Code, Kind

PXD = Path(kvnode._core.__file__).with_name("codes.pxd")


def numbers(prefix: str) -> dict[str, int]:
    found = re.findall(rf"^\s+{prefix}_(\w+) = (\d+)", PXD.read_text(), re.MULTILINE)
    assert len(found) == len(dict(found))
    return {name: int(number) for name, number in found}


def test_kinds_are_equal():
    assert numbers("KIND") == {kind.name: kind.value for kind in Kind}


def test_codes_are_equal():
    codes = numbers("CODE")
    assert codes.pop("COUNT") == len(Code)
    assert codes == {code.name: code.value for code in Code}


def test_codes_are_dense_and_have_a_text():
    assert sorted(Code) == list(range(len(Code)))
    assert set(STATUS) == set(Code)
    assert all(text or code is Code.OK for code, (_, text) in STATUS.items())
