"""Leases in the state machine: what each request does, its events, damage, repeated requests."""

from __future__ import annotations

import random
import struct

import pytest

from kvnode._core import leasepb
from kvnode._core.machine import Machine
from kvnode._core.memstore import MemStore
from kvnode._core.storecheck import Checker
from kvnode._core.storetxn import TREE_LEASE_KEYS, TREE_LEASES
from kvnode.base.codes import Code, Kind
from kvnode.proto import rpc_pb2 as pb
from tests.fuzz import fuzz_leases
from tests.oracle.requests import (
    Alarm,
    Compact,
    Compare,
    Delete,
    Group,
    LeaseCheckpoint,
    LeaseGrant,
    LeaseRevoke,
    Put,
    Request,
    SessionOpen,
    Txn,
)
from tests.oracle.statemachine import StateMachine
from tests.support.fsck import check_state
from tests.support.statemachine import Pair

ROW = struct.Struct("<QqqqQ")
KEPT = b"k" * 600


def machine_pair(*requests: Request) -> Pair:
    pair = Pair(MemStore())
    pair.apply([[Group(list(requests))]])
    return pair


def events(machine: Machine) -> list[tuple[int, ...]]:
    return list(ROW.iter_unpack(machine.lease_events))


def codes(pair: Pair, *requests: Request) -> list[int]:
    """Applies them in one group, compared with the model; their codes."""
    pair.apply([[Group(list(requests))]])
    return [code for code, _, _ in last_results(pair)]


def last_results(pair: Pair) -> list[tuple[int, int, bytes]]:
    """Of the last entry, by a fresh model (the pair compared its own)."""
    model = StateMachine()
    results = [model.apply(*entry) for entry in pair.entries][-1]
    return list(results[0].results)


def test_a_revoke_deletes_its_keys_sorted_in_one_revision() -> None:
    puts = [Put(key, b"v", lease=7) for key in (b"c", b"a", KEPT, b"b", KEPT + b"1")]
    pair = machine_pair(LeaseGrant(7, 60), LeaseGrant(8, 60), *puts, Put(b"d", b"v", lease=8))
    before = pair.machine.revision
    pair.apply([[Group([LeaseRevoke(7)])]])
    assert pair.machine.revision == before + 1
    deleted = [key for main, _, key in pair.model.mvcc.log if main == before + 1]
    assert deleted == [b"a", b"b", b"c", KEPT, KEPT + b"1"]
    pair.apply([[Group([LeaseRevoke(8), LeaseGrant(8, 5), LeaseRevoke(8)])]])
    assert pair.machine.revision == before + 2, "a lease without keys takes no revision"
    check_state(pair.store, pair.model.mvcc)


def test_keys_move_between_leases() -> None:
    pair = machine_pair(LeaseGrant(7, 60), LeaseGrant(8, 60), Put(b"a", b"1", lease=7))
    for request in (
        Put(b"a", b"2", lease=8),
        Put(b"a", b"3", ignore_lease=True),
        Put(b"b", b"1", lease=7),
        Txn(success=(Put(b"a", b"4", ignore_lease=True), Put(b"c", b"1", lease=7), Delete(b"b"))),
        Put(b"c", b"2"),
        Txn(success=(Delete(b"a"),)),
        Put(b"a", b"5", lease=7),
        Compact(6),
    ):
        pair.apply([[Group([request])]])
        check_state(pair.store, pair.model.mvcc)
    pair.free_all()
    check_state(pair.store, pair.model.mvcc, freed=True)
    pair.apply([[Group([LeaseRevoke(7), LeaseRevoke(8)])]])
    assert pair.model.mvcc.latest(b"a") is None
    pair.free_all()
    check_state(pair.store, pair.model.mvcc, freed=True)


def test_refusals_are_etcds() -> None:
    pair = machine_pair(LeaseGrant(7, 60))
    assert codes(pair, LeaseGrant(7, 60)) == [Code.LEASE_EXIST]
    assert codes(pair, LeaseGrant(7, 9_000_000_001)) == [Code.LEASE_TTL_TOO_LARGE]
    assert codes(pair, LeaseGrant(0, 5)) == [Code.LEASE_NOT_FOUND]
    assert codes(pair, LeaseRevoke(8), LeaseRevoke(0)) == [Code.LEASE_NOT_FOUND] * 2
    assert codes(pair, Put(b"a", lease=8)) == [Code.LEASE_NOT_FOUND]
    txn = Txn((Compare(b"a", 4, 0, number=7),), (), (Put(b"x"), Put(b"y", lease=8)))
    before = pair.machine.revision
    assert codes(pair, txn) == [Code.LEASE_NOT_FOUND]
    assert pair.machine.revision == before, "leases are checked before the first write"


