"""The oracle (tests/oracle/mvcc.py) as a target: is the model itself right?

Everything in `_core` is tested against the model; here the model meets real etcd. Caller:
test_differential.py. Requests that the model's values can't hold (an operation of a transaction
with nothing in it, a size limit of the gateway) raise `Unsupported`; generator and test avoid them.
"""

from __future__ import annotations

from typing import Any

from kvnode.base.codes import STATUS, Kind
from kvnode.proto import rpc_pb2 as pb
from tests.differential.generator import Op, Step
from tests.differential.runner import RESPONSES, Answer
from tests.oracle import mvcc, requests

UNIONS = {
    "version": "version", "create_revision": "create", "mod_revision": "mod", "value": "value",
    "lease": "lease", None: "",
}


class Unsupported(Exception):
    """The model has no value for this request."""


class OracleTarget:
    """A fresh model with etcd's default limit of operations."""

    def __init__(self, txn_ops_max: int) -> None:
        self._mvcc = mvcc.Mvcc(max_ops=txn_ops_max)

    def send(self, step: Step) -> list[Answer]:
        return [self._one(op) for op in step]

    def _one(self, op: Op) -> Answer:
        try:
            body, _ = self._execute(op)
        except mvcc.Refused as refusal:
            grpc, text = STATUS[refusal.code]
            return Answer(int(grpc), text, None)
        return Answer(0, "", RESPONSES[op.kind].FromString(body))

    def _execute(self, op: Op) -> tuple[bytes, bytes]:
        message: Any = op.message
        if op.kind == Kind.PUT:
            return self._mvcc.put(put(message))
        if op.kind == Kind.RANGE:
            return self._mvcc.range_request(read(message))
        if op.kind == Kind.DELETE_RANGE:
            return self._mvcc.delete(delete(message))
        if op.kind == Kind.TXN:
            return self._mvcc.txn(txn(message))
        if op.kind == Kind.LEASE_GRANT:
            return self._mvcc.lease_grant(message.ID, message.TTL)
        if op.kind == Kind.LEASE_REVOKE:
            return self._mvcc.lease_revoke(message.ID)
        if op.kind == Kind.LEASE_TIME_TO_LIVE:
            return self._time_to_live(message.ID), b""
        return self._mvcc.compact(message.revision)

    def _time_to_live(self, lease: int) -> bytes:
        model = self._mvcc
        found = model.leases.get(lease)
        response = pb.LeaseTimeToLiveResponse(ID=lease, TTL=found.ttl if found else -1)
        response.header.revision = model.revision
        if found:
            response.grantedTTL = found.ttl
            response.keys.extend(model.attached(lease))
        return response.SerializeToString()

    def close(self) -> None:
        """Nothing is open."""


def put(m: Any) -> requests.Put:
    """A PutRequest as the model's value; so are the functions below for their messages."""
    return requests.Put(m.key, m.value, m.lease, m.prev_kv, m.ignore_value, m.ignore_lease)


def read(m: Any) -> requests.Range:
    return requests.Range(
        m.key, m.range_end, m.limit, m.revision, m.sort_order, m.sort_target, m.keys_only,
        m.count_only, m.min_mod_revision, m.max_mod_revision, m.min_create_revision,
        m.max_create_revision,
    )


def delete(m: Any) -> requests.Delete:
    return requests.Delete(m.key, m.range_end, m.prev_kv)


def compare(m: Any) -> requests.Compare:
    member = m.WhichOneof("target_union")
    number = getattr(m, member) if member and member != "value" else 0
    value = m.value if member == "value" else b""
    return requests.Compare(
        m.key, m.target, m.result, number, value, m.range_end, UNIONS[member]
    )


def txn(m: Any) -> requests.Txn:
    return requests.Txn(
        tuple(map(compare, m.compare)), tuple(map(operation, m.success)),
        tuple(map(operation, m.failure)),
    )


def operation(m: Any) -> requests.Put | requests.Range | requests.Delete | requests.Txn:
    which = m.WhichOneof("request")
    if which is None:
        raise Unsupported("an operation with nothing in it")
    made = {"request_put": put, "request_range": read, "request_delete_range": delete,
            "request_txn": txn}[which]
    return made(getattr(m, which))
