"""YAML as Kubernetes reads it: sigs.k8s.io/yaml over go-yaml v2, as Python values.

Role: text to documents of dict, list, str, int, float, bool and None, typed as `kubectl` and the
API server would type them. Caller: manifests. PyYAML's own loader is not usable: it refuses a plain
`=`, makes dates of `2001-01-01`, reads `1e3` as a string, `1:30` as 90 and `0o17` as text, and
keeps the last of duplicate keys. So only its parser (libyaml, the same grammar as go-yaml's) is
taken, and values are made from events here.

Scalars without a tag, plain:
    y Y yes Yes YES true True TRUE on On ON       true;  n no false off likewise false
    (empty) ~ null Null NULL                      null
    .inf -.inf .nan                               refused: JSON has no such number
    digits, after `_` is taken out                0777 and 0o17 octal, 0x 0b, else decimal;
                                                  -2^63..2^64-1 is an integer, beyond it a float
    1.5 .5 1e3 08                                 float; a float without a fraction is written as
                                                  an integer, as Go's JSON does
    2001-01-01, 1:30, =, <<, anything else        string
Map keys become strings: 1 "1", 1.5 "1.5", yes "true"; null, a list or a map is refused.

Decided, where Kubernetes has two modes: a key twice in a map is an error (strict mode, the API
server's own default for kubectl), also when one of them came by `<<`. `!!binary` must hold UTF-8.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import yaml

_PREFIX = "tag:yaml.org,2002:"
_TRUE = ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")
_FALSE = ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")
_NULL = ("", "~", "null", "Null", "NULL")
_SPECIAL: dict[str, tuple[str, Any]] = (
    {word: ("bool", True) for word in _TRUE}
    | {word: ("bool", False) for word in _FALSE}
    | {word: ("null", None) for word in _NULL}
    | {word: ("float", math.nan) for word in (".nan", ".NaN", ".NAN")}
    | {sign + word: ("float", math.inf) for word in (".inf", ".Inf", ".INF") for sign in ("", "+")}
    | {"-" + word: ("float", -math.inf) for word in (".inf", ".Inf", ".INF")}
)
_INT = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_DOT_FLOAT = re.compile(r"\.[0-9]+(_[0-9]+)*([eE][-+]?[0-9]+(_[0-9]+)*)?", re.ASCII)
_RESOLVABLE = ("str", "bool", "int", "float", "null", "timestamp")
_INT64_MIN, _UINT64_MAX = -(1 << 63), (1 << 64) - 1
_FLOAT_INT_MAX = 1e21
_ALIAS_LOW, _ALIAS_HIGH = 400_000, 4_000_000
_DEPTH_MAX = 250
_MERGE = object()


class YamlError(ValueError):
    """The text is not YAML that Kubernetes reads; `line` counts from 1."""

    def __init__(self, reason: str, line: int) -> None:
        self.reason = reason
        self.line = line
        super().__init__(f"line {line}: {reason}")


def resolve(text: str) -> tuple[str, Any]:
    """(short tag, value) of a plain scalar without a tag."""
    first = text[:1]
    if first and first not in "+-0123456789yYnNtTfFoO~.":
        return "str", text
    special = _SPECIAL.get(text)
    if special is not None:
        return special
    if first == ".":
        return _float_or_text(text, text, _DOT_FLOAT)
    if first not in "+-0123456789":
        return "str", text
    plain = text.replace("_", "")
    match = _INT.fullmatch(plain)
    if match:
        number = _go_int(match[2])
        if match[1] == "-":
            number = -number
        # Go's unsigned reader takes no sign.
        if _INT64_MIN <= number <= (_UINT64_MAX if not match[1] else _UINT64_MAX >> 1):
            return "int", number
    return _float_or_text(text, plain, _FLOAT)


def _go_int(digits: str) -> int:
    if digits[:2] in ("0x", "0X"):
        return int(digits[2:], 16)
    if digits[:2] in ("0b", "0B"):
        return int(digits[2:], 2)
    if digits[0] == "0" and len(digits) > 1:
        return int(digits.lstrip("0oO") or "0", 8)
    # Longer than any 64-bit number: out of range whatever it is, and no quadratic conversion.
    return int(digits) if len(digits) < 40 else 1 << 65


def _float_or_text(text: str, plain: str, pattern: re.Pattern[str]) -> tuple[str, Any]:
    if pattern.fullmatch(plain):
        number = float(plain)
        if math.isfinite(number):
            return "float", number
    return "str", text


def scalar(text: str, tag: str | None, plain: bool) -> Any:
    """The value of a scalar event; ValueError says what is wrong. `tag` as the parser gives it."""
    if tag is None:
        return resolve(text)[1] if plain else text
    short = tag.removeprefix(_PREFIX)
    if short == tag or short not in (*_RESOLVABLE, "binary"):
        return text
    if short == "str":
        return text
    if short == "binary":
        return base64.b64decode("".join(text.split()), validate=True).decode("utf-8")
    got, value = resolve(text)
    if short == "float" and got == "int":
        return float(value)
    if got != short and not (short == "timestamp" and got == "str" and _is_timestamp(text)):
        raise ValueError(f"cannot read !!{got} `{text}` as !!{short}")
    return value


def _is_timestamp(text: str) -> bool:
    return re.match(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?$", text) is not None


def json_number(number: float) -> float | int:
    """A float as Go's JSON writes it: without a fraction below 1e21, digits as few as identify it.

    ValueError for infinities and NaN.
    """
    if not math.isfinite(number):
        raise ValueError(f"{number} has no form in JSON")
    if number == int(number) and abs(number) < _FLOAT_INT_MAX:
        return int(Decimal(repr(number)))
    return number


def map_key(key: Any) -> str:
    """A key as sigs.k8s.io/yaml names it; ValueError if it can't be one."""
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        if key > _UINT64_MAX >> 1:
            raise ValueError(f"{key} is too large for a map key")
        return str(key)
    if isinstance(key, float):
        return _go_float32_text(key)
    raise ValueError("a map key must be a string, number or boolean, not "
                     + ("null" if key is None else type(key).__name__))  # fmt: skip


