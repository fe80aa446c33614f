"""What does the transport of etcd's door cost alone: HTTP/2, gRPC framing, sockets, no store?

h2load calls a method that sends back its message. Printed: requests a second, CPU of this process
a request in microseconds, and the memory of an idle connection.

    python -m bench.transport [--requests N]
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import uvloop

from kvnode._core.echocalls import ECHO, EchoMethods
from kvnode._core.h2 import Http2
from kvnode.procs.door import PREFACE, Door

SHAPES = ((10, 100), (100, 1), (1, 1))
IDLE = 1000


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve() -> tuple[Http2, int]:
    """A door in a thread of its own; its port."""
    loop = uvloop.new_event_loop()
    http2 = Http2()
    http2.on_work = lambda: loop.call_soon(http2.flush)
    http2.route(b"/bench.Echo/Echo", EchoMethods(http2), ECHO)
    door = Door(loop, http2)
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port: int = sock.getsockname()[1]
    loop.run_until_complete(door.listen(sock))
    door.start()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return http2, port


def main() -> None:
    """Runs all shapes once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    requests = parser.parse_args().requests
    http2, port = serve()
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(b"\0\0\0\0\x40" + b"x" * 64)
        for connections, streams in SHAPES:
            count = requests if streams > 1 else requests // 10
            before = os.times()
            printed = subprocess.run(
                ["h2load", f"-n{count}", f"-c{connections}", f"-m{streams}", f"-d{body}",
                 "-H", "content-type: application/grpc", "-H", "te: trailers",
                 f"http://127.0.0.1:{port}/bench.Echo/Echo"],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            after = os.times()
            assert f" {count} succeeded" in printed, printed
            rate = re.search(r"([\d.]+) req/s", printed)
            assert rate is not None
            cpu = after.user + after.system - before.user - before.system
            print(
                f"{connections:4} x {streams:3}   {float(rate[1]):10,.0f} req/s"
                f"   {cpu * 1e6 / count:6.2f} us of CPU a request"
            )
    before_idle = resident()
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE)]
    for sock in held:
        sock.sendall(PREFACE + bytes.fromhex("000000040000000000"))
        sock.recv(9)
    print(f"{(resident() - before_idle) / IDLE / 1024:.1f} KiB an idle connection")
    assert http2.connections == IDLE


if __name__ == "__main__":
    main()
