"""How fast is etcd's own door, gRPC on the client port, beside etcd?

h2load (one prepared body), etcd's `benchmark`, `fanout` and `reader` (tests/peers) drive both in
turn through the same port and protocol. Rows marked 1 M hold --keys keys of 32 bytes with values
of 256, the others too: both servers are loaded once.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
from collections.abc import Callable
from functools import partial

from bench import common, h2, peers
from bench.common import Row, Sample
from tests.support.etcd import Etcd, find
from tests.support.node import Node

Server = Etcd | Node

LONE_REQUESTS = 4000
RANGE_BYTES = 1 << 30
FANOUT_PUTS = {100: 10_000, 1000: 5_000}
BENCHMARK_PUTS = 100_000
LATENCY_PUTS = 1000
KEEPALIVES = 100_000


def _children_cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def _run(server: Server, *words: str) -> tuple[str, float, float]:
    """Output of a peer program against the server, CPU seconds of server and tool."""
    program = find(words[0])
    if program is None:
        raise SystemExit(f"{words[0]} is missing: install Go to have it built")
    tool, cpu = _children_cpu(), server.cpu_seconds()
    done = subprocess.run(
        [str(program), *words[1:], "--endpoints", f"127.0.0.1:{server.port}"],
        capture_output=True, text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout, server.cpu_seconds() - cpu, _children_cpu() - tool


def _benchmark(server: Server, *words: str, wanted: str = "Requests/sec") -> Sample:
    """One run of etcd's benchmark: requests a second, total seconds, or a percentile in ms."""
    printed, cpu, tool = _run(server, "benchmark", *words)
    if "Error distribution" in printed:
        raise RuntimeError(f"benchmark {words[0]}: {printed[-2000:]}")
    if wanted.startswith("p"):
        found, scale = re.findall(rf"{wanted[1:]}% in ([\d.]+) secs", printed), 1000.0
    else:
        found, scale = re.findall(rf"{wanted}:\s+([\d.]+)", printed), 1.0
    if not found:
        raise RuntimeError(f"benchmark {words[0]}: no {wanted} in\n{printed[-2000:]}")
    # `watch-latency` tells of its puts first, then of what is asked for.
    return Sample(float(found[-1]) * scale, cpu, tool)


def _fanout(watchers: int, server: Server, number: int) -> Sample:
    printed, cpu, tool = _run(
        server, "fanout", "-watchers", str(watchers), "-puts", str(FANOUT_PUTS[watchers]),
        "-prefix", f"fanout-{watchers}-{number}/",
    )
    told = json.loads(printed)
    if told["events"] != watchers * FANOUT_PUTS[watchers]:
        raise RuntimeError(f"fanout: {printed}")
    return Sample(told["events"] / told["seconds"], cpu, tool,
                  f"{told['seconds']:.2f} s, writer {told['writer_seconds']:.2f} s, "
                  f"{told['responses']} responses")


def _whole(mode: str, keys: int, server: Server, _: int) -> Sample:
    """Seconds of one read of everything; the note tells what it cost in memory."""
    before = server.memory()
    with server.watch_memory() as peak:
        printed, cpu, tool = _run(server, "reader", "-mode", mode, "-want", str(keys))
    told = json.loads(printed)
    grown = max(0, peak.pss_anon - before.pss_anon)
    return Sample(told["seconds"], cpu, tool, f"Pss_Anon +{grown / (1 << 20):.0f} MiB, first "
                  f"answer {told['first_seconds']:.2f} s")


def _h2(server: Server, method: str, body: object, clients: int, streams: int,
        seconds: float) -> Sample:
    result = h2.run(server, method, body, clients, streams, seconds)  # type: ignore[arg-type]
    share = seconds / (seconds + h2.WARM_UP_SECONDS)
    return Sample(result.per_second, result.server_cpu * share, result.tool_cpu * share)


def _h2_lone(server: Server, method: str, body: object) -> Sample:
    result = h2.run(server, method, body, 1, 1, requests=LONE_REQUESTS)  # type: ignore[arg-type]
    return Sample(result.per_second, result.server_cpu, result.tool_cpu,
                  f"p50 {result.p50_us:.0f} us, p99 {result.p99_us:.0f} us")


