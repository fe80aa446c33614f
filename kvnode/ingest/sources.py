"""What an import reads: files, folders and standard input, in one order, item by item.

Role: arguments to sources, sources to chunks. Callers: cli (find), run (read).

Formats by the name's end: .jsonl .ndjson are JSONL, .yaml .yml .json are manifests; --format wins.
Standard input is JSONL unless it says otherwise. A folder gives its files in sorted order, at any
depth; what is hidden or has another ending is left out and reported.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvnode.ingest.jsonl import read_jsonl
from kvnode.ingest.manifests import read_manifests
from kvnode.ingest.records import Chunk, IngestError, Limits
from kvnode.ingest.resources import Resources

STDIN = "-"
FORMATS = ("jsonl", "yaml", "json")
MANIFEST_BYTES_MAX = 256 << 20
_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".yaml": "yaml", ".yml": "yaml", ".json": "json",
}  # fmt: skip
_SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True)
class Source:
    """One file or standard input. `name` is what messages call it."""

    name: str
    path: str
    format: str
    size: int

    def open(self) -> BinaryIO:
        """Its bytes; OSError with the file's name."""
        if self.path == STDIN:
            return sys.stdin.buffer
        return open(self.path, "rb")


@dataclass
class Found:
    """All sources of a job, and files that are not taken."""

    sources: list[Source]
    left_out: list[str]

    @property
    def bytes_total(self) -> int | None:
        """None when standard input is among them."""
        sizes = [source.size for source in self.sources]
        return None if -1 in sizes else sum(sizes)


def find_sources(paths: Sequence[str], forced: str | None) -> Found:
    """The sources that `paths` name; IngestError says what is missing."""
    found = Found([], [])
    for path in paths or [STDIN]:
        if path == STDIN:
            if any(source.path == STDIN for source in found.sources):
                raise IngestError("standard input (-) can be read only once")
            found.sources.append(Source("<stdin>", STDIN, forced or "jsonl", -1))
        elif os.path.isdir(path):
            before = len(found.sources)
            _walk(path, forced, found)
            if len(found.sources) == before:
                raise IngestError(f"{path}: no file ends in {', '.join(_SUFFIXES)}")
        else:
            _add_file(path, forced, found)
    return found


def _add_file(path: str, forced: str | None, found: Found) -> None:
    kind = forced or _SUFFIXES.get(Path(path).suffix.lower())
    if not os.path.exists(path):
        raise IngestError(f"{path}: no such file or folder", status=6)
    if kind is None:
        raise IngestError(f"{path}: unknown ending; say --format {', '.join(FORMATS)}")
    size = os.stat(path).st_size if os.path.isfile(path) else -1
    found.sources.append(Source(path, path, kind, size))


def _walk(folder: str, forced: str | None, found: Found) -> None:
    for where, folders, files in os.walk(folder):
        found.left_out += [os.path.join(where, name) for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(where, name)
            if name.startswith(".") or Path(name).suffix.lower() not in _SUFFIXES:
                found.left_out.append(path)
            elif os.path.isfile(path):
                _add_file(path, forced, found)


def digest(sources: Sequence[Source], extra: str) -> tuple[str, str]:
    """(identity, content): hex digests of where the sources are and of what they hold.

    Content is judged by size and the first and last 64 KiB; identity adds paths, times of change
    and `extra`, so that an edited file is another job unless --job-id says otherwise.
    """
    content, identity = hashlib.sha256(), hashlib.sha256(extra.encode())
    for source in sources:
        content.update(f"{source.size} {source.format}\n".encode())
        if source.size < 0:
            identity.update(os.urandom(16))
            continue
        stat = os.stat(source.path)
        absolute = os.path.abspath(source.path)
        identity.update(os.fsencode(absolute) + b"\n%d\n" % stat.st_mtime_ns)
        with open(source.path, "rb") as file:
            content.update(file.read(_SAMPLE_BYTES))
            if source.size > _SAMPLE_BYTES:
                file.seek(max(_SAMPLE_BYTES, source.size - _SAMPLE_BYTES))
                content.update(file.read(_SAMPLE_BYTES))
    identity.update(content.digest())
    return identity.hexdigest()[:16], content.hexdigest()[:32]


class Reader:
    """Chunks of all sources, by position; `bytes_read` counts for the progress bar."""

    def __init__(
        self, sources: Sequence[Source], batch: int, limits: Limits, skip_bad: bool
    ) -> None:
        self._sources = sources
        self._batch = batch
        self._limits = limits
        self._skip_bad = skip_bad
        self._resources = Resources()
        self.bytes_read = 0

    def chunks(self, skip_to: int) -> Iterator[Chunk]:
        """Chunks in order; those below skip_to may come without their records."""
        position = 0
        for source in self._sources:
            with _Counted(source, self) as file:
                for chunk in self._read(file, source, position, skip_to):
                    position = chunk.end
                    yield chunk
                    if chunk.bad and not self._skip_bad:
                        return

    def _read(self, file: _Counted, source: Source, start: int, skip_to: int) -> Iterator[Chunk]:
        if source.format == "jsonl":
            yield from read_jsonl(file, source.name, start, skip_to, self._batch, self._limits,
                                  self._skip_bad)  # fmt: skip
            return
        data = file.read_all(MANIFEST_BYTES_MAX)
        yield from read_manifests(data, source.name, start, self._resources, self._limits,
                                  self._skip_bad, source.format == "json")  # fmt: skip


class _Counted:
    """A source's file that adds to its reader's count."""

    def __init__(self, source: Source, reader: Reader) -> None:
        self._file = source.open()
        self._reader = reader
        self._source = source

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._reader.bytes_read += len(data)
        return data

    def read_all(self, bytes_max: int) -> bytes:
        """Everything; IngestError above bytes_max: a manifest is held in memory whole."""
        parts = []
        size = 0
        while data := self.read(1 << 20):
            parts.append(data)
            size += len(data)
            if size > bytes_max:
                raise IngestError(f"{self._source.name}: more than {bytes_max >> 20} MiB in one "
                                  "file of manifests: split it, or use JSONL")  # fmt: skip
        return b"".join(parts)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        if self._source.path != STDIN:
            self._file.close()


