"""From the global flags to a client: what every command that talks to a node begins with.

Callers: kv, txn, maintenance, ingest's command.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from kvnode.base.ports import DEFAULT_ENDPOINT
from kvnode.cli.fault import EXIT_ARGS, Fault

if TYPE_CHECKING:
    from kvnode.cli.output import Json, Simple
    from kvnode.client import Client

COMMAND_SECONDS = 5.0


def flag(name: str, default: Any = None) -> Any:
    """A global flag of the running command."""
    return (click.get_current_context().find_object(dict) or {}).get(name, default)


def endpoints() -> list[str]:
    """The endpoints of --endpoints, KVNODE_ENDPOINTS or the default; Fault if one is malformed."""
    from kvnode.base.errors import CallerError
    from kvnode.client.sync import parse_endpoints

    text = flag("endpoints") or os.environ.get("KVNODE_ENDPOINTS") or DEFAULT_ENDPOINT
    try:
        return parse_endpoints(text)
    except CallerError as error:
        raise Fault(str(error), EXIT_ARGS) from None


def timeout(default: float = COMMAND_SECONDS) -> float:
    """Seconds of --command-timeout, or the command's own default."""
    text = flag("command_timeout")
    if text is None:
        return default
    from kvnode.base.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise Fault(f'--command-timeout "{text}": {error}', EXIT_ARGS) from None


def connect(
    *, writes: bool, seconds: float | None = None, only: str | None = None
) -> Client:
    """A client for one command: with a session if it writes, so that retries are safe."""
    from kvnode.client import Client

    return Client(
        only or endpoints(),
        timeout=timeout() if seconds is None else seconds,
        token=flag("token") or os.environ.get("KVNODE_TOKEN", ""),
        session=writes,
        name="kvnode-cli",
    )


def printer() -> Simple | Json:
    """The printer of -w and --hex."""
    from kvnode.cli.output import printer as make

    return make(flag("write_out", "simple"), bool(flag("hex")))
