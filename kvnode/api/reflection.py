"""gRPC's server reflection, v1 and v1alpha: tools such as grpcurl ask a server for its schema.

Both versions carry the same messages under two names. Files come from the schema's own pool; an
answer has the file asked for and everything it imports that this call was not sent before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FileDescriptor

from kvnode.api.calls import Answer, Router, decode, guard
from kvnode.api.service import RPCS, SERVICES
from kvnode.base.codes import Grpc
from kvnode.proto import POOL, reflection_pb2, reflection_v1alpha_pb2

_VERSIONS = (("v1", reflection_pb2), ("v1alpha", reflection_v1alpha_pb2))


class _Missing(Exception):
    """The pool has no such thing; its text goes to the client."""


def _file_of_field(name: str) -> FileDescriptor:
    message = POOL.FindFieldByName(name).containing_type
    assert message is not None
    return message.file


def _file_of_symbol(name: str) -> FileDescriptor:
    for find in (
        POOL.FindFileContainingSymbol,
        lambda n: POOL.FindMethodByName(n).containing_service.file,
        _file_of_field,
    ):
        try:
            return find(name)
        except KeyError:
            continue
    raise _Missing(f"symbol not found: {name}")


def _file_of_name(name: str) -> FileDescriptor:
    try:
        return POOL.FindFileByName(name)
    except KeyError:
        raise _Missing(f"file not found: {name}") from None


def _with_imports(file: FileDescriptor, sent: set[str]) -> list[bytes]:
    """The file, then its imports as far as `sent` has them not; they join it."""
    sent.add(file.name)
    out = [file.serialized_pb]
    todo = list(file.dependencies)
    while todo:
        imported = todo.pop(0)
        if imported.name not in sent:
            sent.add(imported.name)
            out.append(imported.serialized_pb)
            todo += imported.dependencies
    return out


def _answer(module: Any, request: Any, sent: set[str]) -> Any:
    response = module.ServerReflectionResponse(
        valid_host=request.host, original_request=request
    )
    asked = request.WhichOneof("message_request")
    try:
        if asked == "list_services":
            names = response.list_services_response.service
            for name in sorted(SERVICES):
                names.add(name=name)
        elif asked == "file_by_filename":
            files = _with_imports(_file_of_name(request.file_by_filename), sent)
            response.file_descriptor_response.file_descriptor_proto.extend(files)
        elif asked == "file_containing_symbol":
            files = _with_imports(_file_of_symbol(request.file_containing_symbol), sent)
            response.file_descriptor_response.file_descriptor_proto.extend(files)
        elif asked == "all_extension_numbers_of_type":
            # proto3 without custom options: a message that is known has none.
            name = request.all_extension_numbers_of_type
            _file_of_symbol(name)
            response.all_extension_numbers_response.base_type_name = name
        elif asked == "file_containing_extension":
            extension = request.file_containing_extension
            raise _Missing(
                f"extension not found: {extension.containing_type} {extension.extension_number}"
            )
        else:
            response.error_response.error_code = Grpc.INVALID_ARGUMENT
            response.error_response.error_message = "the request asks for nothing that is known"
    except _Missing as missing:
        response.error_response.error_code = Grpc.NOT_FOUND
        response.error_response.error_message = str(missing)
    return response


def attach(router: Router) -> None:
    """Registers both versions."""
    for version, module in _VERSIONS:
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        router.route_python(path, _beginner(path, module), True, True)


def _beginner(path: str, module: Any) -> Callable[[Any], None]:
    def begin(call: Any) -> None:
        answer = Answer(call)
        sent: set[str] = set()
        call.on_message = lambda data: guard(
            answer, lambda: answer.send(_answer(module, decode(RPCS[path], data), sent))
        )
        call.on_half_close = answer.finish

    return begin
