"""Any bytes as a configuration or a change of one: a value that encodes back, or DecodeError.

The first byte chooses which. Run by tests/raft with seeded mutations, or under atheris:
`python -m tests.fuzz.fuzz_configuration CORPUS`.
"""

from __future__ import annotations

import sys

from kvnode.base.errors import DecodeError
from kvnode.raft.configuration import (
    decode_change,
    decode_configuration,
    encode_change,
    encode_configuration,
)


def fuzz(data: bytes) -> None:
    if not data:
        return
    body = data[1:]
    try:
        if data[0] & 1:
            assert encode_change(decode_change(body)) == body
        else:
            assert encode_configuration(decode_configuration(body)) == body
    except DecodeError:
        pass


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
