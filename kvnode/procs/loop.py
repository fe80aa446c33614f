"""The poll loop of consensus and applier: descriptors, timers, and work between batches.

Role: one `epoll_wait` a turn, callbacks per ready descriptor, then the turn's end. No asyncio: a
lone put crosses two of these loops, and each wake-up is on its way.
Callers: procs/consensus, procs/applier.

Invariants:
  1. A callback runs at most once a turn for its descriptor.
  2. `at_end` callbacks run after all callbacks of the turn: what a turn gathered leaves as one
     batch.
  3. A source whose `pending()` is true is called without waiting for its descriptor (ZeroMQ's is
     edge-triggered).
"""

from __future__ import annotations

import heapq
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[], None]


class Source(Protocol):
    """Something with a descriptor that may have work though the descriptor is quiet."""

    def fileno(self) -> int: ...
    def pending(self) -> bool: ...


class Loop:
    """Runs until `stop`. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._sources: list[tuple[Source, Callback]] = []
        self._timers: list[tuple[float, int, Callback]] = []
        self._timer_count = 0
        self._at_end: list[Callback] = []
        self._idle: list[Callable[[], bool]] = []
        self._idle_wanted = False
        self._stopped = False
        self._wait: Callable[[float], list[tuple[int, int]]] = self._poll.poll
        self.now = time.monotonic()

    def add(self, fd: int, callback: Callback) -> None:
        """Calls back when `fd` is readable."""
        self._callbacks[fd] = callback
        self._poll.register(fd, select.EPOLLIN)

    def add_source(self, source: Source, callback: Callback) -> None:
        """Calls back when the source is readable or says that it has something pending."""
        self._sources.append((source, callback))
        self.add(source.fileno(), callback)

    def remove(self, fd: int) -> None:
        """Forgets a descriptor, before it is closed."""
        del self._callbacks[fd]
        self._sources = [(s, c) for s, c in self._sources if s.fileno() != fd]
        self._poll.unregister(fd)

    def fileno(self) -> int:
        """The epoll descriptor, for a lane."""
        return self._poll.fileno()

    def wait_with(self, wait: Callable[[float], list[tuple[int, int]]]) -> None:
        """Waits by `wait`, which does as `select.epoll.poll`: a fast lane (procs/lanes)."""
        self._wait = wait

    def at_end(self, callback: Callback) -> None:
        """Calls back at the end of every turn."""
        self._at_end.append(callback)

    def on_idle(self, work: Callable[[], bool]) -> None:
        """Calls `work` when nothing is ready and `want_idle` was called since it had nothing to
        do; it returns whether it has more."""
        self._idle.append(work)
        self._idle_wanted = True

    def want_idle(self) -> None:
        """There is something for idle turns again."""
        self._idle_wanted = True

    def after(self, seconds: float, callback: Callback) -> None:
        """Calls back once, `seconds` from now."""
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_count, callback))

    def every(self, seconds: float, callback: Callback) -> None:
        """Calls back again and again, `seconds` apart."""

        def again() -> None:
            self.after(seconds, again)
            callback()

        self.after(seconds, again)

    def on_signal(self, callback: Callback, *signals: int) -> None:
        """Calls back in the loop when one of the signals came."""
        read, write = socket.socketpair()
        read.setblocking(False)
        write.setblocking(False)
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda *_: None)

        def on_wakeup() -> None:
            if read.recv(64):
                callback()

        self._signal_sockets = (read, write)
        self.add(read.fileno(), on_wakeup)

    def stop(self) -> None:
        """Ends `run` after this turn."""
        self._stopped = True

    def _timeout(self, busy: bool) -> float:
        if busy:
            return 0.0
        for source, _ in self._sources:
            if source.pending():
                return 0.0
        if self._timers:
            return max(0.0, self._timers[0][0] - time.monotonic())
        return -1.0

    def run(self) -> None:
        """Turns until `stop`."""
        while not self._stopped:
            ready = self._wait(self._timeout(self._idle_wanted))
            self.now = time.monotonic()
            called = set()
            for fd, _ in ready:
                callback = self._callbacks.get(fd)
                if callback is not None:
                    called.add(fd)
                    callback()
            if self._stopped:
                return
            for source, callback in list(self._sources):
                if source.fileno() not in called and source.pending():
                    callback()
            while self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()
            for callback in self._at_end:
                callback()
            if self._idle_wanted and not ready:
                self._idle_wanted = False
                for work in self._idle:
                    if work():
                        self._idle_wanted = True
