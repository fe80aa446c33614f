"""Any bytes as a JSON body: a message that goes through JSON and back, or JsonError.

The first byte chooses the message. Run by tests/unit with seeded mutations, or under atheris:
`python -m tests.fuzz.fuzz_jsonmap CORPUS`.
"""

from __future__ import annotations

import sys

from google.protobuf import json_format

from kvnode.api import jsonmap
from kvnode.api.jsonmap import JsonError
from kvnode.proto import rpc_pb2

KINDS = (
    rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.TxnRequest, rpc_pb2.WatchRequest,
    rpc_pb2.LeaseGrantRequest, rpc_pb2.AlarmRequest, rpc_pb2.MemberAddRequest,
)


def fuzz(data: bytes) -> None:
    if not data:
        return
    kind, body = KINDS[data[0] % len(KINDS)], data[1:]
    try:
        message = jsonmap.decode(kind, body)
    except JsonError as error:
        str(error).encode()
        return
    text = jsonmap.encode(message)
    assert jsonmap.decode(kind, text.encode()) == message, (body, text)
    assert json_format.Parse(text, kind()) == message, (body, text)
    assert "".join(jsonmap.encode_pieces(message)) == text


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