def _go_float32_text(number: float) -> str:
    """strconv.FormatFloat(number, 'g', -1, 32): the shortest text that is the same float32."""
    import struct

    if math.isnan(number):
        return ".nan"
    try:
        wanted = struct.pack("<f", number)
    except OverflowError:
        wanted = struct.pack("<f", math.inf)
    single = struct.unpack("<f", wanted)[0]
    if math.isinf(single):
        return ".inf" if single > 0 else "-.inf"
    text = next(t for digits in range(1, 18) for t in (f"{single:.{digits - 1}e}",)
                if struct.pack("<f", float(t)) == wanted)  # fmt: skip
    mantissa, exponent = text.split("e")
    sign = "-" if mantissa.startswith("-") else ""
    digits = mantissa.lstrip("-").replace(".", "")
    power = int(exponent)
    if power < -4 or power >= 6:
        tail = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{tail}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if power < 0:
        return f"{sign}0.{'0' * (-power - 1)}{digits}"
    whole, fraction = digits[: power + 1].ljust(power + 1, "0"), digits[power + 1 :]
    return f"{sign}{whole}.{fraction}" if fraction else sign + whole


class _Reader:
    """Values from the events of one stream."""

    def __init__(self, text: str | bytes) -> None:
        loader = yaml.CSafeLoader(text)
        self.get: Callable[[], Any] = loader.get_event
        self.dispose = loader.dispose
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.nodes = self.aliased = 0

    def documents(self) -> Iterator[tuple[int, Any]]:
        while True:
            event = self.get()
            if isinstance(event, yaml.StreamEndEvent):
                return
            if isinstance(event, yaml.DocumentStartEvent):
                self.anchors.clear()
                self.nodes = self.aliased = 0
                event = self.get()
                yield event.start_mark.line + 1, self.value(event, 0)

    def value(self, event: Any, depth: int) -> Any:
        line = event.start_mark.line + 1
        if depth > _DEPTH_MAX:
            raise YamlError(f"nested deeper than {_DEPTH_MAX}", line)
        before = self.nodes
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event.anchor or "", line)
        if event.anchor:
            self.anchors[event.anchor] = (None, -1)
        made: Any
        if isinstance(event, yaml.ScalarEvent):
            try:
                made = scalar(event.value, event.tag, event.implicit[0])
            except ValueError as error:
                raise YamlError(str(error), line) from None
            if event.value == "<<" and (event.tag == _PREFIX + "merge" or event.implicit[0]):
                made = _MergeKey("<<")
        elif isinstance(event, yaml.SequenceStartEvent):
            made = self.sequence(depth)
        else:
            made = self.mapping(depth)
        if event.anchor:
            self.anchors[event.anchor] = (made, self.nodes - before)
        return made

    def alias(self, name: str, line: int) -> Any:
        if name not in self.anchors:
            raise YamlError(f"unknown anchor '{name}' referenced", line)
        made, size = self.anchors[name]
        if size < 0:
            raise YamlError(f"anchor '{name}' value contains itself", line)
        self.nodes += size
        self.aliased += size
        part = self.aliased / self.nodes
        if self.aliased > 100 and self.nodes > 1000 and part > _ratio(self.nodes):
            raise YamlError("document contains excessive aliasing", line)
        return made

    def sequence(self, depth: int) -> list[Any]:
        out = []
        while not isinstance(event := self.get(), yaml.SequenceEndEvent):
            value = self.value(event, depth + 1)
            out.append(_finish(value, event.start_mark.line + 1))
        return out

    def mapping(self, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while not isinstance(event := self.get(), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            key = self.value(event, depth + 1)
            value = _finish(self.value(self.get(), depth + 1), line)
            if isinstance(key, _MergeKey) and isinstance(event, yaml.ScalarEvent):
                self.merge(out, value, line)
                continue
            try:
                name = map_key(key)
            except ValueError as error:
                raise YamlError(str(error), line) from None
            if name in out:
                raise YamlError(f'key "{name}" is already set in this map', line)
            out[name] = value
        return out

    @staticmethod
    def merge(out: dict[str, Any], value: Any, line: int) -> None:
        maps = value[::-1] if isinstance(value, list) else [value]
        for one in maps:
            if not isinstance(one, dict):
                raise YamlError("`<<` needs a map or a list of maps as its value", line)
            for name, item in one.items():
                if name in out:
                    raise YamlError(f'key "{name}" of `<<` is already set in this map', line)
                out[name] = item


class _MergeKey(str):
    """A plain `<<`: a merge as a map's key, the text anywhere else."""

    __slots__ = ()


def _finish(value: Any, line: int) -> Any:
    """A value as it stands in a document: a key may be an infinity, a value may not."""
    if isinstance(value, float):
        try:
            return json_number(value)
        except ValueError as error:
            raise YamlError(str(error), line) from None
    return "<<" if isinstance(value, _MergeKey) else value


def _ratio(nodes: int) -> float:
    """The part of a document's nodes that aliases may make up, as go-yaml bounds it."""
    if nodes <= _ALIAS_LOW:
        return 0.99
    if nodes >= _ALIAS_HIGH:
        return 0.10
    return 0.99 - 0.89 * (nodes - _ALIAS_LOW) / (_ALIAS_HIGH - _ALIAS_LOW)


def documents(text: bytes) -> Iterator[tuple[int, Any]]:
    """(line from 1, value) of every document; YamlError at the first fault."""
    try:
        reader = _Reader(text)
    except yaml.YAMLError as error:
        raise _yaml_error(error) from None
    try:
        for line, value in reader.documents():
            yield line, _finish(value, line)
    except yaml.YAMLError as error:
        raise _yaml_error(error) from None
    except UnicodeError as error:
        raise YamlError(f"not text: {error}", 1) from None
    finally:
        reader.dispose()


def _yaml_error(error: yaml.YAMLError) -> YamlError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return YamlError(f"not YAML: {reason}", mark.line + 1 if mark else 1)
