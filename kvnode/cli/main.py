"""The `kvnode` command: groups, global flags, and what a failure looks like.

Role: finds the command and imports only its module, so that `kvnode --help` and `kvnode get` start
fast. Callers: the console script; `python -m kvnode`.

Without a command it serves, with the flags of `serve`, as `etcd` does: `kvnode --data-dir x`.

Names, flags, output and exit statuses are etcdctl's where it has the command. Data goes to
standard output and nothing else does; errors say what, why and what to do next, on standard error.

    0 done   1 refused or no answer   3 bad txn input   4 unsupported value of a flag
    5 interrupted   6 input or output failed   128 wrong arguments
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from kvnode.base.errors import CallerError, DiskError, KvnodeError, RequestError
from kvnode.cli.fault import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_IO, Fault, hint_for

# name: (group, module, attribute, one line)
_COMMANDS = {
    "get": ("Key-value", "kv", "get", "Gets the key or a range of keys"),
    "put": ("Key-value", "kv", "put", "Puts the given key into the store"),
    "del": ("Key-value", "kv", "delete",
            "Removes the specified key or range of keys [key, range_end)"),
    "txn": ("Key-value", "txn", "txn", "Processes all the requests in one transaction"),
    "compaction": ("Key-value", "kv", "compaction", "Compacts the event history"),
    "lease": ("Lease", "lease", "lease", "Grants, revokes, lists and keeps leases"),
    "import": ("Key-value", "kvnode.ingest.cli", "import_command",
               "Imports JSONL or Kubernetes manifests in batches"),
    "serve": ("Node", "node", "serve", "Runs a node in the foreground"),
    "config": ("Node", "node", "config", "Shows the configuration of a node"),
    "status": ("Maintenance", "maintenance", "status", "Prints the status of each endpoint"),
    "defrag": ("Maintenance", "maintenance", "defrag", "Defragments the storage of the members"),
    "verify": ("Maintenance", "maintenance", "verify", "Checks a data directory offline"),
    "wal": ("Maintenance", "maintenance", "wal", "Reads and checks the log of a stopped node"),
    "version": ("Utility", "node", "version", "Prints the version of kvnode"),
}  # fmt: skip
_ETCDCTLS = frozenset({"watch", "member", "endpoint", "alarm", "lock", "elect", "check"})
"""Commands of etcdctl's that have no twin here and that the client port serves."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            if cmd_name in _ETCDCTLS:
                hint = f"etcdctl has it: `etcdctl {cmd_name}`, through the client port (2379)"
                raise Fault(f"No such command '{cmd_name}'.", hint=hint)
            return None
        _, module, attribute, _ = _COMMANDS[cmd_name]
        path = module if "." in module else f"kvnode.cli.{module}"
        try:
            command = getattr(import_module(path), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise
            raise Fault(f"`{cmd_name}` is not part of this build of kvnode") from None
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, (group, _, _, line) in _COMMANDS.items():
            groups.setdefault(group, []).append((name, line))
        for group, rows in groups.items():
            with formatter.section(f"{group} commands"):
                formatter.write_dl(rows)


def client_options(command: Any) -> Any:
    """The global flags, taken before and after the command's name; the later one wins."""
    for option in reversed(
        (
            click.option("--endpoints", metavar="TCP-URLS", expose_value=False, callback=_keep,
                         help="Native endpoints, separated by commas  [KVNODE_ENDPOINTS; "
                         "tcp://127.0.0.1:2382]"),
            click.option("-w", "--write-out", metavar="FORMAT", expose_value=False,
                         callback=_keep, help="Output format: simple or json  [simple]"),
            click.option("--hex", is_flag=True, default=None, expose_value=False, callback=_keep,
                         help="Print byte strings as hex encoded strings"),
            click.option("--command-timeout", metavar="DURATION", expose_value=False,
                         callback=_keep, help="Time for the command, retries included  [5s]"),
            click.option("--token", metavar="TOKEN", expose_value=False, callback=_keep,
                         help="Token handed to the node  [KVNODE_TOKEN]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _keep(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
    if value is not None:
        assert option.name is not None
        if option.name == "write_out":
            value = value.removeprefix("=")  # -w=json, as etcdctl takes it
        ctx.ensure_object(dict)[option.name] = value
    return value


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="COMMAND [ARGS]...",
)
@client_options
def cli() -> None:
    """kvnode: a replicated key-value store for the configuration of other systems.

    \b
    kvnode                            run a node on this machine; all flags: kvnode serve --help
    kvnode put greeting hello         write a key
    kvnode get --prefix ""            read all keys
    """


def with_command(arguments: Sequence[str]) -> list[str]:
    """The command line with its command: what begins with a flag of a node's, or is empty, is
    `serve`, and --version is `version --all`."""
    first = arguments[0].partition("=")[0] if arguments else ""
    if first in ("--version", "-version"):
        return ["version", "--all", *arguments[1:]]
    words = {word for option in cli.params for word in option.opts}
    words |= {"-h", "-help", "--help", "-wjson", "-wsimple"}
    if arguments and (not first.startswith("-") or first in words):
        return list(arguments)
    return ["serve", *arguments]


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; returns the exit status. A user's fault never ends in a traceback."""
    try:
        status = cli.main(with_command(arguments), prog_name="kvnode", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        usage = error.ctx.command_path if error.ctx else "kvnode"
        return _fail(error.format_message(), f"Run `{usage} --help` for usage.", EXIT_ERROR)
    except Fault as error:
        return _fail(str(error), error.hint, error.status)
    except RequestError as error:
        return _fail(str(error), hint_for(error), EXIT_ERROR)
    except (CallerError, DiskError, KvnodeError) as error:
        return _fail(str(error), hint_for(error), EXIT_ERROR)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", "", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_IO
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(what, "", EXIT_IO)


def _fail(what: str, hint: str, status: int) -> int:
    click.echo(f"Error: {what}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    return status


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
