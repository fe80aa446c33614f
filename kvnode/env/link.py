"""Links between the processes of one node: send a batch, receive many, notice a dead peer.

Role: moves frames between gateway, consensus and applier. Two implementations of one interface,
chosen by `--link`: Unix stream sockets (env/unixlink), ZeroMQ ROUTER/DEALER over ipc (env/zmqlink).
Callers: procs/. An `Endpoint` is a listener with its peers, or a connector with its one peer; its
`fileno()` becomes readable when `receive()` has something to say.

A frame is an 8-byte head and a payload. Head, little-endian:

    0  u32  length of the payload
    4  u8   kind (wire/frames names them)
    5  u8   version = 1; another version ends the link
    6  u16  flags = 0

Worked example, kind 6 with 16 bytes of payload: `10000000 06 01 0000` and the payload.

Invariants:
  1. Frames of one peer arrive whole and in the order they were sent, or the peer is reported gone.
  2. `send` never blocks. What the socket does not take waits here; `backlog` tells the bytes, and
     the callers' credit bounds it (a gateway stops reading clients above its open-bytes limit).
  3. A peer is reported (GONE) once when its process ended or its connection broke.

Absent on purpose: retries of frames. A peer that comes back says HELLO, and the rooms above decide
what is to be said again.
"""

from __future__ import annotations

import os
import stat
from typing import Protocol

from kvnode.base.errors import DiskError
from kvnode.env.peer import GONE, Message, Peer
from kvnode.env.unixlink import UnixEndpoint

__all__ = ["GONE", "KINDS", "Endpoint", "Message", "Peer", "private_folder"]


class Endpoint(Protocol):
    """What both implementations give."""

    def fileno(self) -> int:
        """Readable when `receive` has something."""

    def receive(self) -> list[Message]:
        """All frames that arrived. Blocking: never."""

    def send(self, peer: Peer, kind: int, *parts: bytes | memoryview) -> None:
        """Queues one frame whose payload is the parts, one after another. Blocking: never."""

    def pending(self) -> bool:
        """Whether `receive` would return something though `fileno` is quiet."""

    def close(self) -> None:
        """Ends all connections."""


class ZmqLinks:
    """ZeroMQ's endpoints; libzmq is loaded when one is made."""

    @staticmethod
    def listen(path: str) -> Endpoint:
        """A ROUTER bound at ipc `path`."""
        from kvnode.env.zmqlink import ZmqEndpoint

        return ZmqEndpoint.listen(path)

    @staticmethod
    def connect(path: str) -> tuple[Endpoint, Peer] | None:
        """A DEALER connected to ipc `path`; None while nobody listens there."""
        from kvnode.env.zmqlink import ZmqEndpoint

        return ZmqEndpoint.connect(path)


KINDS: dict[str, type[UnixEndpoint] | type[ZmqLinks]] = {
    "unix": UnixEndpoint,
    "zmq": ZmqLinks,
}


def private_folder(path: str) -> None:
    """Makes `path` a folder of this user alone (0700); DiskError if it is another user's."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise DiskError(f"{path} is not a folder of this user: remove it or choose another")
    os.chmod(path, 0o700)
