"""The client port over real sockets: first bytes, TLS, a real gRPC client, silent and slow ones."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from kvnode._core.echocalls import CHAT, ECHO, LONG, EchoMethods
from kvnode._core.h2 import Http2
from kvnode.base.errors import ConfigError
from kvnode.procs import door as door_module
from kvnode.procs.door import PREFACE, Door, tls_context
from tests.support.h2client import message
from tests.unit.test_config import load

STOPPED: list[Running] = []


class Running:
    """A door on a free port, its loop in a thread of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.loop = uvloop.new_event_loop()
        self.http2 = Http2()
        self.http2.on_work = lambda: self.loop.call_soon(self.http2.flush)
        methods = EchoMethods(self.http2)
        self.http2.route(b"/t.T/Echo", methods, ECHO)
        self.http2.route(b"/t.T/Chat", methods, CHAT, True, True)
        self.http2.route(b"/t.T/Long", methods, LONG, False, True)
        self.http1: list[bytes] = []
        self.door = Door(self.loop, self.http2, self.on_http1)
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self.loop.run_until_complete(self.door.listen(sock, tls))
        self.door.start()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def on_http1(self, transport: asyncio.Transport, first: bytes) -> None:
        self.http1.append(first)
        transport.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        transport.close()

    def ask(self, what: Callable[[], Any]) -> Any:
        """what() in the loop's thread."""

        async def asked() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(asked(), self.loop).result(10)

    def wait(self, what: Callable[[], bool]) -> None:
        """Until what(), asked in the loop's thread."""
        deadline = time.monotonic() + 20
        while not self.ask(what):
            assert time.monotonic() < deadline

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        # A loop that is collected with its servers open closes their descriptors twice.
        STOPPED.append(self)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def context(cert: Path, key: Path, *more: str) -> ssl.SSLContext:
    config = load(
        "--listen-client-urls=https://localhost:1", f"--cert-file={cert}", f"--key-file={key}",
        *more,
    ).config  # fmt: skip
    return tls_context(config)


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[Running]:
    made = Running(context(*certificate))
    yield made
    made.stop()


def closed(sock: socket.socket) -> bool:
    """Whether the other side has closed; waits for it."""
    sock.settimeout(20)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return True


# --- first bytes ----------------------------------------------------------------------------------


def test_http1_is_given_away(running: Running) -> None:
    request = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\n\r\n{}"
    with socket.create_connection(("127.0.0.1", running.port)) as sock:
        sock.sendall(request)
        assert sock.recv(100).startswith(b"HTTP/1.1 204")
        assert closed(sock)
    assert running.http1 == [request]
    assert running.ask(lambda: running.http2.connections) == 0


def test_preface_in_pieces(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as sock:
        for at in range(len(PREFACE)):
            sock.sendall(PREFACE[at : at + 1])
        sock.sendall(bytes.fromhex("000000040000000000"))
        head = sock.recv(9)
        assert head[3] == 4
        assert running.ask(lambda: running.http2.connections) == 1
    running.wait(lambda: running.http2.connections == 0)
    assert running.http1 == []


def test_almost_a_preface(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nXX")
        assert sock.recv(100).startswith(b"HTTP/1.1 204")
    assert running.http1 == [b"PRI * HTTP/2.0\r\n\r\nXX"]


def test_silent_clients_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "FIRST_BYTES_SECONDS", 0.05)
    running = Running()
    with (
        socket.create_connection(("127.0.0.1", running.port)) as silent,
        socket.create_connection(("127.0.0.1", running.port)) as half,
        grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        half.sendall(PREFACE[:5])
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"x") == b"x"
        assert closed(silent) and closed(half)
        assert echo(b"x") == b"x"
    running.stop()


def test_thousand_idle_connections(running: Running) -> None:
    held = []
    for _ in range(1000):
        sock = socket.create_connection(("127.0.0.1", running.port))
        sock.sendall(PREFACE + bytes.fromhex("000000040000000000"))
        held.append(sock)
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        assert channel.unary_unary("/t.T/Echo")(b"x") == b"x"
    assert running.ask(lambda: running.http2.connections) >= 1000
    for sock in held:
        sock.close()
    running.wait(lambda: running.http2.connections == 0)


# --- a real client --------------------------------------------------------------------------------


def test_grpc_client(running: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"hello", timeout=10) == b"hello"
        assert echo(b"z" * 1_900_000, timeout=10) == b"z" * 1_900_000
        packed = echo(b"a" * 100_000, compression=grpc.Compression.Gzip, timeout=10)
        assert packed == b"a" * 100_000
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t.T/Nope")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details() == "unknown method Nope for service t.T"
        with pytest.raises(grpc.RpcError) as caught:
            echo(b"z" * 3_000_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details().startswith("grpc: received message larger than max (")
        parts = [b"1", b"22" * 1000, b"", b"333"]
        assert list(channel.stream_stream("/t.T/Chat")(iter(parts), timeout=10)) == parts


def test_tls(secure: Running, certificate: tuple[Path, Path]) -> None:
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(f"localhost:{secure.port}", credentials) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"x" * 100_000, timeout=10) == b"x" * 100_000


@pytest.mark.parametrize(
    ("offer", "chosen"),
    [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], "h2")],
)
def test_alpn(
    secure: Running, certificate: tuple[Path, Path], offer: list[str], chosen: str
) -> None:
    client = ssl.create_default_context(cafile=str(certificate[0]))
    client.set_alpn_protocols(offer)
    with (
        socket.create_connection(("127.0.0.1", secure.port)) as raw,
        client.wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        assert sock.selected_alpn_protocol() == chosen
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 204")


def test_silent_handshakes_are_ended(
    monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path]
) -> None:
    monkeypatch.setattr(door_module, "HANDSHAKE_SECONDS", 0.2)
    secure = Running(context(*certificate))
    held = [socket.create_connection(("127.0.0.1", secure.port)) for _ in range(50)]
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(f"localhost:{secure.port}", credentials) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=10) == b"x"
        for sock in held:
            assert closed(sock)
            sock.close()
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=10) == b"x"
    secure.stop()


