"""lease grant, revoke, timetolive, list, keep-alive: etcdctl's commands, words and exit statuses.

Lease ids are hexadecimal, as etcdctl prints and takes them.
"""

from __future__ import annotations

import json
import time
from typing import Any

import click

from kvnode.base.codes import Code
from kvnode.base.errors import RequestError
from kvnode.cli import session
from kvnode.cli.fault import EXIT_ARGS, EXIT_ERROR, Fault
from kvnode.cli.main import client_options

_EXIT_CONNECTION = 2
_INT64_MAX = (1 << 63) - 1
_RENEWALS = 3        # keep-alives in a TTL


@click.group()
def lease() -> None:
    """Lease related commands."""


@lease.command()
@click.argument("arguments", nargs=-1, metavar="TTL")
@client_options
def grant(arguments: tuple[str, ...]) -> None:
    """Creates a lease of TTL seconds and prints its id."""
    if len(arguments) != 1:
        raise Fault("lease grant command needs TTL argument", EXIT_ARGS, "kvnode lease grant 60")
    try:
        ttl = int(arguments[0])
    except ValueError:
        raise Fault(f'bad TTL "{arguments[0]}"', EXIT_ARGS, "seconds, as in 60") from None
    if not -_INT64_MAX - 1 <= ttl <= _INT64_MAX:
        raise Fault(f'bad TTL "{arguments[0]}"', EXIT_ARGS, "it does not fit 64 bits")
    with session.connect(writes=True) as client:
        made = _call("failed to grant lease", client.grant, ttl)
    text = f"lease {_hex(made.ID)} granted with TTL({made.TTL}s)"
    _show(text, made, {"ID": made.ID, "TTL": made.TTL, "Error": made.error})


@lease.command()
@click.argument("arguments", nargs=-1, metavar="LEASE")
@client_options
def revoke(arguments: tuple[str, ...]) -> None:
    """Revokes a lease and deletes the keys attached to it."""
    if len(arguments) != 1:
        raise Fault("lease revoke command needs 1 argument", EXIT_ARGS)
    number = _lease_id(arguments[0])
    with session.connect(writes=True) as client:
        done = _call("failed to revoke lease", client.revoke, number)
    if _json():
        click.echo(json.dumps({"header": _header(done)}, separators=(",", ":")))
    else:
        click.echo(f"lease {_hex(number)} revoked")


@lease.command()
@click.argument("arguments", nargs=-1, metavar="LEASE")
@click.option("--keys", is_flag=True, help="Get keys attached to this lease")
@client_options
def timetolive(arguments: tuple[str, ...], keys: bool) -> None:
    """Prints the granted and the remaining time of a lease."""
    if len(arguments) != 1:
        raise Fault("lease timetolive command needs lease ID as argument", EXIT_ARGS)
    with session.connect(writes=False) as client:
        found = _call("", client.time_to_live, _lease_id(arguments[0]), keys=keys)
    if found.grantedTTL == 0 and found.TTL == -1:
        text = f"lease {_hex(found.ID)} already expired"
    else:
        text = (f"lease {_hex(found.ID)} granted with TTL({found.grantedTTL}s), "
                f"remaining({found.TTL}s)")
        if keys:
            shown = b" ".join(found.keys).decode("utf-8", "surrogateescape")
            text += f", attached keys([{shown}])"
    _show(text, found, {
        "id": found.ID, "ttl": found.TTL, "granted-ttl": found.grantedTTL,
        "keys": [_base64(key) for key in found.keys] or None,
    })


@lease.command(name="list")
@client_options
def list_command() -> None:
    """Lists all leases, those that end first before the others."""
    with session.connect(writes=False) as client:
        found = _call("", client.leases)
    lines = [f"found {len(found.leases)} leases", *(_hex(one.ID) for one in found.leases)]
    _show("\n".join(lines), found, {"leases": [{"id": one.ID} for one in found.leases]})


@lease.command(name="keep-alive")
@click.argument("arguments", nargs=-1, metavar="LEASE")
@click.option("--once", is_flag=True, help="Give the lease its whole time once and exit")
@client_options
def keep_alive(arguments: tuple[str, ...], once: bool) -> None:
    """Keeps a lease alive until it is revoked."""
    if len(arguments) != 1:
        raise Fault("lease keep-alive command needs lease ID as argument", EXIT_ARGS)
    number = _lease_id(arguments[0])
    with session.connect(writes=False) as client:
        while True:
            kept = _call("", client.keep_alive, number)
            if kept.TTL <= 0:
                break
            _show(f"lease {_hex(kept.ID)} keepalived with TTL({kept.TTL})", kept,
                  {"ID": kept.ID, "TTL": kept.TTL})
            if once:
                return
            time.sleep(kept.TTL / _RENEWALS)
    if once:
        raise Fault(str(RequestError(Code.LEASE_NOT_FOUND)), _EXIT_CONNECTION)
    if not _json():
        click.echo(f"lease {_hex(number)} expired or revoked.")


# --- words ----------------------------------------------------------------------------------------


def _call(what: str, method: Any, *values: Any, **options: Any) -> Any:
    """The answer; a refusal in etcdctl's words."""
    try:
        return method(*values, **options)
    except RequestError as error:
        text = f"{what} ({error})" if what else str(error)
        raise Fault(text, EXIT_ERROR if what else _EXIT_CONNECTION) from None


def _lease_id(text: str) -> int:
    try:
        number = int(text, 16)
        if not -_INT64_MAX - 1 <= number <= _INT64_MAX:
            raise ValueError
    except ValueError:
        raise Fault(f'bad lease ID "{text}", expecting ID in Hex', EXIT_ARGS) from None
    return number


def _hex(number: int) -> str:
    """As Go's %016x: a minus sign counts as one of the sixteen."""
    return f"{number:016x}"


def _json() -> bool:
    session.printer()
    return bool(session.flag("write_out", "simple") == "json")


def _show(text: str, message: Any, fields: dict[str, Any]) -> None:
    if _json():
        whole = _header(message) | fields
        click.echo(json.dumps(whole, separators=(",", ":"), ensure_ascii=False))
    else:
        click.echo(text.encode("utf-8", "surrogateescape"))


def _header(message: Any) -> dict[str, Any]:
    names = ("cluster_id", "member_id", "revision", "raft_term")
    return {name: value for name in names if (value := getattr(message.header, name))}


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()
