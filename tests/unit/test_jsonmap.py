"""The JSON mapping: against google's own for what is sound, against etcd's texts for what isn't."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.api import jsonmap
from kvnode.api.jsonmap import JsonError
from kvnode.api.service import RPCS
from kvnode.proto import kv_pb2, rpc_pb2
from tests.fuzz import fuzz_jsonmap

KINDS: list[type[Message]] = sorted(
    {kind for rpc in RPCS.values() for kind in (rpc.request, rpc.response)
     if kind.DESCRIPTOR.full_name.startswith(("etcdserverpb", "v3"))},
    key=lambda kind: kind.DESCRIPTOR.full_name,
)

_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return contents(field.message_type, depth + 1)
    if field.cpp_type in _BOUNDS:
        return st.integers(*_BOUNDS[field.cpp_type])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([v.number for v in field.enum_type.values] + [77])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=12)
    return st.text(max_size=8)


def contents(kind: Descriptor, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Field name to value; messages nest three deep at most."""
    return st.fixed_dictionaries(
        {},
        optional={
            field.name: (
                st.lists(values(field, depth), max_size=3)
                if field.is_repeated
                else values(field, depth)
            )
            for field in kind.fields
            if depth < 3 or field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE
        },
    )


def build(message: Message, given: dict[str, Any]) -> Message:
    """Sets the fields; of a choice the last one stays, as in protobuf."""
    for name, value in given.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            if field.is_repeated:
                for one in value:
                    build(getattr(message, name).add(), one)
            else:
                getattr(message, name).SetInParent()
                build(getattr(message, name), value)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.DESCRIPTOR.name)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_message_is_the_same_after_a_round_trip(kind: type[Message], data: Any) -> None:
    message = build(kind(), data.draw(contents(kind.DESCRIPTOR)))
    text = jsonmap.encode(message)
    assert json_format.Parse(text, kind()) == message
    assert jsonmap.decode(kind, text.encode()) == message
    assert "".join(jsonmap.encode_pieces(message)) == text
    theirs = json_format.MessageToJson(message, preserving_proto_field_name=True)
    assert json.loads(text) == json.loads(theirs)
    assert jsonmap.decode(kind, json_format.MessageToJson(message).encode()) == message


