"""kvnode's .proto files beside etcd 3.7.1's own descriptors, field by field.

tests/peers/schema prints the descriptors that etcd's Go modules are built with. Compared is what
the wire, JSON and reflection show: names, numbers, types, labels, oneofs, enums, methods and who
streams. Files, options and comments are each side's own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from kvnode.proto import (
    auth_pb2,
    health_pb2,
    kv_pb2,
    reflection_pb2,
    reflection_v1alpha_pb2,
    rpc_pb2,
    v3election_pb2,
    v3lock_pb2,
)
from tests.support.etcd import find, why_missing

OURS: tuple[Any, ...] = (
    rpc_pb2, kv_pb2, auth_pb2, v3lock_pb2, v3election_pb2, health_pb2, reflection_pb2,
    reflection_v1alpha_pb2,
)  # fmt: skip
Field = descriptor_pb2.FieldDescriptorProto
Facts = dict[str, Any]


def messages(scope: str, many: Any) -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
    for message in many:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from messages(name, message.nested_type)


def field_facts(message: descriptor_pb2.DescriptorProto, field: Field) -> tuple[Any, ...]:
    oneof = None
    if field.HasField("oneof_index"):
        oneof = message.oneof_decl[field.oneof_index].name
    return (
        field.name, field.json_name or json_name(field.name), Field.Type.Name(field.type),
        Field.Label.Name(field.label), field.type_name, oneof, field.proto3_optional,
    )  # fmt: skip


def json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def facts(files: list[descriptor_pb2.FileDescriptorProto]) -> Facts:
    """What is compared, by full name."""
    out: Facts = {}
    for file in files:
        enums = [(f"{file.package}.{enum.name}", enum) for enum in file.enum_type]
        for name, message in messages(file.package, file.message_type):
            out[name] = {field.number: field_facts(message, field) for field in message.field}
            enums += [(f"{name}.{enum.name}", enum) for enum in message.enum_type]
        for name, enum in enums:
            out[name] = {value.number: value.name for value in enum.value}
        for service in file.service:
            for method in service.method:
                out[f"{file.package}.{service.name}/{method.name}"] = (
                    method.input_type, method.output_type, method.client_streaming,
                    method.server_streaming,
                )  # fmt: skip
    return out


def our_facts() -> Facts:
    files = []
    for module in OURS:
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files.append(file)
    return facts(files)


@pytest.fixture(scope="module")
def theirs() -> Facts:
    program = find("schema")
    if program is None:
        pytest.skip(why_missing())
    data = subprocess.run([str(program)], check=True, capture_output=True).stdout
    return facts(list(descriptor_pb2.FileDescriptorSet.FromString(data).file))


def test_everything_of_etcds_is_here_as_it_is_there(theirs: Facts) -> None:
    ours = our_facts()
    assert set(theirs) - set(ours) == set()
    assert {name: (ours[name], theirs[name]) for name in set(ours) & set(theirs)
            if ours[name] != theirs[name]} == {}  # fmt: skip


def test_nothing_is_here_that_etcd_has_not(theirs: Facts) -> None:
    assert set(our_facts()) - set(theirs) == set()


def test_the_comparison_sees_each_kind_of_difference(theirs: Facts) -> None:
    file = descriptor_pb2.FileDescriptorProto()
    rpc_pb2.DESCRIPTOR.CopyToProto(file)
    put = next(message for message in file.message_type if message.name == "PutRequest")
    put.field[0].number = 77
    file.service[0].method[0].server_streaming = True
    file.enum_type[0].value[1].name = "NO_SPACE"
    broken = facts([file])
    assert {name for name in broken if broken[name] != theirs[name]} == {
        "etcdserverpb.PutRequest", "etcdserverpb.KV/Range", "etcdserverpb.AlarmType",
    }  # fmt: skip
