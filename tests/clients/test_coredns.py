"""CoreDNS with its etcd plugin answers names from kvnode, as it does from etcd."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.proto import rpc_pb2 as pb
from tests.clients import programs
from tests.clients.conftest import Target
from tests.clients.suite import Result, need, say
from tests.support.process import free_ports
from tests.support.watchstream import Kv, dial

A, TXT, SRV, NXDOMAIN = 1, 16, 33, 3
ANSWER_SECONDS_MAX = 30.0
RECORDS = {
    "/skydns/test/node/web/x1": {"host": "10.0.0.1", "port": 8080, "ttl": 60},
    "/skydns/test/node/web/x2": {"host": "10.0.0.2", "port": 8081, "ttl": 60},
    "/skydns/test/node/note": {"text": "first", "ttl": 60},
}


def _name(data: bytes, at: int) -> tuple[str, int]:
    """The name at an offset of a message, and where it ends."""
    labels, end = [], 0
    while data[at]:
        if data[at] >= 0xC0:
            end = end or at + 2
            at = struct.unpack_from(">H", data, at)[0] & 0x3FFF
            continue
        labels.append(data[at + 1 : at + 1 + data[at]].decode())
        at += data[at] + 1
    return ".".join(labels), end or at + 1


def ask(port: int, name: str, kind: int) -> tuple[int, list[str]]:
    """The status and the answers of a DNS server on loopback, as text."""
    labels = b"".join(bytes((len(part),)) + part.encode() for part in name.split("."))
    query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.sendto(query, ("127.0.0.1", port))
        data = sock.recv(4096)
    status, count = data[3] & 15, struct.unpack_from(">H", data, 6)[0]
    at, answers = len(query), []
    for _ in range(count):
        _, at = _name(data, at)
        found, _, _, size = struct.unpack_from(">HHIH", data, at)
        at += 10
        if found == A:
            answers.append(socket.inet_ntoa(data[at : at + 4]))
        elif found == TXT:
            answers.append(data[at + 1 : at + 1 + data[at]].decode())
        elif found == SRV:
            _, _, port_there = struct.unpack_from(">3H", data, at)
            answers.append(f"{_name(data, at + 6)[0]}:{port_there}")
        at += size
    return status, sorted(answers)


@pytest.fixture
def dns(server: Target, tmp_path: Path) -> Iterator[int]:
    """The port of a CoreDNS that looks into the server."""
    program = need(programs.go, "coredns", ".")
    (port,) = free_ports(1)
    (tmp_path / "Corefile").write_text(
        f".:{port} {{\n bind 127.0.0.1\n etcd test {{\n  path /skydns\n"
        f"  endpoint {server.url}\n }}\n errors\n}}\n"
    )
    process = subprocess.Popen(
        [str(program), "-conf", str(tmp_path / "Corefile")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def test_names(server: Target, dns: int) -> None:
    begun, kv = time.monotonic(), Kv(channel := dial(server.endpoint))
    for key, record in RECORDS.items():
        kv.put(key.encode(), json.dumps(record).encode())

    def expect(name: str, kind: int, expected: tuple[int, list[str]]) -> None:
        found, deadline = None, time.monotonic() + ANSWER_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                found = ask(dns, name, kind)
            except OSError as error:
                found = error  # it isn't up yet
                time.sleep(0.05)
                continue
            if found == expected:
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} of type {kind}: {found}, expected {expected}")

    expect("x1.web.node.test", A, (0, ["10.0.0.1"]))
    expect("web.node.test", A, (0, ["10.0.0.1", "10.0.0.2"]))
    expect("web.node.test", SRV, (0, ["x1.web.node.test:8080", "x2.web.node.test:8081"]))
    expect("note.node.test", TXT, (0, ["first"]))
    expect("nobody.node.test", A, (NXDOMAIN, []))
    assert kv.delete_call(pb.DeleteRangeRequest(key=b"/skydns/test/node/web/x2")).deleted == 1
    expect("web.node.test", A, (0, ["10.0.0.1"]))
    expect("x2.web.node.test", A, (NXDOMAIN, []))
    channel.close()
    say(Result("coredns 1.15.0", server.name, ok=7, seconds=time.monotonic() - begun))
