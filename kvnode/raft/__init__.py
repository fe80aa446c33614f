"""Consensus: Raft without network, disk or clock. `Node` takes messages, ticks and proposals, and
gives one `Ready` at a time.

Reading order: types, configuration, quorum, log, progress, state, election, replication,
membership, reads, node; codec for messages as bytes.

The caller's contract
---------------------

Take `ready()` after each turn of the loop until it returns None, and for each Ready, in this order:

1. `soft_state`, `sole_voter`: publish them. The word for gateways is cleared here, before anything
   below leaves, and its commit index is stored before `committed` and `messages` leave.
2. `messages`: send. They depend on nothing that is not durable.
3. If `needs_persist`: queue for the log, in the order of `number`: `configuration`, `snapshot`
   (the log begins anew behind it), `entries` (an index already there replaces that entry and all
   behind it), `hard_state`. One Ready is durable as a whole or not at all up to its last entry: the
   hard state and configuration of a Ready must not be missing where its entries are found.
   When `number` and all before are durable (one fsync for many is right): send their
   `messages_after_persist`, and call `on_persisted(number)`, only the highest if several are done.
   `needs_persist` with nothing to write means that messages wait for what is before them.
4. `committed`: entries `first..last` may be applied; all of them were handed out in `entries` or
   stand in the storage since the start. `on_applied(index)` afterwards.
5. `read_states`: each may be served by a state that has applied its `index`.
6. `snapshot_requests`: make or find a snapshot for these members, bring its bytes over, call
   `send_snapshot` and at the end `report_snapshot`. Deliver a SNAPSHOT message to `step` only when
   the bytes are there and checked; its Ready says `snapshot`, the state machine installs it after
   the record is durable, in place of all spans handed out before it.

The storage may drop entries that are applied, but through the log's queue: what was handed out
before them (a configuration among it) is durable first.

Messages may be lost, repeated or reordered. `tick()` comes at a steady pace; every number of ticks
is the caller's to choose. A change of configuration takes force at its commit, on every member.

A start: the storage, the last durable hard state, configuration and snapshot record, and the index
that the state machine has applied. A sole voter calls `campaign()` at once. On a cluster's first
start every founder's entry 1 (term 1) is the first configuration, committed from the beginning.

Deliberately absent: addresses, transfer of snapshot bytes, compaction (the
storage drops what `Status.members[].needs_from` and the state machine no longer need).
"""

from kvnode.raft.config import NodeConfig
from kvnode.raft.configuration import (
    Change,
    ChangeType,
    Configuration,
    ConfigurationChange,
    Transition,
    decode_change,
    decode_configuration,
    encode_change,
    encode_configuration,
)
from kvnode.raft.errors import (
    CompactedError,
    ConfigurationRefusedError,
    LearnerNotReadyError,
    LogLostError,
    MessageError,
    NotLeaderError,
    OverloadedError,
    ProposalRefusedError,
    TransferringError,
)
from kvnode.raft.log import LogStorage
from kvnode.raft.node import MemberStatus, Node, Status
from kvnode.raft.types import (
    ENTRY_CONFIGURATION,
    ENTRY_NORMAL,
    NO_MEMBER,
    Entry,
    HardState,
    Message,
    ReadState,
    Ready,
    Role,
    Snapshot,
    SoftState,
    Span,
)

__all__ = [
    "ENTRY_CONFIGURATION",
    "ENTRY_NORMAL",
    "NO_MEMBER",
    "Change",
    "ChangeType",
    "CompactedError",
    "Configuration",
    "ConfigurationChange",
    "ConfigurationRefusedError",
    "Entry",
    "HardState",
    "LearnerNotReadyError",
    "LogLostError",
    "LogStorage",
    "MemberStatus",
    "Message",
    "MessageError",
    "Node",
    "NodeConfig",
    "NotLeaderError",
    "OverloadedError",
    "ProposalRefusedError",
    "ReadState",
    "Ready",
    "Role",
    "Snapshot",
    "SoftState",
    "Span",
    "Status",
    "TransferringError",
    "Transition",
    "decode_change",
    "decode_configuration",
    "encode_change",
    "encode_configuration",
]
