"""get, put, del, compaction: etcdctl's arguments and flags over the native protocol.

The `..._body` functions turn parsed flags into a request's bytes; `txn` uses them for the lines of
a transaction.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click

from kvnode.base.codes import Kind
from kvnode.cli import session
from kvnode.cli.fault import EXIT_ARGS, EXIT_FEATURE, Fault
from kvnode.cli.main import client_options
from kvnode.client import messages

_PHYSICAL_SECONDS = 300.0
_TOO_MANY = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set"
_BOTH = "`--prefix` and `--from-key` cannot be set at the same time, choose one"
_PUT_USAGE = "put command needs 1 argument and input from stdin or 2 arguments"
_INT64_MAX = (1 << 63) - 1


class _Int64(click.ParamType):
    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            self.fail(f'"{value}" is not an integer', param, ctx)
        if not -_INT64_MAX - 1 <= number <= _INT64_MAX:
            self.fail(f"{value} does not fit 64 bits", param, ctx)
        return number


def _number(name: str, text: str) -> Any:
    return click.option(name, type=_Int64(), default=0, metavar="INT", help=text)


# --- get ------------------------------------------------------------------------------------------


@click.command()
@click.argument("arguments", nargs=-1, metavar="KEY [RANGE_END]")
@click.option("--consistency", default="l", help="Linearizable (l) or serializable (s)  [l]")
@click.option("--count-only", is_flag=True, help="Get only the count")
@click.option("--from-key", is_flag=True, help="Get keys greater than or equal to the given key")
@click.option("--keys-only", is_flag=True, help="Get only the keys")
@_number("--limit", "Maximum number of results")
@_number("--max-create-rev", "Maximum create revision")
@_number("--max-mod-rev", "Maximum modification revision")
@_number("--min-create-rev", "Minimum create revision")
@_number("--min-mod-rev", "Minimum modification revision")
@click.option("--order", default="", help="Order of results: ASCEND or DESCEND")
@click.option("--prefix", is_flag=True, help="Get keys with matching prefix")
@click.option("--print-value-only", is_flag=True, help="Only write values (with -w simple)")
@_number("--rev", "Specify the kv revision")
@click.option("--sort-by", default="", help="CREATE, KEY, MODIFY, VALUE, or VERSION")
@client_options
def get(**params: Any) -> None:
    """Gets the key or a range of keys.

    \b
    kvnode get greeting
    kvnode get --prefix /registry/ --keys-only --limit 10
    kvnode get greeting --rev 42 -w json
    """
    body = get_body(**params)
    show = session.printer()
    if params["print_value_only"]:
        from kvnode.cli.output import Json, Simple

        if isinstance(show, Json):
            raise Fault("print-value-only is only for `--write-out=simple`", EXIT_ARGS)
        show = Simple(bool(session.flag("hex")), value_only=True)
    response = _call(Kind.RANGE, body, writes=False)
    show.count(response) if params["count_only"] else show.get(response)


def get_body(arguments: tuple[str, ...], **params: Any) -> bytes:
    """RangeRequest of `get`'s flags; Fault with etcdctl's text and status."""
    if not arguments:
        raise Fault(
            "get command needs one argument as key and an optional argument as range_end",
            EXIT_ARGS,
            'kvnode get KEY, or kvnode get --prefix "" for all keys',
        )
    if params["keys_only"] and params["count_only"]:
        raise Fault("`--keys-only` and `--count-only` cannot be set at the same time, choose one",
                    EXIT_ARGS)  # fmt: skip
    if params["consistency"] not in ("l", "s"):
        raise Fault(f'unknown consistency flag "{params["consistency"]}"', EXIT_FEATURE,
                    "use l (linearizable) or s (serializable)")  # fmt: skip
    order, target = params["order"].upper() or "NONE", params["sort_by"].upper() or "KEY"
    if order not in ("NONE", "ASCEND", "DESCEND"):
        raise Fault(f"bad sort order {params['order']}", EXIT_FEATURE, "use ASCEND or DESCEND")
    if target not in messages.SORT_TARGETS:
        raise Fault(f"bad sort target {params['sort_by']}", EXIT_FEATURE,
                    "use CREATE, KEY, MODIFY, VALUE or VERSION")  # fmt: skip
    for what in ("create", "mod"):
        low, high = params[f"min_{what}_rev"], params[f"max_{what}_rev"]
        if 0 < high < low:
            raise Fault(f"--min-{what}-rev {low} is greater than --max-{what}-rev {high}",
                        EXIT_FEATURE)  # fmt: skip
    key, end = _range_of(arguments, params["prefix"], params["from_key"])
    if target == "KEY" and order == "ASCEND":
        order = "NONE"
    return messages.range_request(
        key,
        end,
        limit=params["limit"],
        revision=max(0, params["rev"]),
        sort_order=order,
        sort_target=target,
        serializable=params["consistency"] == "s",
        keys_only=params["keys_only"],
        count_only=params["count_only"],
        min_mod_revision=max(0, params["min_mod_rev"]),
        max_mod_revision=max(0, params["max_mod_rev"]),
        min_create_revision=max(0, params["min_create_rev"]),
        max_create_revision=max(0, params["max_create_rev"]),
    )


# --- put ------------------------------------------------------------------------------------------


@click.command()
@click.argument("arguments", nargs=-1, metavar="KEY [VALUE]")
@click.option("--ignore-lease", is_flag=True, help="Update the key using its current lease")
@click.option("--ignore-value", is_flag=True, help="Update the key using its current value")
@click.option("--lease", default="0", help="Lease ID (in hexadecimal) to attach to the key")
@click.option("--prev-kv", is_flag=True, help="Return the previous pair")
@client_options
def put(**params: Any) -> None:
    """Puts the given key into the store. Without VALUE it is read from standard input.

    \b
    kvnode put greeting hello
    kvnode put config/app.yaml < app.yaml
    kvnode put -- -key -value            a key or value that begins with -
    """
    stdin = None
    if len(params["arguments"]) == 1 and not params["ignore_value"]:
        stdin = sys.stdin.buffer.read()
    body = put_body(stdin=stdin, **params)
    show = session.printer()
    show.put(_call(Kind.PUT, body, writes=True))


def put_body(arguments: tuple[str, ...], stdin: bytes | None = None, **params: Any) -> bytes:
    """PutRequest of `put`'s flags; `stdin` is the value if the arguments have none."""
    if not 1 <= len(arguments) <= 2:
        raise Fault(_PUT_USAGE, EXIT_ARGS, "kvnode put KEY VALUE, or kvnode put KEY < FILE")
    if params["ignore_value"] and len(arguments) > 1:
        raise Fault("put command needs only 1 argument when 'ignore-value' is set", EXIT_ARGS)
    value = b""
    if len(arguments) > 1:
        value = os.fsencode(arguments[1])
    elif not params["ignore_value"]:
        if not stdin:
            raise Fault(_PUT_USAGE, EXIT_ARGS, 'an empty value is written as kvnode put KEY ""')
        value = stdin
    try:
        lease = int(params["lease"], 16)
        if not -_INT64_MAX - 1 <= lease <= _INT64_MAX:
            raise ValueError
    except ValueError:
        raise Fault(f'bad lease ID "{params["lease"]}", expecting ID in Hex', EXIT_ARGS) from None
    return messages.put_request(
        os.fsencode(arguments[0]),
        value,
        lease=lease,
        prev_kv=params["prev_kv"],
        ignore_value=params["ignore_value"],
        ignore_lease=params["ignore_lease"],
    )


