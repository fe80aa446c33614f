"""The client port of a whole node: TLS, a busy port, SIGTERM with calls under way."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import grpc
import pytest

from kvnode.proto import rpc_pb2 as pb
from tests.support.etcd import find
from tests.support.node import Node


def stub(channel: grpc.Channel, path: str, answer: type) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        path, lambda m: m.SerializeToString(), answer.FromString  # type: ignore[attr-defined]
    )


def test_busy_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "kvnode", "serve", "--data-dir", str(tmp_path / "d"),
             "--listen-client-urls", f"http://127.0.0.1:{port}",
             "--listen-zmq-urls", "tcp://127.0.0.1:1"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"can't listen on http://127.0.0.1:{port}: Address already in use" in done.stderr
    assert "--listen-client-urls" in done.stderr


def test_stop_with_a_watch(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.start()
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        requests: Queue[pb.WatchRequest | None] = Queue()
        requests.put(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")))
        watch = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            lambda m: m.SerializeToString(),
            pb.WatchResponse.FromString,
        )(iter(requests.get, None))
        assert next(watch).created
        put = stub(channel, "/etcdserverpb.KV/Put", pb.PutResponse)
        revision = put(pb.PutRequest(key=b"k", value=b"v"), timeout=10).header.revision
        assert [e.kv.value for e in next(watch).events] == [b"v"]
        node.stop()
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "etcdserver: server stopped"
        requests.put(None)
    assert revision == 2
    node.fsck()


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    yield cert, key


def test_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    node = Node(tmp_path / "data", "--cert-file", str(cert), "--key-file", str(key))
    port = node.port
    node.argv[node.argv.index("--listen-client-urls") + 1] = f"https://127.0.0.1:{port}"
    node.start()
    credentials = grpc.ssl_channel_credentials(cert.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        put = stub(channel, "/etcdserverpb.KV/Put", pb.PutResponse)
        assert put(pb.PutRequest(key=b"k", value=b"v" * 100_000), timeout=10).header.revision == 2
        read = stub(channel, "/etcdserverpb.KV/Range", pb.RangeResponse)
        assert len(read(pb.RangeRequest(key=b"k"), timeout=10).kvs[0].value) == 100_000
    url = f"https://127.0.0.1:{port}"
    pages = subprocess.run(
        ["curl", "-sS", "--cacert", cert, f"{url}/version"],
        check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "etcdserver" in pages.stdout
    etcdctl = find("etcdctl", build=False)
    if etcdctl is not None:
        done = subprocess.run(
            [etcdctl, "--endpoints", url, "--cacert", cert, "get", "k", "--print-value-only"],
            check=True, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert len(done.stdout.strip()) == 100_000
    node.stop()
