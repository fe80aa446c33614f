"""One of 1,000 watchers stops reading during many puts: what do the others pay?

Answers: put p99 with and without it (etcd's `benchmark put`, interleaved rounds), the peak of the
node's private memory, and whether the watcher, once it reads again, gets every event. The readers
are raw HTTP/2 connections that throw bytes away, so that the client is not what is measured.

    .venv/bin/python -m bench.slow_watcher [--puts 500000] [--rounds 3] [--watchers 1000]
"""

from __future__ import annotations

import argparse
import re
import selectors
import socket
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from kvnode.proto import rpc_pb2
from tests.support.etcd import find
from tests.support.node import Node
from tests.support.process import cpu_seconds
from tests.support.watchstream import dial

WINDOW = 1 << 30
PER_CONNECTION = 111
# `benchmark put` writes random 8-byte keys of one byte value each: all of them are watched.
KEY, END = b"\0", b"\0"
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(
        ">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without index and Huffman code (RFC 7541 6.2.2)."""
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


def create(key: bytes, end: bytes) -> rpc_pb2.WatchRequest:
    request = rpc_pb2.WatchCreateRequest(key=key, range_end=end)
    return rpc_pb2.WatchRequest(create_request=request)


class Drains:
    """Watchers that read all the time and look at nothing."""

    def __init__(self, port: int, watchers: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.bytes = 0
        self.ended = False
        while watchers > 0:
            self._connect(port, min(watchers, PER_CONNECTION))
            watchers -= PER_CONNECTION
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _connect(self, port: int, watchers: int) -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        headers = b"".join(literal(name, value) for name, value in (
            (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"),
            (b":path", b"/etcdserverpb.Watch/Watch"), (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ))
        body = create(KEY, END).SerializeToString()
        message = b"\0" + struct.pack(">I", len(body)) + body
        sock.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(4, 0, 0, struct.pack(">HI", 4, WINDOW))
            + frame(8, 0, 0, struct.pack(">I", WINDOW))
            + frame(4, 1, 0, b"")
            + frame(1, 4, 1, headers)
            + frame(0, 0, 1, message * watchers)
        )
        sock.setblocking(False)
        self.selector.register(sock, selectors.EVENT_READ, [0])

    def _run(self) -> None:
        room = bytearray(1 << 20)
        while not self.ended:
            for key, _ in self.selector.select(0.2):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                n = sock.recv_into(room)
                self.bytes += n
                key.data[0] += n
                if key.data[0] >= WINDOW // 2:
                    more = struct.pack(">I", key.data[0])
                    sock.sendall(frame(8, 0, 0, more) + frame(8, 0, 1, more))
                    key.data[0] = 0

    def close(self) -> None:
        self.ended = True
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()


class Stalled:
    """A watcher that does not read until `rest` is asked for."""

    def __init__(self, port: int) -> None:
        self.channel = dial(f"127.0.0.1:{port}", *SMALL_WINDOW)
        method = self.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=rpc_pb2.WatchResponse.FromString,
        )
        self.wait = threading.Event()
        self.call = method(self._requests())
        created = next(self.call)
        assert created.created
        self.revision = int(created.header.revision)

    def _requests(self) -> Iterator[rpc_pb2.WatchRequest]:
        yield create(KEY, END)
        self.wait.wait()

    def rest(self, upto: int) -> int:
        """Reads until that revision; how many events. They must come without gap or repeat."""
        count = 0
        for response in self.call:
            for event in response.events:
                self.revision += 1
                assert event.kv.mod_revision == self.revision
                count += 1
            if self.revision >= upto:
                return count
        raise AssertionError("the stream ended")

    def close(self) -> None:
        self.wait.set()
        self.call.cancel()
        self.channel.close()


@dataclass
class Run:
    """One load of puts."""

    p99_ms: float
    puts_per_second: float
    peak_mib: float
    gateway_cpu_seconds: float
    caught_up: int
    catch_up_seconds: float


def load(folder: Path, puts: int, watchers: int, stall: bool) -> Run:
    """A fresh node, `watchers` watchers (one of them stalled), and the puts."""
    program = find("benchmark")
    assert program is not None
    node = Node(folder)
    with node:
        drains = Drains(node.port, watchers - stall)
        stalled = Stalled(node.port) if stall else None
        gateway = next(p for name, p in node.process_ids().items() if name.startswith("gateway"))
        before = cpu_seconds(gateway)
        with node.watch_memory() as peak:
            done = subprocess.run(
                [str(program), "put", "--endpoints", f"127.0.0.1:{node.port}", "--conns", "10",
                 "--clients", "100", "--total", str(puts), "--val-size", "64",
                 "--key-space-size", "100000", "--precise"],
                capture_output=True, text=True, check=True,
            )
        cpu = cpu_seconds(gateway) - before
        p99 = re.search(r"99% in ([0-9.]+) secs", done.stdout)
        rate = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
        assert p99 and rate, done.stdout
        caught, begun = 0, time.monotonic()
        if stalled is not None:
            caught = stalled.rest(stalled.revision + puts)
            stalled.close()
        took = time.monotonic() - begun
        drains.close()
    return Run(float(p99[1]) * 1000, float(rate[1]), peak.pss_anon / (1 << 20), cpu, caught,
               took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--puts", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--watchers", type=int, default=1000)
    args = parser.parse_args()
    ratios = []
    print(f"grpcio {grpc.__version__}; {args.puts} puts, {args.watchers} watchers of all keys")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            runs = {}
            for stall in ((False, True), (True, False))[number % 2]:
                run = load(Path(folder) / f"{number}-{stall}", args.puts, args.watchers, stall)
                runs[stall] = run
                print(f"round {number}, {'one stalled' if stall else 'all read'}: {run}")
            ratios.append(runs[True].p99_ms / runs[False].p99_ms)
    print(f"put p99, one stalled / all read: {statistics.median(ratios):.2f} {ratios}")


if __name__ == "__main__":
    main()
