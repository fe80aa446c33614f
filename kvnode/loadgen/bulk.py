"""Bulk feeding by pre-encoded batches: the way for a program that has its data ready.

A file of records is encoded into batches first; the time counts from the first byte sent to the
last answer. Caller: bench/. One connection, several batches in flight.
"""

from __future__ import annotations

import resource
import struct
import time
from collections.abc import Iterable
from typing import NamedTuple

from kvnode.base.codes import STATUS, Code, Kind
from kvnode.base.errors import PeerError
from kvnode.loadgen.zmtp import ANSWERS, REQUESTS, Connection
from kvnode.proto import kvnodepb_pb2 as pb

ITEM = struct.Struct("<IIBBHIQ")
ANSWER = struct.Struct("<IIBBHI")
PUTS_PER_BATCH = 1000
BATCHES_IN_FLIGHT = 20      # as many puts as etcd's feeder with 200 clients of 100


class BulkResult(NamedTuple):
    """What was put, how long it took, and the CPU of this process meanwhile."""

    puts: int
    seconds: float
    cpu_seconds: float
    last_revision: int


def feed(endpoint: str, bodies: Iterable[bytes], kind: Kind = Kind.PUT_BATCH,
         in_flight: int = BATCHES_IN_FLIGHT) -> BulkResult:
    """Sends kvnodepb.PutBatch bodies; PeerError at the first refusal. Blocking."""
    connection = Connection(endpoint)
    credit = connection.limits.credit_bytes or 1 << 62
    use = resource.getrusage(resource.RUSAGE_SELF)
    cpu, begun = use.ru_utime + use.ru_stime, time.monotonic()
    puts = last = open_bytes = 0
    sizes: dict[int, int] = {}

    def take() -> None:
        nonlocal puts, last, open_bytes
        message = connection.receive()
        if message.opcode != ANSWERS:
            return
        at = 0
        for _ in range(message.requests):
            number, size, code, _, _, _ = ANSWER.unpack_from(message.body, at)
            at += ANSWER.size
            if code:
                raise PeerError(f"batch {number}: {STATUS[Code(code)][1]}")
            response = pb.BatchResponse.FromString(bytes(message.body[at : at + size]))
            if response.refused:
                raise PeerError(f"batch {number}: {len(response.refused)} puts were refused")
            at += size
            puts += response.applied
            last = max(last, response.last_revision)
            open_bytes -= sizes.pop(number)

    try:
        for number, body in enumerate(bodies):
            size = len(body) + ITEM.size
            while sizes and (len(sizes) >= in_flight or open_bytes + size > credit):
                take()
            sizes[number] = size
            open_bytes += size
            connection.send(REQUESTS, 1, ITEM.pack(number, len(body), kind, 0, 0, 0, 0), body)
        while sizes:
            take()
    finally:
        connection.close()
    seconds = time.monotonic() - begun
    use = resource.getrusage(resource.RUSAGE_SELF)
    return BulkResult(puts, seconds, use.ru_utime + use.ru_stime - cpu, last)


def call(endpoint: str, kind: Kind, request: object) -> bytes:
    """One request over a connection of its own; the response's bytes. PeerError if refused."""
    connection = Connection(endpoint)
    connection.sock.settimeout(None)
    try:
        body = request.SerializeToString()  # type: ignore[attr-defined]
        connection.send(REQUESTS, 1, ITEM.pack(0, len(body), kind, 0, 0, 0, 0), body)
        while (message := connection.receive()).opcode != ANSWERS:
            pass
        _, size, code, _, _, _ = ANSWER.unpack_from(message.body)
        if code:
            raise PeerError(STATUS[Code(code)][1])
        return bytes(message.body[ANSWER.size : ANSWER.size + size])
    finally:
        connection.close()
