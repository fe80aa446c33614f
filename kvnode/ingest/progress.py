"""What a person sees of an import: a bar on a terminal, one line at the end.

Caller: cli. rich is imported only when there is a terminal to draw on.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from kvnode.ingest.run import Summary
from kvnode.ingest.sources import Reader

_DRAW_SECONDS = 0.1
_MIB = 1 << 20


class Bar:
    """A bar on standard error, if that is a terminal; a context manager."""

    def __init__(self, reader: Reader, bytes_total: int | None, wanted: bool | None) -> None:
        self._reader = reader
        self._total = bytes_total
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._bar: Any = None
        self._drawn_at = 0.0

    def __enter__(self) -> Bar:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("import"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[text]}"), TimeRemainingColumn(),
                console=Console(stderr=True), auto_refresh=False, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("import", total=self._total, text="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, summary: Summary) -> None:
        """Called after each answered batch."""
        now = time.monotonic()
        if self._bar is None or now - self._drawn_at < _DRAW_SECONDS:
            return
        self._drawn_at = now
        text = f"{summary.records:,} records"
        self._bar.update(self._task, completed=self._reader.bytes_read, text=text, refresh=True)


def summary_line(summary: Summary, job: str) -> str:
    """The result of a run, for people and for grep."""
    seconds = max(summary.seconds, 1e-9)
    parts = [
        f"imported {summary.records:,} records, {summary.bytes / _MIB:,.1f} MiB "
        f"in {summary.seconds:.2f} s ({summary.records / seconds:,.0f} records/s)"
    ]
    if summary.records_before:
        parts.append(f"{summary.records_before:,} were there from an earlier run")
    if summary.rejected:
        parts.append(f"{summary.rejected:,} rejected")
    parts.append(f"last revision {summary.last_revision}")
    return f"{'; '.join(parts)}; job {job}"
