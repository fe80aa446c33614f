"""gRPC status and text of each CODE_*. See grpcstatus.pyx."""

from libc.stdint cimport uint8_t

cdef enum:
    GRPC_OK = 0
    GRPC_INVALID_ARGUMENT = 3
    GRPC_RESOURCE_EXHAUSTED = 8
    GRPC_UNIMPLEMENTED = 12
    GRPC_INTERNAL = 13
    GRPC_UNAVAILABLE = 14

cdef struct Status:
    int grpc
    const uint8_t *text
    size_t n

# Of any code; one that is not known is INTERNAL.
cdef Status status_of(int code) noexcept nogil
