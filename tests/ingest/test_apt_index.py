"""The machine's Debian package index goes in through the example script and comes back equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from kvnode.client import Client
from tests.ingest.test_import_node import client, node, read_all, run
from tests.support.node import ROOT, Node

__all__ = ["client", "node"]
SCRIPT = ROOT / "examples" / "apt_index.py"


def test_apt_index(node: Node, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "apt.jsonl"
    with path.open("wb") as out:
        done = subprocess.run([sys.executable, str(SCRIPT)], stdout=out, stderr=subprocess.PIPE,
                              text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    status, out_text, err = run(node, str(path))
    assert status == 0, err
    print(done.stderr.strip(), "-", out_text.strip())
    wanted: dict[bytes, bytes] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        wanted[row["key"].encode()] = row["value"].encode()
    found = read_all(client, b"/debian/package/")
    assert len(wanted) > 1000
    assert {key: value for key, (value, _) in found.items()} == wanted
    assert {version for _, version in found.values()} == {1}


def test_no_lists_is_an_error(tmp_path: Path) -> None:
    """A machine whose apt-get can't fetch: a message and status 1, never an empty success."""
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    done = subprocess.run([sys.executable, str(SCRIPT), "--lists", str(tmp_path)], text=True,
                          capture_output=True, env={"PATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    assert "running apt-get update" in done.stderr and "ended with 100" in done.stderr
