"""Plain twin of `_core/etcdpb` and `_core/txncheck`: one table of fields, no care for speed.

Messages are dicts by protobuf's field names, in the shape of `_core/messages.decode`: every
scalar present with its default, repeated fields as lists, of a oneof only the set member.
"""

from __future__ import annotations

from typing import Any

from kvnode.base.codes import Code, Kind
from kvnode.base.limits import KEY_BYTES_MAX, TXN_DEPTH_MAX

Fields = dict[str, Any]

# message -> number -> (name, type, oneof); type: bytes, int, uint, enum, bool, or [message]
# for repeated messages, "message" for a single one
SCHEMA: dict[str, dict[int, tuple[str, Any, bool]]] = {
    "Put": {
        1: ("key", "bytes", False),
        2: ("value", "bytes", False),
        3: ("lease", "int", False),
        4: ("prev_kv", "bool", False),
        5: ("ignore_value", "bool", False),
        6: ("ignore_lease", "bool", False),
    },
    "Range": {
        1: ("key", "bytes", False),
        2: ("range_end", "bytes", False),
        3: ("limit", "int", False),
        4: ("revision", "int", False),
        5: ("sort_order", "enum", False),
        6: ("sort_target", "enum", False),
        7: ("serializable", "bool", False),
        8: ("keys_only", "bool", False),
        9: ("count_only", "bool", False),
        10: ("min_mod_revision", "int", False),
        11: ("max_mod_revision", "int", False),
        12: ("min_create_revision", "int", False),
        13: ("max_create_revision", "int", False),
    },
    "DeleteRange": {
        1: ("key", "bytes", False),
        2: ("range_end", "bytes", False),
        3: ("prev_kv", "bool", False),
    },
    "Compact": {1: ("revision", "int", False), 2: ("physical", "bool", False)},
    "Compare": {
        1: ("result", "enum", False),
        2: ("target", "enum", False),
        3: ("key", "bytes", False),
        4: ("version", "int", True),
        5: ("create_revision", "int", True),
        6: ("mod_revision", "int", True),
        7: ("value", "bytes", True),
        8: ("lease", "int", True),
        64: ("range_end", "bytes", False),
    },
    "Op": {
        1: ("request_range", "Range", True),
        2: ("request_put", "Put", True),
        3: ("request_delete_range", "DeleteRange", True),
        4: ("request_txn", "Txn", True),
    },
    "Txn": {
        1: ("compare", ["Compare"], False),
        2: ("success", ["Op"], False),
        3: ("failure", ["Op"], False),
    },
    "KeyValue": {
        1: ("key", "bytes", False),
        2: ("create_revision", "int", False),
        3: ("mod_revision", "int", False),
        4: ("version", "int", False),
        5: ("value", "bytes", False),
        6: ("lease", "int", False),
    },
    "PutBatch": {1: ("items", ["Put"], False)},
    "TxnBatch": {1: ("items", ["Txn"], False)},
    "Session": {
        1: ("session", "uint", False),
        2: ("gateway", "bool", False),
        3: ("client_name", "bytes", False),
    },
    "Alarm": {
        1: ("action", "enum", False),
        2: ("memberID", "uint", False),
        3: ("alarm", "enum", False),
    },
    "LeaseGrant": {1: ("TTL", "int", False), 2: ("ID", "int", False)},
    "Lease": {1: ("ID", "int", False), 2: ("keys", "bool", False)},
    "LeasePoint": {1: ("ID", "int", False), 2: ("remaining_TTL", "int", False)},
    "LeaseCheckpoint": {1: ("checkpoints", ["LeasePoint"], False)},
}
MESSAGE_OF_KIND = {
    Kind.PUT: "Put",
    Kind.RANGE: "Range",
    Kind.DELETE_RANGE: "DeleteRange",
    Kind.TXN: "Txn",
    Kind.COMPACT: "Compact",
    Kind.PUT_BATCH: "PutBatch",
    Kind.PUT_BATCH_ONE: "PutBatch",
    Kind.TXN_BATCH: "TxnBatch",
    Kind.SESSION_OPEN: "Session",
    Kind.SESSION_CLOSE: "Session",
    Kind.ALARM: "Alarm",
    Kind.LEASE_GRANT: "LeaseGrant",
    Kind.LEASE_REVOKE: "Lease",
    Kind.LEASE_CHECKPOINT: "LeaseCheckpoint",
}
DEFAULTS = {"bytes": b"", "int": 0, "uint": 0, "enum": 0, "bool": False}


