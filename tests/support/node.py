"""A kvnode node for tests and benchmarks: real processes on free loopback ports.

`python -m kvnode.cli.main serve` is started with a data directory of the test's; every way to end
it is here, and `fsck` (`kvnode verify`) belongs at the end of each fixture.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.process import Server, descendants, free_ports

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-m", "kvnode.cli.main"]
VERIFY_SECONDS_MAX = 300
ROLES = ("gateway", "consensus", "applier")


def _is_ready(line: str) -> bool:
    """A JSON log line with msg "ready", or a line for people that ends in `ready`."""
    text = line.strip()
    if text.startswith("{"):
        try:
            record = json.loads(text)
        except ValueError:
            return False
        return record.get("msg", record.get("event")) == "ready"
    return text.endswith("ready")


class Node(Server):
    """A one-member node. Can be started again over the same directory after stop or kill."""

    name = "kvnode"

    def __init__(self, data_dir: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.port, self.zmq_port = free_ports(2)
        self.endpoint = f"tcp://127.0.0.1:{self.zmq_port}"
        super().__init__(
            [
                *CLI, "serve", "--data-dir", str(data_dir),
                "--listen-client-urls", f"http://127.0.0.1:{self.port}",
                "--listen-zmq-urls", self.endpoint, *flags,
            ],
            _is_ready,
            {"PYTHONPATH": str(ROOT), **(env or {})},
        )

    def process_ids(self) -> dict[str, int]:
        """Role (gateway0, consensus, applier, as the process titles say) to process id."""
        named = {}
        for pid in descendants(self.pid):
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it ended meanwhile
            words = title.split()
            if len(words) > 1 and words[0] == "kvnode:" and words[1].startswith(ROLES):
                named[words[1]] = pid
        return named

    def kill_process(self, role: str) -> int:
        """SIGKILL to one process of the node (`gateway`, `consensus`, `applier`); its id."""
        pid = next(pid for name, pid in self.process_ids().items() if name.startswith(role))
        os.kill(pid, signal.SIGKILL)
        return pid

    def fsck(self) -> str:
        """`kvnode verify` over the directory of a node that doesn't run; AssertionError if bad."""
        done = subprocess.run(
            [*CLI, "verify", str(self.data_dir)], capture_output=True, text=True,
            timeout=VERIFY_SECONDS_MAX, env=self.env,
        )
        assert done.returncode == 0, f"kvnode verify: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout
