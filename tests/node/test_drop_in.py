"""Started as etcd is: kubeadm's command line, without a command, by ETCD_* variables."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kvnode.base.codes import Code
from kvnode.base.errors import RequestError
from kvnode.client import Client
from kvnode.proto import rpc_pb2 as pb
from tests.support.etcd import _is_ready as etcd_is_ready
from tests.support.node import CLI, ROOT, Node
from tests.support.process import Server, free_ports

READY = "ready to serve client requests"
COMPACTED_SECONDS_MAX = 20.0


class DropIn(Server):
    """`kvnode` in etcd's place: what waits for etcd's line finds it ready."""

    name = "kvnode"

    def __init__(self, *flags: str, env: dict[str, str] | None = None) -> None:
        super().__init__([*CLI, *flags], etcd_is_ready, {"PYTHONPATH": str(ROOT), **(env or {})})


@pytest.fixture
def urls() -> Iterator[dict[str, str]]:
    client, peer, metrics = free_ports(3)
    yield {
        name: f"http://127.0.0.1:{port}"
        for name, port in (("client", client), ("peer", peer), ("metrics", metrics))
    }


def check(server: Server, url: str) -> None:
    """It takes a put where etcd would."""
    server.start()
    try:
        with grpc.insecure_channel(url.removeprefix("http://")) as channel:
            put = channel.unary_unary("/etcdserverpb.KV/Put")
            request = pb.PutRequest(key=b"a", value=b"1").SerializeToString()
            answer = put(request, timeout=20, wait_for_ready=True)
            assert pb.PutResponse.FromString(answer).header.revision == 2
    finally:
        server.stop()


def test_kubeadms_command_line(tmp_path: Path, urls: dict[str, str]) -> None:
    server = DropIn(
        "--name=control-plane", "--feature-gates=InitialCorruptCheck=true",
        f"--listen-client-urls={urls['client']}", f"--advertise-client-urls={urls['client']}",
        f"--listen-peer-urls={urls['peer']}", f"--initial-advertise-peer-urls={urls['peer']}",
        f"--initial-cluster=control-plane={urls['peer']}", "--initial-cluster-state=new",
        f"--data-dir={tmp_path / 'etcd'}", "--snapshot-count=10000",
        f"--listen-metrics-urls={urls['metrics']}", "--watch-progress-notify-interval=5s",
        "--log-format=json",
    )  # fmt: skip
    check(server, urls["client"])
    # Every line is a record: what has no effect is said in the log.
    records = [json.loads(line) for line in server.tail]
    said = [record["msg"] for record in records]
    assert said.count(READY) == 1
    warned = [record["msg"] for record in records if record["level"] == "warn"]
    assert [text for text in warned if "--feature-gates" in text]
    assert not [text for text in warned if "unknown" in text]


def test_variables_of_a_chart(tmp_path: Path, urls: dict[str, str]) -> None:
    environ = {
        "ETCD_NAME": "n0", "ETCD_DATA_DIR": str(tmp_path / "data"),
        "ETCD_LISTEN_CLIENT_URLS": urls["client"], "ETCD_ADVERTISE_CLIENT_URLS": urls["client"],
        "ETCD_LISTEN_PEER_URLS": urls["peer"], "ETCD_INITIAL_ADVERTISE_PEER_URLS": urls["peer"],
        "ETCD_INITIAL_CLUSTER": f"n0={urls['peer']}", "ETCD_INITIAL_CLUSTER_TOKEN": "k8s",
        "ETCD_AUTO_COMPACTION_MODE": "periodic", "ETCD_AUTO_COMPACTION_RETENTION": "10",
        "ETCD_LOG_LEVEL": "info", "ETCD_LOG_FORMAT": "json",
    }  # fmt: skip
    check(DropIn(env=environ), urls["client"])


def test_etcds_file(tmp_path: Path, urls: dict[str, str]) -> None:
    file = tmp_path / "etcd.conf.yml"
    file.write_text(
        f"name: s1\ndata-dir: {tmp_path / 's1'}\nlisten-client-urls: {urls['client']}\n"
        f"advertise-client-urls: {urls['client']}\nlisten-peer-urls: {urls['peer']}\n"
        f"initial-advertise-peer-urls: {urls['peer']}\ninitial-cluster: s1={urls['peer']}\n"
        "client-transport-security:\n  client-cert-auth: false\nlog-outputs: [stderr]\n"
        "logger: zap\nlog-format: json\nmax-wals: 5\n"
    )
    check(DropIn("--config-file", str(file)), urls["client"])


def test_history_is_compacted_by_itself(tmp_path: Path) -> None:
    """A retention of 500 ms: what was current then is soon refused."""
    node = Node(tmp_path / "data", "--auto-compaction-retention=500ms")
    node.start()
    try:
        with Client(node.endpoint) as client:
            first = client.put(b"a", b"1").header.revision
            assert client.get(b"a", revision=first) is not None
            ends = time.monotonic() + COMPACTED_SECONDS_MAX
            while True:
                client.put(b"a", b"2")
                try:
                    client.get(b"a", revision=first)
                except RequestError as error:
                    assert error.code == Code.COMPACTED
                    break
                assert time.monotonic() < ends, "nothing was compacted"
            assert client.get(b"a") is not None
    finally:
        node.stop()
    node.fsck()


def test_a_certificate_that_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    file = tmp_path / "not-pem"
    file.write_text("x")
    for cert, said in ((tmp_path / "none", "No such file"), (file, "--cert-file")):
        done = subprocess.run(
            [*CLI, "--data-dir", str(tmp_path / "data"), "--cert-file", str(cert),
             "--key-file", str(file), "--listen-client-urls", f"https://127.0.0.1:{port}"],
            capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 2
        assert said in done.stderr and str(cert) in done.stderr
        assert "Traceback" not in done.stderr
