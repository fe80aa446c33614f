"""h2load against a gRPC port: etcd's side of the single-request rows, both sides at the door.

h2load sends one prepared body, so all its requests carry one key: etcd's best case. kvnode's native
load draws keys from the whole space. What h2load can't see, gRPC errors in trailers, is checked
otherwise: a put run must have moved the store's revision by as many as it sent.
"""

from __future__ import annotations

import re
import resource
import shutil
import statistics
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from bench.peers import revision
from kvnode._core.loadcore import key_text
from kvnode.proto import rpc_pb2 as pb
from tests.support.etcd import Etcd
from tests.support.node import Node

VALUE = b"h" * 256
WARM_UP_SECONDS = 1


class H2Result(NamedTuple):
    """A run of h2load; CPU seconds of the tool and of the server, warm-up included."""

    requests: int
    per_second: float
    tool_cpu: float
    server_cpu: float
    p50_us: float
    p99_us: float


def _body(message: object, path: Path) -> Path:
    """A gRPC request body: no compression, length, message."""
    raw = message.SerializeToString()  # type: ignore[attr-defined]
    path.write_bytes(b"\0" + struct.pack(">I", len(raw)) + raw)
    return path


def put_body(seed: int, path: Path) -> Path:
    """The body of a Put of one preloaded key."""
    return _body(pb.PutRequest(key=key_text(seed, 0), value=VALUE), path / "put.grpc")


def range_body(seed: int, path: Path) -> Path:
    """The body of a linearizable Range of one preloaded key."""
    return _body(pb.RangeRequest(key=key_text(seed, 0)), path / "range.grpc")


def txn_body(seed: int, path: Path, puts: int) -> Path:
    """The body of a Txn that puts the first preloaded keys."""
    ops = [
        pb.RequestOp(request_put=pb.PutRequest(key=key_text(seed, number), value=VALUE))
        for number in range(puts)
    ]
    return _body(pb.TxnRequest(success=ops), path / "txn.grpc")


def run(server: Etcd | Node, method: str, body: Path, clients: int, streams: int,
        seconds: float = 0.0, requests: int = 0) -> H2Result:
    """`seconds` of load, or `requests` with their latencies. RuntimeError if any failed."""
    program = shutil.which("h2load")
    if program is None:
        raise SystemExit("h2load is missing: apt-get install nghttp2-client")
    log = body.with_suffix(".log")
    log.unlink(missing_ok=True)
    amount = ["-D", f"{seconds:g}", f"--warm-up-time={WARM_UP_SECONDS}"]
    if requests:
        amount = ["-n", str(requests), f"--log-file={log}"]
    before = revision(server)
    tool, cpu = _children_cpu(), server.cpu_seconds()
    done = subprocess.run(
        [program, *amount, "-c", str(clients), "-m", str(streams), "-t", "1", "-d", str(body),
         "-H", "content-type: application/grpc", "-H", "te: trailers",
         f"http://127.0.0.1:{server.port}/etcdserverpb.KV/{method}"],
        capture_output=True, text=True, check=True,
    )
    tool, cpu = _children_cpu() - tool, server.cpu_seconds() - cpu
    total = re.search(r"requests: (\d+) total.*?(\d+) succeeded, (\d+) failed", done.stdout)
    speed = re.search(r"finished in [^,]+, ([\d.]+) req/s", done.stdout)
    if not total or not speed or int(total[3]) or not int(total[2]):
        raise RuntimeError(f"h2load:\n{done.stdout}{done.stderr}")
    succeeded = int(total[2])
    if method != "Range" and revision(server) - before < succeeded:
        raise RuntimeError("h2load's writes were not all executed")
    times = []
    if requests:
        times = sorted(float(line.split()[2]) for line in log.read_text().splitlines())
    return H2Result(
        succeeded, float(speed[1]), tool, cpu,
        statistics.median(times) if times else 0.0,
        times[int(len(times) * 0.99)] if times else 0.0,
    )


def _children_cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime
