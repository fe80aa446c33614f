"""The protobuf schema of kvnode, and its messages as Python classes.

Callers: the API room (services that are not on the fast path), clients, tests. Requests on the
fast path never become these objects: `_core/etcdpb` works on their bytes.

`tools/gen_proto.py` (run by `make setup`) compiles the .proto files beside this one into modules
`rpc_pb2`, `kv_pb2`, ...; they are not committed. Two properties are on purpose:

1. **A pool of our own.** The names are etcd's (`etcdserverpb.PutRequest`), and protobuf's default
   pool refuses a second file that defines them. Ours never enter it, so that kvnode and another
   package's etcd stubs live in one process. The price: a message of one pool is not an instance
   of the other's class; pass bytes between them.
2. **No generated Python.** A module holds only its serialized descriptor, and `load` builds the
   classes at import. protoc's own output checks at import that it is not newer than the
   installed protobuf; this does not depend on either version.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper

POOL = descriptor_pool.DescriptorPool()


def load(namespace: dict[str, Any], serialized: bytes) -> None:
    """Adds a file to the pool and its messages, enums and services to a module's names.

    Files it imports must be in the pool already: generated modules import theirs first.
    """
    file = POOL.AddSerializedFile(serialized)
    namespace["DESCRIPTOR"] = file
    for name, message in file.message_types_by_name.items():
        namespace[name] = message_factory.GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        namespace[name] = enum_type_wrapper.EnumTypeWrapper(enum)
        namespace.update((value.name, value.number) for value in enum.values)
    for name, service in file.services_by_name.items():
        namespace[f"_{name.upper()}"] = service
