"""Bad data directories, ports and requests: a clear error, what to do, exit status not 0."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvnode.base.codes import Code, Kind
from kvnode.base.errors import RequestError
from kvnode.client import Client
from kvnode.client.messages import put_request, range_request
from tests.support.node import CLI, Node


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a key in it, of a stopped node."""
    node = Node(tmp_path_factory.mktemp("used") / "data")
    node.start()
    with Client(node.endpoint) as client:
        client.put(b"kept", b"safe")
    node.stop()
    return node.data_dir


def fails(data: Path, *flags: str) -> str:
    """Starts a node that must end by itself, not 0; what it said."""
    node = Node(data, *flags)
    try:
        node.start(20)
    except RuntimeError as error:
        return str(error)
    node.stop()
    raise AssertionError("it started")


def member(data: Path) -> Path:
    return data / "member"


def newer(data: Path) -> None:
    path = member(data) / "identity.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"format": 99, "version": "9.9"}))


def no_log(data: Path) -> None:
    shutil.rmtree(member(data) / "wal")


def no_map(data: Path) -> None:
    (member(data) / "state" / "00000001" / "data.mdb").unlink()


def no_generation(data: Path) -> None:
    shutil.rmtree(member(data) / "state" / "00000001")


def no_current(data: Path) -> None:
    (member(data) / "state" / "CURRENT").unlink()


def no_identity(data: Path) -> None:
    (member(data) / "identity.json").unlink()


def damaged_identity(data: Path) -> None:
    (member(data) / "identity.json").write_bytes(b"\x00\xff{")


def damaged_checkpoint(data: Path) -> None:
    path = member(data) / "state" / "00000001" / "checkpoint"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


def foreign_owner(data: Path) -> None:
    os.chown(data, 12345, 12345)


def damaged_log(data: Path) -> None:
    path = min((member(data) / "wal").glob("*.log"), default=None) or min(
        p for p in (member(data) / "wal").iterdir() if not p.name.startswith("spare")
    )
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)


DIRECTORIES: list[tuple[Callable[[Path], None], tuple[str, ...], str]] = [
    (lambda data: None, ("--name", "other"), r'belongs to member "default".*--name default'),
    (newer, (), r"written by kvnode 9\.9.*use that version"),
    (foreign_owner, (), r"belongs to user id 12345.*run as its owner, or change the owner"),
    (no_log, (), r"there is no log: restore the log, or start with an empty --data-dir"),
    (no_map, (), r"data\.mdb.*restore"),
    (no_generation, (), r"CURRENT names generation 1, which is not there: restore"),
    (no_current, (), r"CURRENT is missing.*write its number"),
    (no_identity, (), r"identity\.json is missing.*restore that file"),
    (damaged_identity, (), r"identity\.json is damaged.*restore"),
    (damaged_checkpoint, (), r"checkpoint.*(damaged|wrong)"),
    (damaged_log, (), r"wal.*(restore|keep a copy)"),
]


@pytest.mark.parametrize(
    ("hurt", "flags", "said"), DIRECTORIES, ids=lambda v: getattr(v, "__name__", None)
)
def test_data_directories(
    used: Path, tmp_path: Path, hurt: Callable[[Path], None], flags: tuple[str, ...], said: str
) -> None:
    if hurt is foreign_owner and os.geteuid() != 0:
        pytest.skip("needs root")
    data = tmp_path / "data"
    shutil.copytree(used, data)
    hurt(data)
    before = {p: p.read_bytes() for p in member(data).rglob("*") if p.is_file()}
    text = fails(data, *flags)
    assert re.search(said, text, re.S), text
    assert "Traceback" not in text, text
    for path, content in before.items():
        if path.name == "data.mdb" or "wal" in path.parts:
            assert path.read_bytes() == content, f"{path} was changed"


def test_directory_in_use(used: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(used, data)
    node = Node(data)
    node.start()
    text = fails(data)
    assert f"in use by another node (pid {node.pid}): stop it" in text, text
    with Client(node.endpoint) as client:
        assert client.get(b"kept").value == b"safe"
    done = subprocess.run(
        [*CLI, "verify", str(data)], capture_output=True, text=True, env=node.env
    )
    assert done.returncode != 0 and "stop it first" in done.stderr, done.stderr
    node.stop()
    node.fsck()


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("not a folder")
    assert "is not a folder: choose another --data-dir" in fails(path)
    assert path.read_text() == "not a folder"


def test_unwritable(tmp_path: Path) -> None:
    """Also for root: a read-only mount, where one can be made."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount")
    path = tmp_path / "ro"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(path)], check=True)
    try:
        text = fails(path / "data")
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
    assert "can't use" in text and "Read-only file system" in text, text


def test_busy_port(tmp_path: Path) -> None:
    """Asked for: an error. Only the default: one loud line, and the node runs without it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        text = fails(tmp_path / "asked", "--listen-zmq-urls", f"tcp://127.0.0.1:{port}")
        assert "Address already in use" in text and "set --listen-zmq-urls" in text, text
        node = Node(tmp_path / "default")
        at = node.argv.index("--listen-zmq-urls")
        del node.argv[at : at + 2]
        at = node.argv.index("--listen-client-urls")
        node.argv[at + 1] = f"http://127.0.0.1:{port - 3}"
        node.start()
        said = "\n".join(node.tail)
        node.stop()
    assert "THE NATIVE PROTOCOL IS NOT SERVED" in said, said


def test_a_listener_that_cannot_be(tmp_path: Path) -> None:
    """What to do is said: a port in use is something else than an address of elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        text = fails(tmp_path / "busy", "--listen-client-urls", f"http://127.0.0.1:{port}")
        assert "Address already in use; stop what uses it" in text, text
    text = fails(tmp_path / "away", "--listen-client-urls", "http://192.0.2.1:2379")
    assert "set --listen-client-urls to an address of this machine" in text, text


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    node = Node(tmp_path_factory.mktemp("requests") / "data", "--max-request-bytes", "100KiB")
    node.start()
    with Client(node.endpoint) as client:
        for _ in range(3):
            revision = client.put(b"k", b"v").header.revision
        client.compact(revision - 1)
        yield client
        assert client.get(b"k").version == 3
    node.stop()
    node.fsck()


@pytest.mark.parametrize(
    ("kind", "body", "code", "text"),
    [
        (Kind.PUT, put_request(b"", b"v"), Code.EMPTY_KEY, "key is not provided"),
        (Kind.PUT, put_request(b"k" * 4097), Code.KEY_TOO_LONG, "4096"),
        (Kind.PUT, put_request(b"k", b"v" * 102_400), Code.REQUEST_TOO_LARGE, "too large"),
        (Kind.RANGE, range_request(b"k", revision=99), Code.FUTURE_REV, "future revision"),
        (Kind.RANGE, range_request(b"k", revision=1), Code.COMPACTED, "has been compacted"),
        (Kind.RANGE, range_request(b""), Code.EMPTY_KEY, "key is not provided"),
        (Kind.COMPACT, b"\x08\x63", Code.FUTURE_REV, "future revision"),
        (Kind.COMPACT, b"\x08\x01", Code.COMPACTED, "has been compacted"),
        (Kind.PUT, b"\xff\xfe", Code.MALFORMED, "valid message"),
        (Kind.TXN, b"\x0a\x7f", Code.MALFORMED, "valid message"),
    ],
)
def test_requests(client: Client, kind: Kind, body: bytes, code: Code, text: str) -> None:
    with pytest.raises(RequestError, match=text) as raised:
        client.call(kind, body)
    assert raised.value.code == code
