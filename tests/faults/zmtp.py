"""A client of the native port that keeps no rules: ZMTP 3.0 by hand over a plain TCP socket."""

from __future__ import annotations

import socket

from kvnode.wire import native
from kvnode.wire.native import Hello, Opcode

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4


def frame(body: bytes, flags: int = 0) -> bytes:
    """One ZMTP frame."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body


class Raw:
    """A connection that sends any bytes. `handshake=False` leaves ZMTP's greeting out."""

    def __init__(self, port: int, handshake: bool = True, timeout: float = 5.0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.rest = b""
        if handshake:
            ready = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
            self.sock.sendall(GREETING + frame(ready, COMMAND))
            self._take(64)
            self.read_frame()

    def _take(self, size: int) -> bytes:
        while len(self.rest) < size:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("closed by the node")
            self.rest += data
        out, self.rest = self.rest[:size], self.rest[size:]
        return out

    def read_frame(self) -> bytes:
        """The body of the next frame; ConnectionError when the node ended the connection."""
        flags = self._take(1)[0]
        size = int.from_bytes(self._take(8 if flags & LONG else 1), "big")
        return self._take(size)

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.sock.sendall(data)

    def message(self, body: bytes, flags: int = 0) -> None:
        """One frame."""
        self.sock.sendall(frame(body, flags))

    def greet(self) -> None:
        """HELLO without a session."""
        self.message(native.encode_hello(Hello(1, 1, "raw", "", 0, False)))
        header = native.decode_header(self.read_frame())
        assert header.opcode == Opcode.HELLO_OK

    def ended(self) -> str:
        """How the node ends the connection: the text of its ERROR, "closed", or "" (still open)."""
        try:
            while True:
                body = self.read_frame()
                if body[4:5] == bytes((Opcode.ERROR,)):
                    return native.decode_error(body)[1] or "error"
        except TimeoutError:
            return ""
        except (ConnectionError, OSError):
            return "closed"

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
