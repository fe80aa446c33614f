"""How fast does a file of distinct random keys get in, and what memory does it leave?

etcd: Go feeder over clientv3, transactions of 100 puts, best of 10, 50 and 200 clients a round.
kvnode: (a) batches encoded before the clock starts; (b) `kvnode import` of the same records as
JSONL, its defaults, process start included. Every run begins with an empty directory.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import time
from pathlib import Path

from bench import common, gen, peers
from bench.common import Row, Sample
from kvnode._core.loadcore import encode_put_batches
from kvnode.loadgen import bulk
from tests.support.node import CLI

CLIENTS = (10, 50, 200)
SETTLE_SECONDS = 5
MIB = 1 << 20


def _etcd(args: argparse.Namespace, path: Path, memory: list[Sample]) -> Sample:
    best: Sample | None = None
    for clients in CLIENTS:
        with peers.folder(args) as where, peers.etcd(where) as server:
            cpu = server.cpu_seconds()
            fed = peers.feeder(server, path, clients=clients, batch=100)
            assert fed.keys == args.keys
            cpu = server.cpu_seconds() - cpu
            sample = Sample(fed.keys_per_s, cpu, fed.cpu_s, f"{clients} clients")
            time.sleep(SETTLE_SECONDS)
            rss = server.memory().rss / MIB
        common.progress(f"  etcd {clients} clients {fed.keys_per_s:,.0f} keys/s, {rss:.0f} MiB")
        if best is None or sample.value > best.value:
            best, best_rss = sample, Sample(rss)
    assert best is not None
    memory.append(best_rss)
    return best


def _node(args: argparse.Namespace, bodies: list[bytes], anon: list[Sample],
          total: list[Sample]) -> Sample:
    with peers.folder(args) as where, peers.node(args, where) as server:
        cpu = server.cpu_seconds()
        fed = bulk.feed(server.endpoint, bodies)
        assert fed.puts == args.keys
        cpu = server.cpu_seconds() - cpu
        time.sleep(SETTLE_SECONDS)
        held = server.memory()
        anon.append(Sample(held.pss_anon / MIB))
        total.append(Sample(held.pss / MIB))
    return Sample(fed.puts / fed.seconds, cpu, fed.cpu_seconds)


def _import(args: argparse.Namespace, jsonl: Path) -> Sample:
    with peers.folder(args) as where, peers.node(args, where) as server:
        cpu, tool = server.cpu_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.monotonic()
        subprocess.run(
            [*CLI, "--endpoints", server.endpoint, "import", str(jsonl)], check=True,
            stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(common.ROOT)},
        )
        seconds = time.monotonic() - begun
        use = resource.getrusage(resource.RUSAGE_CHILDREN)
        tool_cpu = use.ru_utime + use.ru_stime - tool.ru_utime - tool.ru_stime
        return Sample(args.keys / seconds, server.cpu_seconds() - cpu, tool_cpu)


def rows(args: argparse.Namespace) -> list[Row]:
    """Bulk (a) and (b), and memory after each round's load."""
    [path] = peers.record_files(args, args.keys)
    jsonl = args.dir / f"records-{args.seed}-{args.keys}.jsonl"
    if not jsonl.exists():
        gen.write_jsonl(jsonl, args.seed, args.keys)
    bodies: list[bytes] = []
    if args.only != "etcd":
        bodies = encode_put_batches(path.read_bytes(), bulk.PUTS_PER_BATCH)
    rss: list[Sample] = []
    anon: list[Sample] = []
    pss: list[Sample] = []
    imported: list[Sample] = []

    def kvnode(number: int) -> Sample:
        sample = _node(args, bodies, anon, pss)
        try:
            imported.append(_import(args, jsonl))
            common.progress(f"round {number + 1} import: {imported[-1].value:,.0f}")
        except subprocess.CalledProcessError as error:
            common.progress(f"round {number + 1} import failed: exit status {error.returncode}")
        return sample

    fed = common.interleave(args, {"etcd": lambda _: _etcd(args, path, rss), "kvnode": kvnode})
    count = f"{args.keys:,} keys"
    return [
        Row(f"bulk (a) pre-encoded, {count}", "keys/s", 2, 4, True, fed["etcd"], fed["kvnode"]),
        Row(f"bulk (b) kvnode import, {count}", "keys/s", 1.2, 2, True, fed["etcd"], imported),
        Row(f"memory, Pss_Anon / RSS, {count}", "MiB", 0.4, 0.25, False, rss, anon),
        Row(f"memory, Pss / RSS, {count}", "MiB", 0.8, 0.6, False, rss, pss),
    ]


if __name__ == "__main__":
    common.script(__doc__.splitlines()[0], rows)
