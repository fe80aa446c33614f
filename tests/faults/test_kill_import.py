"""kill -9 of the node's processes and of `kvnode import` itself, while it imports."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from kvnode.client import Client
from tests.faults.test_kill import ROLES, kill_node
from tests.support.node import CLI, Node


def import_under_fire(folder: Path, records: int, kills: int, seed: int) -> None:
    """Kills until `kills` fell and the import is through; then counts every key."""
    rng = random.Random(seed)
    path = folder / "records.jsonl"
    with path.open("w") as out:
        for number in range(records):
            out.write(json.dumps({"key": f"i/{number}", "value": "v" * (number % 300)}) + "\n")
    node = Node(folder / "data", "--checkpoint-interval", "200ms")
    node.start()
    words = [
        *CLI, "import", str(path), "--endpoints", node.endpoint, "--no-progress",
        "--batch-size", "100", "--in-flight", "4",
    ]  # fmt: skip
    fallen: dict[str, int] = {}
    process = subprocess.Popen(words, env=node.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while True:
            try:
                status = process.wait(0.1 + rng.random() * 0.4)
            except subprocess.TimeoutExpired:
                status = None
            if status == 0:
                break
            if status is not None:
                assert process.stderr is not None and status == -9, process.stderr.read()
                process = subprocess.Popen(
                    words, env=node.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
                continue
            if sum(fallen.values()) >= kills:
                continue
            victim = rng.choice((*ROLES, "node", "import"))
            if victim == "node":
                kill_node(node)
                node.start()
            elif victim == "import":
                process.kill()
            elif any(name.startswith(victim) for name in node.process_ids()):
                node.kill_process(victim)
            fallen[victim] = fallen.get(victim, 0) + 1
        with Client(node.endpoint, timeout=20) as client:
            found = client.range(b"i/", prefix=True).kvs
        lost = records - len(found)
        doubled = sum(kv.version != 1 for kv in found)
        wrong = sum(len(kv.value) != int(kv.key[2:]) % 300 for kv in found)
        print(
            f"\n{records} records imported under {sum(fallen.values())} kills ({fallen}): "
            f"lost {lost}, doubled {doubled}, wrong {wrong}"
        )
    finally:
        process.kill()
        process.communicate()
        node.stop()
    node.fsck()
    assert (lost, doubled, wrong) == (0, 0, 0)
    assert sum(fallen.values()) > 0


@pytest.mark.timeout(120)
def test_import_under_kills(tmp_path: Path) -> None:
    import_under_fire(tmp_path, 40_000, 4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_import_under_many_kills(tmp_path: Path) -> None:
    for seed in range(8):
        (tmp_path / str(seed)).mkdir()
        import_under_fire(tmp_path / str(seed), 200_000, 8, seed=10 + seed)
