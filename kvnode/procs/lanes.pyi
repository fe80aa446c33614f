from collections.abc import Callable
from typing import Any

from kvnode._core.machine import Machine
from kvnode._core.sharedword import SharedWords
from kvnode.env.peer import Peer
from kvnode.env.unixlink import UnixEndpoint
from kvnode.raft.node import LoneEntry

FAILED: int
LANE_BYTES_MAX: int

class Lane:
    def disarm(self) -> None: ...
    def wait(self, timeout: float) -> list[tuple[int, int]]: ...

class ProposeLane(Lane):
    ticket: int
    last_commits: bool
    def __init__(
        self,
        poll_fd: int,
        settle: Callable[[int], object],
        passes_max: int,
        endpoint: UnixEndpoint,
        words: SharedWords,
    ) -> None: ...
    def arm(
        self, gateway: Peer, applier: Peer, log: tuple[Any, ...], next_entry: LoneEntry
    ) -> None: ...

class ApplyLane(Lane):
    answered: list[int]
    applied_bytes: int
    def __init__(
        self,
        poll_fd: int,
        settle: Callable[[int], object],
        passes_max: int,
        server: UnixEndpoint,
        words: SharedWords,
        on_leases: Callable[[], object],
        reload: Callable[[], object],
    ) -> None: ...
    def arm(
        self, endpoint: UnixEndpoint, consensus: Peer, machine: Machine, gateways: dict[int, Peer]
    ) -> None: ...
