"""Messages of the native protocol (2382): encode and decode, without sockets.

Role: the byte layouts that a client and a gateway exchange, one ZeroMQ frame a message.
Callers: client/. The gateway's own side is Cython (`_core/front`); docs/protocol.md is the
specification of both. All integers little-endian.

Message header, 32 bytes, then `count` items or a body:

     0  4s   "KVN1"
     4  u8   opcode
     5  u8   flags = 0; unknown bits are refused
     6  u16  zero
     8  u32  count       items that follow (REQUESTS, ANSWERS), else 0
    12  u32  zero
    16  u64  session     0 = none
    24  u64  lowest open lowest sequence of the session whose answer the client has not seen

REQUESTS item, 24 bytes and the body:          ANSWERS item, 16 bytes and the body:

     0  u32  id                                     0  u32  id
     4  u32  length of the body                     4  u32  length of the body
     8  u8   kind (base/codes.Kind)                 8  u8   code (base/codes.Code)
     9  u8   flags = 0                              9  u8   state: 0 executed, 1 repeated
    10  u16  zero                                  10  u16  zero
    12  u32  zero                                  12  u32  zero
    16  u64  sequence, 0 = no session

Worked example, a REQUESTS message of session 9 with one PUT (id 1, sequence 1) of k = v:

    4b564e31 03 00 0000 01000000 00000000 0900000000000000 0100000000000000
    01000000 06000000 01 00 0000 00000000 0100000000000000 0a016b120176

Invariants:
  1. Every length is checked before it is used; any bytes decode or raise DecodeError.
  2. Decoded bodies are copies: they do not keep the message alive.

Absent on purpose: the protobuf runtime. HELLO and HELLO_OK are read and written by hand, so that
a one-shot client pays for it only when it looks into an answer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from kvnode.base.errors import DecodeError

MAGIC = b"KVN1"
VERSION = 1
"""The one version of the protocol that this code speaks."""

HEADER = struct.Struct("<4sBBHIIQQ")
ITEM = struct.Struct("<IIBBHIQ")
ANSWER = struct.Struct("<IIBBHI")
HEADER_BYTES = HEADER.size
ITEM_BYTES = ITEM.size
ANSWER_BYTES = ANSWER.size
_CODE = struct.Struct("<I")
_CREDIT = struct.Struct("<Q")


class Opcode(IntEnum):
    """What a message is; odd from the client, even from the gateway, CREDIT apart."""

    HELLO = 1
    HELLO_OK = 2
    REQUESTS = 3
    ANSWERS = 4
    PING = 5
    PONG = 6
    GOODBYE = 7
    ERROR = 8
    CREDIT = 9


class State(IntEnum):
    """How an answer came about."""

    EXECUTED = 0
    REPEATED = 1


class Header(NamedTuple):
    """The 32 bytes at the front of every message; `items` is its count."""

    opcode: Opcode
    items: int
    session: int
    lowest_open: int


class Request(NamedTuple):
    """One item of a REQUESTS message."""

    id: int
    kind: int
    sequence: int
    body: bytes


class Answer(NamedTuple):
    """One item of an ANSWERS message."""

    id: int
    code: int
    state: int
    body: bytes


@dataclass(frozen=True)
class Hello:
    """kvnodepb.Hello: a client's first message. Session 0 opens one if `want_session`."""

    version_min: int = 0
    version_max: int = 0
    client_name: str = ""
    token: str = ""
    session: int = 0
    want_session: bool = False


@dataclass(frozen=True)
class HelloOk:
    """kvnodepb.HelloOk: the chosen version and this connection's limits (bytes, milliseconds)."""

    version: int = 0
    server_version: str = ""
    cluster_id: int = 0
    member_id: int = 0
    session: int = 0
    window: int = 0
    max_request_bytes: int = 0
    credit_bytes: int = 0
    max_txn_ops: int = 0
    heartbeat_ms: int = 0


# --- messages -------------------------------------------------------------------------------------


