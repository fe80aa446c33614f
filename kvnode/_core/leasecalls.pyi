from collections.abc import Callable

from kvnode._core.calls import Calls
from kvnode._core.ranges import RangeReader

METHODS: tuple[tuple[bytes, int, bool], ...]

class LeaseCalls:
    keep_alives: int
    wants_turn: bool
    open_count: int
    def __init__(
        self,
        calls: Calls,
        wake: Callable[[], None],
        *,
        cluster: int,
        member: int,
        most: int = ...,
    ) -> None: ...
    def ask(self, kind: int, body: bytes, done: Callable[[int, bytes], None]) -> None: ...
    def take_questions(self, revision: int, term: int) -> list[tuple[int, bytes]]: ...
    def questions_again(self) -> list[tuple[int, bytes]]: ...
    def on_answer(self, payload: bytes) -> None: ...
    def serve_late(self, reader: RangeReader) -> bool: ...
    def finish_streams(self) -> None: ...
