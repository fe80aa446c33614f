"""Java's jetcd; see java/src. (Its own tests start their servers in containers.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from tests.clients import programs
from tests.clients.conftest import Target
from tests.clients.suite import need, run


def test_jetcd(server: Target) -> None:
    command = cast(Sequence[str], need(programs.java))
    run("java jetcd 0.8.6", server.name, [*command, server.url], cases_min=14)
