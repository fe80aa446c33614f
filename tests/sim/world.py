"""Virtual time, the order of everything, and the networks between members and to clients.

All randomness of a run comes from `World.random`; nothing reads a clock. Times are microseconds.
Events of one moment run in the order in which they were made, so a seed replays exactly.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random

MS = 1000
SECOND = 1000 * MS


class SafetyError(AssertionError):
    """A property that must always hold does not."""


class World:
    """The clock and what is due."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0
        self.steps = 0
        self.faults: Counter[str] = Counter()
        self.trace: list[str] | None = None
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay: int, call: Callable[[], None]) -> None:
        """Calls `call` after `delay` microseconds."""
        self._count += 1
        heapq.heappush(self._due, (self.now + max(0, delay), self._count, call))

    def run(self, until: int) -> None:
        """Lets time pass up to `until`."""
        while self._due and self._due[0][0] <= until:
            self.now, _, call = heapq.heappop(self._due)
            self.steps += 1
            call()
        self.now = until

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def say(self, text: str) -> None:
        """A line of the trace, when one is kept."""
        if self.trace is not None:
            self.trace.append(f"{self.now / SECOND:10.4f} {text}")


class Network:
    """Between any two names (members, clients): delay, loss, repetition, order, cuts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loss = 0.0
        self.repeat = 0.0
        self.delay_us = (100, 2 * MS)
        self.slow: dict[object, int] = {}
        self.cut: set[tuple[object, object]] = set()
        self.delivered = self.lost = 0

    def send(self, source: object, target: object, arrive: Callable[[], None]) -> None:
        """Lets `arrive` happen at the target, once, twice or never."""
        world = self.world
        if (source, target) in self.cut or (self.loss and world.chance(self.loss)):
            self.lost += 1
            return
        for _ in range(2 if self.repeat and world.chance(self.repeat) else 1):
            low, high = self.delay_us
            delay = world.random.randrange(low, high) + self.slow.get(target, 0)
            if world.chance(0.01):
                delay += world.random.randrange(3 * SECOND if world.chance(0.1) else 50 * MS)

            def deliver() -> None:
                if (source, target) in self.cut:
                    self.lost += 1
                    return
                self.delivered += 1
                arrive()

            world.after(delay, deliver)

    def isolate(self, name: object, others: list[object], inward: bool, outward: bool) -> None:
        """Cuts a name off from others, in one direction or both."""
        for other in others:
            if inward:
                self.cut.add((other, name))
            if outward:
                self.cut.add((name, other))

    def heal(self) -> None:
        """No faults any more."""
        self.cut.clear()
        self.slow.clear()
        self.loss = self.repeat = 0.0
