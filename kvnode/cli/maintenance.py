"""status, defrag, verify, wal: a look at nodes, and into the files of a stopped one."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from kvnode.base.errors import KvnodeError
from kvnode.cli import session
from kvnode.cli.fault import EXIT_ARGS, EXIT_ERROR, Fault, hint_for
from kvnode.cli.main import client_options

_DEFRAG_SECONDS = 600.0
_FINDINGS_SHOWN = 20


@click.command()
@client_options
def status() -> int:
    """Prints the status of each endpoint, as `etcdctl endpoint status`.

    \b
    endpoint, member id, version, storage version, size, in use, not in use, quota,
    is leader, is learner, raft term, raft index, applied index, errors, downgrade
    """
    show = session.printer()
    rows: list[tuple[str, Any]] = []
    failed = False
    for endpoint in session.endpoints():
        try:
            with session.connect(writes=False, only=endpoint) as client:
                rows.append((endpoint, client.status()))
        except KvnodeError as error:
            failed = True
            _complain(f"Failed to get the status of endpoint {endpoint} ({error})", error)
    show.status(rows)
    return EXIT_ERROR if failed else 0


@click.command()
@client_options
def defrag() -> int:
    """Builds a new storage generation on each endpoint's member, while writers go on."""
    from kvnode.cli.output import duration

    session.printer()
    failed = False
    for endpoint in session.endpoints():
        began = time.monotonic()
        try:
            seconds = session.timeout(_DEFRAG_SECONDS)
            with session.connect(writes=False, only=endpoint, seconds=seconds) as client:
                client.defragment()
        except KvnodeError as error:
            failed = True
            took = duration(time.monotonic() - began)
            text = f"Failed to defragment kvnode member[{endpoint}]. took {took}. ({error})"
            _complain(text, error)
            continue
        took = duration(time.monotonic() - began)
        click.echo(f"Finished defragmenting kvnode member[{endpoint}]. took {took}")
    return EXIT_ERROR if failed else 0


def _complain(text: str, error: Exception) -> None:
    click.echo(text, err=True)
    if hint := hint_for(error):
        click.echo(f"Hint: {hint}", err=True)


# --- offline --------------------------------------------------------------------------------------


@click.command()
@click.argument("data_dir", metavar="DATA-DIR")
def verify(data_dir: str) -> int:
    """Checks the log and the storage of a stopped node; exit status 1 if something is damaged.

    After a crash the storage is first rolled back to its checkpoint, as the next start would do.
    """
    root = _existing(data_dir)
    state = root / "member" / "state"
    folder = _wal_folder(root)
    if not state.is_dir():
        raise Fault(f"{state} is missing: is {root} a kvnode data directory?", EXIT_ARGS)
    sound = _verify_state(state)
    return 0 if _verify_wal(folder) and sound else EXIT_ERROR


def _verify_state(state: Path) -> bool:
    from kvnode.base.errors import CorruptionError
    from kvnode.env.scrub import verify as verify_state

    try:
        report = verify_state(state)
    except CorruptionError as error:
        click.echo(f"state: damaged: {error}", err=True)
        return False
    if not report.ok:
        click.echo(f"state: damaged: {len(report.findings)} findings", err=True)
        for finding in report.findings[:_FINDINGS_SHOWN]:
            click.echo(f"       {finding}", err=True)
        return False
    totals = report.totals
    click.echo(
        f"state: sound: generation {report.generation}, applied index {report.index}, "
        f"{totals.keys} keys ({totals.deleted_keys} deleted), {totals.records} records, "
        f"{report.used_bytes} bytes"
        + (", rolled back to its checkpoint" if report.rolled_back else "")
    )
    return True


def _verify_wal(folder: Path) -> bool:
    from kvnode.env.disk import RealDisk
    from kvnode.wal import tools

    disk = RealDisk()
    try:
        report = tools.verify(disk, str(folder), _checkpointed(folder))
    finally:
        disk.shutdown()
    click.echo(f"wal:   {report.text()}", err=not report.ok)
    return report.ok


def _checkpointed(folder: Path) -> int:
    """The index up to which the storage beside a log holds everything: the log may begin there."""
    from kvnode.base.errors import CorruptionError
    from kvnode.env.checkpoint import read_checkpoint
    from kvnode.env.store import current_generation, folder_of

    state = folder.parent / "state"
    try:
        generation = current_generation(state)
        saved = None if generation is None else read_checkpoint(folder_of(state, generation))
    except (CorruptionError, OSError):
        return 0
    return 0 if saved is None else saved.index


@click.group()
def wal() -> None:
    """Reads the log of a stopped node. DIR is its data directory or the wal folder in it."""


@wal.command(name="dump")
@click.argument("directory", metavar="DIR")
@client_options
def wal_dump(directory: str) -> int:
    """Prints one line a record; exit status 1 if some are damaged."""
    from kvnode.env.disk import RealDisk
    from kvnode.wal import tools

    as_json = session.flag("write_out", "simple") == "json"
    session.printer()
    disk = RealDisk()
    try:
        damaged = tools.dump(disk, str(_wal_folder(_existing(directory))), sys.stdout, as_json)
    finally:
        disk.shutdown()
    if damaged:
        raise Fault(f"{damaged} damaged places", hint="restore the files from a copy or a backup")
    return 0


@wal.command(name="verify")
@click.argument("directory", metavar="DIR")
def wal_verify(directory: str) -> int:
    """Checks every record and the order of the segments; exit status 1 if one is damaged."""
    return 0 if _verify_wal(_wal_folder(_existing(directory))) else EXIT_ERROR


def _existing(directory: str) -> Path:
    path = Path(directory)
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise Fault(f"{directory} {what}", EXIT_ARGS, "name the data directory of a node")
    return path


def _wal_folder(root: Path) -> Path:
    folder = root / "member" / "wal"
    if folder.is_dir():
        return folder
    if any(root.glob("*.seg*")) or any(root.glob("*.wal")) or root.name == "wal":
        return root
    raise Fault(f"{folder} is missing: is {root} a kvnode data directory?", EXIT_ARGS)
