"""A map that is much too small at first: it grows under writers, readers, freeing and defrag."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kvnode.base.errors import RequestError
from kvnode.client import Client
from tests.faults.cut_load import Checker, Reader, Writer, preload
from tests.support.node import Node

KEYS = 6_000
MIB = 1 << 20
GROWN = "the map grows"


def wait_acknowledged(node: Node, writers: list[Writer], more: int) -> None:
    goal = sum(writer.model.acknowledged for writer in writers) + more
    until = time.monotonic() + 60
    while sum(writer.model.acknowledged for writer in writers) < goal:
        for writer in writers:
            if writer.error is not None:
                raise writer.error
        assert time.monotonic() < until, "\n".join(node.tail)
        time.sleep(0.005)


def test_growth_under_load(tmp_path: Path) -> None:
    node = Node(
        tmp_path / "data", "--checkpoint-interval", "100ms",
        env={"KVNODE_TEST_MAP_BYTES": str(MIB)},
    )
    node.start()
    writers = [Writer(n, 2, KEYS, 5, node.endpoint) for n in range(2)]
    checker = Checker(node.endpoint, writers, 5)
    reader = Reader(node.endpoint, KEYS)
    pids = node.process_ids()
    grown = 0
    try:
        preload(node.endpoint, writers, KEYS)
        with Client(node.endpoint, session=False) as client:
            reader.start()
            for writer in writers:
                writer.begin()
            wait_acknowledged(node, writers, 400)
            refused = 0
            for _ in range(2):
                try:
                    client.defragment(timeout=60)
                except RequestError:    # the map grew under the copy
                    refused += 1
                wait_acknowledged(node, writers, 50)
        grown = sum(GROWN in line for line in node.tail)
        assert node.process_ids() == pids, "a process ended:\n" + "\n".join(node.tail)
        node.kill_process("applier")
        wait_acknowledged(node, writers, 50)
        for writer in writers:
            writer.finish()
        checker.check(True)
        node.kill()
        node.start()
        checker.check(True)
        with Client(node.endpoint) as client:
            for number in range(40):
                client.put(b"big/9/%d" % number, os.urandom(MIB))
            assert client.status().dbSize > 40 * MIB
    finally:
        reader.ending.set()
        for writer in writers:
            writer.ending.set()
            writer.drop()
        node.stop()
        reader.join()
    node.fsck()
    print(
        f"\nmap of 1 MiB at first: grown {grown} times under load, {reader.served} long reads, "
        f"{sum(writer.model.acknowledged for writer in writers)} writes, defragmentations given up "
        f"{refused} of 2"
    )
    assert grown >= 4
    assert reader.served > 0


def test_freeing_grows_a_full_map(tmp_path: Path) -> None:
    """What compaction frees needs pages first, while old ones are pinned by the checkpoint."""
    node = Node(
        tmp_path / "data", "--checkpoint-interval", "1s",
        env={"KVNODE_TEST_MAP_BYTES": str(MIB)},
    )
    node.start()
    try:
        with Client(node.endpoint) as client:
            for _ in range(40):
                client.put_batch([(b"k/%d" % n, b"v" * 50) for n in range(1000)])
            head = client.put(b"last").header.revision
            before = client.status()
            client.compact(head)
            until = time.monotonic() + 20
            while client.status().dbSizeInUse > before.dbSizeInUse // 4:
                assert time.monotonic() < until, "not freed"
                time.sleep(0.02)
            assert client.range(b"k/", prefix=True, count_only=True).count == 1000
        assert any(GROWN in line for line in node.tail)
    finally:
        node.stop()
    node.fsck()
