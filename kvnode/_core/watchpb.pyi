from collections.abc import Iterable

def decode(body: bytes) -> tuple[int, int, dict[str, bytes | int | bool]]: ...
def encode(
    header: tuple[int, int, int, int],
    watch_id: int,
    *,
    created: bool = False,
    canceled: bool = False,
    compact_revision: int = 0,
    reason: bytes | None = None,
    fragment: bool = False,
    events: Iterable[tuple[bool, bytes, bytes | None]] = (),
) -> bytes: ...
