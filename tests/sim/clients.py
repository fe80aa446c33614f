"""Clients of a simulated cluster, and the history of what they asked and heard.

A client has a session and one operation at a time. A write that is not answered in time is sent
again to another member, with the same (session, sequence): it must be executed once. A read that
is not answered is a new read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvnode.base.codes import Code
from tests.oracle.requests import (
    Compact,
    Compare,
    Delete,
    Group,
    Put,
    Range,
    Request,
    SessionOpen,
    Txn,
)
from tests.sim.world import MS, SECOND

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

KEYS = [b"a", b"b", b"c", b"p/1", b"p/2", b"p/3", b"q" * 600]
COUNTERS = [b"n/1", b"n/2"]
CREATE, VALUE, EQUAL = 2, 4, 0   # Compare.target, Compare.result
TIMEOUT_US = 900 * MS


@dataclass
class Operation:
    """One operation; `end` None: never answered. `revision` is the answer's header's."""

    client: int
    sequence: int                  # 0: a read
    request: Request
    serializable: bool
    start: int
    end: int | None = None
    code: int = 0
    body: bytes = b""
    member: int = 0
    revision: int = 0


class Client:
    """One client, closed loop with pauses."""

    def __init__(self, sim: Simulation, number: int) -> None:
        self.sim = sim
        self.number = number
        self.session = 1000 + number
        self.ready = False
        self.sequence = 0
        self.attempt = 0
        self.known: dict[bytes, bytes] = {}
        self.current: Operation | None = None
        self.member = sim.pick()

    def begin(self) -> None:
        """Opens the session, then goes on for ever."""
        if not self.ready:
            self.run(SessionOpen(self.session), sequence=0, opening=True)
            return
        random = self.sim.world.random
        roll = random.random()
        if roll < 0.35:
            key = random.choice([*KEYS, *COUNTERS])
            end = b"q" if key == b"p/1" and random.random() < 0.5 else b""
            self.run(Range(key, end), serializable=random.random() < 0.15)
            return
        self.sequence += 1
        self.run(self.write(roll), sequence=self.sequence)

    def write(self, roll: float) -> Request:
        random = self.sim.world.random
        if roll < 0.6:
            return Put(random.choice(KEYS), random.randbytes(random.choice([0, 3, 30, 900])))
        if roll < 0.68:
            return Delete(random.choice(KEYS[:4]), b"")
        if roll < 0.70:
            return Delete(b"p/", b"p0")
        if roll < 0.72 and self.sim.revision > 60:
            return Compact(self.sim.revision - random.randrange(1, 40))
        if roll < 0.9:
            key = random.choice(COUNTERS)
            old = self.known.get(key)
            if old is None:
                compare = Compare(key, CREATE, EQUAL, number=0)
                new = b"1"
            else:
                compare = Compare(key, VALUE, EQUAL, value=old)
                new = str(int(old) + 1).encode()
            return Txn((compare,), (Put(key, new),), (Range(key),))
        key = random.choice(KEYS)
        return Txn((Compare(key, CREATE, EQUAL, number=0),),
                   (Put(key, b"created"), Range(key)), (Delete(key),))

    def run(self, request: Request, sequence: int = 0, serializable: bool = False,
            opening: bool = False) -> None:
        self.current = operation = Operation(
            self.number, sequence, request, serializable, self.sim.world.now
        )
        if not opening:
            self.sim.history.append(operation)
        if self.sim.world.chance(0.2):
            self.member = self.sim.pick()
        self.send(operation, opening)

    def send(self, operation: Operation, opening: bool) -> None:
        sim = self.sim
        self.attempt += 1
        attempt, member = self.attempt, self.member
        name = f"client {self.number}"
        request = operation.request
        write = operation.sequence > 0 or opening

        def answered(code: int, body: bytes) -> None:
            sim.network.send(member.id, name, lambda: self.on_answer(operation, attempt, code,
                                                                     body, member.id, opening))

        if write:
            group = Group(
                [request], session=0 if opening else self.session, sequence=operation.sequence,
                lowest=operation.sequence, client=not opening,
            )
            sim.checks.know(group)
            fields: dict[str, object] = {
                "requests": [(request.kind, request.encode())], "session": group.session,
                "sequence": group.sequence, "lowest": group.lowest,
                "flags": 1 if group.client else 0, "user": 0, "auth_revision": 0,
            }
            sim.network.send(name, member.id, lambda: member.request(fields, answered))
        else:
            sim.network.send(name, member.id, lambda: member.read(
                request.encode(), operation.serializable, answered))
        sim.world.after(TIMEOUT_US, lambda: self.on_timeout(operation, attempt, opening))

    def on_timeout(self, operation: Operation, attempt: int, opening: bool) -> None:
        if self.current is not operation or attempt != self.attempt:
            return
        self.member = self.sim.pick()
        if operation.sequence or opening:
            self.sim.retries += 1
            self.send(operation, opening)
        else:
            self.current = None
            if not self.sim.ended:
                self.begin()

    def on_answer(self, operation: Operation, attempt: int, code: int, body: bytes,
                  member: int, opening: bool) -> None:
        if self.current is not operation:
            return
        if code == Code.OUTCOME_UNKNOWN:
            raise self.sim.violated(
                f"client {self.number}: outcome of {operation.sequence} is unknown though it was "
                "never given up"
            )
        if operation.sequence == 0 and attempt != self.attempt:
            return
        self.current = None
        operation.end, operation.code, operation.body = self.sim.world.now, code, body
        operation.member = member
        if opening:
            self.ready = True
        else:
            self.sim.checks.on_answer(operation, self.known)
        random = self.sim.world.random
        pause = random.randrange(1, 250) * MS if random.random() < 0.9 else SECOND // 2
        if not self.sim.ended:
            self.sim.world.after(pause, self.begin)