class Malformed(Exception):
    """Not a message."""


class TooDeep(Exception):
    """Transactions nested over TXN_DEPTH_MAX levels."""


def read_varint(data: bytes, at: int, bytes_max: int = 10, bits: int = 64) -> tuple[int, int]:
    """(value, position behind it)."""
    value = 0
    for i in range(bytes_max):
        if at + i >= len(data):
            raise Malformed
        value |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] < 0x80:
            if value >> bits:
                raise Malformed
            return value, at + i + 1
    raise Malformed


def read_field(data: bytes, at: int, depth: int = 0) -> tuple[int, int, Any, int]:
    """(number, wire type, value, position behind it); a group's value is None."""
    tag, at = read_varint(data, at, 5, 32)
    number, wire = tag >> 3, tag & 7
    if number == 0:
        raise Malformed
    if wire == 0:
        value, at = read_varint(data, at)
        return number, wire, value, at
    if wire == 2:
        size, at = read_varint(data, at, 5, 31)
    elif wire in (1, 5):
        size = 8 if wire == 1 else 4
    elif wire == 3:
        if depth == 100:
            raise Malformed
        while True:
            inner, inner_wire, _, at = read_field(data, at, depth + 1)
            if inner_wire == 4:
                if inner != number:
                    raise Malformed
                return number, wire, None, at
    elif wire == 4 and depth:
        return number, wire, None, at
    else:
        raise Malformed
    if size > len(data) - at:
        raise Malformed
    return number, wire, data[at : at + size], at + size


def scalar(kind: str, value: int) -> int | bool:
    if kind == "bool":
        return value != 0
    if kind == "uint":
        return value
    bits = 32 if kind == "enum" else 64
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def decode_message(message: str, data: bytes, depth: int = 1, into: Fields | None = None) -> Fields:
    """Raises Malformed or TooDeep. `into`: merges over an earlier occurrence."""
    schema = SCHEMA[message]
    if message == "Txn" and depth > TXN_DEPTH_MAX:
        raise TooDeep
    out: Fields = {} if into is None else into
    if into is None:
        for name, kind, oneof in schema.values():
            if not oneof:
                out[name] = [] if isinstance(kind, list) else DEFAULTS[kind]
    at = 0
    while at < len(data):
        number, wire, value, at = read_field(data, at)
        if number not in schema:
            continue
        name, kind, oneof = schema[number]
        if wire != (0 if kind in ("int", "uint", "enum", "bool") else 2):
            continue
        if isinstance(kind, list):
            out[name].append(decode_message(kind[0], value, depth))
            continue
        if oneof and name not in out:
            for other, _, other_oneof in schema.values():
                if other_oneof:
                    out.pop(other, None)
        if kind == "bytes":
            out[name] = value
        elif kind in SCHEMA:
            out[name] = decode_message(kind, value, depth + (kind == "Txn"), out.get(name))
        else:
            out[name] = scalar(kind, value)
    return out


def decode(kind: int, data: bytes) -> tuple[Code, Any]:
    """(code, fields); of a batch kind the list of its items."""
    if kind not in MESSAGE_OF_KIND:
        return Code.UNKNOWN_KIND, None
    try:
        fields = decode_message(MESSAGE_OF_KIND[Kind(kind)], data)
    except Malformed:
        return Code.MALFORMED, None
    except TooDeep:
        return Code.NESTED_TOO_DEEP, None
    return Code.OK, fields.get("items", fields)


def write_varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_message(message: str, fields: Fields) -> bytes:
    """Fields in the order of their numbers, defaults omitted (not in a oneof)."""
    out = b""
    for number, (name, kind, oneof) in sorted(SCHEMA[message].items()):
        if name not in fields:
            continue
        value = fields[name]
        if isinstance(kind, list):
            parts = [encode_message(kind[0], item) for item in value]
        elif kind in SCHEMA:
            parts = [encode_message(kind, value)]
        elif not oneof and value == DEFAULTS[kind]:
            continue
        elif kind == "bytes":
            parts = [value]
        else:
            out += write_varint(number << 3) + write_varint(int(value))
            continue
        for part in parts:
            out += write_varint(number << 3 | 2) + write_varint(len(part)) + part
    return out


# --- checks -------------------------------------------------------------------------------------


