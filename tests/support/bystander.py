"""A node under attack, and a decent client beside the attacker.

Callers: the attack tests of both ports. `Target.check` says what an attack cost: the gateway must
live, its memory stay bounded, the decent client be served; its p99 is printed.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import grpc

from kvnode.client import Client
from kvnode.proto import rpc_pb2 as pb
from tests.support.node import Node
from tests.support.process import memory

MIB = 1 << 20
ROUNDS = 150


class Bystander(threading.Thread):
    """A decent client: puts and gets all the while; how long each round took."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        self.endpoint = endpoint
        self.times: list[float] = []
        self.ending = threading.Event()
        self.error: Exception | None = None

    @contextlib.contextmanager
    def connect(self) -> Iterator[Callable[[], None]]:
        """A connection, and what does one round over it."""
        with Client(self.endpoint, timeout=10) as client:

            def rounds() -> None:
                client.put(b"bystander", b"x")
                assert client.get(b"bystander") is not None

            yield rounds

    def run(self) -> None:
        try:
            with self.connect() as rounds:
                while not self.ending.is_set():
                    begun = time.monotonic()
                    rounds()
                    self.times.append(time.monotonic() - begun)
                    self.ending.wait(0.002)
        except Exception as error:
            self.error = error


class GrpcBystander(Bystander):
    """The same over etcd's port."""

    def __init__(self, port: int) -> None:
        super().__init__(f"127.0.0.1:{port}")

    @contextlib.contextmanager
    def connect(self) -> Iterator[Callable[[], None]]:
        with grpc.insecure_channel(self.endpoint) as channel:
            put = channel.unary_unary(
                "/etcdserverpb.KV/Put", pb.PutRequest.SerializeToString,
                pb.PutResponse.FromString)
            read = channel.unary_unary(
                "/etcdserverpb.KV/Range", pb.RangeRequest.SerializeToString,
                pb.RangeResponse.FromString)

            def rounds() -> None:
                put(pb.PutRequest(key=b"bystander", value=b"x"), timeout=10)
                assert read(pb.RangeRequest(key=b"bystander"), timeout=10).count == 1

            yield rounds


class Target:
    """A node with a bystander; `check` ends each test."""

    def __init__(self, node: Node, grpc: bool = False) -> None:
        self.node = node
        self.port = node.zmq_port
        self.client_port = node.port
        with Client(node.endpoint) as client:
            client.put(b"warm", b"up")
        self.gateway = node.process_ids()["gateway-0"]
        self.before = memory([self.gateway]).pss_anon
        self.peak = self.before
        self.bystander = GrpcBystander(node.port) if grpc else Bystander(node.endpoint)
        self.bystander.start()

    def look(self) -> int:
        """The gateway's memory beyond what it had, bytes."""
        now = memory([self.gateway]).pss_anon
        self.peak = max(self.peak, now)
        return now - self.before

    def check(self, what: str, growth_max: int = 40 * MIB) -> None:
        until = time.monotonic() + 10
        while len(self.bystander.times) < ROUNDS and time.monotonic() < until:
            time.sleep(0.01)
        self.bystander.ending.set()
        self.bystander.join(15)
        assert self.bystander.error is None, self.bystander.error
        assert self.node.process_ids()["gateway-0"] == self.gateway, "\n".join(self.node.tail)
        self.look()
        growth = self.peak - self.before
        times = self.bystander.times
        p99 = statistics.quantiles(times, n=100)[98] if len(times) > 1 else 0.0
        print(
            f"\n{what}: gateway lives, memory + {growth / MIB:.1f} MiB at most, bystander "
            f"{len(times)} rounds, p99 {p99 * 1000:.1f} ms"
        )
        assert growth < growth_max
        assert len(times) > 1
