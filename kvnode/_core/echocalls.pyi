from typing import Any

ECHO: int
CHAT: int
LONG: int
FLOOD: int
SHARED: int

class EchoMethods:
    log: list[tuple[str, int, int]] | None
    def __init__(self, calls: Any, log: list[tuple[str, int, int]] | None = None) -> None: ...
