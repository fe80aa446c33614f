"""Load over the native protocol: who sends how, and what came of it.

Callers: bench/, `kvnode bench` later. The loop itself is `_core/loadcore`; here connections are
made and results become numbers.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import NamedTuple

from kvnode._core.loadcore import Load, LoadError, bucket
from kvnode.base.codes import STATUS, Code
from kvnode.loadgen.zmtp import Connection

REQUEST_BYTES = 24 + 32 + 256 + 8


class Result(NamedTuple):
    """A run: latencies in microseconds, CPU seconds of this process."""

    requests: int
    seconds: float
    cpu_seconds: float
    messages: int
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float

    @property
    def per_second(self) -> float:
        """Requests answered a second."""
        return self.requests / self.seconds


class Shape(NamedTuple):
    """How requests are sent: connections, open requests on each, packed or not, most a message."""

    connections: int
    in_flight: int
    packed: bool
    pack_max: int = 0


PACKED = Shape(1, 1000, True)
UNPACKED = Shape(100, 10, False)
ALONE = Shape(1, 1, False)
PACED = Shape(4, 8192, False)


def _bucket_us(number: int) -> float:
    """The middle of what bucket `number` counts."""
    if number < 128:
        return number
    power, step = divmod(number, 64)
    width = 1 << (power - 1)
    return (64 + step) * width + width / 2


def quantile(buckets: list[int], share: float) -> float:
    """The latency that this share of the answers did not exceed."""
    want = share * sum(buckets)
    seen = 0
    for number, count in enumerate(buckets):
        seen += count
        if count and seen >= want:
            return _bucket_us(number)
    return 0.0


class Driver:
    """Open connections and the keys they ask for. Use as a context manager."""

    def __init__(self, endpoint: str, shape: Shape, *, reads: bool, key_space: int, seed: int,
                 draw_seed: int, value_bytes: int = 256) -> None:
        self._connections = [Connection(endpoint) for _ in range(shape.connections)]
        credit = self._connections[0].limits.credit_bytes
        # Paced runs keep far fewer open than their slots; the node says so if one does not.
        if shape is not PACED and credit and shape.in_flight * REQUEST_BYTES > credit:
            raise LoadError(f"{shape.in_flight} open requests exceed the credit of {credit} bytes")
        self._load = Load(
            [c.fileno() for c in self._connections], shape.in_flight, reads=reads,
            packed=shape.packed, pack_max=shape.pack_max, key_space=key_space, seed=seed,
            draw_seed=draw_seed, value_bytes=value_bytes,
        )

    def run(self, seconds: float, rate: float = 0.0, requests_max: int = 0) -> Result:
        """Sends for so long. LoadError if any answer is a refusal or a read found no value."""
        before = _cpu()
        self._load.run(seconds, requests_max, rate)
        cpu = _cpu() - before
        refused = {STATUS[Code(c)][1]: n for c, n in self._load.codes.items() if c}
        if refused or self._load.short:
            raise LoadError(f"refusals: {refused}; reads without a value: {self._load.short}")
        buckets = self._load.buckets
        highest = max((n for n, count in enumerate(buckets) if count), default=0)
        return Result(
            self._load.answered, self._load.seconds, cpu, self._load.messages_sent,
            quantile(buckets, 0.5), quantile(buckets, 0.99), quantile(buckets, 0.999),
            _bucket_us(highest),
        )

    def close(self) -> None:
        """Ends the connections."""
        for connection in self._connections:
            connection.close()


@contextlib.contextmanager
def driver(endpoint: str, shape: Shape, **options: object) -> Iterator[Driver]:
    """A Driver that is closed at the end; options as its keywords."""
    with contextlib.closing(Driver(endpoint, shape, **options)) as made:  # type: ignore[arg-type]
        yield made


def _cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


__all__ = ["ALONE", "PACED", "PACKED", "UNPACKED", "Driver", "LoadError", "Result", "Shape",
           "bucket", "driver", "quantile"]
