"""A gateway's short way for a request that comes alone.

Role: says when a request need not wait for company (`lone`): it has its turn in the very call that
read it, without a round of the loop. Under load requests gather into one proposal a turn.
Caller: procs/gateway, procs/door.

Invariants:
  1. Requests gather while a proposal is open, and as long as the last turn's were several.
"""

from libc.stdint cimport uint64_t

from kvnode._core.front cimport Front


cdef class GateLane:
    """Looks at one gateway's requests."""

    cdef:
        Front front
        uint64_t seen          # requests of the turns before this one
        bint one               # the last turn with requests had a single one

    def __init__(self, Front front not None):
        self.front = front

    def end_turn(self) -> None:
        """A turn takes what has come: its requests are counted."""
        cdef uint64_t n = self.front.requests - self.seen
        if n:
            self.one = n == 1
            self.seen = self.front.requests

    def lone(self) -> bool:
        """Whether what has come is likely to stay alone: nothing is under way, and the last turn
        with requests had a single one."""
        return self.one and self.front.proposals.size() == 0
