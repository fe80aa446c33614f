"""JSON <-> messages: the proto3 JSON mapping as etcd's gateway speaks it.

Role: what the JSON gateway reads from a body and writes into an answer.
Callers: api/http.

Out: names as the schema writes them (`create_revision`), 64-bit numbers as strings, bytes as
standard base64, enums by name (by number when the schema has none), fields with their default
left out. In: names as the schema writes them or in lowerCamelCase, 64-bit numbers as strings or
numbers, bytes as standard or URL-safe base64 with or without padding, enums by name or number;
`null` stands for a field that is not given.

Invariants:
  1. An answer parsed by `google.protobuf.json_format` is the message it was made of.
  2. Nothing of a value is dropped silently: base64 with a foreign character, a number out of
     range or with a fraction, a field given twice, two members of one choice are refused, all with
     `JsonError` and its text as etcd has it (without the position in the body). Python's own
     json_format takes `Zm9v!` for `foo`, so reading is done here.
  3. As etcd's: unknown fields and unknown names of enums are passed over, and what follows the
     first JSON value of a single call's body is not looked at.
  4. `encode_pieces` gives pieces of about PIECE_CHARS however large the message is, so that who
     writes an answer of a million keys can let others run in between.
"""

from __future__ import annotations

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from kvnode.base.errors import CallerError

PIECE_CHARS = 128 << 10
DEPTH_MAX = 100
"""Messages within messages; protobuf's own readers take no more."""


UNFINISHED = "unexpected EOF"
"""JsonError's text when more text could complete the value."""


class JsonError(CallerError):
    """The body is not JSON, or not JSON of this message."""

    def __init__(self, text: str) -> None:
        # A body's bytes that are no UTF-8 stand in it as lone surrogates.
        super().__init__(text.encode(errors="replace").decode())


# --- writing --------------------------------------------------------------------------------------

Writer = Callable[[Any], str]
_LONG = frozenset({FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64})
quote = json.JSONEncoder(ensure_ascii=False).encode
"""A string as JSON."""


def _long(value: int) -> str:
    return f'"{value}"'


def _base64(value: bytes) -> str:
    return f'"{b2a_base64(value, newline=False).decode()}"'


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _name(field: FieldDescriptor) -> Writer:
    assert field.enum_type is not None
    names = {v.number: f'"{v.name}"' for v in reversed(field.enum_type.values)}
    return lambda number: names.get(number) or str(number)


def _writer(field: FieldDescriptor) -> Writer:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return encode
    if kind in _LONG:
        return _long
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _flag
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _name(field)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _base64 if field.type == FieldDescriptor.TYPE_BYTES else quote
    return str


@cache
def _writers(kind: Descriptor) -> dict[int, tuple[str, bool, Writer]]:
    """By field number: the quoted name with its colon, whether it repeats, how a value is put."""
    return {
        field.number: (f'"{field.name}":', field.is_repeated, _writer(field))
        for field in kind.fields
    }


def encode(message: Message) -> str:
    """The message as JSON without a space."""
    table = _writers(message.DESCRIPTOR)
    parts = []
    for field, value in message.ListFields():
        name, repeated, put = table[field.number]
        if repeated:
            parts.append(f"{name}[{','.join([put(item) for item in value])}]")
        else:
            parts.append(name + put(value))
    return f"{{{','.join(parts)}}}"


def encode_pieces(message: Message) -> Iterator[str]:
    """The same text as `encode`, in pieces of about PIECE_CHARS."""
    table = _writers(message.DESCRIPTOR)
    parts = ["{"]
    size = 0
    comma = ""
    for field, value in message.ListFields():
        name, repeated, put = table[field.number]
        parts.append(comma + name)
        comma = ","
        if not repeated:
            parts.append(put(value))
            continue
        between = "["
        for item in value:
            text = put(item)
            parts.append(between)
            parts.append(text)
            between = ","
            size += len(text)
            if size > PIECE_CHARS:
                yield "".join(parts)
                parts.clear()
                size = 0
        parts.append("]")
    parts.append("}")
    yield "".join(parts)


def encode_items(messages: Iterable[Message]) -> Iterator[str]:
    """The messages as a list's text without its brackets, in pieces of about PIECE_CHARS."""
    parts: list[str] = []
    size = 0
    for message in messages:
        text = encode(message)
        parts.append(text)
        size += len(text)
        if size > PIECE_CHARS:
            yield ",".join(parts)
            parts.clear()
            size = 0
    if parts:
        yield ",".join(parts)


