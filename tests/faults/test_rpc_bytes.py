"""Every RPC of the client port with bad bodies: etcd's status, and the node goes on.

Garbage, cut off, too large, nested deeply: over gRPC, on kvnode and where it serves the RPC on real
etcd too. What HTTP/2 itself refuses is tests/unit/test_h2's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvnode.api.later import LATER
from kvnode.api.service import RPCS
from kvnode.proto import rpc_pb2 as pb
from tests.support.etcd import Etcd, find, why_missing
from tests.support.node import Node

SECONDS = 20
MIB = 1 << 20


def nested(depth: int) -> bytes:
    """A TxnRequest in a TxnRequest in ... as protobuf writes it."""
    body = b""
    for _ in range(depth):
        op = b"\x22" + varint(len(body)) + body
        body = b"\x12" + varint(len(op)) + op
    return body


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


BODIES = {
    "garbage": b"\xff" * 40,
    "cut off": b"\x0a\x40abc",
    "group": b"\x0b" * 200,
    "large": b"\x0a" + varint(3 * MIB) + b"x" * (3 * MIB),
    "deep": nested(3000),
}


class Server:
    """A channel to one server."""

    def __init__(self, port: str) -> None:
        options = [("grpc.max_send_message_length", 64 * MIB)]
        self.channel = grpc.insecure_channel(port, options=options)

    def status(self, path: str, body: bytes) -> str:
        """The name of the status that a call with this one message ends with, or OPEN."""
        rpc = RPCS[path]
        name = {(False, False): "unary_unary", (False, True): "unary_stream",
                (True, False): "stream_unary", (True, True): "stream_stream"}[
            rpc.client_streams, rpc.server_streams]  # fmt: skip
        method: Any = getattr(self.channel, name)(path)
        sent = iter([body]) if rpc.client_streams else body
        try:
            call = method(sent, timeout=SECONDS, wait_for_ready=True)
            if rpc.server_streams:
                if not rpc.client_streams:
                    next(call)
                    call.cancel()
                    return "OPEN"
                list(call)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name
        except StopIteration:
            return "OK"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """(kvnode, etcd)."""
    if find("etcd") is None:
        pytest.skip(why_missing())
    folder: Path = tmp_path_factory.mktemp("bytes")
    with Etcd(folder / "etcd") as etcd, Node(folder / "kvnode") as node:
        assert isinstance(etcd, Etcd) and isinstance(node, Node)
        pids = node.process_ids()
        yield Server(f"127.0.0.1:{node.port}"), Server(etcd.endpoint)
        assert node.process_ids() == pids, "a process died"


@pytest.mark.parametrize("name", sorted(BODIES))
def test_every_rpc(pair: tuple[Server, Server], name: str) -> None:
    ours, theirs = pair
    differ = {}
    for path in RPCS:
        got = ours.status(path, BODIES[name])
        if path in LATER:
            assert got == "UNIMPLEMENTED", path
        elif "reflection" in path:
            assert got in ("INTERNAL", "RESOURCE_EXHAUSTED", "OK"), path
        elif got != (expected := theirs.status(path, BODIES[name])):
            differ[path] = (got, expected)
    assert differ == {}
    put = pb.PutRequest(key=b"a").SerializeToString()
    assert ours.status("/etcdserverpb.KV/Put", put) == "OK"
