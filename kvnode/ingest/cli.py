"""`kvnode import`: arguments to a job, a job to an exit status.

Caller: kvnode/cli/main, which imports this module when the command is asked for, and which has the
global flags in the context's object. Flags of the client are taken here too, after the command.

    0 done, or was done already   1 refused, no answer, sources changed, taken over
    3 a bad record (--on-error fail), or records were rejected (--on-error skip)
    5 interrupted   6 a file can't be read   In each of the last five the same command resumes.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from kvnode.base.limits import REQUEST_BYTES_CEILING, REQUEST_BYTES_DEFAULT
from kvnode.base.ports import DEFAULT_ENDPOINT

EXIT_BAD_RECORD = 3
EXIT_INTERRUPTED = 5
_CALL_SECONDS = 30.0
_BATCH_RECORDS_MAX = 100_000


@click.command("import")
@click.argument("paths", nargs=-1, metavar="[PATH|-]...")
@click.option("--format", "forced", type=click.Choice(["jsonl", "yaml", "json"]),
              help="Format of all sources  [by the name's ending; standard input: jsonl]")
@click.option("--prefix", default="", metavar="TEXT", help="Goes in front of every key")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail",
              help="At a bad record: stop, or write it to --rejects and go on  [fail]")
@click.option("--rejects", "rejects_path", default="rejects.jsonl", metavar="FILE",
              help="Where --on-error skip writes bad records  [rejects.jsonl]")
@click.option("--job-id", metavar="ID", help="Name of the job  [made from the sources]")
@click.option("--restart", is_flag=True, help="Forget the job's checkpoint and begin anew")
@click.option("--batch-size", type=click.IntRange(1, _BATCH_RECORDS_MAX), default=4000,
              metavar="N", help="Records of a batch, at most; 1 MiB too  [4000]")
@click.option("--in-flight", type=click.IntRange(1, 256), default=8, metavar="N",
              help="Batches that may be unanswered  [8]")
@click.option("--max-record-bytes", type=click.IntRange(1, REQUEST_BYTES_CEILING),
              default=REQUEST_BYTES_DEFAULT, metavar="BYTES",
              help="Bytes of key and value together  [1572864]")
@click.option("--progress/--no-progress", default=None, help="Draw a bar  [on a terminal]")
@click.option("--endpoints", metavar="TCP-URLS", help="Native endpoints, separated by commas")
@click.option("--token", metavar="TOKEN", help="Token handed to the node")
@click.option("--command-timeout", metavar="DURATION",
              help="How long to wait for an answer before giving up  [30s]")
def import_command(paths: tuple[str, ...], **options: Any) -> int:
    """Imports JSONL or Kubernetes manifests in batches, from files, folders or standard input (-).

    JSONL has one record a line: {"key": ..., "value": ...} or {"key": ..., "value_b64": ...}.
    Manifests are stored as JSON at /registry/RESOURCE/NAMESPACE/NAME.

    \b
    kvnode import records.jsonl
    kvnode import manifests/ --on-error skip
    zcat dump.gz | kvnode import - --job-id dump-7

    An import that was killed, or failed, goes on where it stopped when the same command runs
    again: nothing is left out and nothing is written twice. Standard input needs --job-id for it.

    \b
    Exit status: 0 done; 1 refused, no answer, or the sources changed; 3 bad records;
    5 interrupted; 6 a file can't be read.
    """
    from kvnode.ingest.records import BadRecord

    try:
        return _import(paths, options)
    except KeyboardInterrupt:
        click.echo("Error: interrupted; the same command resumes the import", err=True)
        return EXIT_INTERRUPTED
    except BadRecord as error:
        click.echo(f"Error: {error}", err=True)
        click.echo("Hint: nothing after it was sent; mend it, or use --on-error skip", err=True)
        return EXIT_BAD_RECORD
    except Exception as error:
        from kvnode.ingest.records import IngestError

        if not isinstance(error, IngestError):
            raise
        click.echo(f"Error: {error}", err=True)
        return error.status


def _import(paths: tuple[str, ...], options: dict[str, Any]) -> int:
    from kvnode.ingest.job import Fenced, Job
    from kvnode.ingest.progress import Bar, summary_line
    from kvnode.ingest.records import Limits
    from kvnode.ingest.run import Importer, Rejects
    from kvnode.ingest.sources import Reader, digest, find_sources

    found = find_sources(paths, options["forced"])
    if found.left_out:
        names = ", ".join(found.left_out[:3]) + (", ..." if len(found.left_out) > 3 else "")
        click.echo(f"Note: {len(found.left_out)} left out (hidden, or no known ending): {names}",
                   err=True)  # fmt: skip
    prefix, skip_bad = options["prefix"], options["on_error"] == "skip"
    limits = Limits(options["max_record_bytes"], os.fsencode(prefix))
    identity, content = digest(found.sources, prefix)
    seconds = _seconds()
    with Fenced(_flag("endpoints", "KVNODE_ENDPOINTS", DEFAULT_ENDPOINT), seconds,
                _flag("token", "KVNODE_TOKEN", "")) as client:  # fmt: skip
        lasting = bool(options["job_id"]) or found.bytes_total is not None
        job = Job(client, options["job_id"] or identity, content, options["in_flight"], lasting)
        state = job.begin(options["restart"])
        if state.done:
            click.echo(f"job {job.name} is done already: {state.below:,} records; "
                       "--restart imports them again")  # fmt: skip
            return 0
        reader = Reader(found.sources, options["batch_size"], limits, skip_bad)
        rejects = Rejects(options["rejects_path"], job.name, state.resumed) if skip_bad else None
        with Bar(reader, found.bytes_total, options["progress"]) as bar:
            importer = Importer(client, job, reader, state, rejects, options["batch_size"],
                                patience_seconds=max(seconds, 1.0), on_progress=bar.update)
            summary = importer.run()
        click.echo(summary_line(summary, job.name))
        sys.stdout.flush()
        if rejects is not None:
            rejects.close()
        if summary.rejected:
            click.echo(f"Note: {summary.rejected:,} bad records are in {rejects and rejects.path}",
                       err=True)  # fmt: skip
            return EXIT_BAD_RECORD
    return 0


def _flag(name: str, variable: str, default: str) -> str:
    """A flag after the command, before it, its variable, or the default."""
    context = click.get_current_context()
    value = context.params.get(name) or (context.find_object(dict) or {}).get(name)
    return value or os.environ.get(variable) or default


def _seconds() -> float:
    from kvnode.base.config import parse_duration

    text = _flag("command_timeout", "", "")
    if not text:
        return _CALL_SECONDS
    try:
        return float(parse_duration(text))
    except ValueError as error:
        raise click.UsageError(f'--command-timeout "{text}": {error}') from None