# --- del ------------------------------------------------------------------------------------------


@click.command(name="del")
@click.argument("arguments", nargs=-1, metavar="KEY [RANGE_END]")
@click.option("--from-key", is_flag=True, help="Delete keys greater than or equal to the given key")
@click.option("--prefix", is_flag=True, help="Delete keys with matching prefix")
@click.option("--prev-kv", is_flag=True, help="Return deleted pairs")
@click.option("--range", "delete_range", is_flag=True, help="Delete a range without the delay")
@client_options
def delete(**params: Any) -> None:
    """Removes the specified key or range of keys [key, range_end).

    \b
    kvnode del greeting
    kvnode del --prefix /tmp/ --prev-kv
    kvnode del a f --range
    """
    body = del_body(**params)
    show = session.printer()
    arguments = params["arguments"]
    if len(arguments) == 2 and not params["delete_range"]:
        click.echo(
            f'Warning: Keys between "{arguments[0]}" and "{arguments[1]}" will be deleted. Please '
            f"interrupt the command within next 2 seconds to cancel. You can provide `--range` "
            f"flag to avoid the delay.",
            err=True,
        )
        time.sleep(2)
    show.delete(_call(Kind.DELETE_RANGE, body, writes=True))


def del_body(arguments: tuple[str, ...], **params: Any) -> bytes:
    """DeleteRangeRequest of `del`'s flags."""
    if not 1 <= len(arguments) <= 2:
        raise Fault(
            "del command needs one argument as key and an optional argument as range_end",
            EXIT_ARGS,
            "kvnode del KEY, or kvnode del --prefix PREFIX",
        )
    key, end = _range_of(arguments, params["prefix"], params["from_key"])
    return messages.delete_range_request(key, end, prev_kv=params["prev_kv"])


# --- compaction -----------------------------------------------------------------------------------


@click.command()
@click.argument("arguments", nargs=-1, metavar="REVISION")
@click.option("--physical", is_flag=True, help="Wait until the space is free")
@client_options
def compaction(arguments: tuple[str, ...], physical: bool) -> None:
    """Forgets all versions that were superseded before REVISION.

    \b
    kvnode compaction 1000
    """
    if len(arguments) != 1:
        raise Fault("compaction command needs 1 argument", EXIT_ARGS, "kvnode compaction REVISION")
    try:
        revision = int(arguments[0])
        if abs(revision) > _INT64_MAX:
            raise ValueError
    except ValueError:
        raise Fault(f'revision "{arguments[0]}" is not a number') from None
    session.printer()
    body = messages.compaction_request(revision, physical=physical)
    _call(Kind.COMPACT, body, writes=True,
          seconds=session.timeout(_PHYSICAL_SECONDS) if physical else None)  # fmt: skip
    click.echo(f"compacted revision {revision}")


# --- shared ---------------------------------------------------------------------------------------


def _range_of(arguments: tuple[str, ...], prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """(key, range_end) as etcdctl understands its arguments."""
    if prefix and from_key:
        raise Fault(_BOTH, EXIT_ARGS)
    if len(arguments) > 2:
        raise Fault("too many arguments: KEY [RANGE_END]", EXIT_ARGS)
    key = os.fsencode(arguments[0])
    if len(arguments) > 1:
        if prefix or from_key:
            raise Fault(_TOO_MANY, EXIT_ARGS)
        return key, os.fsencode(arguments[1])
    if prefix and key:
        return key, messages.prefix_end(key)
    if prefix or from_key:
        return key or b"\0", b"\0"
    return key, b""


def _call(kind: Kind, body: bytes, *, writes: bool, seconds: float | None = None) -> Any:
    from kvnode.client.sync import decode

    with session.connect(writes=writes, seconds=seconds) as client:
        return decode(kind, client.call(kind, body))
