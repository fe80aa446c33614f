"""Plain twin of `_core/envelope`: struct formats and strict reading."""

from __future__ import annotations

import struct
from typing import Any

from kvnode.base.errors import DecodeError

HEAD = struct.Struct("<BBHI")
GROUP = struct.Struct("<BBHIIIQQQQQIIQQ")
REQUEST = struct.Struct("<BBHI")
RESULT_GROUP = struct.Struct("<IIQIBBH")
RESULT = struct.Struct("<BBHI")
FIELDS = (
    "user", "session", "sequence", "lowest", "member", "incarnation", "slot", "auth_revision",
)  # fmt: skip
assert (HEAD.size, GROUP.size, REQUEST.size, RESULT_GROUP.size) == (8, 80, 8, 24)


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise DecodeError("truncated")
        self.at += size
        return self.data[self.at - size : self.at]

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take(form.size))

    def end(self) -> None:
        if self.at != len(self.data):
            raise DecodeError("bytes left over")


def need(condition: bool, what: str) -> None:
    if not condition:
        raise DecodeError(what)


def build_batch(groups: list[dict[str, Any]]) -> bytes:
    out = HEAD.pack(1, 0, 0, len(groups))
    for g in groups:
        body = b"".join(REQUEST.pack(kind, 0, 0, len(b)) + b for kind, b in g["requests"])
        user, session, sequence, lowest, member, incarnation, slot, auth = (
            g.get(name, 0) for name in FIELDS
        )
        out += GROUP.pack(
            1, g.get("flags", 0), 0, len(g["requests"]), len(body), user, session, sequence,
            lowest, member, incarnation, slot, 0, auth, 0,
        ) + body  # fmt: skip
    return out


def parse_batch(data: bytes) -> list[dict[str, Any]]:
    r = Reader(data)
    version, zero1, zero2, count = r.unpack(HEAD)
    need(version == 1 and zero1 == 0 and zero2 == 0, "batch head")
    out = []
    for _ in range(count):
        (
            version, flags, zero1, requests, size, user, session, sequence, lowest, member,
            incarnation, slot, zero2, auth, zero3,
        ) = r.unpack(GROUP)  # fmt: skip
        need(version == 1 and flags & ~1 == 0 and zero1 == zero2 == zero3 == 0, "group")
        values = (user, session, sequence, lowest, member, incarnation, slot, auth)
        group: dict[str, Any] = {"flags": flags, **dict(zip(FIELDS, values, strict=True))}
        body = Reader(r.take(size))
        group["requests"] = []
        for _ in range(requests):
            kind, request_flags, zero, length = body.unpack(REQUEST)
            need(request_flags == 0 and zero == 0, "request")
            group["requests"].append((kind, body.take(length)))
        body.end()
        out.append(group)
    r.end()
    return out


def build_results(groups: list[dict[str, Any]]) -> bytes:
    out = b""
    for g in groups:
        refused = g["state"] == 2
        results = [] if refused else g["results"]
        body = b"".join(RESULT.pack(code, kind, 0, len(b)) + b for code, kind, b in results)
        count = g["count"] if refused else len(results)
        out += RESULT_GROUP.pack(
            g["slot"], count, g["incarnation"], len(body), g["state"], g.get("code", 0), 0
        )
        out += body
    return out


def parse_results(data: bytes) -> list[dict[str, Any]]:
    r = Reader(data)
    out = []
    while r.at < len(data):
        slot, count, incarnation, size, state, code, zero = r.unpack(RESULT_GROUP)
        need(zero == 0 and state <= 2 and (state == 2) == (code != 0), "result group")
        group: dict[str, Any] = {
            "slot": slot, "incarnation": incarnation, "state": state, "code": code,
        }  # fmt: skip
        body = Reader(r.take(size))
        if state == 2:
            group["count"] = count
        else:
            group["results"] = []
            for _ in range(count):
                result_code, kind, zero, length = body.unpack(RESULT)
                need(zero == 0, "result")
                group["results"].append((result_code, kind, body.take(length)))
        body.end()
        out.append(group)
    return out
