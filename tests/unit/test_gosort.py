"""gosort leaves ties exactly where Go's sort.Sort leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvnode._core import gosort

# Each row: n, shape, k, descending, FNV-1a 64 over the permutation; made with Go 1.26's sort.Sort.
GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "gosort.json").read_text())
MASK = (1 << 64) - 1


def values_of(n: int, shape: int, k: int) -> list[int]:
    """The inputs as the Go program made them: random, runs, saw teeth, disturbed, mountain."""
    x = n * 1000 + shape * 10 + k + 1
    out = []
    for i in range(n):
        x ^= x << 13 & MASK
        x ^= x >> 7
        x ^= x << 17 & MASK
        r = x >> 33
        match shape:
            case 0:
                v = r % k
            case 1:
                v = i // k
            case 2:
                v = (n - i) // k
            case 3:
                v = i % k
            case 4:
                v = r % k if r % 17 == 0 else i
            case _:
                v = i % (k + 1) if i < n // 2 else (n - i) % (k + 1)
        out.append(v)
    return out


@pytest.mark.parametrize("n", sorted({row[0] for row in GOLDEN}))
def test_permutation_is_gos(n: int) -> None:
    for _, shape, k, descending, want in (row for row in GOLDEN if row[0] == n):
        got = gosort.order(values_of(n, shape, k), bool(descending))
        h = 14695981039346656037
        for position in got:
            h = (h ^ position) * 1099511628211 & MASK
        assert f"{h:016x}" == want, (shape, k, descending)