def test_bad_certificate(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    with pytest.raises(ConfigError, match=r"wrong\.pem"):
        context(wrong, certificate[1])
    with pytest.raises(ConfigError, match="No such file"):
        context(tmp_path / "absent", certificate[1])


def test_drain(running: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        release = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"1"
            release.wait(20)
            yield b"2"

        answers = channel.stream_stream("/t.T/Chat")(requests(), timeout=30)
        assert next(answers) == b"1"
        running.ask(running.door.drain)
        running.ask(running.http2.drain)
        release.set()
        assert list(answers) == [b"2"]
        running.wait(lambda: running.http2.idle)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


# --- slow and greedy clients ----------------------------------------------------------------------


class Frames:
    """Frames that a raw client reads."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    def until(self, kind: int, stream: int) -> int:
        """Reads to the next such frame; returns the bytes of DATA before it."""
        data = 0
        while True:
            while len(self.buffer) < 9 or len(self.buffer) < 9 + self.length():
                came = self.sock.recv(65536)
                assert came
                self.buffer += came
            n = self.length()
            found = (self.buffer[3], int.from_bytes(self.buffer[5:9], "big"))
            self.buffer = self.buffer[9 + n :]
            if found == (kind, stream):
                return data
            if found[0] == 0:
                data += n

    def length(self) -> int:
        return int.from_bytes(self.buffer[:3], "big")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def head(path: bytes) -> bytes:
    """HPACK without its tables."""
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"t"),
              (b"content-type", b"application/grpc"), (b"te", b"trailers")]  # fmt: skip
    return b"".join(b"\0" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in fields)


WINDOW = frame(8, 0, 0, (1 << 30).to_bytes(4, "big"))
OPENING = PREFACE + frame(4, 0, 0, bytes.fromhex("0004") + (1 << 30).to_bytes(4, "big")) + WINDOW


def test_small_stream_beside_a_long_one_that_is_read_slowly(running: Running) -> None:
    """A client that reads little by little: what a small answer waits behind is bounded by the
    kernel's and the door's buffers, not by the long answer."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", running.port))
        sock.sendall(OPENING + frame(1, 4, 1, head(b"/t.T/Chat")))
        sock.sendall(frame(1, 4, 3, head(b"/t.T/Long")) + frame(0, 1, 3, message(b"400000000")))
        sock.settimeout(20)
        frames = Frames(sock)
        waits = []
        for n in range(5):
            frames.until(0, 3)
            sock.sendall(frame(0, 0, 1, message(b"ping%d" % n)))
            waits.append(frames.until(0, 1))
        assert max(waits) < 2_500_000
        assert running.ask(lambda: running.http2.out_bytes) < 1 << 20


def test_client_that_stops_reading(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as sock:
        sock.sendall(OPENING)
        for n in range(100):
            stream = 2 * n + 1
            sock.sendall(
                frame(1, 4, stream, head(b"/t.T/Long")) + frame(0, 1, stream, message(b"400000000"))
            )
        running.wait(lambda: running.http2.open_streams == 100)
        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            echo = channel.unary_unary("/t.T/Echo")
            for _ in range(200):
                assert echo(b"x", timeout=10) == b"x"
        assert running.ask(lambda: running.http2.out_bytes) < 40 << 20
    running.wait(lambda: running.http2.open_streams == 0)
    assert running.ask(lambda: running.http2.out_bytes) == 0