def encode_message(
    opcode: Opcode, body: bytes = b"", *, count: int = 0, session: int = 0, lowest_open: int = 0
) -> bytes:
    """A whole message."""
    return HEADER.pack(MAGIC, opcode, 0, 0, count, 0, session, lowest_open) + body


def decode_header(message: bytes) -> Header:
    """Reads and checks the header; DecodeError if it is not one of this version."""
    if len(message) < HEADER_BYTES:
        raise DecodeError(f"message of {len(message)} bytes is shorter than its header")
    magic, opcode, flags, zero, count, zero2, session, lowest = HEADER.unpack_from(message)
    if magic != MAGIC:
        raise DecodeError("message does not begin with KVN1")
    if flags or zero or zero2:
        raise DecodeError("unknown flags in a message header")
    if not Opcode.HELLO <= opcode <= Opcode.CREDIT:
        raise DecodeError(f"unknown opcode {opcode}")
    return Header(Opcode(opcode), count, session, lowest)


def encode_requests(
    session: int, lowest_open: int, requests: Iterable[tuple[int, int, int, bytes]]
) -> bytes:
    """A REQUESTS message of many (id, kind, sequence, body)."""
    pack = ITEM.pack
    parts = [b""]
    for number, kind, sequence, body in requests:
        parts.append(pack(number, len(body), kind, 0, 0, 0, sequence))
        parts.append(body)
    parts[0] = HEADER.pack(MAGIC, Opcode.REQUESTS, 0, 0, len(parts) // 2, 0, session, lowest_open)
    return b"".join(parts)


def decode_requests(message: bytes, count: int) -> Iterator[Request]:
    """The items of a REQUESTS message whose header says `count`."""
    at, end = HEADER_BYTES, len(message)
    for _ in range(count):
        if end - at < ITEM_BYTES:
            raise DecodeError("REQUESTS ends inside an item's header")
        number, size, kind, flags, zero, zero2, sequence = ITEM.unpack_from(message, at)
        if flags or zero or zero2:
            raise DecodeError("unknown flags in a request's header")
        at += ITEM_BYTES
        if end - at < size:
            raise DecodeError("REQUESTS ends inside a body")
        yield Request(number, kind, sequence, message[at : at + size])
        at += size
    if at != end:
        raise DecodeError("bytes after the last request")


def encode_answers(answers: Iterable[tuple[int, int, int, bytes]]) -> bytes:
    """An ANSWERS message of many (id, code, state, body)."""
    parts = [b""]
    for number, code, state, body in answers:
        parts.append(ANSWER.pack(number, len(body), code, state, 0, 0))
        parts.append(body)
    parts[0] = HEADER.pack(MAGIC, Opcode.ANSWERS, 0, 0, len(parts) // 2, 0, 0, 0)
    return b"".join(parts)


def decode_answers(message: bytes, count: int) -> list[tuple[int, int, int, bytes]]:
    """(id, code, state, body) of each item of an ANSWERS message whose header says `count`.

    Plain tuples in the order of `Answer`: this is the client's hot loop (0.4 µs an item).
    """
    at, end = HEADER_BYTES, len(message)
    if count * ANSWER_BYTES > end - at:
        raise DecodeError("ANSWERS is shorter than its count")
    unpack = ANSWER.unpack_from
    out = []
    for _ in range(count):
        if end - at < ANSWER_BYTES:
            raise DecodeError("ANSWERS ends inside an item's header")
        number, size, code, state, zero, zero2 = unpack(message, at)
        if state > 1 or zero or zero2:
            raise DecodeError("unknown state or flags in an answer's header")
        at += ANSWER_BYTES
        stop = at + size
        if stop > end:
            raise DecodeError("ANSWERS ends inside a body")
        out.append((number, code, state, message[at:stop]))
        at = stop
    if at != end:
        raise DecodeError("bytes after the last answer")
    return out


def encode_error(code: int, text: str) -> bytes:
    """An ERROR message: the connection ends with it."""
    return encode_message(Opcode.ERROR, _CODE.pack(code) + text.encode())


def decode_error(message: bytes) -> tuple[int, str]:
    """(code, text) of an ERROR message."""
    if len(message) < HEADER_BYTES + _CODE.size:
        raise DecodeError("ERROR ends inside its code")
    (code,) = _CODE.unpack_from(message, HEADER_BYTES)
    return code, message[HEADER_BYTES + _CODE.size :].decode("utf-8", "replace")


def encode_credit(credit_bytes: int) -> bytes:
    """A CREDIT message: the new bound of unanswered request bytes, from now on."""
    return encode_message(Opcode.CREDIT, _CREDIT.pack(credit_bytes))


def decode_credit(message: bytes) -> int:
    """The bound of a CREDIT message."""
    if len(message) != HEADER_BYTES + _CREDIT.size:
        raise DecodeError("CREDIT has a wrong length")
    (credit_bytes,) = _CREDIT.unpack_from(message, HEADER_BYTES)
    return int(credit_bytes)


# --- HELLO ----------------------------------------------------------------------------------------

_HELLO_FIELDS = ("", "version_min", "version_max", "client_name", "token", "session",
                 "want_session")  # fmt: skip
_HELLO_OK_FIELDS = ("", "version", "server_version", "cluster_id", "member_id", "session",
                    "window", "max_request_bytes", "credit_bytes", "max_txn_ops",
                    "heartbeat_ms")  # fmt: skip


def encode_hello(hello: Hello) -> bytes:
    """A HELLO message."""
    return encode_message(Opcode.HELLO, _encode_fields(hello, _HELLO_FIELDS))


def decode_hello(message: bytes) -> Hello:
    """Reads a HELLO message's body."""
    return Hello(**_decode_fields(message, Hello(), _HELLO_FIELDS))


def encode_hello_ok(hello_ok: HelloOk) -> bytes:
    """A HELLO_OK message."""
    return encode_message(Opcode.HELLO_OK, _encode_fields(hello_ok, _HELLO_OK_FIELDS))


def decode_hello_ok(message: bytes) -> HelloOk:
    """Reads a HELLO_OK message's body."""
    return HelloOk(**_decode_fields(message, HelloOk(), _HELLO_OK_FIELDS))


def encode_varint(number: int) -> bytes:
    """Protobuf's variable-length form of an unsigned number below 2**64."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, offset behind it); DecodeError when it does not end or exceeds 64 bits."""
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise DecodeError("a number does not end")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 64:
                raise DecodeError("a number exceeds 64 bits")
            return number, at
        shift += 7


def _encode_fields(message: Hello | HelloOk, names: tuple[str, ...]) -> bytes:
    out = bytearray()
    for field in range(1, len(names)):
        value = getattr(message, names[field])
        if not value:
            continue
        if isinstance(value, str):
            raw = value.encode()
            out += encode_varint(field << 3 | 2) + encode_varint(len(raw)) + raw
        else:
            out += encode_varint(field << 3) + encode_varint(int(value))
    return bytes(out)


def _decode_fields(data: bytes, default: Hello | HelloOk, names: tuple[str, ...]) -> dict[str, Any]:
    """Known fields by name; unknown ones are skipped, as protobuf does."""
    fields: dict[str, Any] = {}
    at = HEADER_BYTES
    while at < len(data):
        tag, at = decode_varint(data, at)
        field, wire = tag >> 3, tag & 7
        name = names[field] if 0 < field < len(names) else ""
        if wire == 0:
            number, at = decode_varint(data, at)
            if name and not isinstance(getattr(default, name), str):
                fields[name] = type(getattr(default, name))(number)
        elif wire == 2:
            size, at = decode_varint(data, at)
            if len(data) - at < size:
                raise DecodeError("a string ends behind its message")
            if name and isinstance(getattr(default, name), str):
                fields[name] = data[at : at + size].decode("utf-8", "replace")
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > len(data):
                raise DecodeError("a fixed field ends behind its message")
        else:
            raise DecodeError(f"unknown wire type {wire}")
    return fields
