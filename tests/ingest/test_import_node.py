"""`kvnode import` against a real node: real data there and back, kills, bad input, statuses."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import gen
from kvnode.client import Client
from kvnode.ingest.goyaml import documents
from tests.support.node import CLI, ROOT, Node

# Real manifests: where the variable says, or in a folder beside the repository.
KUBE_PROMETHEUS = Path(
    os.environ.get("KVNODE_KUBE_PROMETHEUS")
    or next(ROOT.parent.glob("*/data/kube-prometheus"), "kube-prometheus")
)
LINES = 20_000
KILLS = 10


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node") / "data")
    node.start()
    try:
        yield node
    finally:
        node.stop()
    node.fsck()


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    with Client(node.endpoint, timeout=60) as client:
        yield client


def start(node: Node, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CLI, "--endpoints", node.endpoint, "import", *arguments], stdin=stdin,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=node.env,
    )  # fmt: skip


def run(node: Node, *arguments: str, text: str | None = None) -> tuple[int, str, str]:
    process = start(node, *arguments, stdin=subprocess.PIPE if text is not None
                    else subprocess.DEVNULL)  # fmt: skip
    out, err = process.communicate(text, timeout=120)
    return process.returncode, out, err


def read_all(client: Client, prefix: bytes) -> dict[bytes, tuple[bytes, int]]:
    """key to (value, version)."""
    found, key, end = {}, prefix, prefix[:-1] + bytes([prefix[-1] + 1])
    while True:
        response = client.range(key, end, limit=5000)
        for kv in response.kvs:
            found[kv.key] = (kv.value, kv.version)
        if not response.more:
            return found
        key = response.kvs[-1].key + b"\0"


def flatten(value: object) -> Iterator[dict]:
    assert isinstance(value, dict)
    if value["kind"].endswith("List") and "items" in value:
        for item in value["items"]:
            yield from flatten({"kind": value["kind"][:-4], "apiVersion": value["apiVersion"]}
                               | item if value["kind"] != "List" else item)  # fmt: skip
    else:
        yield value


def identity(one: dict) -> tuple[str, str, str, str]:
    metadata = one["metadata"]
    return one["apiVersion"], one["kind"], metadata.get("namespace", ""), metadata["name"]


def test_kube_prometheus(node: Node, client: Client, tmp_path: Path) -> None:
    if not KUBE_PROMETHEUS.is_dir():
        pytest.skip(f"{KUBE_PROMETHEUS} is not there; KVNODE_KUBE_PROMETHEUS names the folder")
    big = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"},
           "data": {f"part-{i}": "0123456789abcde\n" * 4096 for i in range(22)}}  # fmt: skip
    (tmp_path / "big.json").write_text(json.dumps(big))
    assert 1_400_000 < (tmp_path / "big.json").stat().st_size < 1_572_864
    status, out, err = run(node, str(KUBE_PROMETHEUS), str(tmp_path / "big.json"))
    assert status == 0, err
    wanted = [big]
    for path in sorted(KUBE_PROMETHEUS.rglob("*.yaml")):
        for _, value in documents(path.read_bytes()):
            wanted += list(flatten(value))
    assert len(wanted) == 132 and out.startswith("imported 132 records")
    found = read_all(client, b"/registry/")
    assert len(found) == 132 and {version for _, version in found.values()} == {1}
    got = [json.loads(value) for value, _ in found.values()]
    assert sorted(got, key=identity) == sorted(wanted, key=identity)
    assert b"/registry/monitoring.coreos.com/prometheuses/monitoring/k8s" in found
    assert b"/registry/services/specs/monitoring/grafana" in found
    again = run(node, str(KUBE_PROMETHEUS), str(tmp_path / "big.json"))
    assert again[0] == 0 and "done already: 132 records" in again[1]
    assert read_all(client, b"/registry/") == found


def test_killed_import_resumes_exactly(node: Node, client: Client, tmp_path: Path) -> None:
    """SIGKILL at random progress, as the store's revision shows it; then once to the end."""
    rng = random.Random(11)
    path = tmp_path / "r.jsonl"
    gen.write_jsonl(path, 11, LINES)
    flags = (str(path), "--prefix", "kill/", "--batch-size", "23", "--in-flight", "16")
    killed = 0
    for _ in range(KILLS):
        target = client.range(b"x").header.revision + rng.randrange(2, LINES // KILLS)
        process = start(node, *flags)
        while process.poll() is None and client.range(b"x").header.revision < target:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    status, out, err = run(node, *flags)
    assert status == 0, err
    found = read_all(client, b"kill/")
    print(f"{killed} kills; {out.strip()}")
    assert killed >= KILLS // 2
    assert len(found) == LINES and {version for _, version in found.values()} == {1}
    rows = (json.loads(line) for line in path.read_text().splitlines())
    assert {key: value for key, (value, _) in found.items()} == {
        b"kill/" + row["key"].encode(): row["value"].encode() for row in rows
    }


@pytest.mark.parametrize("role", ["gateway", "consensus", "applier"])
def test_import_outlives_the_node(node: Node, client: Client, tmp_path: Path, role: str) -> None:
    """A process of the node is killed under the import: nothing is lost, nothing doubled."""
    path = tmp_path / "r.jsonl"
    gen.write_jsonl(path, 12, LINES)
    before = client.range(b"x").header.revision
    process = start(node, str(path), "--prefix", f"{role}/", "--batch-size", "23")
    while process.poll() is None and client.range(b"x").header.revision < before + LINES // 10:
        pass
    assert process.poll() is None, "too fast to be killed under"
    node.kill_process(role)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = read_all(client, f"{role}/".encode())
    assert len(found) == LINES and {version for _, version in found.values()} == {1}


def test_a_second_import_takes_over(node: Node, client: Client) -> None:
    """The first ends with a word instead of writing on."""
    first = start(node, "-", "--job-id", "both", "--batch-size", "1", stdin=subprocess.PIPE)
    assert first.stdin is not None
    first.stdin.write('{"key":"both/a","value":"1"}\n' * 50_000)
    first.stdin.flush()
    while client.get("/kvnode/import/both") is None and first.poll() is None:
        pass
    status, _, err = run(node, "-", "--job-id", "both", "--restart",
                         text='{"key":"both/b","value":"1"}\n')  # fmt: skip
    assert status == 0, err
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1 and "taken over" in err
    done = json.loads(client.get("/kvnode/import/both").value)
    assert done["done"] and done["below"] == 1


def test_duplicates_and_standard_input(node: Node, client: Client) -> None:
    text = (ROOT / "tests/data/ingest/records.jsonl").read_text()
    status, out, err = run(node, "-", "--prefix", "in/", text=text)
    assert status == 0 and out.startswith("imported 7 records"), err
    found = read_all(client, b"in/")
    assert found[b"in/again"] == (b"second", 2) and found[b"in/binary"] == (b"\0\xff\1\2", 1)
    assert len(found) == 6
    name = out.split()[-1]
    assert client.get(f"/kvnode/import/{name}") is None, "a job nobody can resume leaves no key"


def test_bad_records(node: Node, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"key":"1","value":"x"}\n{"key":"","value":"x"}\n{"key":"3","value":"x"}\n')
    status, _, err = run(node, str(path), "--prefix", "bad/")
    assert status == 3 and f"{path}:2: the key is empty" in err
    assert list(read_all(client, b"bad/")) == [b"bad/1"]
    rejects = tmp_path / "rejects.jsonl"
    flags = ("--prefix", "bad/", "--on-error", "skip", "--rejects", str(rejects))
    status, out, _ = run(node, str(path), *flags)
    assert status == 3 and out.startswith("imported 1 records") and "1 rejected" in out
    assert {key: version for key, (_, version) in read_all(client, b"bad/").items()} == {
        b"bad/1": 1, b"bad/3": 1,
    }  # fmt: skip
    [row] = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert (row["source"], row["line"]) == (str(path), 2) and "empty" in row["reason"]
    assert row["record"] == '{"key":"","value":"x"}'


def test_changed_source(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"key":"c/1","value":"x"}\nbad\n')
    assert run(node, str(path), "--job-id", "changed")[0] == 3
    path.write_text('{"key":"c/1","value":"x"}\n{"key":"c/2","value":"x"}\n')
    status, _, err = run(node, str(path), "--job-id", "changed")
    assert status == 1 and "changed since it began" in err
    status, out, _ = run(node, str(path), "--job-id", "changed", "--restart")
    assert status == 0 and out.startswith("imported 2 records")


@pytest.mark.parametrize(("arguments", "status", "text"), [
    (("/nonexistent.jsonl",), 6, "no such file or folder"),
    (("-", "--job-id", "a/b"), 1, "job id"),
    (("-", "--format", "csv"), 1, "is not one of"),
    (("-", "--batch-size", "0"), 1, "batch-size"),
])  # fmt: skip
def test_bad_arguments(node: Node, arguments: tuple[str, ...], status: int, text: str) -> None:
    got, _, err = run(node, *arguments, text="")
    assert got == status and text in err
