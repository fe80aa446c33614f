"""Any bytes as a request body: the codec gives a code, the twin's code, and nothing else.

The first byte chooses the kind. Run by tests/unit with seeded mutations, or under atheris:
`python -m tests.fuzz.fuzz_etcdpb CORPUS`.
"""

from __future__ import annotations

import sys

from kvnode._core import messages
from kvnode.base.codes import Code, Kind
from tests.oracle import etcdpb as oracle

KINDS = list(Kind)


def fuzz(data: bytes) -> None:
    if not data:
        return
    kind, body = KINDS[data[0] % len(KINDS)], data[1:]
    code, fields = messages.decode(kind, body)
    checked = messages.check(kind, body)
    assert code in (Code.OK, checked), (kind, body, code, checked)
    expected, expected_fields = oracle.decode(kind, body)
    # Which of two faults of one body is met first is not part of the contract.
    if code in (Code.MALFORMED, Code.NESTED_TOO_DEEP):
        assert expected in (Code.MALFORMED, Code.NESTED_TOO_DEEP)
    else:
        assert (code, fields) == (expected, expected_fields)
        assert checked == oracle.check(kind, body)
    messages.decode_keyvalue(body)
    messages.keys_only(body)


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
