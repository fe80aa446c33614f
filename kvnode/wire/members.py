"""The members of a cluster as bytes: who they are and where their peers find them.

Role: the table that founders agree on, in the context of the log's first entry and in CLUSTER
frames. Callers: procs/. Bytes are a sequence of fields number 1, each an etcdserverpb.Member (ID=1,
name=2, peerURLs=3, clientURLs=4, isLearner=5), which is what etcd's MemberListResponse has at
number 2. Written by hand: consensus and the supervisor start without the protobuf library.

Invariants:
  1. Equal tables give equal bytes: members by id, URLs sorted, empty fields left out.
  2. Decoding raises DecodeError only, and skips fields that it does not know.

Worked example, member 1 "a" at http://h:1: `0a 11 08 01 12 01 61 1a 0a 687474703a2f2f683a31`,
with the lengths 0x11 of the member and 0x0a of the URL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kvnode.base.errors import DecodeError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Member(NamedTuple):
    """One member of the cluster."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...] = ()
    learner: bool = False


def encode_members(members: Iterable[Member]) -> bytes:
    """The table as bytes."""
    out = bytearray()
    for member in sorted(members):
        _put_bytes(out, 1, _encode_member(member))
    return bytes(out)


def decode_members(data: bytes) -> list[Member]:
    """Inverse of `encode_members`; raises DecodeError only."""
    return [
        _decode_member(value)
        for number, value in _fields(data)
        if number == 1 and isinstance(value, bytes)
    ]


def _encode_member(member: Member) -> bytes:
    out = bytearray()
    _put_varint(out, 1 << 3 | _VARINT)
    _put_varint(out, member.id)
    if member.name:
        _put_bytes(out, 2, member.name.encode())
    for url in sorted(member.peer_urls):
        _put_bytes(out, 3, url.encode())
    for url in sorted(member.client_urls):
        _put_bytes(out, 4, url.encode())
    if member.learner:
        out += bytes((5 << 3 | _VARINT, 1))
    return bytes(out)


def _decode_member(data: bytes) -> Member:
    member, name, learner = 0, "", False
    urls: dict[int, list[str]] = {3: [], 4: []}
    try:
        for number, value in _fields(data):
            if isinstance(value, int):
                if number == 1:
                    member = value
                elif number == 5:
                    learner = bool(value)
            elif number == 2:
                name = value.decode()
            elif number in urls:
                urls[number].append(value.decode())
    except UnicodeDecodeError as error:
        raise DecodeError("members: a name or URL is not UTF-8") from error
    if not member:
        raise DecodeError("members: a member without an id")
    return Member(member, name, tuple(urls[3]), tuple(urls[4]), learner)


def _put_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put_bytes(out: bytearray, number: int, data: bytes) -> None:
    _put_varint(out, number << 3 | _BYTES)
    _put_varint(out, len(data))
    out += data


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
    raise DecodeError("members: a number is cut short")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise DecodeError(f"members: a field of unknown kind {kind}")
        if size > len(data) - at:
            raise DecodeError("members: a field is cut short")
        if kind == _BYTES:
            yield key >> 3, data[at : at + size]
        at += size
