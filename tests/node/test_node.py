"""The node as a whole, over both links, one and two gateways, with and without the shared word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.base.codes import Code
from kvnode.base.errors import RequestError
from kvnode.client import Client
from tests.support.node import Node

SHAPES = {
    "unix": (),
    "zmq": ("--link", "zmq"),
    "barrier": ("--force-read-barrier",),
    "zmq-barrier": ("--link", "zmq", "--force-read-barrier"),
    "two-gateways": ("--gateways", "2"),
}


@pytest.fixture(params=sorted(SHAPES))
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A running node of one shape; its directory is verified at the end."""
    made = Node(tmp_path / "data", *SHAPES[request.param])
    made.start()
    yield made
    made.stop()
    made.fsck()


def test_a_read_sees_every_write_before_it(node: Node) -> None:
    with Client(node.endpoint) as writer, Client(node.endpoint) as reader:
        for number in range(300):
            written = writer.put(b"k", b"%d" % number)
            kv = reader.get(b"k")
            assert kv is not None and kv.value == b"%d" % number
            assert kv.mod_revision == written.header.revision
            assert kv.version == number + 1


def test_pipelined_reads_behind_pipelined_writes(node: Node) -> None:
    from kvnode.base.codes import Kind
    from kvnode.client import messages
    from kvnode.client.sync import decode

    with Client(node.endpoint) as client:
        pending = []
        for number in range(2000):
            key = b"p%d" % (number % 50)
            client.submit(Kind.PUT, messages.encode_put(key, b"%d" % number))
            if number % 20 == 19:
                pending.append((number, client.submit(Kind.RANGE, messages.encode_range(key))))
        client.flush()
        client.drain(30)
        for number, read in pending:
            # Reads and writes of one message are concurrent: a read sees some write of its key,
            # never one that was not sent.
            kvs = decode(Kind.RANGE, read.result()).kvs
            assert not kvs or (int(kvs[0].value) - number) % 50 == 0


def test_the_answers_of_a_tour(node: Node) -> None:
    with Client(node.endpoint) as client:
        assert client.put(b"a", b"1").header.revision == 2
        assert client.put_batch([(b"b", b"2"), (b"c", b"3")]).last_revision == 4
        assert [kv.key for kv in client.range(b"a", b"z").kvs] == [b"a", b"b", b"c"]
        assert client.range(b"a", b"z", limit=1).more
        assert client.delete_range(b"b").deleted == 1
        client.compact(5)
        with pytest.raises(RequestError) as refused:
            client.range(b"a", revision=3)
        assert refused.value.code == Code.COMPACTED
        status = client.status()
        assert status.raftAppliedIndex <= status.raftIndex
        client.defragment()
        assert client.get(b"c") is not None
        assert client.put(b"a", b"2", prev_kv=True).prev_kv.value == b"1"


@pytest.mark.parametrize("role", ["gateway", "consensus", "applier"])
def test_a_killed_process_comes_back(node: Node, role: str) -> None:
    with Client(node.endpoint, timeout=20) as client:
        for number in range(60):
            if number in (20, 40):
                node.kill_process(role)
            client.put(b"k", b"%d" % number)
        kv = client.get(b"k")
        assert kv is not None and (kv.value, kv.version) == (b"59", 60)
