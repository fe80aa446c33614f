"""What a `Node` is built from: bounds, options, and what the log said at the last stop.

Caller: `procs/consensus` and the simulator. Numbers of ticks, never seconds: the caller's clock
decides how long a tick is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from kvnode.base.errors import ConfigError
from kvnode.base.ids import Index, MemberID, Term
from kvnode.base.limits import KIB, MIB
from kvnode.raft.configuration import EMPTY, Configuration, check
from kvnode.raft.log import LogStorage
from kvnode.raft.types import NO_MEMBER, HardState

MESSAGE_BYTES_MAX: Final = 1 * MIB         # entries of one APPEND; a larger entry goes alone
WINDOW_MESSAGES_MAX: Final = 256           # APPENDs out to one follower
WINDOW_BYTES_MAX: Final = 16 * MIB
UNCOMMITTED_BYTES_MAX: Final = 256 * MIB   # a leader's entries appended and not committed
TAIL_BYTES_MAX: Final = 64 * MIB           # durable entries kept in memory for followers
LEARNER_LAG_MAX: Final = 1000              # entries that a learner may lack when promoted
READS_WAITING_MAX: Final = 64 * KIB        # reads of this member without an answer

_NO_INDEX: Final = Index(0)
_NO_TERM: Final = Term(0)
_NO_HARD_STATE: Final = HardState(_NO_TERM, NO_MEMBER, _NO_INDEX)


class Randomness(Protocol):
    """The part of `random.Random` that consensus uses; the generator is handed in."""

    def randrange(self, stop: int, /) -> int: ...

    def getrandbits(self, k: int, /) -> int: ...


@dataclass(slots=True)
class NodeConfig:
    """Bounds in bytes, messages and ticks; `random` draws election timeouts and read numbers.

    `hard_state`, `configuration` (with the index of the entry that made it), `snapshot_index` and
    `snapshot_term` are what the log held; `applied` is what the state machine has applied. On a
    first start the storage is empty: a member that founds the cluster gives the configuration that
    all founders give, and `bootstrap_context` (their names and URLs, the same bytes everywhere),
    which become entry 1 of term 1; a member that joins gives the empty configuration and waits.

    `read_lease` lets a leader answer reads without a round while a quorum has answered within the
    last election timeout. Its clock assumption: while one member counts `election_ticks` ticks any
    other counts at most `lease_drift_ticks` fewer or more.
    """

    id: MemberID
    random: Randomness
    storage: LogStorage
    configuration: Configuration = EMPTY
    bootstrap_context: bytes = b""
    configuration_index: Index = _NO_INDEX
    hard_state: HardState = _NO_HARD_STATE
    snapshot_index: Index = _NO_INDEX
    snapshot_term: Term = _NO_TERM
    applied: Index = _NO_INDEX
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    pre_vote: bool = True
    check_quorum: bool = True
    read_lease: bool = False
    lease_drift_ticks: int = 2
    forward_proposals: bool = True
    message_bytes_max: int = MESSAGE_BYTES_MAX
    window_messages_max: int = WINDOW_MESSAGES_MAX
    window_bytes_max: int = WINDOW_BYTES_MAX
    uncommitted_bytes_max: int = UNCOMMITTED_BYTES_MAX
    tail_bytes_max: int = TAIL_BYTES_MAX
    learner_lag_max: int = LEARNER_LAG_MAX
    reads_waiting_max: int = READS_WAITING_MAX

    def validate(self) -> None:
        """Raise ConfigError for values that can't work."""
        check(self.configuration)
        if self.id == NO_MEMBER:
            raise ConfigError("member id 0 means nobody")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ConfigError("heartbeat_ticks must be above 0 and below election_ticks")
        if self.read_lease and not self.check_quorum:
            raise ConfigError("lease reads need check_quorum: votes wait for the lease's end")
        if self.read_lease and self.lease_drift_ticks >= self.election_ticks:
            raise ConfigError("lease_drift_ticks leaves nothing of the lease")
        if self.window_messages_max < 1 or self.window_bytes_max < self.message_bytes_max:
            raise ConfigError("a window must hold at least one whole message")
