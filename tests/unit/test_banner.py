"""The banner of a node: its commands can be pasted as they stand."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from kvnode.base.config import Config
from kvnode.procs import banner


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `kvnode` beside this Python's name, in a folder of its own."""
    place = tmp_path / "tree" / ".venv" / "bin" / "kvnode"
    place.parent.mkdir(parents=True)
    place.write_text("#!/bin/sh\n")
    place.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(place.parent / "python"))
    monkeypatch.chdir(tmp_path / "tree")
    return place


def test_by_name_only_where_the_shell_finds_this_one(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    assert banner.command() == ".venv/bin/kvnode"
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(script, other / "kvnode")
    monkeypatch.setenv("PATH", str(other))
    assert banner.command() == ".venv/bin/kvnode"
    monkeypatch.setenv("PATH", str(script.parent))
    assert banner.command() == "kvnode"
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(other)
    assert banner.command() == str(script)


def test_without_a_script_the_module_is_run(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.unlink()
    assert banner.command() == f"{sys.executable} -m kvnode"


@pytest.mark.parametrize(
    ("listen", "endpoint"),
    [
        ("tcp://127.0.0.1:2382", "tcp://127.0.0.1:2382"),
        ("tcp://0.0.0.0:2382", "tcp://127.0.0.1:2382"),
        ("tcp://[::]:2582", "tcp://[::1]:2582"),
        ("tcp://10.0.0.7:2382", "tcp://10.0.0.7:2382"),
    ],
)
def test_endpoint_to_paste(listen: str, endpoint: str) -> None:
    assert banner.reachable(listen) == endpoint


@pytest.mark.parametrize(
    ("listeners", "said"),
    [
        (["tcp://127.0.0.1:2382", "tcp://[::1]:2382"], "from this machine only"),
        (["tcp://127.0.0.1:2382", "tcp://0.0.0.0:2383"], "NO TLS, NO AUTHENTICATION"),
        (["tcp://127.0.0.1.example:2382"], "NO TLS, NO AUTHENTICATION"),
        (["tcp://127.0.0.1:2382"], "etcd API   http://localhost:2379"),
    ],
)
def test_what_is_open_is_said_loudly(
    listeners: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(name="m1", log_format="text")
    banner.announce(config, 0xA, 0xB, "/tmp/data", listeners, 0.1)
    shown = capsys.readouterr().out
    assert "\nready to serve client requests\nready\n" in shown
    assert said in shown and "m1 a, cluster b" in shown and shown.endswith("\nready\n")


@pytest.mark.parametrize(
    ("client", "zmq", "said"),
    [
        ("http://127.0.0.1:1", "tcp://127.0.0.1:2", "no authentication: reachable from this"),
        ("http://10.0.0.1:1", "tcp://127.0.0.1:2", "NO TLS, NO AUTHENTICATION"),
        ("https://10.0.0.1:1", "tcp://127.0.0.1:2", "TLS, but NO AUTHENTICATION"),
        ("https://10.0.0.1:1", "tcp://10.0.0.1:2", "NO TLS, NO AUTHENTICATION"),
    ],
)
def test_security_counts_every_listener(client: str, zmq: str, said: str) -> None:
    assert banner.security(Config(listen_client_urls=(client,)), [zmq]).startswith(said)