def test_the_golden_form_of_every_kv_message() -> None:
    kv = kv_pb2.KeyValue(
        key=b"foo", create_revision=2, mod_revision=1 << 62, version=1, value=b"\xff\xef", lease=-1
    )
    header = rpc_pb2.ResponseHeader(cluster_id=(1 << 64) - 1, member_id=2, revision=3, raft_term=4)
    kv_text = (
        '{"key":"Zm9v","create_revision":"2","mod_revision":"4611686018427387904","version":"1",'
        '"value":"/+8=","lease":"-1"}'
    )
    head = (
        '{"cluster_id":"18446744073709551615","member_id":"2","revision":"3","raft_term":"4"}'
    )
    golden: list[tuple[Message, str]] = [
        (rpc_pb2.RangeRequest(
            key=b"a", range_end=b"b", limit=5, revision=6, sort_order=2, sort_target=3,
            serializable=True, keys_only=True, count_only=True, min_mod_revision=1,
            max_mod_revision=2, min_create_revision=3, max_create_revision=4),
         '{"key":"YQ==","range_end":"Yg==","limit":"5","revision":"6","sort_order":"DESCEND",'
         '"sort_target":"MOD","serializable":true,"keys_only":true,"count_only":true,'
         '"min_mod_revision":"1","max_mod_revision":"2","min_create_revision":"3",'
         '"max_create_revision":"4"}'),
        (rpc_pb2.RangeResponse(header=header, kvs=[kv], more=True, count=9),
         f'{{"header":{head},"kvs":[{kv_text}],"more":true,"count":"9"}}'),
        (rpc_pb2.PutRequest(key=b"k", value=b"v", lease=7, prev_kv=True, ignore_value=True,
                            ignore_lease=True),
         '{"key":"aw==","value":"dg==","lease":"7","prev_kv":true,"ignore_value":true,'
         '"ignore_lease":true}'),
        (rpc_pb2.PutResponse(header=header, prev_kv=kv),
         f'{{"header":{head},"prev_kv":{kv_text}}}'),
        (rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"\0", prev_kv=True),
         '{"key":"aw==","range_end":"AA==","prev_kv":true}'),
        (rpc_pb2.DeleteRangeResponse(header=header, deleted=1, prev_kvs=[kv]),
         f'{{"header":{head},"deleted":"1","prev_kvs":[{kv_text}]}}'),
        (rpc_pb2.TxnRequest(
            compare=[rpc_pb2.Compare(result=1, target=3, key=b"k", value=b""),
                     rpc_pb2.Compare(target=0, key=b"k", version=0)],
            success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k"))],
            failure=[rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest())]),
         '{"compare":[{"result":"GREATER","target":"VALUE","key":"aw==","value":""},'
         '{"key":"aw==","version":"0"}],"success":[{"request_put":{"key":"aw=="}}],'
         '"failure":[{"request_txn":{}}]}'),
        (rpc_pb2.TxnResponse(
            header=header, succeeded=True,
            responses=[rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse())]),
         f'{{"header":{head},"succeeded":true,"responses":[{{"response_range":{{}}}}]}}'),
        (rpc_pb2.CompactionRequest(revision=5, physical=True), '{"revision":"5","physical":true}'),
        (rpc_pb2.CompactionResponse(header=header), f'{{"header":{head}}}'),
    ]
    for message, text in golden:
        assert jsonmap.encode(message) == text
        assert jsonmap.decode(type(message), text.encode()) == message


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"key":"Zm9v","value":"YmFy","lease":"123"}',
         '{"key":"Zm9v","value":"YmFy","lease":"123"}'),
        ('{"key":"_-8"}', '{"key":"/+8="}'),
        ('{"key":"_-8="}', '{"key":"/+8="}'),
        ('{"key":"Zg","prevKv":true}', '{"key":"Zg==","prev_kv":true}'),
        ('{"key":null}', "{}"),
        ("", "{}"),
        (" \r\n", "{}"),
        ('{"lease":1.0}', '{"lease":"1"}'),
        ('{"lease":1e2}', '{"lease":"100"}'),
        ('{"lease":0.0e9999999999}', "{}"),
        ('{"unknown":[1,{"b":2}],"key":"Zg=="}', '{"key":"Zg=="}'),
        ('{"key":"Zm9v"} {}', '{"key":"Zm9v"}'),
        ('{"key":"Zm9v"} garbage', '{"key":"Zm9v"}'),
        ('{"key":"Zm9v"}}', '{"key":"Zm9v"}'),
    ],
)
def test_what_is_taken(body: str, text: str) -> None:
    assert jsonmap.encode(jsonmap.decode(rpc_pb2.PutRequest, body.encode())) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"key":"a"}', 'proto: invalid value for bytes field key: "a"'),
        ('{"key":"Zm9v!"}', 'proto: invalid value for bytes field key: "Zm9v!"'),
        ('{"key":"Zg="}', 'proto: invalid value for bytes field key: "Zg="'),
        ('{"key":"Z g="}', 'proto: invalid value for bytes field key: "Z g="'),
        ('{"key":5}', "proto: invalid value for bytes field key: 5"),
        ('{"key":true}', "proto: invalid value for bytes field key: true"),
        ('{"key":"-/8="}', 'proto: invalid value for bytes field key: "-/8="'),
        ('{"prev_kv":"true"}', 'proto: invalid value for bool field prevKv: "true"'),
        ('{"lease":"x"}', 'proto: invalid value for int64 field lease: "x"'),
        ('{"lease":" 1"}', 'proto: invalid value for int64 field lease: " 1"'),
        ('{"lease":1.5}', "proto: invalid value for int64 field lease: 1.5"),
        ('{"lease":1e99999999999}', "proto: invalid value for int64 field lease: 1e99999999999"),
        ('{"lease":"9223372036854775808"}',
         'proto: invalid value for int64 field lease: "9223372036854775808"'),
        ('{"key":"Zg==","key":"Zg=="}', 'proto: duplicate field "key"'),
        ('{"prev_kv":true,"prevKv":true}', 'proto: duplicate field "prevKv"'),
        ("[]", "proto: syntax error: unexpected token ["),
        ('"a"', 'proto: syntax error: unexpected token "a"'),
        ("null", "proto: syntax error: unexpected token null"),
        ("x", "invalid character 'x' looking for beginning of value"),
        ('{"a":NaN}', "invalid character 'N' looking for beginning of value"),
        ('{key:"a"}', "invalid character 'k' looking for beginning of object key string"),
        ("{'key':'a'}", r"invalid character '\'' looking for beginning of object key string"),
        ('{"key":"Zm9v",}', "invalid character '}' looking for beginning of object key string"),
        ('{"a":["]",1 2]}', "invalid character '2' after array element"),
        ('{"a":[1] 2}', "invalid character '2' after object key:value pair"),
        ('{"key":"Zm9v"', "unexpected EOF"),
        ('{"key":"Zm', "unexpected EOF"),
        ('{"key":tr', "unexpected EOF"),
        ("[" * 200_000, "exceeded max depth"),
    ],
)
def test_what_is_refused(body: str, text: str) -> None:
    with pytest.raises(JsonError) as refused:
        jsonmap.decode(rpc_pb2.PutRequest, body.encode())
    assert str(refused.value) == text


