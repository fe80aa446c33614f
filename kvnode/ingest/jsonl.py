"""JSONL: one {"key": ..., "value": ...} or {"key": ..., "value_b64": ...} a line.

Role: bytes of lines to chunks of records. Caller: sources. Blocks of whole lines are decoded at
once into typed records; only a block with something unusual in it (a bad or blank line, value_b64)
is decoded line by line. 1.4 s of CPU for 1 M records of 310 bytes, encoding and sending included.

Invariant: the fast way is taken only when every line of the block begins with `{`, ends with `}`
and there are as many records as lines. A line ends where a byte 0x0a stands (JSON has none inside
strings), and a record of strings has no brace outside of them but its own two, so each line is
one record then and line numbers are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from kvnode.base.limits import KEY_BYTES_MAX
from kvnode.ingest.records import BadRecord, Chunk, Limits, shown

BLOCK_BYTES = 1 << 20
"""Bytes read at once. One batch is never larger, unless one line is."""

LINE_BYTES_MAX = 128 << 20
"""A longer line is not a record (64 MiB of value in base64 fit), and is not read into memory."""


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: str
    value: str


class _Full(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: str
    value: str | msgspec.UnsetType = msgspec.UNSET
    value_b64: bytes | msgspec.UnsetType = msgspec.UNSET


_PLAIN = msgspec.json.Decoder(_Plain)
_FULL = msgspec.json.Decoder(_Full)


class Readable(Protocol):
    """What a source's bytes are read from; b"" is the end."""

    def read(self, size: int = -1, /) -> bytes: ...


def read_blocks(file: Readable, source: str, block_bytes: int) -> Iterator[bytes]:
    """The file in blocks of whole lines, about block_bytes each; the last may lack its newline."""
    rest = b""
    while True:
        data = file.read(block_bytes)
        if not data:
            break
        at = data.rfind(b"\n") + 1
        if at == 0:
            rest += data
            if len(rest) > LINE_BYTES_MAX:
                raise BadRecord(source, 0, f"a line of more than {LINE_BYTES_MAX >> 20} MiB: "
                                "is this JSONL?", shown(rest))  # fmt: skip
            continue
        yield rest + data[:at] if rest else data[:at]
        rest = data[at:]
    if rest:
        yield rest


def count_lines(block: bytes) -> int:
    """Lines of a block, the last one with or without its newline."""
    return block.count(b"\n") + (not block.endswith(b"\n"))


def read_jsonl(
    file: Readable, source: str, start: int, skip_to: int, batch: int, limits: Limits,
    skip_bad: bool, block_bytes: int = BLOCK_BYTES,
) -> Iterator[Chunk]:  # fmt: skip
    """Chunks of at most `batch` lines. The first line has position `start`; blocks that end below
    skip_to are only counted. A bad line is in its chunk's `bad`, and unless skip_bad the last
    thing that is read."""
    position = start
    for block in read_blocks(file, source, block_bytes):
        lines = count_lines(block)
        first, position = position, position + lines
        if position <= skip_to:
            # No record of it is wanted; the end of the source is still found by the caller.
            yield Chunk(source, first, position, [], [], positions=[])
            continue
        for chunk in decode_block(block, lines, source, first, first - start + 1, limits, skip_bad):
            yield from _slices(chunk, batch)
            if chunk.bad and not skip_bad:
                return


def _slices(chunk: Chunk, batch: int) -> Iterator[Chunk]:
    """The chunk in equal parts of at most `batch` positions."""
    count = chunk.end - chunk.start
    parts = -(-count // batch)
    if parts <= 1:
        yield chunk
        return
    for part in range(parts):
        yield chunk.cut(chunk.start + count * part // parts,
                        chunk.start + count * (part + 1) // parts)  # fmt: skip


def decode_block(
    block: bytes, lines: int, source: str, start: int, line: int, limits: Limits, skip_bad: bool
) -> Iterator[Chunk]:
    """One chunk of a block of whole lines: the fast way or line by line."""
    columns = _decode_plain(block, lines, limits)
    if columns is not None:
        yield Chunk(source, start, start + lines, columns[0], columns[1], line)
    else:
        yield _decode_lines(block, source, start, line, limits, skip_bad)


def _decode_plain(
    block: bytes, lines: int, limits: Limits
) -> tuple[list[bytes], list[bytes]] | None:
    if not block.startswith(b"{") or not block.endswith((b"}\n", b"}", b"}\r\n")):
        return None
    # One search: each costs as much as the decoder's half.
    if block.count(b'"}\n{"') != lines - 1 and block.count(b'"}\r\n{"') != lines - 1:
        return None
    try:
        rows = _PLAIN.decode_lines(block)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if len(rows) != lines:
        return None
    prefix = limits.prefix
    if prefix:
        keys = [prefix + row.key.encode() for row in rows]
    else:
        keys = [row.key.encode() for row in rows]
    values = [row.value.encode() for row in rows]
    if (
        len(min(keys, key=len)) <= len(prefix)
        or len(longest := max(keys, key=len)) > KEY_BYTES_MAX
        or (
            len(block) > limits.value_bytes_max
            and len(longest) + len(max(values, key=len)) > limits.value_bytes_max
        )
    ):
        return None
    return keys, values


def _decode_lines(
    block: bytes, source: str, start: int, line: int, limits: Limits, skip_bad: bool
) -> Chunk:
    chunk = Chunk(source, start, start, [], [], line, positions=[], lines=[])
    assert chunk.positions is not None and chunk.lines is not None
    texts = block.split(b"\n")
    if not texts[-1]:
        texts.pop()
    for i, text in enumerate(texts):
        chunk.end = start + i + 1
        if not text.strip():
            continue
        got = _decode_line(text, limits)
        if isinstance(got, str):
            chunk.bad.append(BadRecord(source, line + i, got, shown(text), start + i))
            if skip_bad:
                continue
            chunk.end -= 1
            break
        chunk.keys.append(got[0])
        chunk.values.append(got[1])
        chunk.positions.append(start + i)
        chunk.lines.append(line + i)
    return chunk


def _decode_line(text: bytes, limits: Limits) -> tuple[bytes, bytes] | str:
    """(key, value), or why not."""
    if b"\0" in text:
        return "binary data: a line of JSONL is text"
    try:
        row = _FULL.decode(text)
        plain, binary = row.value, row.value_b64
        if plain is not msgspec.UNSET and binary is not msgspec.UNSET:
            return "`value` and `value_b64` are both there: give one"
        if not isinstance(plain, msgspec.UnsetType):
            value = plain.encode()
        elif not isinstance(binary, msgspec.UnsetType):
            value = binary
        else:
            return "neither `value` nor `value_b64` is there"
        key = limits.prefix + row.key.encode()
    except msgspec.ValidationError as error:
        return f"not a record: {error} (known fields: key, value, value_b64)"
    except (msgspec.DecodeError, UnicodeError) as error:
        return f"not JSON: {error}"
    return limits.fault(key, value) or (key, value)