class Refused(Exception):
    def __init__(self, code: Code) -> None:
        self.code = code


def refuse_if(condition: bool, code: Code) -> None:
    if condition:
        raise Refused(code)


def check_put(r: Fields) -> None:
    refuse_if(not r["key"], Code.EMPTY_KEY)
    refuse_if(r["ignore_value"] and bool(r["value"]), Code.VALUE_PROVIDED)
    refuse_if(r["ignore_lease"] and r["lease"] != 0, Code.LEASE_PROVIDED)


def check_range(r: Fields) -> None:
    refuse_if(not r["key"], Code.EMPTY_KEY)
    refuse_if(r["sort_order"] not in (0, 1, 2), Code.INVALID_SORT)
    refuse_if(r["sort_target"] not in (0, 1, 2, 3, 4), Code.INVALID_SORT)


def check_delete_range(r: Fields) -> None:
    refuse_if(not r["key"], Code.EMPTY_KEY)


def check_txn(r: Fields, ops_max: int) -> None:
    count = max(len(r["compare"]), len(r["success"]), len(r["failure"]))
    refuse_if(count > ops_max, Code.TOO_MANY_OPS)
    for compare in r["compare"]:
        refuse_if(not compare["key"], Code.EMPTY_KEY)
    for op in r["success"] + r["failure"]:
        if "request_range" in op:
            check_range(op["request_range"])
        elif "request_put" in op:
            check_put(op["request_put"])
        elif "request_delete_range" in op:
            check_delete_range(op["request_delete_range"])
        elif "request_txn" in op:
            check_txn(op["request_txn"], ops_max - count)
        else:
            raise Refused(Code.KEY_NOT_FOUND)


def check_intervals(ops: list[Fields]) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
    """The keys put and the ranges deleted by a list of operations; see txncheck.pyx."""
    deletes = []
    for op in ops:
        if delete := op.get("request_delete_range"):
            deletes.append((delete["key"], delete["range_end"] or delete["key"] + b"\0"))

    puts: set[bytes] = set()

    def deleted(key: bytes) -> bool:
        return any(begin <= key < end for begin, end in deletes)

    for op in ops:
        if (txn := op.get("request_txn")) is None:
            continue
        then_puts, then_deletes = check_intervals(txn["success"])
        else_puts, else_deletes = check_intervals(txn["failure"])
        clash = (then_puts | (else_puts - then_puts)) & puts
        refuse_if(bool(clash), Code.DUPLICATE_KEY)
        refuse_if(any(deleted(key) for key in then_puts | else_puts), Code.DUPLICATE_KEY)
        puts |= then_puts | else_puts
        deletes += then_deletes + else_deletes
    for op in ops:
        if put := op.get("request_put"):
            refuse_if(put["key"] in puts or deleted(put["key"]), Code.DUPLICATE_KEY)
            puts.add(put["key"])
    return puts, deletes


def long_keys(fields: Any) -> bool:
    """Whether a key or range end anywhere in the request is over the limit."""
    if isinstance(fields, list):
        return any(long_keys(item) for item in fields)
    for name, value in fields.items():
        if name in ("key", "range_end") and len(value) > KEY_BYTES_MAX:
            return True
        if isinstance(value, (list, dict)) and long_keys(value):
            return True
    return False


def check(kind: int, data: bytes, txn_ops_max: int = 128) -> Code:
    """The code that `_core/etcdpb.check_request` gives."""
    code, fields = decode(kind, data)
    if code:
        return code
    try:
        if kind == Kind.PUT:
            check_put(fields)
        elif kind == Kind.RANGE:
            check_range(fields)
        elif kind == Kind.DELETE_RANGE:
            check_delete_range(fields)
        elif kind == Kind.TXN:
            check_txn(fields, txn_ops_max)
            check_intervals(fields["success"])
            check_intervals(fields["failure"])
        elif kind == Kind.PUT_BATCH_ONE:
            seen = set()
            for put in fields:
                check_put(put)
                refuse_if(len(put["key"]) > KEY_BYTES_MAX, Code.KEY_TOO_LONG)
                refuse_if(put["key"] in seen, Code.DUPLICATE_KEY)
                seen.add(put["key"])
            return Code.OK
        else:
            return Code.OK
        refuse_if(long_keys(fields), Code.KEY_TOO_LONG)
    except Refused as refused:
        return refused.code
    return Code.OK
