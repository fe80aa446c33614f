"""NOSPACE over restarts: a start asks for no change that is none, and the end comes by itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kvnode.base.codes import Code, Kind
from kvnode.base.errors import RequestError
from kvnode.client import Client
from tests.support.node import Node
from tests.support.wal_entries import first_kinds

QUOTA = 16 << 20


def fill(client: Client) -> None:
    with pytest.raises(RequestError) as refused:
        for number in range(2000):
            client.put(b"fill/%d" % number, os.urandom(100_000))
    assert refused.value.code == Code.NO_SPACE


def test_alarm_stands_over_restarts_and_ends_without_further_writes(tmp_path: Path) -> None:
    node = Node(
        tmp_path / "data", "--quota-backend-bytes", str(QUOTA), "--checkpoint-interval", "100ms"
    )
    wal = tmp_path / "data" / "member" / "wal"

    def alarms() -> int:
        return first_kinds(wal).count(Kind.ALARM)

    for _ in range(2):
        node.start()
        with Client(node.endpoint) as client:
            client.put(b"small", b"")
        node.stop()
    assert alarms() == 0, "an empty node proposed an alarm or its end"
    node.start()
    with Client(node.endpoint) as client:
        fill(client)
    node.stop()
    assert alarms() == 1
    node.start()
    node.kill_process("consensus")
    with Client(node.endpoint) as client, pytest.raises(RequestError):
        client.put(b"small", b"")
    node.stop()
    assert alarms() == 1, "a start proposed what stood"
    node.start()
    with Client(node.endpoint) as client:
        deleted = client.delete_range(b"fill/", prefix=True)
        client.compact(deleted.header.revision)
        until = time.monotonic() + 10
        before = client.status().raftAppliedIndex
        while client.status().raftAppliedIndex == before:
            assert time.monotonic() < until, "the alarm stands though there is room"
            time.sleep(0.01)
        client.put(b"small", b"again")
    node.stop()
    assert alarms() == 2
    node.fsck()