# --- reading --------------------------------------------------------------------------------------


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


class _Object(list[tuple[str, Any]]):
    """A JSON object's pairs in their order, doubles included."""

    __slots__ = ()


def _no_constant(text: str) -> Any:
    raise JsonError(f"invalid character '{text.lstrip('-')[0]}' looking for beginning of value")


_json = json.JSONDecoder(
    object_pairs_hook=_Object, parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BLANK = re.compile(r"[ \t\r\n]*")
_INTEGER = re.compile(r"(-?)(0|[1-9]\d*)(?:\.(\d+))?(?:[eE]([+-]?\d+))?")
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1, "int32"),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1, "int64"),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1, "uint32"),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1, "uint64"),
}
_URL_SAFE = str.maketrans("-_", "+/")
_MISSING = object()
Reader = Callable[[Any], Any]


def _text(value: Any) -> str:
    """A JSON value again, for an error's text."""
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, _Object):
        return "{"
    if isinstance(value, list):
        return "["
    return json.dumps(value, ensure_ascii=False)

def _token(text: str, at: int) -> str:
    """What Go's decoder says of the text at `at`."""
    if at >= len(text):
        return UNFINISHED
    return f"invalid character {_quoted(text[at])} looking for beginning of value"


def _quoted(character: str) -> str:
    return {"'": r"'\''", '"': "'\"'"}.get(character, f"'{character}'")


def _in_array(text: str) -> bool:
    """Whether what `text` leaves open is an array."""
    open_ = ""
    for bracket in re.findall(r"[][{}]", _STRING.sub("", text)):
        open_ = open_ + bracket if bracket in "[{" else open_[:-1]
    return open_.endswith("[")


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    """Go's words for Python's error, where they have the same."""
    at = error.pos
    unfinished = text[at:].startswith(("t", "f", "n", "-")) and len(text) - at < 5
    if at >= len(text) or error.msg.startswith("Unterminated") or unfinished:
        return UNFINISHED
    found = _quoted(text[at])
    if error.msg.startswith("Expecting property name"):
        return f"invalid character {found} looking for beginning of object key string"
    if error.msg.startswith("Illegal trailing comma"):
        at = _end(text, at + 1)
        wanted = "object key string" if text[at : at + 1] == "}" else "value"
        return f"invalid character {_quoted(text[at : at + 1])} looking for beginning of {wanted}"
    if error.msg.startswith("Expecting ',' delimiter"):
        where = "array element" if _in_array(text[:at]) else "object key:value pair"
        return f"invalid character {found} after {where}"
    if error.msg.startswith("Expecting ':' delimiter"):
        return f"invalid character {found} after object key"
    if error.msg.startswith("Expecting value"):
        return _token(text, at)
    return f"invalid character {found} in string literal"


