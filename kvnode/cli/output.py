"""Responses as etcdctl prints them: simple and json.

Callers: the commands. Input: messages of kvnode.proto. Output: bytes to standard output, exactly
etcdctl 3.7's, down to the order of JSON's fields and the omission of zero ones.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

from kvnode.cli.fault import EXIT_FEATURE, Fault

Printer = Callable[[Any], None]


class Simple:
    """One key a line, its value on the next."""

    def __init__(self, hex_strings: bool = False, value_only: bool = False) -> None:
        self._hex = hex_strings
        self._value_only = value_only

    def put(self, response: Any) -> None:
        """OK, and the previous pair if it was asked for."""
        _line(b"OK")
        if response.HasField("prev_kv"):
            self._pair(response.prev_kv)

    def get(self, response: Any) -> None:
        """Each pair."""
        for kv in response.kvs:
            self._pair(kv)

    def count(self, response: Any) -> None:
        """The number of keys."""
        _line(str(response.count).encode())

    def delete(self, response: Any) -> None:
        """How many, then the previous pairs if they were asked for."""
        _line(str(response.deleted).encode())
        for kv in response.prev_kvs:
            self._pair(kv)

    def txn(self, response: Any) -> None:
        """SUCCESS or FAILURE, then each answer behind an empty line."""
        _line(b"SUCCESS" if response.succeeded else b"FAILURE")
        show = {
            "response_put": self.put,
            "response_range": self.get,
            "response_delete_range": self.delete,
            "response_txn": self.txn,
        }
        for op in response.responses:
            _line(b"")
            name = op.WhichOneof("response")
            if name:
                show[name](getattr(op, name))

    def status(self, rows: list[tuple[str, Any]]) -> None:
        """One line an endpoint, as `etcdctl endpoint status`."""
        for endpoint, status in rows:
            size, used = status.dbSize, status.dbSizeInUse
            fields = (
                endpoint,
                f"{status.header.member_id:x}",
                status.version,
                status.storageVersion,
                human_bytes(size),
                human_bytes(used),
                f"{100 - used * 100 // size if size else 0}%",
                human_bytes(status.dbSizeQuota),
                _word(status.leader == status.header.member_id),
                _word(status.isLearner),
                str(status.raftTerm),
                str(status.raftIndex),
                str(status.raftAppliedIndex),
                ", ".join(status.errors),
                status.downgradeInfo.targetVersion,
                _word(status.downgradeInfo.enabled),
            )
            _line(", ".join(fields).encode())

    def _pair(self, kv: Any) -> None:
        if not self._value_only:
            _line(self._text(kv.key))
        _line(self._text(kv.value))

    def _text(self, data: bytes) -> bytes:
        return hex_string(data) if self._hex else data


class Json:
    """One object a line: numbers as numbers, keys and values in base64."""

    def put(self, response: Any) -> None:
        """PutResponse."""
        _json(_put(response))

    def get(self, response: Any) -> None:
        """RangeResponse."""
        _json(_range(response))

    count = get

    def delete(self, response: Any) -> None:
        """DeleteRangeResponse."""
        _json(_delete(response))

    def txn(self, response: Any) -> None:
        """TxnResponse."""
        _json(_txn(response))

    def status(self, rows: list[tuple[str, Any]]) -> None:
        """A list of {Endpoint, Status}."""
        _json([{"Endpoint": endpoint, "Status": _status(status)} for endpoint, status in rows])


def printer(write_out: str, hex_strings: bool) -> Simple | Json:
    """The printer of -w; Fault if there is none of that name."""
    if write_out == "simple":
        return Simple(hex_strings)
    if write_out == "json":
        return Json()
    raise Fault("unsupported output format", EXIT_FEATURE, "use -w simple or -w json")


def hex_string(data: bytes) -> bytes:
    r"""b"a" as \x61."""
    return b"".join(b"\\x%02x" % byte for byte in data)


def human_bytes(size: int) -> str:
    """20480 as 20 kB: powers of 1000, one decimal below 10."""
    if size < 10:
        return f"{size} B"
    number, unit = float(size), 0
    while number >= 1000 and unit < 6:
        number /= 1000
        unit += 1
    number = int(number * 10 + 0.5) / 10
    digits = 1 if unit and number < 10 else 0
    return f"{number:.{digits}f} {('', 'k', 'M', 'G', 'T', 'P', 'E')[unit]}B"


def duration(seconds: float) -> str:
    """Seconds as Go prints a duration: 4.136439ms, 1.5s, 2m3.5s."""
    nanoseconds = round(seconds * 1e9)
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 1_000_000)):
        if nanoseconds < size * 1000:
            return f"{_shorten(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{_shorten(rest, 1_000_000_000)}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _shorten(nanoseconds: int, size: int) -> str:
    whole, rest = divmod(nanoseconds, size)
    digits = f"{rest:0{len(str(size)) - 1}d}".rstrip("0") if size > 1 else ""
    return f"{whole}.{digits}" if digits else str(whole)


# --- JSON, in the order of Go's structs -----------------------------------------------------------


def _header(header: Any) -> dict[str, Any]:
    return _fields(header, "cluster_id", "member_id", "revision", "raft_term")


def _fields(message: Any, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(message, name))}


def _with_header(response: Any) -> dict[str, Any]:
    return {"header": _header(response.header)} if response.HasField("header") else {}


def _kv(kv: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in ("key", "create_revision", "mod_revision", "version", "value", "lease"):
        value = getattr(kv, name)
        if value:
            out[name] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    return out


def _put(response: Any) -> dict[str, Any]:
    out = _with_header(response)
    if response.HasField("prev_kv"):
        out["prev_kv"] = _kv(response.prev_kv)
    return out


def _range(response: Any) -> dict[str, Any]:
    out = _with_header(response)
    if response.kvs:
        out["kvs"] = [_kv(kv) for kv in response.kvs]
    return out | _fields(response, "more", "count")


def _delete(response: Any) -> dict[str, Any]:
    out = _with_header(response) | _fields(response, "deleted")
    if response.prev_kvs:
        out["prev_kvs"] = [_kv(kv) for kv in response.prev_kvs]
    return out


def _txn(response: Any) -> dict[str, Any]:
    out = _with_header(response) | _fields(response, "succeeded")
    shape = {
        "response_put": _put,
        "response_range": _range,
        "response_delete_range": _delete,
        "response_txn": _txn,
    }
    answers = []
    for op in response.responses:
        name = op.WhichOneof("response")
        answers.append({"Response": {name: shape[name](getattr(op, name))} if name else {}})
    if answers:
        out["responses"] = answers
    return out


def _status(status: Any) -> dict[str, Any]:
    out = _with_header(status)
    out |= _fields(status, "version", "dbSize", "leader", "raftIndex", "raftTerm",
                   "raftAppliedIndex")  # fmt: skip
    if status.errors:
        out["errors"] = list(status.errors)
    out |= _fields(status, "dbSizeInUse", "isLearner", "storageVersion", "dbSizeQuota")
    if status.HasField("downgradeInfo"):
        out["downgradeInfo"] = _fields(status.downgradeInfo, "enabled", "targetVersion")
    return out


def _word(value: bool) -> str:
    return "true" if value else "false"


def _json(value: Any) -> None:
    _line(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _line(data: bytes) -> None:
    sys.stdout.buffer.write(data + b"\n")
