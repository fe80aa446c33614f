"""A cluster of kvnode nodes for tests: real processes on free loopback ports.

Role: starts, hurts and compares the members. Callers: tests/cluster, bench/.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from kvnode._core.storetxn import TREE_META
from kvnode.env.store import open_for_read
from kvnode.proto import rpc_pb2 as rpcpb
from tests.support.node import Node
from tests.support.process import free_ports

SETTLE_SECONDS = 30.0


class Cluster:
    """Founders of one cluster, each with a data directory below `folder`."""

    def __init__(
        self, folder: Path, count: int = 3, *flags: str, env: Mapping[str, str] | None = None
    ) -> None:
        ports = free_ports(count)
        self.peer_urls = [f"http://127.0.0.1:{port}" for port in ports]
        members = ",".join(f"n{i}={url}" for i, url in enumerate(self.peer_urls))
        self.nodes = [
            Node(
                folder / f"n{i}", "--name", f"n{i}", "--listen-peer-urls", url,
                "--initial-advertise-peer-urls", url, "--initial-cluster", members,
                "--log-format", "json", *flags, env=env,
            )
            for i, url in enumerate(self.peer_urls)
        ]  # fmt: skip

    @property
    def endpoints(self) -> str:
        """All native endpoints, for one client."""
        return ",".join(node.endpoint for node in self.nodes)

    def start(self, nodes: Sequence[Node] | None = None) -> None:
        """Starts members side by side: none is ready before a quorum is."""
        wanted = list(self.nodes if nodes is None else nodes)
        with ThreadPoolExecutor(len(wanted)) as pool:
            list(pool.map(lambda node: node.start(), wanted))

    def stop(self) -> None:
        """Stops all at once."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda node: node.stop(), self.nodes))

    def kill(self) -> None:
        """SIGKILL to all."""
        for node in self.nodes:
            node.kill()

    def status(self, node: Node) -> rpcpb.StatusResponse:
        """What a member tells of itself."""
        with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
            call = channel.unary_unary("/etcdserverpb.Maintenance/Status")
            raw = call(rpcpb.StatusRequest().SerializeToString(), timeout=SETTLE_SECONDS)
        found = rpcpb.StatusResponse()
        found.ParseFromString(raw)
        return found

    def leader(self) -> Node:
        """The member that leads; AssertionError when none does for long."""
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until:
            for node in self.nodes:
                try:
                    said = self.status(node)
                except (grpc.RpcError, AssertionError):
                    continue
                if said.leader and said.leader == said.header.member_id:
                    return node
            time.sleep(0.02)
        raise AssertionError("no member leads")

    def followers(self) -> list[Node]:
        """All members but the leader."""
        leader = self.leader()
        return [node for node in self.nodes if node is not leader]

    def settle(self) -> tuple[int, int]:
        """Waits until all members have applied the same; (index, state hash) of all.

        AssertionError: they don't come together, or their states differ.
        """
        until = time.monotonic() + SETTLE_SECONDS
        while True:
            seen = [applied(node) for node in self.nodes]
            if len({index for index, _ in seen}) == 1:
                again = [applied(node) for node in self.nodes]
                if again == seen:
                    assert len(set(seen)) == 1, f"state hashes differ: {seen}"
                    return seen[0]
            assert time.monotonic() < until, f"members stay apart: {seen}"
            time.sleep(0.05)

    def fsck(self) -> None:
        """`kvnode verify` of every member, stopped."""
        for node in self.nodes:
            node.fsck()


def applied(node: Node) -> tuple[int, int]:
    """Applied index and state hash, from a member's map."""
    store, _ = open_for_read(str(node.data_dir / "member" / "state"))
    try:
        with store.begin_read() as txn:
            (index,) = struct.unpack_from("<Q", txn.get(TREE_META, b"applied") or bytes(8))
            (digest,) = struct.unpack("<Q", txn.get(TREE_META, b"hash") or bytes(8))
    finally:
        store.close()
    return index, digest
