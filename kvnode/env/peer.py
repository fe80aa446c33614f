"""What both kinds of links share: the frame's constants, a peer, a message.

Callers: env/link, env/unixlink. The layout of a frame's head is in env/link.
"""

from __future__ import annotations

from typing import NamedTuple

GONE = 0
"""Kind of the message that says that a peer is gone; frame kinds begin at 1."""

VERSION = 1
PAYLOAD_BYTES_MAX = 1 << 30


class Peer:
    """One process at the other end; `backlog` is the bytes that wait for its socket."""

    __slots__ = ("backlog", "key")

    def __init__(self, key: object) -> None:
        self.key = key
        self.backlog = 0


class Message(NamedTuple):
    """One frame, or GONE."""

    peer: Peer
    kind: int
    payload: bytes
