"""When NOSPACE is asked for: once a crossing and term, and never when nothing is to change."""

from __future__ import annotations

from kvnode.base.limits import MIB, QUOTA_CLEAR_PART
from kvnode.procs.alarms import SpaceWatch
from kvnode.proto import rpc_pb2 as rpcpb
from tests.oracle.envelope import parse_batch

QUOTA = 100 * MIB
LOW = int(QUOTA * QUOTA_CLEAR_PART) - 1


def action(batch: bytes | None) -> str:
    assert batch is not None
    ((_, body),) = parse_batch(batch)[0]["requests"]
    request = rpcpb.AlarmRequest.FromString(body)
    assert (request.memberID, request.alarm) == (7, rpcpb.NOSPACE)
    return rpcpb.AlarmRequest.AlarmAction.Name(request.action)


def test_a_start_asks_for_nothing_that_is_so() -> None:
    assert SpaceWatch(QUOTA, 7).on_used(0, False, 1) is None
    assert SpaceWatch(QUOTA, 7).on_used(QUOTA, True, 1) is None
    assert SpaceWatch(QUOTA, 7).on_used(LOW + 1, True, 1) is None


def test_one_crossing_is_one_proposal() -> None:
    watch = SpaceWatch(QUOTA, 7)
    assert action(watch.on_used(QUOTA, False, 1)) == "ACTIVATE"
    assert watch.on_used(QUOTA + 1, False, 1) is None, "on its way"
    assert watch.on_used(QUOTA + 1, True, 1) is None
    assert action(watch.on_used(LOW, True, 1)) == "DEACTIVATE"
    assert watch.on_used(LOW, True, 1) is None
    assert watch.on_used(LOW, False, 1) is None
    assert action(watch.on_used(QUOTA, False, 1)) == "ACTIVATE"


def test_what_may_be_lost_is_asked_for_again() -> None:
    watch = SpaceWatch(QUOTA, 7)
    assert action(watch.on_used(QUOTA, False, 1)) == "ACTIVATE"
    assert action(watch.on_used(QUOTA, False, 2)) == "ACTIVATE", "another leader's log"
    assert watch.on_used(QUOTA, False, 2) is None
    watch.forget()
    assert action(watch.on_used(QUOTA, False, 2)) == "ACTIVATE"
