"""Errors of the consensus room, in the three families of `kvnode.base.errors`.

A refused proposal was not appended: proposing the same bytes again is safe. What a programmer did
wrong is an assertion with the number of the invariant.
"""

from __future__ import annotations

from kvnode.base.errors import CallerError, DiskError, PeerError
from kvnode.base.ids import MemberID


class ProposalRefusedError(CallerError):
    """The proposal was not appended; it may be proposed again later or elsewhere."""


class NotLeaderError(ProposalRefusedError):
    """Only the leader takes this; `leader` is 0 while none is known."""

    def __init__(self, leader: MemberID) -> None:
        self.leader = leader
        super().__init__(f"not the leader; the leader is {leader}" if leader else "no leader")


class OverloadedError(ProposalRefusedError):
    """The bytes appended and not yet committed are at their limit; wait for a commit."""


class TransferringError(ProposalRefusedError):
    """Leadership is being handed to another member; propose to that one in a moment."""


class ConfigurationRefusedError(ProposalRefusedError):
    """The change of configuration is not possible now; the text says why."""


class LearnerNotReadyError(ConfigurationRefusedError):
    """The learner is not caught up with the leader, so it can't become a voter yet."""


class MessageError(PeerError):
    """A peer's message contradicts the protocol; it was ignored as a whole."""


class LogLostError(DiskError):
    """This member's log lacks entries that it has acknowledged: an old or damaged directory."""


class CompactedError(CallerError):
    """The log no longer has entries that old; only a snapshot does."""
