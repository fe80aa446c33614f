from collections.abc import Sequence

class LoadError(Exception): ...

def bucket(us: int) -> int: ...
def key_text(seed: int, i: int) -> bytes: ...
def encode_put_batches(
    records: bytes | bytearray | memoryview, puts_per_batch: int
) -> list[bytes]: ...

class Load:
    answered: int
    messages_sent: int
    short: int
    seconds: float
    def __init__(
        self,
        fds: Sequence[int],
        in_flight: int,
        *,
        reads: bool,
        packed: bool,
        key_space: int,
        seed: int,
        draw_seed: int,
        value_bytes: int = 256,
        pack_max: int = 0,
    ) -> None: ...
    @property
    def codes(self) -> dict[int, int]: ...
    @property
    def buckets(self) -> list[int]: ...
    def run(self, seconds: float, requests_max: int = 0, rate: float = 0.0) -> int: ...