def test_alarms() -> None:
    pair = machine_pair(LeaseGrant(7, 60), LeaseGrant(8, 60), Put(b"a", lease=7), Alarm(1, 1, 1))
    assert codes(pair, LeaseGrant(9, 60), LeaseRevoke(7)) == [Code.NO_SPACE, Code.OK]
    assert codes(pair, Alarm(1, 1, 2), LeaseGrant(9, 60), LeaseRevoke(8)) == [
        Code.OK, Code.CORRUPT, Code.CORRUPT,
    ]
    assert codes(pair, LeaseCheckpoint(((8, 5),))) == [Code.OK]


def test_events_tell_what_changed_and_nothing_else() -> None:
    pair = machine_pair(LeaseGrant(7, 60), LeaseGrant(7, 60), LeaseGrant(-8, 0))
    assert events(pair.machine) == [(1, 7, 60, 0, 1), (1, -8, 1, 0, 1)]
    pair.apply([[Group([Put(b"a", lease=7)])]])
    assert pair.machine.lease_events == b""
    pair.apply([[Group([LeaseCheckpoint(((7, 30), (99, 1), (7, 61)))])]])
    assert events(pair.machine) == [(3, 7, 60, 30, 3), (3, 7, 60, 0, 3)]
    pair.apply([[Group([LeaseRevoke(7), LeaseRevoke(7)])]])
    assert events(pair.machine) == [(4, 7, 60, 0, 2)]
    assert pair.machine.lease_count() == 1


def test_a_repeated_grant_is_answered_with_its_id() -> None:
    pair = Pair(MemStore())
    pair.apply([[Group([SessionOpen(7)], client=True)]])
    grant = Group([LeaseGrant(300, 60), LeaseRevoke(300)], session=7, sequence=1, client=True)
    pair.apply([[grant]])
    pair.apply([[grant]])
    assert pair.model.mvcc.leases == {}


@pytest.mark.parametrize("how", ["crc", "lease gone", "entry gone", "stray entry", "key"])
def test_damage_is_found(how: str) -> None:
    pair = machine_pair(LeaseGrant(7, 60), Put(b"a", lease=7), Put(b"b", lease=7), Put(b"b"))
    name, entry = struct.pack(">q", 7), struct.pack(">qQI", 7, 2, 0)
    with pair.store.begin_write() as txn:
        if how == "crc":
            value = bytearray(txn.get(TREE_LEASES, name))
            value[9] ^= 1
            txn.put(TREE_LEASES, name, bytes(value))
        elif how == "lease gone":
            txn.delete(TREE_LEASES, name)
        elif how == "entry gone":
            assert txn.delete(TREE_LEASE_KEYS, entry)
        elif how == "stray entry":
            txn.put(TREE_LEASE_KEYS, struct.pack(">qQI", 7, 3, 0), b"")
        else:
            txn.put(TREE_LEASE_KEYS, b"short", b"")
        txn.commit()
    checker = Checker(pair.store)
    found = [
        text
        for piece in (checker.keys(b"\0", 99), checker.leases(b"", 99), checker.attached(b"", 99))
        for _, _, text in piece.findings
    ]
    assert len(found) == 1
    wanted = {
        "crc": "damaged", "lease gone": "not there", "entry gone": "missing among",
        "stray entry": "not its key's latest", "key": "not (lease, revision)",
    }
    assert wanted[how] in found[0]


@pytest.mark.parametrize(
    ("ttl", "lease", "wanted"),
    [(5, 7, (5, 7)), (5, 0, (5, 300)), (1, 7, (2, 7)), (-9, 0, (2, 300)), (0, -4, (2, -4))],
)
def test_a_grant_is_completed(ttl: int, lease: int, wanted: tuple[int, int]) -> None:
    body = pb.LeaseGrantRequest(TTL=ttl, ID=lease).SerializeToString()
    whole = leasepb.complete_grant(body, 300, 2)
    assert whole.startswith(body)
    read = pb.LeaseGrantRequest.FromString(whole)
    assert wanted == (read.TTL, read.ID)
    assert leasepb.parse(Kind.LEASE_GRANT, whole)[:2] == (wanted[1], wanted[0])


def test_fuzz() -> None:
    rng = random.Random(3)
    good = [
        LeaseGrant(7, 60).encode(), LeaseRevoke(-1).encode(),
        LeaseCheckpoint(((7, 5), (-9, 1 << 62))).encode(), b"",
    ]
    for _ in range(4000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(5)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        fuzz_leases.fuzz(bytes([rng.randrange(256)]) + bytes(data))
