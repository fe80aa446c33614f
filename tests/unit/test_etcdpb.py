"""etcd's messages over bytes, against protobuf and against the plain twin."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode._core import messages
from kvnode.base.codes import Code, Kind
from kvnode.base.limits import KEY_BYTES_MAX, TXN_DEPTH_MAX
from kvnode.proto import kv_pb2, kvnodepb_pb2, rpc_pb2
from tests.fuzz import fuzz_etcdpb
from tests.oracle import etcdpb as oracle

MESSAGE = {
    Kind.PUT: rpc_pb2.PutRequest,
    Kind.RANGE: rpc_pb2.RangeRequest,
    Kind.DELETE_RANGE: rpc_pb2.DeleteRangeRequest,
    Kind.TXN: rpc_pb2.TxnRequest,
    Kind.COMPACT: rpc_pb2.CompactionRequest,
    Kind.ALARM: rpc_pb2.AlarmRequest,
    Kind.PUT_BATCH: kvnodepb_pb2.PutBatch,
    Kind.TXN_BATCH: kvnodepb_pb2.TxnBatch,
}
KINDS = sorted(MESSAGE)

# value of an int64 and its varint, written by protobuf
VARINTS = [
    (0, "00"),
    (1, "01"),
    (2, "02"),
    (5, "05"),
    (127, "7f"),
    (128, "8001"),
    (129, "8101"),
    (150, "9601"),
    (255, "ff01"),
    (256, "8002"),
    (300, "ac02"),
    (16383, "ff7f"),
    (16384, "808001"),
    (16385, "818001"),
    (2097151, "ffff7f"),
    (2097152, "80808001"),
    (268435455, "ffffff7f"),
    (268435456, "8080808001"),
    (2147483647, "ffffffff07"),
    (2147483648, "8080808008"),
    (4294967295, "ffffffff0f"),
    (4294967296, "8080808010"),
    (34359738367, "ffffffff7f"),
    (34359738368, "808080808001"),
    (4398046511103, "ffffffffff7f"),
    (4398046511104, "80808080808001"),
    (562949953421311, "ffffffffffff7f"),
    (562949953421312, "8080808080808001"),
    (9007199254740992, "8080808080808010"),
    (72057594037927935, "ffffffffffffff7f"),
    (72057594037927936, "808080808080808001"),
    (4611686018427387904, "808080808080808040"),
    (9223372036854775807, "ffffffffffffffff7f"),
    (-1, "ffffffffffffffffff01"),
    (-2, "feffffffffffffffff01"),
    (-127, "81ffffffffffffffff01"),
    (-128, "80ffffffffffffffff01"),
    (-2147483648, "80808080f8ffffffff01"),
    (-4294967296, "80808080f0ffffffff01"),
    (-72057594037927936, "8080808080808080ff01"),
    (-9223372036854775808, "80808080808080808001"),
    (-9223372036854775807, "81808080808080808001"),
]


def fields_of(message: Message) -> dict[str, Any]:
    """A protobuf message in the shape of messages.decode."""
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.containing_oneof and not message.HasField(field.name):
            continue
        if field.is_repeated:
            out[field.name] = [fields_of(item) for item in value]
        elif field.message_type:
            out[field.name] = fields_of(value)
        else:
            out[field.name] = value
    return out


def request_fields(message: Message) -> Any:
    """The same for a whole request: of a batch, its items."""
    fields = fields_of(message)
    return fields.get("puts", fields.get("txns", fields))


def deterministic(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


# --- bytes of all sorts -------------------------------------------------------------------------

SMALL_KEYS = st.sampled_from([b"", b"\0", b"a", b"a\0", b"b", b"bb", b"c", b"\xff", b"\xff\xff"])
INTS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 5, -1, 127, 128, 2**31, 2**63 - 1, -(2**63)]),
    st.integers(-(2**63), 2**63 - 1),
)


def tag(number: int, wire: int) -> bytes:
    return oracle.write_varint(number << 3 | wire)


@st.composite
def wire_bytes(draw: st.DrawFn, depth: int = 4) -> bytes:
    """Fields in any order, repeated, unknown, of wrong wire types; well formed all in all."""
    out = b""
    for _ in range(draw(st.integers(0, 5))):
        number = draw(st.sampled_from([1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 6, 7, 8, 13, 14, 64, 9999]))
        wire = draw(st.sampled_from([0, 0, 2, 2, 2, 2, 1, 5, 3]))
        out += tag(number, wire)
        if wire == 0:
            out += oracle.write_varint(draw(INTS))
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            out += draw(st.binary(min_size=size, max_size=size))
        elif wire == 3:
            out += draw(wire_bytes(depth=depth - 1)) if depth else b""
            out += tag(number, 4)
        else:
            body = draw(wire_bytes(depth=depth - 1) if depth else SMALL_KEYS)
            out += oracle.write_varint(len(body)) + body
    return out


def compare_decoders(kind: Kind, data: bytes) -> Code:
    """Twin and extension agree on everything; protobuf on what the extension accepts, and it
    rejects nothing that the extension accepts."""
    code, fields = messages.decode(kind, data)
    assert (code, fields) == oracle.decode(kind, data)
    assert messages.check(kind, data) == oracle.check(kind, data)
    try:
        parsed = MESSAGE[kind].FromString(data)
    except DecodeError:
        assert code == Code.MALFORMED
    else:
        if code == Code.OK:
            assert fields == request_fields(parsed)
    return Code(code)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), wire_bytes())
def test_decodes_as_protobuf(kind: Kind, data: bytes):
    assert compare_decoders(kind, data) == Code.OK


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), wire_bytes(), st.data())
def test_damaged_bytes_as_protobuf(kind: Kind, data: bytes, choose: st.DataObject):
    if not data:
        return
    at = choose.draw(st.integers(0, len(data) - 1))
    damage = choose.draw(st.sampled_from(["cut", "change", "insert", "remove"]))
    if damage == "cut":
        data = data[:at]
    elif damage == "change":
        data = data[:at] + bytes([choose.draw(st.integers(0, 255))]) + data[at + 1 :]
    elif damage == "insert":
        data = data[:at] + choose.draw(st.binary(min_size=1, max_size=3)) + data[at:]
    else:
        data = data[:at] + data[at + 1 :]
    compare_decoders(kind, data)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("8a80808000 01 61", Code.OK),  # tag of 5 bytes
        ("8a8080808000 01 61", Code.MALFORMED),  # of 6
        ("8a80808010 01 61", Code.MALFORMED),  # over 32 bits
        ("faffffff0f 00", Code.OK),  # the largest field number
        ("0200", Code.MALFORMED),  # field 0
        ("0e00", Code.MALFORMED),  # wire type 6
        ("0f00", Code.MALFORMED),  # wire type 7
        ("0c", Code.MALFORMED),  # stray end of a group
        ("7b 0801 7c", Code.OK),
        ("7b 0801 74", Code.MALFORMED),  # end of another group
        ("7b 0801", Code.MALFORMED),
        ("7b" * 100 + "7c" * 100, Code.OK),
        ("7b" * 101 + "7c" * 101, Code.MALFORMED),
        ("18 ffffffffffffffffff01", Code.OK),
        ("18 ffffffffffffffffff8100", Code.MALFORMED),  # 11 bytes
        ("18 81808000", Code.OK),  # longer than needed
        ("0a 8180808000 61", Code.OK),
        ("0a 818080808000 61", Code.MALFORMED),
        ("0a ffffffff0f 61", Code.MALFORMED),
        ("0a 02 61", Code.MALFORMED),
        ("0a", Code.MALFORMED),
        ("0805 1201 61", Code.OK),  # key as varint: unknown
        ("09 0102030405060708 0d 01020304", Code.OK),
        ("09 01020304050607", Code.MALFORMED),
        ("20 8080808010", Code.OK),  # a bool of 2^32
    ],
)
def test_edges_of_the_wire_format(text: str, code: Code):
    assert compare_decoders(Kind.PUT, bytes.fromhex(text)) == code


def test_wide_varint_is_refused_as_by_go():
    wide = bytes.fromhex("18 ffffffffffffffffff02")
    assert messages.decode(Kind.PUT, wide) == (Code.MALFORMED, None)
    assert oracle.decode(Kind.PUT, wide) == (Code.MALFORMED, None)


@pytest.mark.parametrize(
    "text",
    [
        "12 0a 1203 0a0161 1203 120162",  # two puts merge
        "12 0f 1203 0a0161 0a03 0a0162 1203 120163",  # another member between: the first is gone
        "12 07 1203 0a0161 0801",  # a member with another wire type is unknown
        "12 0c 2205 1203 1201 61 2203 0a011a",  # two transactions, second's compare broken
        "12 10 2207 1205 1203 0a0161 2205 1203 1201 62",  # nested lists append
        "12 04 2200 2200",
        "12 0b 2200 2207 1205 1203 0a0161",
        "12 0d 2207 1205 1203 0a0161 2200 5001",
    ],
)
def test_repeated_members_merge_as_protobuf(text: str):
    compare_decoders(Kind.TXN, bytes.fromhex(text))


def test_each_occurrence_must_be_well_framed():
    """The two joined would parse, the first alone does not."""
    assert compare_decoders(Kind.TXN, bytes.fromhex("12 09 2202 1203 2203 5a0161")) == (
        Code.MALFORMED
    )


def nested(depth: int) -> bytes:
    body = b""
    for _ in range(depth - 1):
        body = messages.encode_txn(success=[messages.encode_op(4, body)])
    return body


def test_depth_limit():
    for depth in (TXN_DEPTH_MAX, TXN_DEPTH_MAX + 1, 5000):
        code = Code.OK if depth <= TXN_DEPTH_MAX else Code.NESTED_TOO_DEEP
        assert messages.decode(Kind.TXN, nested(depth))[0] == code
        assert messages.check(Kind.TXN_BATCH, messages.encode_batch([nested(depth)])) == code


def test_repeated_member_costs_linear_time():
    """100,000 occurrences of one member: quadratic merging would not end."""
    part = bytes.fromhex("2207 1205 1203 0a0161")
    op = part * 100_000
    data = messages.encode_txn(success=[op])
    code, fields = messages.decode(Kind.TXN, data)
    assert code == Code.OK
    assert len(fields["success"][0]["request_txn"]["success"]) == 100_000
    assert messages.check(Kind.TXN, data, 1_000_000) == Code.DUPLICATE_KEY


@pytest.mark.parametrize(("value", "text"), VARINTS)
def test_varints(value: int, text: str):
    encoded = bytes.fromhex(text)
    assert oracle.write_varint(value) == encoded
    assert messages.encode_compact(value) == (b"\x08" + encoded if value else b"")
    assert messages.decode(Kind.COMPACT, b"\x08" + encoded)[1]["revision"] == value
    raw = messages.encode_keyvalue(b"k", lease=value)
    assert len(raw) == 3 + (1 + len(encoded) if value else 0)
    assert compare_decoders(Kind.COMPACT, b"\x08" + encoded) == Code.OK


# --- encoders -----------------------------------------------------------------------------------

FLAGS = st.booleans()
REQUEST = {
    "encode_put": (rpc_pb2.PutRequest, Kind.PUT),
    "encode_range": (rpc_pb2.RangeRequest, Kind.RANGE),
    "encode_delete_range": (rpc_pb2.DeleteRangeRequest, Kind.DELETE_RANGE),
    "encode_compact": (rpc_pb2.CompactionRequest, Kind.COMPACT),
}


def arguments(draw: st.DrawFn, message: type[Message]) -> dict[str, Any]:
    out = {}
    for field in message.DESCRIPTOR.fields:
        if field.enum_type:
            out[field.name] = draw(st.integers(0, 2))
        elif field.type == field.TYPE_BYTES:
            out[field.name] = draw(st.one_of(SMALL_KEYS, st.binary(max_size=300)))
        elif field.type == field.TYPE_BOOL:
            out[field.name] = draw(FLAGS)
        else:
            out[field.name] = draw(INTS)
    return out


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(REQUEST)), st.data())
def test_requests_equal_protobuf(name: str, choose: st.DataObject):
    message, kind = REQUEST[name]
    fields = arguments(choose.draw, message)
    encoded = getattr(messages, name)(**fields)
    assert encoded == deterministic(message(**fields))
    assert messages.decode(kind, encoded) == (Code.OK, fields)
    assert oracle.encode_message(oracle.MESSAGE_OF_KIND[kind], fields) == encoded


@pytest.mark.parametrize("target", range(5))
@pytest.mark.parametrize("operand", [None, 0, 7, -1])
def test_compare_equals_protobuf(target: int, operand: int | None):
    name = ["version", "create_revision", "mod_revision", "value", "lease"][target]
    value = b"x" * operand if target == 3 and operand is not None and operand >= 0 else operand
    if target == 3 and operand == -1:
        value = b""
    message = rpc_pb2.Compare(result=3, target=target, key=b"k", range_end=b"z")
    if value is not None:
        setattr(message, name, value)
    encoded = messages.encode_compare(b"k", 3, target, value, b"z")
    assert encoded == deterministic(message)
    assert compare_decoders(Kind.TXN, messages.encode_txn([encoded])) == Code.OK


def test_put_batch_equals_protobuf():
    rng = random.Random(3)
    keys = [rng.randbytes(rng.randrange(1, 200)) for _ in range(200)]
    values = [rng.randbytes(rng.choice([0, 1, 127, 128, 20_000])) for _ in keys]
    for lease in (0, 5):
        batch = kvnodepb_pb2.PutBatch()
        for key, value in zip(keys, values, strict=True):
            batch.puts.add(key=key, value=value, lease=lease)
        encoded = messages.encode_put_batch(keys, values, lease)
        assert encoded == deterministic(batch)
        assert messages.decode(Kind.PUT_BATCH, encoded) == (Code.OK, request_fields(batch))
    puts = [messages.encode_put(k, v) for k, v in zip(keys, values, strict=True)]
    assert messages.encode_batch(puts) == messages.encode_put_batch(keys, values)


def test_put_batch_refuses_what_is_not_bytes():
    with pytest.raises(TypeError):
        messages.encode_put_batch([b"a", "b"], [b"", b""])
    with pytest.raises(ValueError, match="2 keys but 1 values"):
        messages.encode_put_batch([b"a", b"b"], [b""])


HEADERS = st.one_of(
    st.none(),
    st.just((0, 0, 0, 0)),
    st.tuples(
        st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), INTS, st.integers(0, 2**64 - 1)
    ),
)
KVS = st.builds(
    kv_pb2.KeyValue,
    key=SMALL_KEYS,
    create_revision=INTS,
    mod_revision=INTS,
    version=INTS,
    value=st.binary(max_size=200),
    lease=INTS,
)
OP_NAMES = {1: "response_range", 2: "response_put", 3: "response_delete_range", 4: "response_txn"}


def header_of(header: tuple[int, int, int, int] | None) -> rpc_pb2.ResponseHeader | None:
    if header is None:
        return None
    names = ("cluster_id", "member_id", "revision", "raft_term")
    return rpc_pb2.ResponseHeader(**dict(zip(names, header, strict=True)))


@st.composite
def answers(draw: st.DrawFn, depth: int = 3) -> tuple[int, dict[str, Any], Message]:
    """(op kind, fields for encode_answer, the same as a protobuf message)."""
    kind = draw(st.sampled_from([1, 2, 3, 4] if depth else [1, 2, 3]))
    fields: dict[str, Any] = {"header": draw(HEADERS)}
    header = header_of(fields["header"])
    if kind == 1:
        kvs = draw(st.lists(KVS, max_size=4))
        fields |= {"more": draw(FLAGS), "count": draw(INTS), "keys_only": draw(FLAGS)}
        fields["kvs"] = [deterministic(kv) for kv in kvs]
        if fields["keys_only"]:
            for kv in kvs:
                kv.ClearField("value")
        more, count = fields["more"], fields["count"]
        message = rpc_pb2.RangeResponse(header=header, kvs=kvs, more=more, count=count)
    elif kind == 2:
        kv = draw(st.one_of(st.none(), KVS))
        fields["prev_kv"] = None if kv is None else deterministic(kv)
        message = rpc_pb2.PutResponse(header=header, prev_kv=kv)
    elif kind == 3:
        kvs = draw(st.lists(KVS, max_size=3))
        fields |= {"deleted": draw(INTS), "prev_kvs": [deterministic(kv) for kv in kvs]}
        message = rpc_pb2.DeleteRangeResponse(
            header=header, deleted=fields["deleted"], prev_kvs=kvs
        )
    else:
        inner = draw(st.lists(answers(depth=depth - 1), max_size=4))
        fields |= {"succeeded": draw(FLAGS), "responses": [(k, f) for k, f, _ in inner]}
        responses = [rpc_pb2.ResponseOp(**{OP_NAMES[k]: m}) for k, _, m in inner]
        message = rpc_pb2.TxnResponse(
            header=header, succeeded=fields["succeeded"], responses=responses
        )
    return kind, fields, message


@settings(max_examples=300, deadline=None, derandomize=True)
@given(answers(), FLAGS)
def test_answers_equal_protobuf(answer: tuple[int, dict[str, Any], Message], late: bool):
    kind, fields, message = answer
    assert messages.encode_answer(kind, fields, late) == deterministic(message)


@pytest.mark.parametrize("size", [0, 100, 119, 120, 121, 125, 126, 127, 128, 16_382, 16_400, 2**21])
def test_lengths_around_a_longer_prefix(size: int):
    kv = kv_pb2.KeyValue(key=b"k", value=b"v" * size)
    message: Message = rpc_pb2.PutResponse(prev_kv=kv)
    fields: dict[str, Any] = {"prev_kv": deterministic(kv)}
    kind = 2
    for _ in range(4):
        message = rpc_pb2.TxnResponse(responses=[rpc_pb2.ResponseOp(**{OP_NAMES[kind]: message})])
        fields = {"responses": [(kind, fields)]}
        kind = 4
        assert messages.encode_answer(kind, fields) == deterministic(message)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(KVS)
def test_keyvalue_equals_protobuf(kv: kv_pb2.KeyValue):
    raw = deterministic(kv)
    assert messages.encode_keyvalue(**fields_of(kv)) == raw
    assert messages.decode_keyvalue(raw) == (Code.OK, fields_of(kv))
    assert oracle.encode_message("KeyValue", fields_of(kv)) == raw
    kv.ClearField("value")
    assert messages.keys_only(raw) == deterministic(kv)


def test_keys_only_of_damage_is_none():
    assert messages.keys_only(b"\x0a\x05k") is None


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    HEADERS,
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 31)), max_size=5),
    INTS,
    INTS,
    st.integers(0, 2**64 - 1),
)
def test_batch_answers_equal_protobuf(header, refused, first, last, applied):
    message = kvnodepb_pb2.BatchResponse(
        header=header_of(header),
        refused=[kvnodepb_pb2.Refusal(index=i, code=c) for i, c in refused],
        first_revision=first,
        last_revision=last,
        applied=applied,
    )
    encoded = messages.encode_batch_answer(header, refused, first, last, applied)
    assert encoded == deterministic(message)


def test_small_answers_equal_protobuf():
    header = (1, 2, 3, 4)
    expected = rpc_pb2.CompactionResponse(header=header_of(header))
    assert messages.encode_compact_answer(header) == deterministic(expected)
    alarms = [rpc_pb2.AlarmMember(memberID=2**64 - 1, alarm=1), rpc_pb2.AlarmMember()]
    answer = rpc_pb2.AlarmResponse(header=header_of(header), alarms=alarms)
    got = messages.encode_alarm_answer(header, [(2**64 - 1, 1), (0, 0)])
    assert got == deterministic(answer)


# --- checks -------------------------------------------------------------------------------------


def put(key: bytes, **more: Any) -> bytes:
    return messages.encode_op(2, messages.encode_put(key, more.pop("value", b""), **more))


def delete(key: bytes, range_end: bytes = b"") -> bytes:
    return messages.encode_op(3, messages.encode_delete_range(key, range_end))


def get(key: bytes, **more: Any) -> bytes:
    return messages.encode_op(1, messages.encode_range(key, **more))


def txn(success: list[bytes] = [], failure: list[bytes] = [], compare: list[bytes] = []) -> bytes:  # noqa: B006
    return messages.encode_txn(compare, success, failure)


def inner(success: list[bytes] = [], failure: list[bytes] = []) -> bytes:  # noqa: B006
    return messages.encode_op(4, txn(success, failure))


LONG = b"k" * (KEY_BYTES_MAX + 1)
CHECKS = [
    (Kind.PUT, messages.encode_put(b"", b"v"), Code.EMPTY_KEY),
    (Kind.PUT, messages.encode_put(b"k", b"v", ignore_value=True), Code.VALUE_PROVIDED),
    (Kind.PUT, messages.encode_put(b"k", b"", 3, ignore_lease=True), Code.LEASE_PROVIDED),
    (Kind.PUT, messages.encode_put(b"", b"v", ignore_value=True), Code.EMPTY_KEY),
    (Kind.PUT, messages.encode_put(LONG, b"v", ignore_value=True), Code.VALUE_PROVIDED),
    (Kind.PUT, messages.encode_put(LONG, b""), Code.KEY_TOO_LONG),
    (Kind.PUT, messages.encode_put(LONG[1:], b""), Code.OK),
    (Kind.RANGE, messages.encode_range(b""), Code.EMPTY_KEY),
    (Kind.RANGE, messages.encode_range(b"k", sort_order=3), Code.INVALID_SORT),
    (Kind.RANGE, messages.encode_range(b"k", sort_order=-1), Code.INVALID_SORT),
    (Kind.RANGE, messages.encode_range(b"k", sort_target=5), Code.INVALID_SORT),
    (Kind.RANGE, messages.encode_range(b"k", LONG), Code.KEY_TOO_LONG),
    (Kind.DELETE_RANGE, messages.encode_delete_range(b"", b"z"), Code.EMPTY_KEY),
    (Kind.TXN, txn(), Code.OK),
    (Kind.TXN, txn([b""]), Code.KEY_NOT_FOUND),
    (Kind.TXN, txn([put(b"")]), Code.EMPTY_KEY),
    (Kind.TXN, txn([get(b"k", sort_order=9)]), Code.INVALID_SORT),
    (Kind.TXN, txn(compare=[messages.encode_compare(b"", 0, 0)]), Code.EMPTY_KEY),
    (Kind.TXN, txn([put(b"%d" % i) for i in range(128)]), Code.OK),
    (Kind.TXN, txn([put(b"%d" % i) for i in range(129)]), Code.TOO_MANY_OPS),
    (Kind.TXN, txn([], [get(b"k")] * 129), Code.TOO_MANY_OPS),
    # a nested level may have what the longest list of the level above left
    (Kind.TXN, txn([inner([get(b"k")] * 127)]), Code.OK),
    (Kind.TXN, txn([inner([get(b"k")] * 128)]), Code.TOO_MANY_OPS),
    (Kind.TXN, txn([put(b"a"), put(b"a")]), Code.DUPLICATE_KEY),
    (Kind.TXN, txn([put(b"a")], [put(b"a")]), Code.OK),
    (Kind.TXN, txn([put(b"a"), delete(b"a")]), Code.DUPLICATE_KEY),
    (Kind.TXN, txn([put(b"b"), delete(b"a", b"c")]), Code.DUPLICATE_KEY),
    (Kind.TXN, txn([put(b"c"), delete(b"a", b"c")]), Code.OK),
    (Kind.TXN, txn([delete(b"a"), delete(b"a", b"c")]), Code.OK),
    # "from key on" holds no key in this rule, as in etcd
    (Kind.TXN, txn([put(b"b"), delete(b"a", b"\0")]), Code.OK),
    (Kind.TXN, txn([inner([put(b"a")], [put(b"a")])]), Code.OK),
    (Kind.TXN, txn([inner([put(b"a")]), put(b"a")]), Code.DUPLICATE_KEY),
    (Kind.TXN, txn([inner([put(b"a")]), inner([], [put(b"a")])]), Code.DUPLICATE_KEY),
    (Kind.TXN, txn([inner([put(b"a")]), inner([delete(b"a")])]), Code.OK),
    (Kind.TXN, txn([inner([delete(b"a")]), inner([put(b"a")])]), Code.DUPLICATE_KEY),
    (Kind.TXN, txn([inner([delete(b"a")], [put(b"a")])]), Code.OK),
    (Kind.TXN, txn([put(LONG), put(b"a"), put(b"a")]), Code.DUPLICATE_KEY),
    (Kind.TXN, txn([put(LONG)]), Code.KEY_TOO_LONG),
    (Kind.TXN, txn([inner([], [get(b"a", range_end=LONG)])]), Code.KEY_TOO_LONG),
    (Kind.COMPACT, messages.encode_compact(5), Code.OK),
    (Kind.PUT_BATCH, messages.encode_put_batch([b"", b"a", b"a"], [b""] * 3), Code.OK),
    (Kind.PUT_BATCH_ONE, messages.encode_put_batch([b"a", b"b"], [b""] * 2), Code.OK),
    (Kind.PUT_BATCH_ONE, messages.encode_put_batch([b"a", b"a"], [b""] * 2), Code.DUPLICATE_KEY),
    (Kind.PUT_BATCH_ONE, messages.encode_put_batch([b"a", b""], [b""] * 2), Code.EMPTY_KEY),
    (Kind.PUT_BATCH_ONE, b"", Code.OK),
    (Kind.PUT_BATCH, b"\x0a\x02\x0a", Code.MALFORMED),
    (Kind.TXN_BATCH, messages.encode_batch([txn([put(b"")])]), Code.OK),
    (Kind.TXN_BATCH, b"\x0a\x01\x0a", Code.MALFORMED),
    (Kind.STATUS, b"", Code.UNKNOWN_KIND),
    (200, b"", Code.UNKNOWN_KIND),
]


@pytest.mark.parametrize(("kind", "body", "code"), CHECKS)
def test_checks(kind: int, body: bytes, code: Code):
    assert messages.check(kind, body) == code
    assert oracle.check(kind, body) == code


@st.composite
def write_ops(draw: st.DrawFn, depth: int) -> list[bytes]:
    """Operations over few keys, so that they clash about every other time."""
    key = st.sampled_from([b"\0", b"a", b"a\0", b"b", b"c", b"d", b"e", b"f", b"\xff"])
    ops = []
    for _ in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["put", "put", "delete", "range", "get", "txn"]))
        if what == "put":
            ops.append(put(draw(key)))
        elif what == "delete":
            ops.append(delete(draw(key)))
        elif what == "range":
            ops.append(delete(draw(key), draw(key)))
        elif what == "get":
            ops.append(get(draw(key)))
        elif depth:
            ops.append(inner(draw(write_ops(depth - 1)), draw(write_ops(depth - 1))))
    return ops


@settings(max_examples=600, deadline=None, derandomize=True)
@given(write_ops(3), write_ops(2), st.integers(1, 8))
def test_duplicate_keys_as_the_twin(success: list[bytes], failure: list[bytes], ops_max: int):
    body = txn(success, failure)
    for limit in (ops_max, 128):
        assert messages.check(Kind.TXN, body, limit) == oracle.check(Kind.TXN, body, limit)


def test_overlapping_deletes_as_the_twin():
    rng = random.Random(7)
    seen = {Code.OK: 0, Code.DUPLICATE_KEY: 0}
    for _ in range(400):
        ops = [put(b"p%03d" % rng.randrange(1000))]
        for _ in range(rng.randrange(30)):
            begin = rng.randrange(1000)
            width = rng.choice([0, 1, 3, 10, 10, 100])
            ops.append(delete(b"p%03d" % begin, b"p%03d" % (begin + width) if width else b""))
        rng.shuffle(ops)
        body = txn(ops)
        code = Code(messages.check(Kind.TXN, body))
        assert code == oracle.check(Kind.TXN, body)
        seen[code] += 1
    assert min(seen.values()) > 50, seen


def test_huge_transactions_cost_no_quadratic_time():
    """Each of these took minutes with pairwise comparison; the limit is pytest's timeout."""
    n = 100_000
    flat = [put(b"%d" % i) for i in range(n)] + [delete(b"x%d" % i, b"y") for i in range(n)]
    assert messages.check(Kind.TXN, txn(flat), n * 2) == Code.OK
    siblings = [inner([put(b"%d" % i), delete(b"x%d" % i, b"y")]) for i in range(n)]
    assert messages.check(Kind.TXN, txn(siblings), n * 2) == Code.OK


def test_fuzz():
    rng = random.Random(11)
    seeds = [body for _, body, _ in CHECKS] + [nested(20)]
    for _ in range(3000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(6)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        fuzz_etcdpb.fuzz(bytes([rng.randrange(256)]) + bytes(data))
