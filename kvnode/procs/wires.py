"""A gateway's connections to the node's other processes.

Role: one link that is made again after it broke. Caller: procs/gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.env.link import GONE, KINDS, Endpoint, Message, Peer
from kvnode.wire.frames import Frame

RECONNECT_SECONDS = 0.003


class Wire:
    """A connection to consensus or applier that is made again after it broke."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        kind: str,
        path: str,
        hello: bytes,
        on_message: Callable[[Message], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        at_end: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.endpoint_type = KINDS[kind]
        self.path = path
        self.hello = hello
        self.on_message = on_message
        self.on_up = on_up
        self.on_down = on_down
        self.at_end = at_end
        self.endpoint: Endpoint | None = None
        self.peer: Peer | None = None

    def connect(self) -> None:
        """Connects now, or tries again soon."""
        made = self.endpoint_type.connect(self.path)
        if made is None:
            self.loop.call_later(RECONNECT_SECONDS, self.connect)
            return
        self.endpoint, self.peer = made
        self.loop.add_reader(self.endpoint.fileno(), self.on_readable)
        self.endpoint.send(self.peer, Frame.HELLO, self.hello)
        self.on_up()
        self.on_readable()

    def on_readable(self) -> None:
        """Hands over every frame, then ends the turn."""
        while self.endpoint is not None:
            for message in self.endpoint.receive():
                if message.kind == GONE:
                    self._lost()
                    return
                self.on_message(message)
            if self.endpoint is None or not self.endpoint.pending():
                break
        self.at_end()

    def _lost(self) -> None:
        assert self.endpoint is not None
        self.loop.remove_reader(self.endpoint.fileno())
        self.endpoint.close()
        self.endpoint = self.peer = None
        self.on_down()
        self.connect()

    def send(self, kind: int, *parts: bytes) -> bool:
        """Sends one frame; False while there is nobody."""
        if self.endpoint is None or self.peer is None:
            return False
        self.endpoint.send(self.peer, kind, *parts)
        if self.endpoint.pending():
            self.loop.call_soon(self.on_readable)
        return True
