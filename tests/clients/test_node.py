"""Node's etcd3; see node/suite.mjs. (Its own tests are not in its package.)"""

from __future__ import annotations

from pathlib import Path

from tests.clients import programs
from tests.clients.conftest import Target
from tests.clients.suite import need, run


def test_etcd3(server: Target) -> None:
    folder = Path(str(need(programs.node)))
    script = programs.HERE / "node" / "suite.mjs"
    argv = ["node", script, server.endpoint]
    run("node etcd3 1.1.2", server.name, argv, cases_min=18, cwd=folder)