def test_two_members_of_a_choice_and_deep_nesting_are_refused() -> None:
    body = b'{"success":[{"request_put":{},"requestRange":{}}]}'
    with pytest.raises(JsonError, match=r"oneof etcdserverpb\.RequestOp\.request is already set"):
        jsonmap.decode(rpc_pb2.TxnRequest, body)
    deep = b'{"success":[{"request_txn":' * 80 + b"{}" + b"}]}" * 80
    with pytest.raises(JsonError, match="exceeded max recursion depth"):
        jsonmap.decode(rpc_pb2.TxnRequest, deep)


@pytest.mark.parametrize(
    ("order", "number"),
    [('"DESCEND"', 2), ("2", 2), ('"XX"', 0), ('"descend"', 0), ('"2"', 0), ("77", 77)],
)
def test_enums_by_name_or_number(order: str, number: int) -> None:
    body = f'{{"sort_order":{order}}}'.encode()
    message = jsonmap.decode(rpc_pb2.RangeRequest, body)
    assert message == rpc_pb2.RangeRequest(sort_order=number)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0dtrue1e-.key ', max_size=40))
def test_any_bytes_are_taken_or_refused(body: bytes | str) -> None:
    raw = body if isinstance(body, bytes) else body.encode()
    try:
        message = jsonmap.decode(rpc_pb2.TxnRequest, raw)
    except JsonError as error:
        str(error).encode()
    else:
        jsonmap.encode(message).encode()


def test_mutated_bodies() -> None:
    rng = random.Random(7)
    seeds = [
        b'{"key":"Zm9v","value":"_-8","lease":"-5","prev_kv":true,"ignoreLease":false}',
        b'{"key":"Zg","range_end":"AA==","limit":1e2,"sort_order":"DESCEND","sortTarget":3}',
        b'{"compare":[{"result":"EQUAL","target":"VERSION","key":"Zg==","version":"3"}],'
        b'"success":[{"request_put":{"key":"YQ=="}},{"requestRange":{"key":"YQ=="}}],'
        b'"failure":[{"request_txn":{"success":[{"request_delete_range":{"key":"YQ=="}}]}}]}',
        b'{"create_request":{"key":"Zg==","start_revision":"5","filters":["NOPUT",1]}}',
        b'{"peerURLs":["http:\\/\\/a","\\u00e9\\ud83d\\ude00"],"is_learner":true}',
    ]
    pieces = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"1.5", b"\\u0000", b"\xff", b" "]
    for _ in range(4000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(data) + 1)
            cut = at + rng.choice((0, 0, 1, 3, 20))
            data[at:cut] = rng.choice([*pieces, data[: rng.randrange(30)]])
        fuzz_jsonmap.fuzz(bytes([rng.randrange(256)]) + bytes(data))


def test_a_large_answer_comes_in_pieces() -> None:
    kvs = [kv_pb2.KeyValue(key=b"%06d" % n, value=b"x" * 200) for n in range(5000)]
    message = rpc_pb2.RangeResponse(kvs=kvs, count=5000)
    pieces = list(jsonmap.encode_pieces(message))
    assert len(pieces) > 5
    assert max(map(len, pieces)) < jsonmap.PIECE_CHARS + 1000
    assert json_format.Parse("".join(pieces), rpc_pb2.RangeResponse()) == message
