"""Kubernetes manifests: YAML or JSON text to records keyed as the API server keys them.

Role: documents to chunks of one object each. Caller: sources.

    key    /registry/{resource}/{namespace}/{name}, without the namespace for cluster-wide kinds;
           `default` when a namespaced object names none (resources.py says where a kind lives)
    value  the object as compact JSON, keys sorted, nothing added or taken away

A stream is cut into documents at lines `---`, as kubectl does, so that a malformed document spoils
only itself. `kind: List` and `*List` with `items` are unrolled; their items get the list's kind
and apiVersion where they lack them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from kvnode.ingest.goyaml import YamlError, documents, json_number
from kvnode.ingest.records import BadRecord, Chunk, Limits, shown
from kvnode.ingest.resources import Resources

_SEPARATOR = re.compile(rb"^---[ \t\r]*$", re.MULTILINE)
_LIST_DEPTH_MAX = 8
_UINT64_MAX, _INT64_MIN = (1 << 64) - 1, -(1 << 63)


def canonical(value: Any) -> bytes:
    """Compact JSON with sorted keys."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def read_manifests(
    data: bytes, source: str, start: int, resources: Resources, limits: Limits, skip_bad: bool,
    is_json: bool,
) -> Iterator[Chunk]:  # fmt: skip
    """A chunk for each object from position `start` on. A bad one is in its chunk's `bad`, and
    unless skip_bad the last thing that is read."""
    position = start
    for line, value in _json_document(data) if is_json else _yaml_documents(data):
        if isinstance(value, str):
            things: list[tuple[bytes, bytes] | str] = [value]
            text = _line_text(data, line)
        else:
            things = list(_records(value, resources, limits, 0))
            text = b"" if all(isinstance(one, tuple) for one in things) else canonical(value)
        for thing in things:
            if isinstance(thing, tuple):
                yield Chunk(source, position, position + 1, [thing[0]], [thing[1]], line)
            else:
                bad = BadRecord(source, line, thing, shown(text), position)
                end = position + 1 if skip_bad else position
                yield Chunk(source, position, end, [], [], line, [], [], [bad])
                if not skip_bad:
                    return
            position += 1


def _line_text(data: bytes, line: int) -> bytes:
    lines = data.split(b"\n", line)
    return lines[line - 1] if line <= len(lines) else b""


# --- documents ------------------------------------------------------------------------------------
# Both yield (line, value); a str in place of a value says why there is none.


def _yaml_documents(data: bytes) -> Iterator[tuple[int, Any]]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        yield 1, "not UTF-8 text: save the file as UTF-8"
        return
    for line, part in _split(data):
        try:
            for at, value in documents(part):
                if value is not None:
                    yield line + at, value if not isinstance(value, str) else "not an object"
        except YamlError as error:
            yield line + error.line, error.reason


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(lines before it, text) of each document; directives stay with the document they open."""
    begin = 0
    for mark in [*_SEPARATOR.finditer(data), None]:
        end = mark.start() if mark else len(data)
        part = data[begin:end]
        if mark and part.lstrip().startswith(b"%"):
            continue
        yield data.count(b"\n", 0, begin), part
        if mark:
            begin = mark.end()


def _json_document(data: bytes) -> Iterator[tuple[int, Any]]:
    try:
        value = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant,
            parse_int=_json_int, parse_float=lambda text: json_number(float(text)),
        )  # fmt: skip
    except json.JSONDecodeError as error:
        hint = "; a file of one record a line is --format jsonl" if error.lineno > 1 else ""
        yield error.lineno, f"not JSON: {error.msg}{hint}"
    except (ValueError, RecursionError) as error:
        yield 1, f"not JSON: {error}"
    else:
        yield 1, value if not isinstance(value, str) else "not an object"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'key "{twice}" is there twice in one object')
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _json_int(text: str) -> int | float:
    """Beyond 64 bits a number is a float, as for the API server."""
    if len(text) > 20 or not _INT64_MIN <= int(text) <= _UINT64_MAX:
        return json_number(float(text))
    return int(text)


# --- objects --------------------------------------------------------------------------------------


def _records(
    value: Any, resources: Resources, limits: Limits, depth: int
) -> Iterator[tuple[bytes, bytes] | str]:
    """(key, value) of the object, or of each item of a list; a str says what is wrong with it."""
    if not isinstance(value, dict):
        yield f"not a manifest: an object is needed, this is {_type_name(value)}"
        return
    kind, version = value.get("kind"), value.get("apiVersion")
    if not isinstance(kind, str) or not kind:
        yield "a manifest needs a `kind`"
    elif not isinstance(version, str) or not version:
        yield f"{kind}: a manifest needs an `apiVersion`"
    elif kind.endswith("List") and ("items" in value or kind == "List"):
        yield from _items(value, kind, version, resources, limits, depth)
    else:
        yield _record(value, kind, version, resources, limits)


def _items(
    value: dict[str, Any], kind: str, version: str, resources: Resources, limits: Limits, depth: int
) -> Iterator[tuple[bytes, bytes] | str]:
    items = value.get("items")
    if items is None:
        items = []
    if not isinstance(items, list):
        yield f"{kind}: `items` must be a list, this is {_type_name(items)}"
        return
    if depth >= _LIST_DEPTH_MAX:
        yield f"lists in lists deeper than {_LIST_DEPTH_MAX}"
        return
    for item in items:
        if isinstance(item, dict) and kind != "List":
            item = {"kind": kind.removesuffix("List"), "apiVersion": version} | item
        yield from _records(item, resources, limits, depth + 1)


def _record(
    value: dict[str, Any], kind: str, version: str, resources: Resources, limits: Limits
) -> tuple[bytes, bytes] | str:
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return f"{kind}: a manifest needs a `metadata.name`"
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if name is None and metadata.get("generateName"):
        return f"{kind}: `generateName` makes a new name each time; give a `metadata.name`"
    for what, text in (("name", name), ("namespace", namespace)):
        fault = _name_fault(text) if text is not None or what == "name" else ""
        if fault:
            return f"{kind}: `metadata.{what}` {fault}"
    if "/" in kind or version.count("/") > 1 or version.startswith("/"):
        return f'"{version}", "{kind}" is not an apiVersion and a kind'
    if kind == "CustomResourceDefinition":
        resources.learn(value)
    place = resources.find(version, kind)
    middle = f"{namespace or 'default'}/" if place.namespaced else ""
    try:
        key = limits.prefix + f"/registry/{place.path}/{middle}{name}".encode()
        body = canonical(value)
    except (UnicodeError, ValueError, RecursionError) as error:
        return f"{kind} {name}: has no form in JSON: {error}"
    fault = limits.fault(key, body)
    return f"{kind} {name}: {fault}" if fault else (key, body)


def _name_fault(text: Any) -> str:
    """Why it can't be a segment of a key; "" if it can."""
    if text is None or text == "":
        return "is missing" if text is None else "is empty"
    if not isinstance(text, str):
        return f"must be a string, this is {_type_name(text)}: put it in quotes"
    if "/" in text or "%" in text or text in (".", ".."):
        return f'"{text[:80]}" may not contain / or %, nor be . or ..'
    return ""


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean",
             type(None): "null"}  # fmt: skip
    return names.get(type(value), f"the number {value}" if isinstance(value, int | float) else "?")
