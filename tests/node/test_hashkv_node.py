"""HashKV of a running node: the same sum whatever happens to the map beneath it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from kvnode.client import Client
from kvnode.proto import rpc_pb2 as pb
from tests.support.node import Node

KEYS, VERSIONS = 2_000, 6
SECONDS = 30


def hash_kv(node: Node, revision: int) -> pb.HashKVResponse:
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = channel.unary_unary(
            "/etcdserverpb.Maintenance/HashKV",
            request_serializer=pb.HashKVRequest.SerializeToString,
            response_deserializer=pb.HashKVResponse.FromString,
        )
        return call(pb.HashKVRequest(revision=revision), timeout=SECONDS, wait_for_ready=True)


def facts(found: pb.HashKVResponse) -> tuple[int, int, int]:
    return found.hash, found.compact_revision, found.hash_revision


def test_freeing_defragmentation_and_restarts_change_no_sum(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.start()
    with Client(node.endpoint) as client:
        keys = [b"key%06d" % number for number in range(KEYS)]
        for version in range(VERSIONS):
            last = client.put_batch([(key, b"%d" % version * 100) for key in keys])
        revision = last.header.revision
        client.delete_range(keys[7])
        client.compact(revision - KEYS // 2)
        expected = facts(hash_kv(node, revision))
        assert expected[1:] == (revision - KEYS // 2, revision)
        # Freeing runs by now, and goes on beside these.
        with ThreadPoolExecutor(6) as pool:
            for found in pool.map(lambda _: hash_kv(node, revision), range(24)):
                assert facts(found) == expected
        with ThreadPoolExecutor(1) as pool:
            defragmented = pool.submit(client.defragment)
            while not defragmented.done():
                assert facts(hash_kv(node, revision)) == expected
            defragmented.result()
        assert facts(hash_kv(node, revision)) == expected
    node.kill_process("applier")
    assert facts(hash_kv(node, revision)) == expected
    node.kill_process("gateway")
    assert facts(hash_kv(node, revision)) == expected
    node.stop()
    node.start()
    assert facts(hash_kv(node, revision)) == expected
    node.stop()
    node.fsck()
