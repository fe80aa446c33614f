"""Who votes, who learns, and how that changes, one member at a time or jointly.

Caller: `membership`, and whoever stores configurations (log, snapshots) as bytes. A configuration
is a value; a change makes a new one or is refused with a reason.

Invariants, checked by `check`:
 C1 there is a voter, but in the empty configuration of a member that knows nothing yet.
 C2 a member stands in one place: voters, learners or learners_next; a voter of the outgoing half
    may stand in any of them but learners.
 C3 learners_next (voters that become learners at the end of the joint phase) are voters of the
    outgoing half; without an outgoing half learners_next is empty and auto_leave false.
 C4 ids are sorted, distinct and not 0, so equal configurations have equal bytes.

Bytes of a configuration (little-endian), version 1:
```
 0 u8  version = 1
 1 u8  flags      bit0 auto_leave
 2 u16 voters     4 u16 outgoing     6 u16 learners     8 u16 learners_next     (counts)
10 u16 zero
12 u64 ids, in that order
```
Voter 1 and learner 2: 01 00 0100 0000 0100 0000 0000 0100000000000000 0200000000000000.

Bytes of a change, version 1:
```
 0 u8  version = 1
 1 u8  transition  0 auto, 1 joint and left by itself, 2 joint until told
 2 u16 count       0 with transition 0: leave the joint phase
 4 u32 context     length of the context in bytes
 8 count x { u8 type, 7 zero, u64 member }
.. context, opaque (a member's name and URLs)
```
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from kvnode.base.errors import DecodeError
from kvnode.base.ids import MemberID
from kvnode.raft.errors import ConfigurationRefusedError

_VERSION: Final = 1
_HEAD: Final = struct.Struct("<BBHHHHH")
_CHANGE_HEAD: Final = struct.Struct("<BBHI")
_CHANGE: Final = struct.Struct("<QQ")   # the type's zeros are read with it, so they are checked


class ChangeType(IntEnum):
    """What happens to one member; the numbers stand in the log."""

    ADD_VOTER = 1
    ADD_LEARNER = 2      # of a voter: make it a learner
    REMOVE = 3
    UPDATE = 4           # only the context changes
    PROMOTE = 5          # learner to voter


class Transition(IntEnum):
    """How a change takes force; AUTO goes through a joint phase when it needs to."""

    AUTO = 0
    JOINT_AUTO_LEAVE = 1
    JOINT_EXPLICIT = 2


class Change(NamedTuple):
    """One member's change."""

    type: ChangeType
    member: MemberID


class ConfigurationChange(NamedTuple):
    """What an ENTRY_CONFIGURATION holds; no changes at all means: leave the joint phase."""

    changes: tuple[Change, ...] = ()
    transition: Transition = Transition.AUTO
    context: bytes = b""

    @property
    def leaves_joint(self) -> bool:
        return not self.changes

    @property
    def enters_joint(self) -> bool:
        return len(self.changes) > 1 or self.transition != Transition.AUTO


class Configuration(NamedTuple):
    """Members by role; `outgoing` is the old half while a change is joint."""

    voters: tuple[MemberID, ...]
    outgoing: tuple[MemberID, ...] = ()
    learners: tuple[MemberID, ...] = ()
    learners_next: tuple[MemberID, ...] = ()
    auto_leave: bool = False

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    def members(self) -> tuple[MemberID, ...]:
        """All ids, sorted, each once."""
        return _sorted({*self.voters, *self.outgoing, *self.learners})

    def all_voters(self) -> tuple[MemberID, ...]:
        """Voters of either half, sorted, each once."""
        return _sorted({*self.voters, *self.outgoing}) if self.outgoing else self.voters


def _sorted(ids: Iterable[MemberID]) -> tuple[MemberID, ...]:
    return tuple(sorted(ids))


EMPTY: Final = Configuration(())


def check(configuration: Configuration) -> Configuration:
    """Return it if C1 to C4 hold, else raise ConfigurationRefusedError."""
    if configuration == EMPTY:
        return configuration
    voters, outgoing, learners, learners_next, auto_leave = configuration
    for ids in (voters, outgoing, learners, learners_next):
        if list(ids) != sorted(set(ids)) or 0 in ids:
            raise ConfigurationRefusedError(f"C4: ids are not sorted and distinct: {ids}")
    if not voters:
        raise ConfigurationRefusedError("C1: no voter would be left")
    if set(learners) & ({*voters, *outgoing}) or set(learners_next) & {*voters, *learners}:
        raise ConfigurationRefusedError(f"C2: a member has two roles: {configuration}")
    if not set(learners_next) <= set(outgoing) or (auto_leave and not outgoing):
        raise ConfigurationRefusedError(f"C3: joint parts without a joint phase: {configuration}")
    return configuration


def apply_change(configuration: Configuration, change: ConfigurationChange) -> Configuration:
    """The configuration after `change`; raises ConfigurationRefusedError if it makes no sense."""
    if change.leaves_joint:
        return _leave_joint(configuration)
    if configuration.joint:
        raise ConfigurationRefusedError("the joint phase of an earlier change is not over")
    # The first change of all makes the cluster; there is no old half that could agree.
    if not change.enters_joint or configuration == EMPTY:
        return _apply_each(configuration, change.changes)
    joint = configuration._replace(
        outgoing=configuration.voters,
        auto_leave=change.transition != Transition.JOINT_EXPLICIT,
    )
    return _apply_each(joint, change.changes)


