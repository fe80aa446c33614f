from collections.abc import Callable
from typing import Any

METHODS: tuple[tuple[bytes, int, bool], ...]

class GrpcSink:
    def __init__(self, calls: Any) -> None: ...

class KvMethods:
    refused: int
    def __init__(
        self,
        sink: GrpcSink,
        front: Any,
        wake: Callable[[], object],
        *,
        held_bytes_max: int,
    ) -> None: ...
