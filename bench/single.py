"""How many single puts and reads a second, and how long does a lone put take?

etcd under h2load (10 connections x 100 streams; 1 x 1 for the lone put), kvnode under its native
load generator (1 connection x 1,000 packed; 100 x 10 not packed; 1 x 1). Both hold --keys keys.
The lone put is also timed through the Python client, as a note.
"""

from __future__ import annotations

import argparse
import statistics
import time

from bench import common, h2, peers
from bench.common import Row, Sample
from kvnode._core.loadcore import key_text
from kvnode.loadgen import native

ALONE_REQUESTS = 4000
CLIENT_REQUESTS = 500


def _h2(server: object, method: str, body: object, seconds: float) -> Sample:
    result = h2.run(server, method, body, 10, 100, seconds)  # type: ignore[arg-type]
    # The counters saw the warm-up too: shown for the measured seconds.
    share = seconds / (seconds + h2.WARM_UP_SECONDS)
    return Sample(result.per_second, result.server_cpu * share, result.tool_cpu * share)


def _native(args: argparse.Namespace, server: peers.Node, shape: native.Shape, reads: bool,
            number: int) -> Sample:
    with native.driver(server.endpoint, shape, reads=reads, key_space=args.keys, seed=args.seed,
                       draw_seed=args.seed + 1000 * number) as load:
        load.run(h2.WARM_UP_SECONDS)
        cpu = server.cpu_seconds()
        result = load.run(args.seconds)
        cpu = server.cpu_seconds() - cpu
    packing = result.requests / result.messages
    note = f"p50 {result.p50_us:.0f} us, p99 {result.p99_us:.0f} us, {packing:.0f} a message"
    return Sample(result.per_second, cpu, result.cpu_seconds, note)


def _alone(args: argparse.Namespace, server: peers.Node, number: int) -> Sample:
    with native.driver(server.endpoint, native.ALONE, reads=False, key_space=args.keys,
                       seed=args.seed, draw_seed=number) as load:
        load.run(0.5)
        cpu = server.cpu_seconds()
        result = load.run(600.0, requests_max=ALONE_REQUESTS)
        cpu = server.cpu_seconds() - cpu
    note = f"p99 {result.p99_us:.0f} us, Python client p50 {_python_client(args, server):.0f} us"
    return Sample(result.p50_us, cpu, result.cpu_seconds, note)


def _python_client(args: argparse.Namespace, server: peers.Node) -> float:
    """p50 in microseconds of puts through kvnode.client, one at a time."""
    from kvnode.client import Client

    client = Client(endpoints=server.endpoint)
    times = []
    for number in range(CLIENT_REQUESTS):
        begun = time.perf_counter()
        client.put(key_text(args.seed, number), h2.VALUE)
        times.append((time.perf_counter() - begun) * 1e6)
    client.close()
    return statistics.median(times)


def rows(args: argparse.Namespace) -> list[Row]:
    """Puts packed and not, reads, and the lone put."""
    with peers.loaded(args, args.keys) as servers:
        etcd, node = servers.get("etcd"), servers.get("kvnode")
        put, read = h2.put_body(args.seed, args.dir), h2.range_body(args.seed, args.dir)

        def compare(name: str, method: str, shape: native.Shape) -> dict[str, list[Sample]]:
            common.progress(name)
            body = read if method == "Range" else put
            return common.interleave(args, {
                "etcd": lambda _: _h2(etcd, method, body, args.seconds),
                "kvnode": lambda n: _native(args, node, shape, method == "Range", n),
            })

        def etcd_alone(_: int) -> Sample:
            result = h2.run(etcd, "Put", put, 1, 1, requests=ALONE_REQUESTS)
            return Sample(result.p50_us, result.server_cpu, result.tool_cpu,
                          f"p99 {result.p99_us:.0f} us")

        packed = compare("puts, 1 x 1,000 packed", "Put", native.PACKED)
        unpacked = compare("puts, 100 x 10 not packed", "Put", native.UNPACKED)
        reads = compare("reads, 1 x 1,000 packed", "Range", native.PACKED)
        common.progress("puts, one at a time")
        alone = common.interleave(
            args, {"etcd": etcd_alone, "kvnode": lambda n: _alone(args, node, n)}
        )
    return [
        Row("puts, 1 x 1,000 packed, against h2load 10 x 100", "/s", 2, 5, True, **packed),
        Row("puts, 100 x 10 not packed, against h2load 10 x 100", "/s", 1.5, 3, True, **unpacked),
        Row("reads, 1 x 1,000 packed, against h2load 10 x 100", "/s", 2, 6, True, **reads),
        Row("one put at a time, p50", "us", 0.95, 0.75, False, **alone),
    ]


if __name__ == "__main__":
    common.script(__doc__.splitlines()[0], rows)
