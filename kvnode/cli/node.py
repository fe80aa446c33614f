"""serve, config show, version: the commands that are about a node on this machine.

Flags of `serve` are the configuration's own table (base/config), read as Go reads etcd's.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from kvnode import __version__
from kvnode.base.versions import API_VERSION, ETCD_VERSION
from kvnode.cli.fault import EXIT_FEATURE, Fault

_HELP_WORDS = ("-h", "-help", "--help")


class RawCommand(click.Command):
    """A command that reads its own flags."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any(word in _HELP_WORDS for word in args):
            click.echo(self.get_help(ctx))
            ctx.exit()
        ctx.params = {"arguments": list(args)}
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from kvnode.base.configload import flags_help

        formatter.write("\n" + flags_help() + "\n")


@click.command(cls=RawCommand, options_metavar="[--FLAG=VALUE]...")
def serve(arguments: list[str]) -> int:
    """Runs a node in the foreground, until SIGTERM or Ctrl-C.

    Flags win over KVNODE_* variables, these over ETCD_* variables, these over the file of
    --config-file, this over the defaults.

    \b
    kvnode serve
    kvnode serve --name n1 --data-dir /var/lib/kvnode --listen-client-urls http://10.0.0.1:2379
    """
    loaded = _load(arguments)
    from kvnode.procs.supervisor import run

    return int(run(loaded.config, loaded.warnings))


@click.group()
def config() -> None:
    """Shows what a node would be started with."""


@config.command(cls=RawCommand, name="show", options_metavar="[--origin] [-w json] [SERVE-FLAGS]")
def show(arguments: list[str]) -> None:
    """Prints each value of the configuration; with --origin also where it came from.

    Takes the flags of `serve`.
    """
    origin, as_json, rest = _split(arguments)
    loaded = _load(rest)
    _warn(loaded)
    if as_json:
        import json

        from kvnode.base.config import config_to_json

        values = config_to_json(loaded.config)
        out: dict[str, Any] = {}
        for name, where in loaded.origin.items():
            value = values[name.replace("-", "_")]
            out[name] = {"value": value, "origin": where} if origin else value
        click.echo(json.dumps(out, indent=2))
        return
    for name, value, where in loaded.rows():
        click.echo(f"{name} = {value}" + (f"    # {where}" if origin else ""))


def _split(arguments: list[str]) -> tuple[bool, bool, list[str]]:
    """(--origin, -w json, the flags of serve)."""
    origin = as_json = False
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if name in ("--origin", "-origin"):
            origin = True
        elif name in ("-w", "--write-out"):
            value = value or next(words, "")
            if value not in ("json", "simple"):
                raise Fault("unsupported output format", EXIT_FEATURE, "use -w simple or -w json")
            as_json = value == "json"
        else:
            rest.append(word)
    return origin, as_json, rest


def _load(arguments: list[str]) -> Any:
    from kvnode.base.configload import load_config
    from kvnode.base.errors import ConfigError

    try:
        return load_config(arguments, os.environ)
    except ConfigError as error:
        raise Fault(str(error), hint="`kvnode serve --help` lists all flags; "
                    "`kvnode config show --origin` where values come from") from None  # fmt: skip


def _warn(loaded: Any) -> None:
    for text in loaded.warnings:
        click.echo(f"Warning: {text}", file=sys.stderr)


@click.command()
@click.option("--all", "whole", is_flag=True, help="As `kvnode --version`")
def version(whole: bool) -> None:
    """Prints the version of kvnode and of the etcd API it speaks."""
    if not whole:
        click.echo(f"kvnode version: {__version__}\nAPI version: {API_VERSION}")
        return
    import platform

    click.echo(
        f"kvnode Version: {__version__}\n"
        f"etcd Version: {ETCD_VERSION}\n"
        f"API Version: {API_VERSION}\n"
        f"Python Version: {platform.python_version()}\n"
        f"OS/Arch: {platform.system().lower()}/{platform.machine()}"
    )
