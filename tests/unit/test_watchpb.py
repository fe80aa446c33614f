"""Watch messages and the index of interests, against protobuf and plain sets."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvnode._core import watchpb
from kvnode._core.watchindex import Interests
from kvnode.base.codes import Code
from kvnode.proto import kv_pb2, rpc_pb2
from tests.fuzz import fuzz_watch

FILTERS: list[Any] = [0, 1, 2]
INT64 = (0, 1, 127, 128, 300, 1 << 40, (1 << 63) - 1, -1, -(1 << 63))


def random_request(rng: random.Random) -> rpc_pb2.WatchRequest:
    what = rng.randrange(5)
    if what == 0:
        return rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
    if what == 1:
        cancel = rpc_pb2.WatchCancelRequest(watch_id=rng.choice(INT64))
        return rpc_pb2.WatchRequest(cancel_request=cancel)
    create = rpc_pb2.WatchCreateRequest(
        key=rng.randbytes(rng.randrange(4)), range_end=rng.choice([b"", b"\0", b"b", b"zz"]),
        start_revision=rng.choice(INT64), progress_notify=rng.random() < 0.5,
        filters=rng.choices(FILTERS, k=rng.randrange(4)),
        prev_kv=rng.random() < 0.5, watch_id=rng.choice(INT64), fragment=rng.random() < 0.5,
    )
    return rpc_pb2.WatchRequest(create_request=create)


def test_requests_are_read_as_protobuf_reads_them() -> None:
    rng = random.Random(3)
    for _ in range(500):
        # Two messages end to end are their merger.
        body = b"".join(random_request(rng).SerializeToString() for _ in range(rng.randint(1, 2)))
        code, kind, fields = watchpb.decode(body)
        assert (code, kind, fields) == (Code.OK, *(fuzz_watch.expected(body) or ()))


@pytest.mark.parametrize("body", [
    b"\x0a", b"\x0a\x05\x0a", b"\x0a\x02\x0a\x05", b"\x00", b"\x0a\x02\x2a\x05", b"\x0f",
    b"\x0a\x03\x2a\x01\x80", b"\x12\x01\x08",
])
def test_malformed(body: bytes) -> None:
    assert watchpb.decode(body)[0] == Code.MALFORMED
    assert fuzz_watch.expected(body) is None


def test_a_golden_request() -> None:
    body = bytes.fromhex("0a05" "0a0161" "1802")
    code, kind, fields = watchpb.decode(body)
    assert (code, kind, fields["key"], fields["start_revision"]) == (Code.OK, 1, b"a", 2)


def test_responses_are_what_protobuf_writes() -> None:
    rng = random.Random(4)
    for _ in range(300):
        header = (rng.getrandbits(64), rng.getrandbits(64), rng.choice(INT64), rng.getrandbits(10))
        watch_id, compact = rng.choice(INT64), rng.choice(INT64)
        created, canceled, fragment = (rng.random() < 0.5 for _ in range(3))
        reason = rng.choice([None, b"mvcc: watcher range is empty"])
        events = []
        message = rpc_pb2.WatchResponse(
            watch_id=watch_id, created=created, canceled=canceled, compact_revision=compact,
            cancel_reason=reason.decode() if reason else "", fragment=fragment,
        )
        message.header.cluster_id, message.header.member_id = header[:2]
        message.header.revision, message.header.raft_term = header[2:]
        for _ in range(rng.randrange(4)):
            kv = kv_pb2.KeyValue(key=b"k", value=rng.randbytes(rng.choice([0, 1, 200])))
            prev = rng.choice([None, kv_pb2.KeyValue(key=b"k", version=3)])
            deleted = rng.random() < 0.5
            events.append((deleted, kv.SerializeToString(),
                           None if prev is None else prev.SerializeToString()))
            message.events.add(type=1 if deleted else 0, kv=kv, prev_kv=prev)
        assert message.SerializeToString() == watchpb.encode(
            header, watch_id, created=created, canceled=canceled, compact_revision=compact,
            reason=reason, fragment=fragment, events=events,
        )


def test_fuzz() -> None:
    rng = random.Random(12)
    for _ in range(1500):
        data = bytearray(random_request(rng).SerializeToString())
        for _ in range(rng.randrange(5)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        fuzz_watch.fuzz(bytes(data))


@pytest.mark.parametrize("seed", range(4))
def test_the_index_finds_what_holds_a_key(seed: int) -> None:
    rng = random.Random(seed)
    index, held = Interests(seed), set()

    def key() -> bytes:
        return bytes(rng.choice(b"abc") for _ in range(rng.randint(1, 5)))

    for _ in range(4000):
        start, end = key(), rng.choice([None, b"", key()])
        if end and start >= end:
            continue
        if rng.random() < 0.6:
            index.add(start, end)
            held.add((start, end))
        elif held:
            gone = rng.choice(sorted(held, key=repr))
            held.discard(gone)
            index.drop(*gone)
        probe = key()
        assert index.find(probe) == {
            (s, e) for s, e in held
            if (s == probe if e is None else s <= probe and (e == b"" or probe < e))
        }
