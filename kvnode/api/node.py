"""What a handler may ask of the node that it runs in.

Role: the border between the handlers of this room and the gateway process, which implements it
(procs/). Tests implement it over values. Every function is called on the gateway's loop and
returns at once; what takes time hands its result to `done`, once, on the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvnode.base.config import Config
from kvnode.proto import rpc_pb2 as rpcpb

Done = Callable[[int, bytes], None]
"""done(code, body): a base.codes.Code; the response message, or a detail to the refusal."""


@dataclass(frozen=True)
class HashOfKeys:
    """What HashKV answers: a CRC-32C over the visible history, and what it was taken over."""

    crc: int
    revision: int
    compact_revision: int
    """-1: never compacted."""
    current_revision: int


@dataclass(frozen=True)
class Facts:
    """This member as Status tells it."""

    db_bytes: int
    """Size of the map's file as far as it was ever used."""
    db_used_bytes: int
    """Bytes of live pages."""
    quota_bytes: int
    leader: int
    """Member id of the leader, 0 when there is none."""
    committed_index: int
    applied_index: int
    term: int
    alarms: tuple[tuple[int, int], ...] = ()
    """(alarm, member id) of each that stands."""
    troubles: tuple[str, ...] = ()
    """What else an operator should know: damage that was found, a disk that runs full."""


class Node(Protocol):
    """One member, seen from a handler."""

    config: Config

    @property
    def member_id(self) -> int: ...

    @property
    def cluster_id(self) -> int: ...

    @property
    def founders(self) -> Sequence[tuple[int, str, Sequence[str]]]:
        """Id, name and peer URLs of all members."""
        ...

    def header(self) -> rpcpb.ResponseHeader:
        """A response header as of now."""
        ...

    def facts(self) -> Facts:
        """What Status tells."""
        ...

    def propose(self, kind: int, body: bytes, done: Done) -> None:
        """Executes a request through the log; `body` is its message."""
        ...

    def barrier(self, done: Callable[[int], None]) -> None:
        """done(code) once everything acknowledged before this call is applied here."""
        ...

    def defragment(self, done: Done) -> None:
        """Rebuilds the map compactly; done(code, detail) when the new one is in use."""
        ...

    def hash_keys(
        self, revision: int, whole: bool, done: Callable[[int, HashOfKeys | None], None]
    ) -> None:
        """HashKV at `revision` (0: now), or with `whole` over the other trees too (Hash)."""
        ...
