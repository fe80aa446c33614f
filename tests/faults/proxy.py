"""A TCP proxy between clients and a node that cuts connections in the middle of answers."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import threading


class Proxy(threading.Thread):
    """Listens on loopback. Each connection is cut after a random count of the node's bytes.

    `cut_bytes`: the range of that count; the bytes read but not passed on are dropped answers.
    """

    def __init__(self, port: int, seed: int = 1, cut_bytes: tuple[int, int] = (300, 6000)) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.rng = random.Random(seed)
        self.cut_bytes = cut_bytes
        self.cuts = 0
        self.dropped_bytes = 0
        self.cutting = True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._other: dict[socket.socket, socket.socket] = {}
        self._left: dict[socket.socket, int] = {}
        self._wake_read, self._wake_write = socket.socketpair()

    def run(self) -> None:
        self._selector.register(self.listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._wake_read:
                    return
                if sock is self.listener:
                    self._accept()
                elif sock in self._other:
                    self._pass_on(sock)

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        try:
            node = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            client.close()
            return
        for one, other in ((client, node), (node, client)):
            self._other[one] = other
            self._selector.register(one, selectors.EVENT_READ)
        self._left[node] = self.rng.randint(*self.cut_bytes)

    def _pass_on(self, sock: socket.socket) -> None:
        other = self._other[sock]
        try:
            data = sock.recv(65536)
            if data and sock in self._left and self.cutting:
                left = self._left[sock]
                self._left[sock] = left - len(data)
                if left < len(data):
                    other.sendall(data[:left])
                    self.cuts += 1
                    self.dropped_bytes += len(data) - left
                    data = b""
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        for one in (sock, other):
            self._other.pop(one, None)
            self._left.pop(one, None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(one)
            one.close()

    def close(self) -> None:
        """Ends all connections."""
        self._wake_write.send(b"x")
        self.join(5)
        for sock in (*self._other, self.listener, self._wake_read, self._wake_write):
            sock.close()
        self._selector.close()
