"""Values that go into and come out of the consensus room.

Caller: everybody who feeds a `Node`. Everything here is immutable but `Ready`, which is handed over
whole and never looked at again by the node. Messages and entry types are plain numbers because
they stand in the log and on the wire: they never change, new ones are added at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from kvnode.base.ids import Index, MemberID, Term

if TYPE_CHECKING:
    from kvnode.raft.configuration import Configuration

NO_MEMBER: Final = MemberID(0)

# Types of log entries.
ENTRY_NORMAL: Final = 0          # data belong to the state machine; empty: a new leader's first
ENTRY_CONFIGURATION: Final = 1   # data are an encoded ConfigurationChange

# Types of messages.
APPEND: Final = 1
APPEND_RESPONSE: Final = 2
HEARTBEAT: Final = 3
HEARTBEAT_RESPONSE: Final = 4
VOTE: Final = 5
VOTE_RESPONSE: Final = 6
PRE_VOTE: Final = 7
PRE_VOTE_RESPONSE: Final = 8
SNAPSHOT: Final = 9
TIMEOUT_NOW: Final = 10
PROPOSE: Final = 11
READ_INDEX: Final = 12
READ_INDEX_RESPONSE: Final = 13
TRANSFER_LEADER: Final = 14

MESSAGE_NAMES: Final = {
    APPEND: "append",
    APPEND_RESPONSE: "append-response",
    HEARTBEAT: "heartbeat",
    HEARTBEAT_RESPONSE: "heartbeat-response",
    VOTE: "vote",
    VOTE_RESPONSE: "vote-response",
    PRE_VOTE: "pre-vote",
    PRE_VOTE_RESPONSE: "pre-vote-response",
    SNAPSHOT: "snapshot",
    TIMEOUT_NOW: "timeout-now",
    PROPOSE: "propose",
    READ_INDEX: "read-index",
    READ_INDEX_RESPONSE: "read-index-response",
    TRANSFER_LEADER: "transfer-leader",
}

# `Message.context` of a VOTE: the leader asked for this election, leases don't count.
CONTEXT_TRANSFER: Final = 1


class Role(IntEnum):
    """What a member is at the moment; a learner is a follower that never campaigns."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class Entry(NamedTuple):
    """One log entry. `data` are opaque bytes unless `type` is ENTRY_CONFIGURATION."""

    index: Index  # type: ignore[assignment]
    term: Term
    type: int
    data: bytes


class HardState(NamedTuple):
    """What must survive a crash beside the entries; `vote` 0 is none."""

    term: Term
    vote: MemberID
    commit: Index


class SoftState(NamedTuple):
    """What may be forgotten; `leader` 0 is unknown."""

    leader: MemberID
    role: Role


class Snapshot(NamedTuple):
    """A snapshot's place in the log; its bytes travel and rest outside of this room.

    The configuration is a committed one that is not older than `index`; it may be newer, and
    `configuration_index` says from where on changes in the log are news.
    """

    index: Index  # type: ignore[assignment]
    term: Term
    configuration: Configuration
    configuration_index: Index


class Span(NamedTuple):
    """Entries `first..last` may be applied; `term` is the last one's, for the border's check."""

    first: Index
    last: Index
    term: Term


class ReadState(NamedTuple):
    """The read named `context` may be served by a state that has applied `index`."""

    context: object
    index: Index  # type: ignore[assignment]


class Message(NamedTuple):
    """What members say to each other; a field not named for a type is 0 or empty.

    APPEND            index, log_term: the entry before `entries`; commit
    APPEND_RESPONSE   index: durable and equal up to there; commit: known durably; reject:
                      index of the APPEND refused, hint, log_term: where to look next
    HEARTBEAT         commit: never above what the member is known to have; context: read round
    HEARTBEAT_RESPONSE  commit: known durably; context: the round
    VOTE, PRE_VOTE    index, log_term: the candidate's last entry; term: the term campaigned for;
                      commit, commit_term: an entry known to be committed
    *VOTE_RESPONSE    reject: commit, commit_term, as above
    SNAPSHOT          snapshot: install it; delivered only when its bytes are there and checked
    PROPOSE           entries (without index and term); term 0
    READ_INDEX        context: the asker's number; term 0
    TRANSFER_LEADER   context: the member that shall lead; term 0
    """

    type: int
    to: MemberID
    sender: MemberID
    term: Term
    index: Index = Index(0)  # type: ignore[assignment]
    log_term: Term = Term(0)
    commit: Index = Index(0)
    entries: Sequence[Entry] = ()
    reject: bool = False
    hint: Index = Index(0)
    context: int = 0
    commit_term: Term = Term(0)
    snapshot: Snapshot | None = None


class Ready:
    """Everything the outside has to do now, in the order given in `kvnode.raft`.

    `needs_persist` says that the value goes through the log's queue; when it and all before it are
    durable the caller sends `messages_after_persist` and calls `on_persisted(number)`.
    """

    __slots__ = (
        "committed",
        "configuration",
        "entries",
        "hard_state",
        "messages",
        "messages_after_persist",
        "needs_persist",
        "number",
        "read_states",
        "snapshot",
        "snapshot_requests",
        "soft_state",
    )

    number: int                              # counts Readies with needs_persist; 0 without
    needs_persist: bool
    hard_state: HardState | None
    configuration: tuple[Index, Configuration] | None
    snapshot: Snapshot | None                # to install; before `entries`
    entries: list[Entry]
    messages: list[Message]
    messages_after_persist: list[Message]
    committed: Span | None
    soft_state: SoftState | None
    read_states: list[ReadState]
    snapshot_requests: list[MemberID]        # members that need a snapshot from us
