"""Any bytes as a hot request: what `_core` reads is what google.protobuf reads.

The first byte chooses the message. `_core` may refuse what protobuf lets pass (Go's limits: wide
varints, nesting), never the other way, and what both take has the same fields. Watch requests have
fuzz_watch. Run by tests/unit, or under atheris: `python -m tests.fuzz.fuzz_protobuf CORPUS`.
"""

from __future__ import annotations

import sys
from typing import Any

from google.protobuf.message import DecodeError, Message

from kvnode._core import messages
from kvnode.base.codes import Code, Kind
from kvnode.proto import kv_pb2, kvnodepb_pb2
from kvnode.proto import rpc_pb2 as pb

MESSAGES: dict[Kind, type[Message]] = {
    Kind.PUT: pb.PutRequest,
    Kind.RANGE: pb.RangeRequest,
    Kind.DELETE_RANGE: pb.DeleteRangeRequest,
    Kind.TXN: pb.TxnRequest,
    Kind.COMPACT: pb.CompactionRequest,
    Kind.PUT_BATCH: kvnodepb_pb2.PutBatch,
    Kind.PUT_BATCH_ONE: kvnodepb_pb2.PutBatch,
    Kind.TXN_BATCH: kvnodepb_pb2.TxnBatch,
    Kind.ALARM: pb.AlarmRequest,
    Kind.LEASE_GRANT: pb.LeaseGrantRequest,
    Kind.LEASE_REVOKE: pb.LeaseRevokeRequest,
    Kind.LEASE_CHECKPOINT: pb.LeaseCheckpointRequest,
}
KINDS = list(MESSAGES)


def fields_of(message: Message) -> dict[str, Any]:
    """A message as messages.decode gives it."""
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.containing_oneof and not message.HasField(field.name):
            continue
        if field.is_repeated:
            out[field.name] = [fields_of(v) if field.message_type else v for v in value]
        else:
            out[field.name] = fields_of(value) if field.message_type else value
    return out


def known(kind: Kind, message: Message, fields: Any) -> tuple[Any, Any]:
    """What both sides say, in one shape."""
    theirs = fields_of(message)
    if kind in (Kind.PUT_BATCH, Kind.PUT_BATCH_ONE, Kind.TXN_BATCH):
        return fields, theirs.get("puts", theirs.get("txns"))
    if kind == Kind.LEASE_REVOKE:
        # One decoder for all messages that begin with an id.
        return {"ID": fields["ID"]}, theirs
    return fields, theirs


def compare(kind: Kind, body: bytes) -> Code:
    """Reads `body` both ways; the code of ours."""
    code, fields = messages.decode(kind, body)
    try:
        message = MESSAGES[kind].FromString(body)
    except DecodeError:
        assert code != Code.OK, (kind, body)
        return Code(code)
    if code == Code.OK:
        ours, theirs = known(kind, message, fields)
        assert ours == theirs, (kind, body)
    return Code(code)


def compare_keyvalue(raw: bytes) -> Code:
    """The same for what is stored."""
    code, fields = messages.decode_keyvalue(raw)
    try:
        message = kv_pb2.KeyValue.FromString(raw)
    except DecodeError:
        assert code != Code.OK, raw
        return Code(code)
    if code == Code.OK:
        assert fields == fields_of(message), raw
    return Code(code)


def fuzz(data: bytes) -> None:
    if data:
        compare(KINDS[data[0] % len(KINDS)], data[1:])
        compare_keyvalue(data[1:])


if __name__ == "__main__":
    import atheris

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
