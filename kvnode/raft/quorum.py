"""Majorities, and majorities of both halves of a joint configuration.

Caller: the leader's commit and read rounds, candidates' tallies. Pure functions over tuples of
member ids; an empty tuple agrees to everything, which is how a configuration without a second half
works in a joint rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from kvnode.base.ids import MemberID

_EVERYTHING = (1 << 64) - 1


class VoteResult(IntEnum):
    """PENDING: the missing votes decide."""

    PENDING = 0
    LOST = 1
    WON = 2


def majority_value(voters: tuple[MemberID, ...], value_of: Callable[[MemberID], int]) -> int:
    """The greatest value that a majority of `voters` has reached."""
    if not voters:
        return _EVERYTHING
    values = sorted([value_of(member) for member in voters])
    return values[(len(values) - 1) // 2]


def joint_value(
    voters: tuple[MemberID, ...],
    outgoing: tuple[MemberID, ...],
    value_of: Callable[[MemberID], int],
) -> int:
    """The greatest value that a majority of either half has reached."""
    value = majority_value(voters, value_of)
    if outgoing:
        value = min(value, majority_value(outgoing, value_of))
    return value


def majority_votes(voters: tuple[MemberID, ...], votes: Mapping[MemberID, bool]) -> VoteResult:
    """Whether the votes cast so far win, lose or leave it open among `voters`."""
    if not voters:
        return VoteResult.WON
    needed = len(voters) // 2 + 1
    granted = sum(1 for member in voters if votes.get(member) is True)
    refused = sum(1 for member in voters if votes.get(member) is False)
    if granted >= needed:
        return VoteResult.WON
    if refused > len(voters) - needed:
        return VoteResult.LOST
    return VoteResult.PENDING


def joint_votes(
    voters: tuple[MemberID, ...],
    outgoing: tuple[MemberID, ...],
    votes: Mapping[MemberID, bool],
) -> VoteResult:
    """Won needs both halves, lost needs one."""
    first = majority_votes(voters, votes)
    second = majority_votes(outgoing, votes)
    if first == second:
        return first
    if VoteResult.LOST in (first, second):
        return VoteResult.LOST
    return VoteResult.PENDING
