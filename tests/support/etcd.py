"""Real etcd for tests and benchmarks: found or built, started on loopback.

Binaries come, in this order, from $KVNODE_PEERS, ~/.cache/kvnode-peers, tests/peers/bin, and
last from a build of the Go module tests/peers into tests/peers/bin (about a minute the first time).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.process import Server, free_ports

PEERS = Path(__file__).resolve().parents[1] / "peers"
VERSION = "3.7.1"
BUILD_SECONDS_MAX = 900
QUOTA_BYTES = 16 << 30


def find(name: str, build: bool = True) -> Path | None:
    """The program `name` (etcd, etcdctl, benchmark, feeder), built if need be; None without Go."""
    cache = Path.home() / ".cache" / "kvnode-peers"
    for place in filter(None, (os.environ.get("KVNODE_PEERS"), cache, PEERS / "bin")):
        path = Path(place) / name
        newest = max(p.stat().st_mtime for p in [PEERS / "go.mod", *(PEERS / name).glob("*.go")])
        own = Path(place) == PEERS / "bin"
        if os.access(path, os.X_OK) and not (own and path.stat().st_mtime < newest):
            return path
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if not build or go is None:
        return None
    (PEERS / "bin").mkdir(exist_ok=True)
    # The toolchain at hand must do: a test never downloads another Go.
    subprocess.run(
        [go, "build", "-buildvcs=false", "-o", "bin/", f"./{name}"],
        cwd=PEERS, check=True, timeout=BUILD_SECONDS_MAX, env=os.environ | {"GOTOOLCHAIN": "local"},
    )
    return PEERS / "bin" / name


def why_missing() -> str:
    """What to say when `find` gave None."""
    return f"real etcd {VERSION} is not here: set KVNODE_PEERS, or install Go to have it built"


def _is_ready(line: str) -> bool:
    if "ready to serve client requests" not in line:
        return False
    try:
        return json.loads(line)["msg"] == "ready to serve client requests"
    except (ValueError, KeyError):
        return False


class Etcd(Server):
    """A one-member etcd with its default fsync and a raised quota. Can be started again."""

    name = "etcd"

    def __init__(self, data_dir: Path, *flags: str) -> None:
        program = find("etcd")
        if program is None:
            raise RuntimeError(why_missing())
        self.data_dir = data_dir
        self.port, peer = free_ports(2)
        self.endpoint = f"127.0.0.1:{self.port}"
        client_url, peer_url = f"http://{self.endpoint}", f"http://127.0.0.1:{peer}"
        super().__init__(
            [
                str(program), "--name", "peer", "--data-dir", str(data_dir),
                "--listen-client-urls", client_url, "--advertise-client-urls", client_url,
                "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
                "--initial-cluster", f"peer={peer_url}",
                "--quota-backend-bytes", str(QUOTA_BYTES), "--log-level", "info", *flags,
            ],
            _is_ready,
        )

    def ctl(self, *words: str) -> str:
        """Runs etcdctl against it; its standard output."""
        program = find("etcdctl")
        assert program is not None
        return subprocess.run(
            [str(program), "--endpoints", self.endpoint, "--command-timeout", "600s", *words],
            check=True, capture_output=True, text=True,
        ).stdout
