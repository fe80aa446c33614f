"""YAML is typed as Kubernetes types it.

The expected values are what sigs.k8s.io/yaml 1.6.0 (go-yaml v2.4.3, strict) made of the same texts;
None stands for its refusals.
"""

from __future__ import annotations

import contextlib
import math
import random
from typing import Any

import pytest

from kvnode.ingest import goyaml
from kvnode.ingest.goyaml import YamlError, documents

SCALARS: dict[str, Any] = {
    # booleans
    "yes": True, "Yes": True, "YES": True, "yEs": "yEs", "y": True, "Y": True, "on": True,
    "On": True, "true": True, "tRUE": "tRUE", "n": False, "N": False, "no": False, "off": False,
    "OFF": False, "False": False,
    # null
    "~": None, "null": None, "Null": None, "NULL": None, "nULL": "nULL", "": None,
    # integers
    "0": 0, "-0": 0, "+1": 1, "00": 0, "01": 1, "0777": 511, "-0777": -511, "0o17": 15,
    "0O17": 15, "-0o17": -15, "0o": "0o", "0o8": "0o8", "0b1": 1, "0B11": 3, "-0b11": -3,
    "0b102": "0b102", "0b": "0b", "0x1F": 31, "-0x1f": -31, "0x": "0x", "0xg": "0xg", "0x_1": 1,
    "1_000": 1000, "1__0": 10, "1_": 1, "_1": "_1", "0_7": 7, "0_": 0,
    "9223372036854775808": 9223372036854775808, "18446744073709551615": 18446744073709551615,
    "-9223372036854775808": -9223372036854775808, "0xFFFFFFFFFFFFFFFF": 18446744073709551615,
    "0xFFFFFFFFFFFFFFFFF": "0xFFFFFFFFFFFFFFFFF",
    # integers beyond 64 bits, and what looks like octal, are floats
    "18446744073709551616": 18446744073709552000, "-9223372036854775809": -9223372036854776000,
    "+9223372036854775808": 9223372036854776000, "99999999999999999999": 100000000000000000000,
    "08": 8, "08.5": 8.5,
    # floats
    "1e3": 1000, "1E3": 1000, "1e+3": 1000, "1e-7": 1e-7, "1e400": "1e400", "1e-400": 0,
    ".5": 0.5, "-.5": -0.5, "+.5": 0.5, ".5e3": 500, ".1_0": 0.1, "._5": "._5", ".5_": ".5_",
    ".": ".", "..": "..", "5.": 5, "1.0": 1, "1.5": 1.5, "1_0.5_0": 10.5, "1e": "1e", "e1": "e1",
    "1e21": 1e21, "1e20": 100000000000000000000, "0x1p-2": "0x1p-2",
    # text that other readers type
    "=": "=", "==": "==", "<<": "<<", "1:30": "1:30", "190:20:30": "190:20:30",
    "2001-01-01": "2001-01-01", "2001-12-14t21:59:43.10-05:00": "2001-12-14t21:59:43.10-05:00",
    "2001-13-45": "2001-13-45", "10.0.0.1": "10.0.0.1", "1Gi": "1Gi", "100m": "100m",
    "1,000": "1,000", "inf": "inf", "NaN": "NaN", "+.nan": "+.nan", "++1": "++1", "+": "+",
    "\u0663": "\u0663",
    # tags and quotes
    "'1'": "1", '"yes"': "yes", "'null'": "null", "''": "", "!!str 5": "5", "!!str yes": "yes",
    "!!int '5'": 5, "!!int 0o17": 15, "!!float 5": 5, "!!bool yes": True, "!!binary aGk=": "hi",
    "!!timestamp 2001-01-01": "2001-01-01", "!foo 5": "5", "! 12": "12", "!!str": "",
    "|-\n  5": "5", ">-\n  yes": "yes",
}  # fmt: skip

REFUSED = [
    ".nan", ".NaN", ".inf", "-.Inf", "+.INF", "!!int abc", "!!bool 1", "!!null x",
    "!!timestamp x", "!!binary '!!'", "@x", "`x", "%x", "x: y", "[1, 2", "'x", "*x", "&x [*x]",
    "- b", "\x01",
]  # fmt: skip

