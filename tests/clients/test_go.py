"""Go's clientv3 and the packages beside it; see go/suite."""

from __future__ import annotations

from tests.clients import programs
from tests.clients.conftest import Target
from tests.clients.suite import need, run


def test_clientv3(server: Target) -> None:
    program = need(programs.go, "go", "suite")
    run("go clientv3 3.7.1", server.name, [program, server.endpoint], cases_min=89)
