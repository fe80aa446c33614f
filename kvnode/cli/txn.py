"""txn: etcdctl's grammar of a transaction on standard input.

    mod("key1") > "0"            comparisons, one a line, up to an empty line
                                 targets: ver(sion), c(reate), m(od), val(ue), lease; = != > <
    put key1 "overwrote"         requests if all hold (get, put, del with their flags)

    put key1 "created"           requests if one does not
                                 (a last empty line ends the input)

Strings in double quotes have Go's escapes, single quotes have none.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any, BinaryIO

import click

from kvnode.base.codes import Kind
from kvnode.cli import kv, session
from kvnode.cli.fault import EXIT_ARGS, EXIT_INPUT, Fault
from kvnode.cli.main import client_options
from kvnode.client import messages

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_WORDS = re.compile(rf"{_QUOTED}|'[^']*'|[^'\"\s]\S*[^'\"\s]?")
_COMPARE = re.compile(rf"([^(]*)\(({_QUOTED}|`[^`]*`)\)\s*(\S+)\s+({_QUOTED}|`[^`]*`)")
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))",
    re.DOTALL,
)
_SIMPLE = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_TARGETS = {
    "ver": "version", "version": "version", "c": "create", "create": "create", "m": "mod",
    "mod": "mod", "val": "value", "value": "value", "lease": "lease",
}  # fmt: skip
_HINT = 'a comparison looks like mod("key") > "0", a request like put key "value"'


@click.command()
@click.argument("arguments", nargs=-1, metavar="")
@click.option("-i", "--interactive", is_flag=True, help="Print what is read next")
@client_options
def txn(arguments: tuple[str, ...], interactive: bool) -> None:
    """Processes all the requests on standard input in one transaction.

    \b
    kvnode txn <<'END'
    mod("key1") > "0"
    \b
    put key1 "overwrote-key1"
    \b
    put key1 "created-key1"
    put key2 "some extra key"
    \b
    END
    """
    if arguments:
        raise Fault("txn command does not accept argument", EXIT_ARGS)
    show = session.printer()
    body = read_txn(sys.stdin.buffer, interactive)
    from kvnode.client.sync import decode

    with session.connect(writes=True) as client:
        show.txn(decode(Kind.TXN, client.call(Kind.TXN, body)))


def read_txn(stream: BinaryIO, interactive: bool = False) -> bytes:
    """TxnRequest of the three sections; Fault (status 3) names the line that is wrong."""
    requests = "requests (get, put, del):"
    sections = (
        ("compares:", parse_compare),
        (f"success {requests}", parse_request),
        (f"failure {requests}", parse_request),
    )
    parsed: list[list[bytes]] = []
    for title, parse in sections:
        if interactive:
            click.echo(title)
        parsed.append([])
        while True:
            raw = stream.readline()
            if not raw.endswith(b"\n"):
                raise Fault("EOF", EXIT_INPUT, f"each section ends with an empty line; {title} "
                            f"did not")  # fmt: skip
            line = os.fsdecode(raw).strip()
            if not line:
                break
            parsed[-1].append(parse(line))
    return messages.txn_request(*parsed)


def parse_compare(line: str) -> bytes:
    """Compare of one line."""
    match = _COMPARE.match(line)
    if not match:
        raise Fault(f"malformed comparison: {line}", EXIT_INPUT, _HINT)
    word, key, comparison, value = match.groups()
    target = _TARGETS.get(word)
    if target is None:
        raise Fault(f"malformed comparison: {line} (unknown target {word})", EXIT_INPUT, _HINT)
    if comparison not in messages.COMPARISONS:
        raise Fault(f"malformed comparison: {line} (unknown operator {comparison})", EXIT_INPUT,
                    "operators are = != > <")  # fmt: skip
    text = unquote(value, line)
    wanted: bytes | int = text
    if target != "value":
        try:
            wanted = int(text, 16 if target == "lease" else 10)
            if not -(1 << 63) <= wanted < 1 << 63:
                raise ValueError
        except ValueError:
            raise Fault(f"invalid txn compare request: {line}", EXIT_INPUT,
                        f"{word} compares with a number in quotes") from None  # fmt: skip
    return messages.compare(unquote(key, line), target, comparison, wanted)


def parse_request(line: str) -> bytes:
    """RequestOp of one line: get, put or del with their flags."""
    words = split_words(line)
    if len(words) < 2:
        raise Fault(f"invalid txn request: {line}", EXIT_INPUT, _HINT)
    shapes: dict[str, tuple[click.Command, Any, Any]] = {
        "get": (kv.get, kv.get_body, messages.op_range),
        "put": (kv.put, kv.put_body, messages.op_put),
        "del": (kv.delete, kv.del_body, messages.op_delete_range),
    }
    if words[0] not in shapes:
        raise Fault(f"invalid txn request: {line}", EXIT_INPUT, "requests are get, put and del")
    command, body, op = shapes[words[0]]
    try:
        params = command.make_context(words[0], words[1:]).params
    except click.UsageError as error:
        raise Fault(f"invalid txn request: {line}", EXIT_INPUT, error.format_message()) from None
    raw = op(body(**params))
    assert isinstance(raw, bytes)
    return raw


def split_words(line: str) -> list[str]:
    """Words, 'as they are' and "with escapes", as etcdctl splits a line."""
    words = []
    for word in _WORDS.findall(line):
        if word[0] == '"':
            word = os.fsdecode(unquote(word, line))
        elif word[0] == "'":
            word = word[1:-1]
        words.append(word)
    return words


def unquote(text: str, line: str) -> bytes:
    """The bytes of a Go string literal."""
    if text[0] == "`":
        return os.fsencode(text[1:-1])
    out = bytearray()
    at = 1
    for match in _ESCAPE.finditer(text, 1, len(text) - 1):
        out += os.fsencode(text[at : match.start()])
        at = match.end()
        simple, byte, octal, short, long, bad = match.groups()
        if bad is not None:
            raise Fault(f"invalid escape {match.group()} in: {line}", EXIT_INPUT)
        if simple:
            out.append(_SIMPLE.get(simple, ord(simple)))
        elif byte or octal:
            out.append(int(byte, 16) if byte else int(octal, 8) & 0xFF)
        else:
            try:
                out += chr(int(short or long, 16)).encode()
            except (ValueError, OverflowError):
                raise Fault(f"invalid escape {match.group()} in: {line}", EXIT_INPUT) from None
    out += os.fsencode(text[at:-1])
    return bytes(out)
