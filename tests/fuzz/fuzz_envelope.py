"""Any bytes as a batch or as results: read as the plain twin reads them, or DecodeError.

The first byte chooses which. Run by tests/unit with seeded mutations, or under atheris:
`python -m tests.fuzz.fuzz_envelope CORPUS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from kvnode._core import envelope
from kvnode.base.errors import DecodeError
from tests.oracle import envelope as oracle


def outcome(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        return None


def fuzz(data: bytes) -> None:
    if not data:
        return
    body = data[1:]
    if data[0] & 1:
        results = outcome(envelope.parse_results, body)
        assert results == outcome(oracle.parse_results, body)
        if results is not None:
            assert envelope.build_results(results) == body
        return
    groups = outcome(envelope.parse_batch, body)
    assert groups == outcome(oracle.parse_batch, body)
    columns = outcome(envelope.columns, body)
    assert (columns is None) == (groups is None)
    if groups is not None:
        assert envelope.build_batch(groups) == body
        assert envelope.check_batch(body) == (len(columns[0]), len(columns[1]))
    outcome(lambda part: envelope.merge([part, part]), body)


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
