"""Every RPC that port 2379 knows: path, messages, streaming.

Role: the table by which calls are routed, JSON is mapped, metrics are named and reflection
answers. It is made of the descriptors in `kvnode/proto`, so the schema is said once.
Callers: api/*, procs/gateway, tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvnode.proto import (
    health_pb2,
    reflection_pb2,
    reflection_v1alpha_pb2,
    rpc_pb2,
    v3election_pb2,
    v3lock_pb2,
)

_MODULES: tuple[Any, ...] = (
    rpc_pb2,
    v3lock_pb2,
    v3election_pb2,
    health_pb2,
    reflection_pb2,
    reflection_v1alpha_pb2,
)


@dataclass(frozen=True)
class Rpc:
    """One method of one service."""

    service: str
    """With its package: `etcdserverpb.KV`."""
    name: str
    request: type[Message]
    response: type[Message]
    client_streams: bool
    server_streams: bool

    @property
    def path(self) -> str:
        """The :path of a call, `/etcdserverpb.KV/Range`."""
        return f"/{self.service}/{self.name}"

    @property
    def grpc_type(self) -> str:
        """As label `grpc_type` of the metrics: unary, client_stream, server_stream, bidi_stream."""
        if self.client_streams:
            return "bidi_stream" if self.server_streams else "client_stream"
        return "server_stream" if self.server_streams else "unary"


def _rpc(service: ServiceDescriptor, method: MethodDescriptor) -> Rpc:
    return Rpc(
        service=service.full_name,
        name=method.name,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        client_streams=method.client_streaming,
        server_streams=method.server_streaming,
    )


SERVICES: dict[str, tuple[Rpc, ...]] = {
    service.full_name: tuple(_rpc(service, method) for method in service.methods)
    for module in _MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
}
"""The methods of each service, by its full name, in the order of the schema."""

RPCS: dict[str, Rpc] = {rpc.path: rpc for rpcs in SERVICES.values() for rpc in rpcs}
"""Every method by its path."""
