"""The servers of the client tests, and the table of results that ends a run.

Each module of tests gets a fresh kvnode and a fresh etcd; every case runs on both alike. kvnode's
directory is checked offline at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.suite import RESULTS
from tests.support.etcd import Etcd, find, why_missing
from tests.support.node import Node
from tests.support.process import Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.clients)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RESULTS:
        terminalreporter.section("clients")
        for result in RESULTS:
            terminalreporter.write_line(result.line())


@dataclass
class Target:
    """A running server: its name, and where its clients find it."""

    name: str
    port: int
    process: Server

    @property
    def endpoint(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """With the scheme before it."""
        return f"http://{self.endpoint}"


@pytest.fixture(scope="module", params=["etcd", "kvnode"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
           ) -> Iterator[Target]:
    """Both servers in turn, each started for one module of tests."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "etcd":
        if find("etcd") is None:
            pytest.skip(why_missing())
        with Etcd(folder / "data", "--unsafe-no-fsync") as etcd:
            assert isinstance(etcd, Etcd)
            yield Target("etcd", etcd.port, etcd)
        return
    node = Node(folder / "data")
    with node:
        yield Target("kvnode", node.port, node)
    node.fsck()
