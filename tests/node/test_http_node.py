"""HTTP/1.1 on a running node: true values in /metrics, huge bodies, slow clients, alarms, kills."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvnode.client import Client
from tests.support.node import Node
from tests.support.process import free_ports


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A running node; a mark's arguments are its flags."""
    flags = getattr(request, "param", ())
    made = Node(tmp_path / "data", *flags)
    made.start()
    yield made
    made.stop()
    made.fsck()


def ask(port: int, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Samples by name and labels; the parser adds _total to a counter's name without."""
    status, text = ask(port, "GET", "/metrics")
    assert status == 200
    return {
        (s.name, ",".join(f"{k}={v}" for k, v in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


def anonymous_bytes(pid: int) -> int:
    """What a process has for itself."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def gateway_of(node: Node) -> int:
    return next(pid for name, pid in node.process_ids().items() if name.startswith("gateway"))


APPLY = "op={},success={},version=v3"


def test_metrics_count_what_was_done(node: Node) -> None:
    before = scrape(node.port)
    with Client(node.endpoint) as client:
        for number in range(40):
            client.put(b"k%d" % number, b"v")
        client.delete_range(b"k0")
        client.range(b"k", b"l")
    for _ in range(10):
        assert ask(node.port, "POST", "/v3/kv/put", b'{"key":"Zm9v"}')[0] == 200
    txn = (
        b'{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"Yg=="}}]}'
    )
    assert ask(node.port, "POST", "/v3/kv/txn", txn)[0] == 200
    assert ask(node.port, "POST", "/v3/kv/put", b'{"key":"YQ==","lease":"5"}')[0] == 404
    assert ask(node.port, "POST", "/v3/kv/range", b'{"key":"YQ==","revision":"999"}')[0] == 400
    assert ask(node.port, "POST", "/v3/kv/compaction", b'{"revision":"5"}')[0] == 200
    assert ask(node.port, "POST", "/v3/maintenance/defragment", b"{}")[0] == 200
    assert ask(node.port, "GET", "/health")[0] == 200
    after = scrape(node.port)

    def grew(name: str, labels: str = "") -> float:
        return after[name, labels] - before.get((name, labels), 0.0)

    assert grew("etcd_mvcc_put_total") == 40 + 10 + 2
    assert grew("etcd_mvcc_delete_total") == 1
    assert grew("etcd_mvcc_txn_total") == 1
    apply = "etcd_server_apply_duration_seconds_count"
    assert grew(apply, APPLY.format("Put", "true")) == 50
    assert grew(apply, APPLY.format("Put", "false")) == 1
    assert grew(apply, APPLY.format("Txn", "true")) == 1
    assert grew(apply, APPLY.format("DeleteRange", "true")) == 1
    assert grew(apply, APPLY.format("Compaction", "true")) == 1
    put = "grpc_method=Put,grpc_service=etcdserverpb.KV,grpc_type=unary"
    assert grew("grpc_server_started_total", put) == 11
    assert grew("grpc_server_handled_total", f"grpc_code=OK,{put}") == 10
    assert grew("grpc_server_handled_total", f"grpc_code=NotFound,{put}") == 1
    assert grew("grpc_server_handling_seconds_count", put) == 11
    assert grew("etcd_server_range_duration_seconds_count", "success=false") == 1
    ranges = after["etcd_server_range_duration_seconds_count", "success=true"]
    assert after["etcd_mvcc_range_total", ""] == ranges + 1
    assert grew("etcd_server_health_success_total") == 1
    assert grew("etcd_disk_backend_defrag_duration_seconds_count") == 1
    # Each entry is synced once; entries hold several requests at most.
    entries = grew("etcd_server_proposals_committed_total")
    assert 1 <= grew("etcd_disk_wal_fsync_duration_seconds_count") <= entries + 5
    assert grew("etcd_disk_wal_write_bytes_total") > 40 * 80
    assert grew("etcd_disk_backend_commit_duration_seconds_count") >= 1
    assert after["etcd_debugging_mvcc_compact_revision", ""] == 5
    assert after["etcd_debugging_mvcc_current_revision", ""] == 1 + 40 + 1 + 10 + 1
    assert after["etcd_server_has_leader", ""] == after["etcd_server_is_leader", ""] == 1
    assert after["etcd_server_leader_changes_seen_total", ""] == 1
    assert after["etcd_server_quota_backend_bytes", ""] == 2 << 30
    assert 0 < after["process_resident_memory_bytes", ""] < 1 << 30
    assert after["process_cpu_seconds_total", ""] > 0
    assert after["os_fd_used", ""] > 10


def test_counters_survive_the_death_of_a_process(node: Node) -> None:
    ask(node.port, "POST", "/v3/kv/put", b'{"key":"Zm9v"}')
    node.kill_process("applier")
    with Client(node.endpoint, timeout=30) as client:
        client.put(b"a", b"b")
    after = scrape(node.port)
    assert after["etcd_mvcc_put_total", ""] == 2
    assert after["kvnode_process_restarts_total", ""] == 1
    node.kill_process("gateway")
    with Client(node.endpoint, timeout=30) as client:
        client.put(b"a", b"c")
    # The port's queue is the supervisor's: a new gateway takes what waits in it.
    assert scrape(node.port)["kvnode_process_restarts_total", ""] == 2


@pytest.mark.parametrize("node", [("--gateways", "2")], indirect=True)
def test_any_gateway_tells_of_all(node: Node) -> None:
    for number in range(20):
        body = b'{"key":"%s"}' % (b"QUFB" * (1 + number))
        assert ask(node.port, "POST", "/v3/kv/put", body)[0] == 200
    assert scrape(node.port)["etcd_mvcc_put_total", ""] == 20
    assert ask(node.port, "GET", "/readyz")[0] == 200


def test_a_body_of_256_mb_costs_nothing(node: Node) -> None:
    ask(node.port, "GET", "/version")
    gateway = gateway_of(node)
    before = anonymous_bytes(gateway)
    size = 256 << 20
    piece = bytes(1 << 20)
    for head in (
        b"Content-Length: %d\r\n\r\n" % size,
        b"Transfer-Encoding: chunked\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", node.port), timeout=30) as client:
            client.sendall(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\n" + head)
            chunked = b"chunked" in head
            sent = 0
            try:
                while sent < size:
                    client.sendall(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
                    sent += len(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass
            try:
                answer = client.recv(1 << 16)
            except ConnectionResetError:
                answer = b""
            # A client that never looks up may find the connection closed behind the answer.
            assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]
    assert anonymous_bytes(gateway) - before < 8 << 20
    assert ask(node.port, "POST", "/v3/kv/put", b'{"key":"Zm9v"}')[0] == 200


def test_slow_clients_do_not_hold_up_others(node: Node) -> None:
    value = b"A" * (1 << 20)
    for number in range(16):
        body = b'{"key":"%s","value":"%s"}' % (b"QUFB" * (1 + number), value)
        assert ask(node.port, "POST", "/v3/kv/put", body)[0] == 200
    gateway = gateway_of(node)
    whole = b'{"key":"QQ==","range_end":"Qg=="}'
    request = (
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole
    )
    slow: list[socket.socket] = []
    try:
        for _ in range(4):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", node.port))
            client.sendall(request)
            slow.append(client)
        for _ in range(50):
            assert ask(node.port, "POST", "/v3/kv/put", b'{"key":"Zm9v"}')[0] == 200
        status, text = ask(node.port, "POST", "/v3/kv/range", whole)
        assert status == 200 and len(json.loads(text)["kvs"]) == 16
        assert anonymous_bytes(gateway) < 1 << 30
    finally:
        for client in slow:
            client.close()


def test_a_watch_ends_when_the_node_stops(tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    node.start()
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
    connection.request("POST", "/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
    response = connection.getresponse()
    assert json.loads(response.readline())["result"]["created"] is True
    ask(node.port, "POST", "/v3/kv/put", b'{"key":"Zm9v","value":"YmFy"}')
    assert json.loads(response.readline())["result"]["events"][0]["kv"]["value"] == "YmFy"
    node.stop()
    rest = response.read()
    assert rest == b"" or b'"error"' in rest
    connection.close()
    node.fsck()


def test_an_alarm_shows_in_health(tmp_path: Path) -> None:
    node = Node(tmp_path / "data", "--quota-backend-bytes", "2MiB")
    node.start()
    value = b"A" * (400 << 10)
    statuses: list[Any] = []
    for number in range(40):
        body = b'{"key":"%s","value":"%s"}' % (b"QUFB" * (1 + number), value)
        statuses.append(ask(node.port, "POST", "/v3/kv/put", body))
        if statuses[-1][0] != 200:
            break
    assert statuses[-1][0] == 429
    assert json.loads(statuses[-1][1]) == {
        "code": 8, "message": "etcdserver: mvcc: database space exceeded"
    }
    status, text = ask(node.port, "GET", "/health")
    assert (status, text) == (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
    assert ask(node.port, "GET", "/health?exclude=NOSPACE")[0] == 200
    assert ask(node.port, "GET", "/readyz")[0] == 200
    assert scrape(node.port)["etcd_server_health_failures_total", ""] == 1
    node.stop()
    node.fsck()


def test_metrics_have_listeners_of_their_own(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    node = Node(
        tmp_path / "data", "--listen-metrics-urls", f"http://127.0.0.1:{port}",
        "--enable-grpc-gateway=false",
    )
    node.start()
    assert scrape(port)["etcd_server_has_leader", ""] == 1
    assert ask(port, "GET", "/health") == (200, b'{"health":"true","reason":""}')
    assert ask(port, "GET", "/livez")[0] == ask(port, "GET", "/readyz")[0] == 200
    assert ask(port, "POST", "/v3/kv/put", b"{}")[0] == 404
    assert ask(node.port, "POST", "/v3/kv/put", b"{}")[0] == 404
    assert ask(node.port, "GET", "/health")[0] == 200
    node.stop()
    node.fsck()
