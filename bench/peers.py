"""The two servers of a benchmark and what feeds them.

etcd runs with its defaults (fsync of every write) and a raised quota; kvnode with its defaults and
the same quota. Both live in a directory of their own under --dir, removed at the end.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import gen
from bench.common import progress
from kvnode._core.loadcore import encode_put_batches
from kvnode.loadgen import bulk
from tests.support.etcd import QUOTA_BYTES, Etcd, find, why_missing
from tests.support.node import Node

FILE_KEYS_MAX = 1_000_000
FEED_BYTES = 1 << 20


class Feed(NamedTuple):
    """What the Go feeder printed."""

    keys: int
    seconds: float
    keys_per_s: float
    cpu_s: float
    p50_us: int
    p99_us: int
    p999_us: int
    max_us: int


@contextlib.contextmanager
def folder(args: argparse.Namespace) -> Iterator[Path]:
    """An empty directory that is gone afterwards."""
    path = Path(tempfile.mkdtemp(dir=args.dir))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def etcd(path: Path) -> Etcd:
    """A fresh etcd, not started."""
    if find("etcd") is None or find("feeder") is None:
        raise SystemExit(why_missing())
    return Etcd(path / "etcd")


def node(args: argparse.Namespace, path: Path) -> Node:
    """A fresh node, not started."""
    return Node(path / "node", "--quota-backend-bytes", str(QUOTA_BYTES), *args.node_flag)


def record_files(args: argparse.Namespace, count: int,
                 value_bytes: int = gen.VALUE_BYTES) -> list[Path]:
    """Files that hold the first `count` records of the seed; made once and kept."""
    paths = []
    for first in range(0, count, FILE_KEYS_MAX):
        n = min(FILE_KEYS_MAX, count - first)
        path = args.dir / f"records-{args.seed}-{first}-{n}-{value_bytes}.bin"
        if not path.exists():
            progress(f"writing {path.name}")
            partial = path.with_suffix(".partial")
            gen.write_records(partial, args.seed, n, first, value_bytes)
            partial.rename(path)
        paths.append(path)
    return paths


def feeder(server: Etcd, path: Path, **flags: float) -> Feed:
    """Runs the Go feeder over a file; flags are its own."""
    program = find("feeder")
    assert program is not None
    words = [word for name, value in flags.items() for word in (f"-{name}", f"{value:g}")]
    done = subprocess.run(
        [str(program), "-endpoints", server.endpoint, "-file", str(path), *words],
        capture_output=True, text=True,
    )
    if done.returncode:
        raise RuntimeError(f"feeder: {done.stderr}")
    printed = json.loads(done.stdout)
    return Feed(**{name: printed[name] for name in Feed._fields})


def preload(args: argparse.Namespace, server: Etcd | Node, count: int,
            value_bytes: int = gen.VALUE_BYTES) -> None:
    """Puts the first `count` records into a server."""
    for path in record_files(args, count, value_bytes):
        if isinstance(server, Etcd):
            feeder(server, path, clients=50, batch=max(1, min(100, FEED_BYTES // value_bytes)))
        else:
            batch = max(1, min(1000, FEED_BYTES // value_bytes))
            bulk.feed(server.endpoint, encode_put_batches(path.read_bytes(), batch))
    progress(f"{server.name}: {count:,} keys preloaded")


def revision(server: Etcd | Node) -> int:
    """The store's revision, by the JSON gateway."""
    body = json.dumps({"key": base64.b64encode(b"none").decode()}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/v3/kv/range", body)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(json.load(answer)["header"]["revision"])


@contextlib.contextmanager
def loaded(args: argparse.Namespace, count: int,
           value_bytes: int = gen.VALUE_BYTES) -> Iterator[dict[str, Etcd | Node]]:
    """The sides to measure, started, with `count` keys each."""
    with folder(args) as path, contextlib.ExitStack() as stack:
        servers: dict[str, Etcd | Node] = {}
        for side in (args.only,) if args.only else ("etcd", "kvnode"):
            server = etcd(path) if side == "etcd" else node(args, path)
            stack.enter_context(server)
            preload(args, server, count, value_bytes)
            servers[side] = server
        yield servers
