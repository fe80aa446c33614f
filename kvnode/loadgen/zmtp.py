"""Connections to port 2382 without libzmq: ZMTP 3.0 greeting, NULL security, DEALER, HELLO.

Callers: loadgen/native.py, loadgen/bulk.py. A load generator must cost less than what it loads;
libzmq's two thread hops a message are most of a client's cost on a machine of two cores. Everyone
else uses kvnode.client.

    greeting, 64 bytes each way
     0  signature  FF 00 00 00 00 00 00 00 01 7F
    10  version    03 00
    12  mechanism  "NULL", padded with zero bytes to 20
    32  as-server  00, then 31 zero bytes
    then a READY command each way, then message frames: u8 flags (1 more, 2 long, 4 command),
    length (u8, or u64 BE if long), body
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple
from urllib.parse import urlsplit

from kvnode.base.errors import PeerError
from kvnode.proto import kvnodepb_pb2 as pb

GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
HEADER = struct.Struct("<4sBBHIIQQ")
MAGIC = b"KVN1"
HELLO, HELLO_OK, REQUESTS, ANSWERS, ERROR, GOODBYE = 1, 2, 3, 4, 8, 7
CONNECT_SECONDS_MAX = 10.0


class Message(NamedTuple):
    """A native message: its opcode, its header's count, and what follows the header."""

    opcode: int
    requests: int
    body: memoryview


def frame(size: int, flags: int = 0) -> bytes:
    """The ZMTP head of a frame of `size` bytes."""
    if size > 255:
        return struct.pack(">BQ", flags | 2, size)
    return bytes((flags, size))


class Connection:
    """A greeted connection. Blocking; `fileno` is for the loop in `_core/loadcore`."""

    def __init__(self, endpoint: str, client_name: str = "kvnode loadgen") -> None:
        url = urlsplit(endpoint)
        assert url.scheme == "tcp" and url.hostname and url.port, endpoint
        self.sock = socket.create_connection((url.hostname, url.port), CONNECT_SECONDS_MAX)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(GREETING)
        theirs = self._exactly(64)
        if theirs[0] != 0xFF or theirs[9] != 0x7F or theirs[10] < 3:
            raise PeerError(f"{endpoint} does not speak ZMTP 3")
        self.sock.sendall(frame(len(READY), 4) + READY)
        flags, body = self._frame()
        if not flags & 4 or bytes(body[:6]) != b"\x05READY":
            raise PeerError(f"{endpoint} refused the connection: {bytes(body)!r}")
        hello = pb.Hello(version_min=1, version_max=1, client_name=client_name)
        self.send(HELLO, 1, hello.SerializeToString())
        answer = self.receive()
        if answer.opcode != HELLO_OK:
            raise PeerError(f"{endpoint}: HELLO was answered by opcode {answer.opcode}")
        self.limits = pb.HelloOk.FromString(bytes(answer.body))

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.sock.fileno()

    def send(self, opcode: int, count: int, *parts: bytes) -> None:
        """One native message of a header and `parts`. Blocking."""
        size = HEADER.size + sum(map(len, parts))
        head = frame(size) + HEADER.pack(MAGIC, opcode, 0, 0, count, 0, 0, 0)
        left: list[memoryview] = [memoryview(head), *(memoryview(part) for part in parts)]
        while left:
            sent = self.sock.sendmsg(left)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]

    def receive(self) -> Message:
        """The next native message; PeerError for ERROR and for anything that is none. Blocking."""
        while True:
            flags, body = self._frame()
            if flags & 4:
                continue
            if flags & 1 or len(body) < HEADER.size or bytes(body[:4]) != MAGIC:
                raise PeerError("not a native message")
            _, opcode, _, _, count, _, _, _ = HEADER.unpack_from(body)
            if opcode == ERROR:
                raise PeerError(bytes(body[HEADER.size + 4 :]).decode("utf-8", "replace"))
            return Message(opcode, count, body[HEADER.size :])

    def close(self) -> None:
        """Ends the connection."""
        self.sock.close()

    def _frame(self) -> tuple[int, memoryview]:
        flags = self._exactly(1)[0]
        size = struct.unpack(">Q", self._exactly(8))[0] if flags & 2 else self._exactly(1)[0]
        return flags, self._exactly(size)

    def _exactly(self, size: int) -> memoryview:
        data = memoryview(bytearray(size))
        at = 0
        while at < size:
            got = self.sock.recv_into(data[at:])
            if got == 0:
                raise PeerError("the node closed the connection")
            at += got
        return data
