"""Any bytes as a checkpoint file: a value that encodes back, or CorruptionError.

Run by tests/unit with seeded mutations, or under atheris: `python -m tests.fuzz.fuzz_checkpoint`.
"""

from __future__ import annotations

import sys

from kvnode.base.errors import CorruptionError
from kvnode.env.checkpoint import Checkpoint


def fuzz(data: bytes) -> None:
    try:
        found = Checkpoint.decode(data)
    except CorruptionError:
        return
    assert found.encode() == data


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
