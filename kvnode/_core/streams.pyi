from typing import Any

CODE_NAMES: tuple[str, ...]
BUCKET_SECONDS: tuple[float, ...]

class Streams:
    on_work: Any
    leader: bool
    max_message_bytes: int
    @property
    def open_streams(self) -> int: ...
    @property
    def out_bytes(self) -> int: ...
    @property
    def in_bytes(self) -> int: ...
    def route(
        self,
        path: bytes,
        methods: Any,
        number: int,
        client_streams: bool = False,
        server_streams: bool = False,
        metadata: bool = False,
    ) -> None: ...
    def counters(self) -> dict[str, dict[str, Any]]: ...
    def set_leader(self, has: bool, end_streams: bool = True) -> None: ...
    def set_clock(self, us: int) -> None: ...
