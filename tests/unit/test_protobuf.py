"""Hot messages beside google.protobuf: random ones, and random damage to them."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kvnode._core import messages
from kvnode.base.codes import Code, Kind
from kvnode.proto import kv_pb2
from kvnode.proto import rpc_pb2 as pb
from tests.fuzz import fuzz_protobuf
from tests.fuzz.fuzz_protobuf import KINDS, MESSAGES
from tests.support.randompb import damage, fill

NOT_IN_THE_LOG = {Kind.STATUS, Kind.DEFRAG, Kind.SESSION_OPEN, Kind.SESSION_CLOSE}
OF_STREAMS = {Kind.LEASE_KEEP_ALIVE, Kind.LEASE_TIME_TO_LIVE, Kind.LEASE_LEASES}


def test_every_hot_kind_is_compared() -> None:
    assert set(Kind) - set(KINDS) == NOT_IN_THE_LOG | OF_STREAMS


@pytest.mark.parametrize("kind", KINDS)
def test_random_messages(kind: Kind) -> None:
    rng = random.Random(int(kind))
    for _ in range(150):
        # Two end to end are their merger.
        body = b""
        for _ in range(rng.choice([1, 1, 2])):
            message = MESSAGES[kind]()
            fill(rng, message)
            body += message.SerializeToString()
        assert fuzz_protobuf.compare(kind, body) == Code.OK, (kind, body)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_messages(kind: Kind) -> None:
    rng = random.Random(100 + int(kind))
    seen: Counter[Code] = Counter()
    for _ in range(400):
        message = MESSAGES[kind]()
        fill(rng, message)
        seen[fuzz_protobuf.compare(kind, damage(rng, message.SerializeToString()))] += 1
    assert seen[Code.OK] > 20 and seen[Code.MALFORMED] > 20, seen


def test_stored_messages() -> None:
    rng = random.Random(7)
    for _ in range(300):
        message = kv_pb2.KeyValue()
        fill(rng, message)
        body = message.SerializeToString()
        assert fuzz_protobuf.compare_keyvalue(body) == Code.OK
        fuzz_protobuf.compare_keyvalue(damage(rng, body))


def test_lease_requests_are_written_as_protobuf_writes_them() -> None:
    for id_ in (0, 1, 300, (1 << 63) - 1, -1):
        grant = pb.LeaseGrantRequest(TTL=5, ID=id_)
        assert messages.encode_lease_grant(5, id_) == grant.SerializeToString()
        revoke = pb.LeaseRevokeRequest(ID=id_)
        assert messages.encode_lease(id_) == revoke.SerializeToString()
        keys = pb.LeaseTimeToLiveRequest(ID=id_, keys=True)
        assert messages.encode_lease(id_, True) == keys.SerializeToString()


def test_fuzz() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        kind = rng.randrange(len(KINDS))
        message = MESSAGES[KINDS[kind]]()
        fill(rng, message)
        fuzz_protobuf.fuzz(bytes([kind]) + damage(rng, message.SerializeToString()))
