"""Configurations as values, majorities against counting, bytes golden and mutated."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.base.errors import DecodeError
from kvnode.base.ids import MemberID
from kvnode.raft import (
    Change,
    ChangeType,
    Configuration,
    ConfigurationChange,
    ConfigurationRefusedError,
    Transition,
    decode_change,
    decode_configuration,
    encode_change,
    encode_configuration,
)
from kvnode.raft.configuration import EMPTY, apply_change, check, first_change
from kvnode.raft.quorum import VoteResult, joint_value, joint_votes, majority_value
from tests.fuzz import fuzz_configuration


def ids(*members: int) -> tuple[MemberID, ...]:
    return tuple(map(MemberID, members))


changes = st.builds(
    ConfigurationChange,
    st.lists(
        st.builds(Change, st.sampled_from(ChangeType), st.integers(1, 6).map(MemberID)), max_size=4
    ).map(tuple),
    st.sampled_from(Transition),
    st.binary(max_size=9),
)


@given(st.lists(changes, max_size=12))
def test_any_changes_lead_from_one_valid_configuration_to_another(
    history: list[ConfigurationChange],
) -> None:
    configuration = Configuration(ids(1, 2, 3))
    for change in history:
        try:
            after = apply_change(configuration, change)
        except ConfigurationRefusedError:
            continue
        assert check(after) == after and after.voters
        if not configuration.joint and not after.joint:
            assert len(set(configuration.voters) ^ set(after.voters)) <= 1
        if after.joint and not configuration.joint:
            assert after.outgoing == configuration.voters
        if configuration.joint:
            assert change.leaves_joint and not after.joint and after.voters == configuration.voters
        assert decode_configuration(encode_configuration(after)) == after
        assert decode_change(encode_change(change)) == change
        configuration = after


def test_joint_change_of_roles() -> None:
    before = Configuration(ids(1, 2, 3), learners=ids(4))
    change = ConfigurationChange(
        (Change(ChangeType.PROMOTE, MemberID(4)), Change(ChangeType.ADD_LEARNER, MemberID(3)))
    )
    joint = apply_change(before, change)
    assert joint == Configuration(ids(1, 2, 4), ids(1, 2, 3), (), ids(3), True)
    assert apply_change(joint, ConfigurationChange()) == Configuration(ids(1, 2, 4), (), ids(3))


def test_the_first_change_makes_the_cluster() -> None:
    wanted = Configuration(ids(1, 2, 3), learners=ids(4))
    assert apply_change(EMPTY, first_change(wanted, b"names")) == wanted


def test_golden_bytes() -> None:
    configuration = Configuration(ids(1), learners=ids(2))
    golden = bytes.fromhex("0100 0100 0000 0100 0000 0000 0100000000000000 0200000000000000")
    assert encode_configuration(configuration) == golden
    change = ConfigurationChange(
        (Change(ChangeType.ADD_LEARNER, MemberID(9)),), Transition.JOINT_EXPLICIT, b"url"
    )
    golden = bytes.fromhex("0102 0100 03000000 0200000000000000 0900000000000000 75726c")
    assert encode_change(change) == golden
    assert decode_change(golden) == change


@given(st.sets(st.integers(1, 6), max_size=5), st.lists(st.integers(0, 9), min_size=7, max_size=7))
def test_majority_value_by_counting(members: set[int], values: list[int]) -> None:
    voters = ids(*sorted(members))
    reached = majority_value(voters, lambda member: values[member])
    if voters:
        assert sum(values[m] >= reached for m in voters) > len(voters) // 2
        assert sum(values[m] > reached for m in voters) <= len(voters) // 2
    both = joint_value(voters, ids(1, 2, 3), lambda member: values[member])
    assert both == min(reached, majority_value(ids(1, 2, 3), lambda member: values[member]))


def test_votes_by_counting() -> None:
    for answers in product((True, False, None), repeat=4):
        votes = {MemberID(i + 1): a for i, a in enumerate(answers) if a is not None}
        result = joint_votes(ids(1, 2, 3), ids(2, 3, 4), votes)
        halves = [(1, 2, 3), (2, 3, 4)]
        won = all(sum(votes.get(MemberID(m)) is True for m in half) >= 2 for half in halves)
        lost = any(sum(votes.get(MemberID(m)) is False for m in half) >= 2 for half in halves)
        assert result == (
            VoteResult.WON if won else VoteResult.LOST if lost else VoteResult.PENDING
        )


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02" + bytes(11), bytes(12), b"\x01" * 40])
def test_bad_bytes_are_refused(data: bytes) -> None:
    for decode in (decode_configuration, decode_change):
        with pytest.raises(DecodeError):
            decode(data)


def test_mutated_bytes_give_a_value_or_the_own_error() -> None:
    random = Random(5)
    seeds = [
        encode_configuration(Configuration(ids(1, 2, 4), ids(1, 2, 3), (), ids(3), True)),
        encode_change(first_change(Configuration(ids(1, 2)), b"context")),
    ]
    for number in range(4000):
        data = bytearray(seeds[number % 2])
        for _ in range(random.randrange(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        cut = random.randrange(len(data) + 1) if random.random() < 0.2 else len(data)
        fuzz_configuration.fuzz(bytes([number % 2]) + bytes(data[:cut]))
