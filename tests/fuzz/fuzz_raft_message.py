"""Any bytes as a message between members: a value that encodes back to them, or DecodeError.

Run by tests/raft with seeded mutations, or under atheris:
`python -m tests.fuzz.fuzz_raft_message CORPUS`.
"""

from __future__ import annotations

import sys

from kvnode.base.errors import DecodeError
from kvnode.raft.codec import decode_message, encode_message


def fuzz(data: bytes) -> None:
    try:
        message = decode_message(data)
    except DecodeError:
        return
    assert encode_message(message) == data


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