DOCUMENTS: dict[str, Any] = {
    "1: v": {"1": "v"}, "1.5: v": {"1.5": "v"}, "yes: v": {"true": "v"}, "y: v": {"true": "v"},
    "0777: v": {"511": "v"}, "1e3: v": {"1000": "v"}, "1e7: v": {"1e+07": "v"},
    "0.00001: v": {"1e-05": "v"}, "0.0001: v": {"0.0001": "v"}, ".inf: v": {".inf": "v"},
    "123456.789: v": {"123456.79": "v"}, "16777217.5: v": {"1.6777218e+07": "v"},
    "1e300: v": {".inf": "v"}, ".nan: v": {".nan": "v"}, "-5: v": {"-5": "v"},
    "2001-01-01: v": {"2001-01-01": "v"}, "=: v": {"=": "v"}, "1_000: v": {"1000": "v"},
    "a:\tb": {"a": "b"}, "a: b\t": {"a": "b"}, "a: [1,\t2]": {"a": [1, 2]},
    "a: &x 1\nb: *x": {"a": 1, "b": 1}, "a: &x 1\nb: &x 2\nc: *x": {"a": 1, "b": 2, "c": 2},
    "&x a: 1\nb: *x": {"a": 1, "b": "a"}, "a: &x\nb: *x": {"a": None, "b": None},
    "a: &x {k: 1}\nb: {<<: *x}": {"a": {"k": 1}, "b": {"k": 1}},
    "a: &x {k: 1}\nc: &z {l: 2}\nb: {<<: [*x, *z], m: 3}":
        {"a": {"k": 1}, "c": {"l": 2}, "b": {"k": 1, "l": 2, "m": 3}},
    "a: {'<<': 1}": {"a": {"<<": 1}}, "[<<]": ["<<"], "!!str <<: {a: 1}": {"<<": {"a": 1}},
    "a: !!set {x, z}": {"a": {"x": None, "z": None}}, "a: {b}": {"a": {"b": None}},
    "a: |\n  x\n  y\n": {"a": "x\ny\n"}, "a: >\n  x\n  y\n": {"a": "x y\n"},
    "a: b\r\nc: d\r\n": {"a": "b", "c": "d"}, "\ufeffa: 1": {"a": 1},
    "a: b#c": {"a": "b#c"}, "5": 5, "---": None,
}  # fmt: skip

REFUSED_DOCUMENTS = [
    "a: 1\na: 2", "a: 1\n'a': 2", "~: v", "null: v", "? [a]\n: b", "? {a: 1}\n: b",
    "9223372036854775808: v", "a:\n\tb: 1", "\ta: 1", "a: b: c", "*x : 1", "a: \"b\"c",
    "a: &x {k: 1}\nb: {<<: *x, k: 2}", "a: &x {k: 1}\nb: {k: 2, <<: *x}",
    "%FOO 1\n---\na: 1", "a: &x {k: 1}\nb: {<<: [*x, *x]}",
    "a: {<<: 1}", "a: {<<: [1]}", "a: \x7f\x00",
]  # fmt: skip


def one(text: str) -> Any:
    found = [value for _, value in documents(text.encode())]
    assert len(found) == 1
    return found[0]


def same(got: Any, wanted: Any) -> bool:
    return type(got) is type(wanted) and got == wanted


@pytest.mark.parametrize("text", SCALARS)
def test_scalar(text: str) -> None:
    got = one(f"a: {text}\n")["a"]
    assert same(got, SCALARS[text]), f"{text!r}: {got!r}"


@pytest.mark.parametrize("text", REFUSED)
def test_refused_scalar(text: str) -> None:
    with pytest.raises(YamlError) as caught:
        one(f"k: 1\na: {text}\n")
    assert caught.value.line <= 3 and caught.value.reason


@pytest.mark.parametrize("text", DOCUMENTS)
def test_document(text: str) -> None:
    got = one(text)
    assert same(got, DOCUMENTS[text]), f"{text!r}: {got!r}"


@pytest.mark.parametrize("text", REFUSED_DOCUMENTS)
def test_refused_document(text: str) -> None:
    with pytest.raises(YamlError):
        one(text)


def test_stricter_than_go() -> None:
    """Two keys that become one: go-yaml keeps one of them by chance."""
    with pytest.raises(YamlError, match='line 2: key "1" is already set'):
        one("1: a\n'1': b\n")


def test_aliases_cannot_grow_without_bound() -> None:
    lines = ["a: &a [" + ",".join(["1"] * 10) + "]"]
    lines += [f"{chr(97 + i)}: &{chr(97 + i)} [{','.join(['*' + chr(96 + i)] * 10)}]"
              for i in range(1, 9)]  # fmt: skip
    with pytest.raises(YamlError, match="excessive aliasing"):
        one("\n".join(lines))


def test_depth_is_bounded() -> None:
    with pytest.raises(YamlError):
        one("a: " + "[" * 20_000)


def test_go_numbers() -> None:
    assert goyaml.json_number(1e20) == 10**20
    assert isinstance(goyaml.json_number(1e21), float)
    with pytest.raises(ValueError, match="JSON"):
        goyaml.json_number(math.nan)


def test_any_bytes_are_read_or_refused() -> None:
    rng = random.Random(7)
    seeds = [text.encode() for text in [*DOCUMENTS, *REFUSED_DOCUMENTS]]
    for _ in range(3000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 4)):
            data.insert(rng.randrange(len(data) + 1), rng.randrange(256))
        with contextlib.suppress(YamlError):
            list(documents(bytes(data)))
