"""The state machine as the applier holds it: batches in, figures out, the quota's hysteresis."""

from __future__ import annotations

import pytest

from kvnode._core.memstore import MemStore
from kvnode.base.limits import MIB, QUOTA_CLEAR_PART
from kvnode.state.machine import StateMachine
from kvnode.state.quota import wanted_alarm
from tests.oracle.requests import Alarm, Compact, Group, Put, decode_results, encode_batch


def entry(index: int, *groups: Group, term: int = 1) -> tuple[int, int, int, memoryview]:
    return index, term, 0, memoryview(encode_batch(list(groups)))


def test_batches_and_figures() -> None:
    store = MemStore()
    machine = StateMachine(store, 1, 2)
    empty = machine.used_bytes()
    answers = machine.apply([
        (1, 1, 0, b""),
        entry(2, Group([Put(b"a")], slot=4), Group([Put(b"b")], incarnation=9)),
        entry(3, Group([Put(b"a"), Alarm(1, 1, 1)], slot=5), term=2),
    ])  # fmt: skip
    assert [(inc, [g.slot for g in decode_results(data)]) for inc, data in answers] == [
        (1, [4, 5]),
        (9, [0]),
    ]
    assert (machine.applied_index, machine.applied_term, machine.revision) == (3, 2, 4)
    assert machine.compact_revision == 0 and machine.freed_revision == 0
    assert machine.alarms == [(1, 1)]
    assert machine.used_bytes() > empty
    assert not machine.free_slice(0.001)
    machine.apply([entry(4, Group([Compact(4)]), term=2)])
    assert machine.compact_revision == 4
    assert not machine.free_slice(0.001, 3)
    assert machine.freed_revision == 3
    assert not machine.free_slice(0.001)
    assert machine.freed_revision == 4
    again = StateMachine(store, 1, 2)
    assert again.state_hash == machine.state_hash
    assert again.counters["entries"] == 0 and machine.counters["entries"] == 4


def test_reload_forgets_what_was_not_committed() -> None:
    machine = StateMachine(MemStore(), 1, 2)
    machine.apply([entry(1, Group([Put(b"a")]))])
    before = machine.state_hash
    machine.reload()
    assert (machine.applied_index, machine.state_hash) == (1, before)


@pytest.mark.parametrize(
    ("used", "raised", "wanted"),
    [
        (99 * MIB, False, None),
        (100 * MIB, False, True),
        (100 * MIB, True, None),
        (int(100 * MIB * QUOTA_CLEAR_PART), True, None),
        (int(100 * MIB * QUOTA_CLEAR_PART) - 1, True, False),
        (0, False, None),
    ],
)
def test_quota_raises_at_the_limit_and_clears_well_below(
    used: int, raised: bool, wanted: bool | None
) -> None:
    assert wanted_alarm(used, 100 * MIB, raised) is wanted


def test_no_quota_raises_nothing() -> None:
    assert wanted_alarm(1 << 60, 0, False) is None
    assert wanted_alarm(0, 0, True) is False
