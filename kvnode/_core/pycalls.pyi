from collections.abc import Callable, Mapping

from kvnode._core.streams import Streams

class PyCall:
    path: str
    done: bool
    on_message: Callable[[bytes], object] | None
    on_half_close: Callable[[], object] | None
    on_gone: Callable[[], object] | None
    on_room: Callable[[], object] | None
    @property
    def metadata(self) -> dict[str, str | bytes]: ...
    @property
    def alive(self) -> bool: ...
    def room(self) -> int: ...
    def send(self, message: bytes) -> None: ...
    def finish(self, status: int = 0, text: str = "") -> None: ...

class LocalCall:
    done: bool
    def send(self, message: bytes) -> None: ...
    def half_close(self) -> None: ...
    def cancel(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...

class PyStreams(Streams):
    def route_python(
        self,
        path: str,
        handler: Callable[[PyCall], object],
        client_streams: bool = False,
        server_streams: bool = False,
    ) -> None: ...
    def open_local(
        self,
        path: str,
        on_message: Callable[[bytes], object],
        on_end: Callable[[int, str], object],
        metadata: Mapping[str, str | bytes] | None = None,
    ) -> LocalCall: ...
