"""The oracle model against real etcd 3.7.1, so that what the machine is compared with is right.

Random puts, deletes, ranges, transactions and compactions, over etcd's JSON gateway; every field
of every answer but the header's ids and term, and the texts of errors.
"""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from kvnode.base.codes import STATUS
from kvnode.proto import rpc_pb2
from tests.oracle.mvcc import Mvcc, Refused
from tests.oracle.requests import Compact, Delete, Put, Range, Request, Txn
from tests.support.etcd import Etcd, find, why_missing
from tests.support.statemachine import KEYS, LogMaker

PATHS = {Put: "put", Range: "range", Delete: "deleterange", Txn: "txn", Compact: "compaction"}
NAMES = {Put: "Put", Range: "Range", Delete: "DeleteRange", Txn: "Txn", Compact: "Compaction"}
DEFAULT_OPS = 128


class Gateway:
    """etcd's HTTP/JSON door."""

    def __init__(self, endpoint: str) -> None:
        self.connection = http.client.HTTPConnection(endpoint, timeout=30)

    def call(self, request: Request) -> Message | str:
        """The response, or the error's text."""
        name = NAMES[type(request)]
        message = getattr(rpc_pb2, name + "Request").FromString(request.encode())
        body = json_format.MessageToJson(message, preserving_proto_field_name=True)
        self.connection.request("POST", f"/v3/kv/{PATHS[type(request)]}", body)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            return json_format.json.loads(text)["message"]
        response = getattr(rpc_pb2, name + "Response")()
        json_format.Parse(text, response)
        return strip(response)


def strip(response: Message) -> Message:
    header = response.header  # type: ignore[attr-defined]
    header.cluster_id = header.member_id = header.raft_term = 0
    return response


def model(mvcc: Mvcc, request: Request) -> Message | str:
    try:
        if isinstance(request, Put):
            body, _ = mvcc.put(request)
        elif isinstance(request, Delete):
            body, _ = mvcc.delete(request)
        elif isinstance(request, Range):
            body, _ = mvcc.range_request(request)
        elif isinstance(request, Txn):
            body, _ = mvcc.txn(request)
        else:
            assert isinstance(request, Compact)
            body, _ = mvcc.compact(request.revision)
    except Refused as refusal:
        return STATUS[refusal.code][1]
    return strip(getattr(rpc_pb2, NAMES[type(request)] + "Response").FromString(body))


def panics(request: Request) -> bool:
    """Transactions that etcd's own check lets pass and that its apply loop then dies of."""
    ops = [*request.success, *request.failure] if isinstance(request, Txn) else []
    while ops:
        op = ops.pop()
        if isinstance(op, Txn):
            ops += [*op.success, *op.failure]
        elif isinstance(op, Put) and (op.ignore_value or op.ignore_lease):
            return True
    return False


def run(etcd: Etcd, seed: int, count: int) -> None:
    maker, gateway = LogMaker(seed, big=False), Gateway(etcd.endpoint)
    mvcc = Mvcc(max_ops=DEFAULT_OPS)
    for number in range(count):
        request = maker.request()
        while type(request) not in NAMES or panics(request):
            request = maker.request()
        expected, got = model(mvcc, request), gateway.call(request)
        assert got == expected, f"request {number} of seed {seed}: {request}\n{got}\n{expected}"
        maker.revision, maker.compacted = mvcc.revision, mvcc.compacted


@pytest.mark.parametrize(
    "count", [500, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_the_model_answers_as_etcd_does(count: int, tmp_path: Path) -> None:
    if find("etcd") is None:
        pytest.skip(why_missing())
    assert len(KEYS) > 12, "more keys than Go's sort treats as a short span"
    with Etcd(tmp_path / "etcd") as etcd:
        run(etcd, count, count)