def _leave_joint(configuration: Configuration) -> Configuration:
    if not configuration.joint:
        raise ConfigurationRefusedError("there is no joint phase to leave")
    learners = _sorted({*configuration.learners, *configuration.learners_next})
    return check(Configuration(configuration.voters, (), learners))


def _apply_each(configuration: Configuration, changes: tuple[Change, ...]) -> Configuration:
    voters = set(configuration.voters)
    learners = set(configuration.learners)
    learners_next = set(configuration.learners_next)
    for kind, member in changes:
        _refuse_nonsense(kind, member, voters, learners, learners_next)
        if kind == ChangeType.UPDATE:
            continue
        voters.discard(member)
        learners.discard(member)
        learners_next.discard(member)
        if kind in (ChangeType.ADD_VOTER, ChangeType.PROMOTE):
            voters.add(member)
        elif kind == ChangeType.ADD_LEARNER:
            # An outgoing voter keeps voting in the old half until the joint phase ends.
            (learners_next if member in configuration.outgoing else learners).add(member)
    if not voters:
        raise ConfigurationRefusedError("C1: no voter would be left")
    return check(
        Configuration(
            _sorted(voters),
            configuration.outgoing,
            _sorted(learners),
            _sorted(learners_next),
            configuration.auto_leave,
        )
    )


def first_change(configuration: Configuration, context: bytes) -> ConfigurationChange:
    """The change that makes `configuration` (without a joint phase) out of the empty one."""
    changes = [Change(ChangeType.ADD_VOTER, member) for member in configuration.voters]
    changes += [Change(ChangeType.ADD_LEARNER, member) for member in configuration.learners]
    return ConfigurationChange(tuple(changes), Transition.AUTO, context)


def _refuse_nonsense(
    kind: ChangeType,
    member: MemberID,
    voters: set[MemberID],
    learners: set[MemberID],
    learners_next: set[MemberID],
) -> None:
    text = ""
    learns = member in learners or member in learners_next
    if member == 0:
        text = "0 is no member id"
    elif kind == ChangeType.ADD_VOTER and member in voters:
        text = f"member {member} is a voter already"
    elif kind == ChangeType.ADD_VOTER and learns:
        text = f"member {member} is a learner: promote it"
    elif kind == ChangeType.ADD_LEARNER and learns:
        text = f"member {member} is a learner already"
    elif kind == ChangeType.PROMOTE and not learns:
        text = f"member {member} is not a learner"
    elif kind in (ChangeType.REMOVE, ChangeType.UPDATE) and not learns and member not in voters:
        text = f"there is no member {member}"
    if text:
        raise ConfigurationRefusedError(text)


def encode_configuration(configuration: Configuration) -> bytes:
    """Bytes for the log and for snapshots; see the module's table."""
    parts = configuration[:4]
    head = _HEAD.pack(_VERSION, configuration.auto_leave, *map(len, parts), 0)
    ids = [member for part in parts for member in part]
    return head + struct.pack(f"<{len(ids)}Q", *ids)


def decode_configuration(data: bytes) -> Configuration:
    """Inverse of `encode_configuration`; raises DecodeError only."""
    if len(data) < _HEAD.size:
        raise DecodeError("configuration: too short")
    version, flags, *counts, zero = _HEAD.unpack_from(data)
    if version != _VERSION or flags > 1 or zero:
        raise DecodeError(f"configuration: unknown version {version} or flags {flags}")
    if len(data) != _HEAD.size + 8 * sum(counts):
        raise DecodeError("configuration: length is not what its counts say")
    ids = struct.unpack_from(f"<{sum(counts)}Q", data, _HEAD.size)
    parts = []
    for count in counts:
        parts.append(tuple(map(MemberID, ids[:count])))
        ids = ids[count:]
    try:
        return check(Configuration(parts[0], parts[1], parts[2], parts[3], bool(flags)))
    except ConfigurationRefusedError as error:
        raise DecodeError(f"configuration: {error}") from error


def encode_change(change: ConfigurationChange) -> bytes:
    """Bytes of an ENTRY_CONFIGURATION; see the module's table."""
    head = _CHANGE_HEAD.pack(
        _VERSION, change.transition, len(change.changes), len(change.context)
    )
    return head + b"".join(_CHANGE.pack(*item) for item in change.changes) + change.context


def decode_change(data: bytes) -> ConfigurationChange:
    """Inverse of `encode_change`; raises DecodeError only."""
    if len(data) < _CHANGE_HEAD.size:
        raise DecodeError("configuration change: too short")
    version, transition, count, context_bytes = _CHANGE_HEAD.unpack_from(data)
    if version != _VERSION:
        raise DecodeError(f"configuration change: unknown version {version}")
    context_at = _CHANGE_HEAD.size + _CHANGE.size * count
    if len(data) != context_at + context_bytes:
        raise DecodeError("configuration change: length is not what its counts say")
    try:
        changes = tuple(
            Change(ChangeType(kind), MemberID(member))
            for kind, member in _CHANGE.iter_unpack(data[_CHANGE_HEAD.size : context_at])
        )
        return ConfigurationChange(changes, Transition(transition), bytes(data[context_at:]))
    except ValueError as error:
        raise DecodeError(f"configuration change: {error}") from error