def parse_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The first JSON value from `start` on and where it ends; (None, -1) if only blanks are left.

    Errors: JsonError.
    """
    start = _end(text, start)
    if start >= len(text):
        return None, -1
    try:
        return _json.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise JsonError(_syntax(text, error)) from None
    except RecursionError:
        raise JsonError("exceeded max depth") from None


def _end(text: str, start: int) -> int:
    found = _BLANK.match(text, start)
    assert found is not None
    return found.end()


def _integer(field: FieldDescriptor) -> Reader:
    low, high, kind = _RANGES[field.cpp_type]

    def read(value: Any) -> int:
        found = _INTEGER.fullmatch(value) if isinstance(value, str) else None
        number = None if found is None else _whole(found)
        if number is None or not low <= number <= high:
            raise JsonError(
                f"proto: invalid value for {kind} field {field.json_name}: {_text(value)}"
            )
        return number

    return read


def _whole(found: re.Match[str]) -> int | None:
    """The integer that a JSON number is; None with a fraction, or beyond 20 digits."""
    sign, digits, fraction, exponent = found.groups()
    fraction = (fraction or "").rstrip("0")
    power = int(exponent[:6]) if exponent else 0
    if len(digits) > 64 or len(fraction) > 64 or abs(power) > 64:
        return 0 if not (digits + fraction).strip("0") else None
    scale = power - len(fraction)
    number = int(digits + fraction)
    if scale < 0:
        number, rest = divmod(number, 10**-scale)
        if rest:
            return None
    else:
        number *= 10**scale
    return -number if sign else number


def _octets(field: FieldDescriptor) -> Reader:
    def read(value: Any) -> bytes:
        if isinstance(value, str) and not isinstance(value, _Number):
            text = value.replace("\r", "").replace("\n", "")
            url_safe = "-" in text or "_" in text
            if not (url_safe and ("+" in text or "/" in text)):
                text = text.translate(_URL_SAFE) if url_safe else text
                if len(text) % 4 and "=" not in text:
                    text += "=" * (-len(text) % 4)
                try:
                    return a2b_base64(text, strict_mode=True)
                except (Base64Error, ValueError):
                    pass
        raise JsonError(f"proto: invalid value for bytes field {field.json_name}: {_text(value)}")

    return read


def _words(field: FieldDescriptor) -> Reader:
    def read(value: Any) -> str:
        if not isinstance(value, str) or isinstance(value, _Number):
            raise JsonError(
                f"proto: invalid value for string field {field.json_name}: {_text(value)}"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise JsonError("proto: invalid UTF-8 in a string") from None
        return value

    return read


def _truth(field: FieldDescriptor) -> Reader:
    def read(value: Any) -> bool:
        if value is not True and value is not False:
            raise JsonError(
                f"proto: invalid value for bool field {field.json_name}: {_text(value)}"
            )
        return bool(value)

    return read


def _choice(field: FieldDescriptor) -> Reader:
    assert field.enum_type is not None
    names = {name: v.number for name, v in field.enum_type.values_by_name.items()}

    def read(value: Any) -> Any:
        if isinstance(value, _Number):
            found = _INTEGER.fullmatch(value)
            number = None if found is None else _whole(found)
            if number is not None and -(1 << 31) <= number < 1 << 31:
                return number
        elif isinstance(value, str):
            return names.get(value, _MISSING)
        raise JsonError(f"proto: invalid value for enum field {field.json_name}: {_text(value)}")

    return read


def _reader(field: FieldDescriptor) -> Reader | None:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return None
    if kind in _RANGES:
        return _integer(field)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _truth(field)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _choice(field)
    assert kind == FieldDescriptor.CPPTYPE_STRING, "no RPC of the schema has floating point"
    return _octets(field) if field.type == FieldDescriptor.TYPE_BYTES else _words(field)


@cache
def _readers(kind: Descriptor) -> dict[str, tuple[FieldDescriptor, bool, Reader | None]]:
    """By name, as the schema has it and in lowerCamelCase."""
    table = {}
    for field in kind.fields:
        entry = (field, field.is_repeated, _reader(field))
        table[field.name] = table[field.json_name] = entry
    return table


def fill(message: Message, value: Any, depth: int = 0) -> None:
    """Sets in `message` what a parsed JSON value (`parse_value`) says. Errors: JsonError."""
    if not isinstance(value, _Object):
        raise JsonError(f"proto: syntax error: unexpected token {_text(value)}")
    if depth > DEPTH_MAX:
        raise JsonError("exceeded max recursion depth")
    table = _readers(message.DESCRIPTOR)
    seen: set[int] = set()
    chosen: set[str] = set()
    for name, given in value:
        known = table.get(name)
        if known is None:
            continue
        field, repeated, read = known
        if field.number in seen:
            raise JsonError(f'proto: duplicate field "{name}"')
        seen.add(field.number)
        if given is None:
            continue
        group = field.containing_oneof
        if group is not None:
            if group.full_name in chosen:
                raise JsonError(
                    f'proto: error parsing "{name}", oneof {group.full_name} is already set'
                )
            chosen.add(group.full_name)
        if repeated:
            _fill_list(getattr(message, field.name), given, read, depth)
        elif read is None:
            below = getattr(message, field.name)
            below.SetInParent()
            fill(below, given, depth + 1)
        else:
            item = read(given)
            if item is not _MISSING:
                setattr(message, field.name, item)


def _fill_list(target: Any, given: Any, read: Reader | None, depth: int) -> None:
    if not isinstance(given, list) or isinstance(given, _Object):
        raise JsonError(f"proto: syntax error: unexpected token {_text(given)}")
    for one in given:
        if read is None:
            fill(target.add(), one, depth + 1)
        else:
            item = read(one)
            if item is not _MISSING:
                target.append(item)


def decode(kind: type[Message], body: bytes) -> Message:
    """The message that the first JSON value of `body` says; an empty body is an empty message.

    Errors: JsonError.
    """
    message = kind()
    value, end = parse_value(body.decode("utf-8", "surrogateescape"))
    if end >= 0:
        fill(message, value)
    return message