def _both(args: argparse.Namespace, servers: dict[str, Server],
          measure: Callable[[Server, int], Sample]) -> dict[str, list[Sample]]:
    return common.interleave(
        args, {side: partial(measure, server) for side, server in servers.items()}
    )


def rows(args: argparse.Namespace) -> list[Row]:
    """The door's table."""
    with peers.loaded(args, args.keys) as servers:
        put, read = h2.put_body(args.seed, args.dir), h2.range_body(args.seed, args.dir)
        txn = h2.txn_body(args.seed, args.dir, 100)

        def compare(name: str, unit: str, least: float, aim: float, higher: bool,
                    measure: Callable[[Server, int], Sample]) -> Row:
            common.progress(name)
            sides = _both(args, servers, measure)
            return Row(name, unit, least, aim, higher, sides["etcd"], sides["kvnode"])

        def h2_row(name: str, method: str, body: object, shape: tuple[int, int], least: float,
                   aim: float) -> Row:
            if shape == (1, 1):
                return compare(name, "/s", least, aim, True,
                               lambda s, _: _h2_lone(s, method, body))
            return compare(name, "/s", least, aim, True,
                           lambda s, _: _h2(s, method, body, *shape, args.seconds))

        return [
            h2_row("gRPC Put, h2load 10 x 100", "Put", put, (10, 100), 4, 6.2),
            h2_row("gRPC Put, h2load 100 x 1", "Put", put, (100, 1), 2.2, 3),
            h2_row("gRPC Put, h2load 1 x 1", "Put", put, (1, 1), 1.1, 1.45),
            h2_row("gRPC Range, h2load 10 x 100", "Range", read, (10, 100), 5, 8.7),
            h2_row("gRPC Range, h2load 100 x 1", "Range", read, (100, 1), 3, 4.3),
            h2_row("gRPC Range, h2load 1 x 1", "Range", read, (1, 1), 1.2, 1.4),
            h2_row("gRPC Txn of 100 puts, h2load 10 x 10", "Txn", txn, (10, 10), 2, 2.2),
            compare("benchmark put, 100 connections, 1,000 clients", "/s", 2, 2.5, True,
                    lambda s, _: _benchmark(
                        s, "put", "--conns", "100", "--clients", "1000", "--key-size", "32",
                        "--key-space-size", "1000000", "--val-size", "256",
                        "--total", str(BENCHMARK_PUTS))),
            *(compare(f"watch, 1 writer, {count:,} watchers on a prefix, events", "/s", 3, 3, True,
                      partial(_fanout, count)) for count in FANOUT_PUTS),
            compare("benchmark watch-latency, p99", "ms", 1, 0.8, False,
                    lambda s, _: _benchmark(s, "watch-latency", "--put-total", str(LATENCY_PUTS),
                                            "--put-rate", "500", wanted="p99")),
            compare("benchmark lease-keepalive, 100 connections, 1,000 clients", "/s", 2, 3, True,
                    lambda s, _: _benchmark(
                        s, "lease-keepalive", "--conns", "100", "--clients", "1000",
                        "--total", str(KEEPALIVES))),
        ]


def large_rows(args: argparse.Namespace) -> list[Row]:
    """Reads of everything: a gigabyte in --keys keys."""
    value_bytes = RANGE_BYTES // args.keys // 16 * 16
    args = argparse.Namespace(**vars(args) | {"rounds": min(args.rounds, 3)})
    with peers.loaded(args, args.keys, value_bytes) as servers:
        out = []
        for name, mode in (("Range of 1 GB", "range"), ("RangeStream of 1 GB", "stream"),
                           ("10,000-key pages over 1 GB", "pages")):
            common.progress(name)
            sides = _both(args, servers, partial(_whole, mode, args.keys))
            note = "; ".join(f"{side}: {samples[-1].note}" for side, samples in sides.items()
                             if samples)
            out.append(Row(name, "s", 0.5, 0.4, False, sides["etcd"], sides["kvnode"], note=note))
        return out


if __name__ == "__main__":
    common.script(__doc__.splitlines()[0], lambda args: rows(args) + large_rows(args))
