"""The quota: NOSPACE through the log, room kept for deletes and compaction, recovery by itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kvnode.base.codes import Code
from kvnode.base.errors import RequestError
from kvnode.client import Client
from tests.support.node import Node

MIB = 1 << 20
QUOTA = 16 * MIB


def put_until_refused(client: Client, name: bytes) -> tuple[int, RequestError]:
    for number in range(2000):
        try:
            client.put(b"%s/%d" % (name, number), os.urandom(100_000))
        except RequestError as error:
            return number, error
    raise AssertionError("never refused")


def put_within(client: Client, seconds: float) -> float:
    """Puts until one is taken; after how long."""
    begun = time.monotonic()
    while True:
        try:
            client.put(b"again", b"works")
            return time.monotonic() - begun
        except RequestError as error:
            assert error.code == Code.NO_SPACE, error
            assert time.monotonic() - begun < seconds, f"refused for {seconds} s"
        time.sleep(0.02)


def test_quota_refuses_and_recovers(tmp_path: Path) -> None:
    node = Node(
        tmp_path / "data", "--quota-backend-bytes", str(QUOTA), "--checkpoint-interval", "100ms"
    )
    node.start()
    sizes, counts, recoveries = [], [], []
    path = tmp_path / "data" / "member" / "state" / "00000001" / "data.mdb"
    try:
        with Client(node.endpoint) as client:
            for turn in range(8):
                name = b"fill%d" % turn
                count, error = put_until_refused(client, name)
                assert error.code == Code.NO_SPACE
                assert "etcdserver: mvcc: database space exceeded" in str(error)
                assert client.get(name + b"/0") is not None
                deleted = client.delete_range(name + b"/", prefix=True)
                assert deleted.deleted == count
                client.compact(deleted.header.revision)
                recoveries.append(put_within(client, 10))
                counts.append(count)
                sizes.append(path.stat().st_size / MIB)
            status = client.status()
    finally:
        node.stop()
    node.fsck()
    print(
        f"\nquota of {QUOTA >> 20} MiB: {counts} puts of 100 KB, then NO_SPACE; after delete and "
        f"compaction puts work again in {', '.join(f'{r:.2f}' for r in recoveries)} s; "
        f"the map has {', '.join(f'{s:.0f}' for s in sizes)} MiB"
    )
    assert status.dbSizeInUse < QUOTA
    assert max(sizes[4:]) < 4 * QUOTA / MIB, "the map grows without bound"
