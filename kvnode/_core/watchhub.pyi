from kvnode._core.calls import Calls

class WatchHub:
    def __init__(
        self,
        calls: Calls,
        *,
        seed: int = 0,
        slice_work: int = ...,
        slice_bytes: int = ...,
        fragment_bytes: int = ...,
        progress_us: int = ...,
        watchers_max: int = ...,
        interest_bytes_max: int = ...,
    ) -> None: ...
    def identify(self, cluster: int, member: int) -> None: ...
    def set_term(self, term: int) -> None: ...
    @property
    def watchers(self) -> int: ...
    @property
    def stream_count(self) -> int: ...
    @property
    def slow(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def lowest(self) -> int | None: ...
    @property
    def next_due_us(self) -> int | None: ...
    events_sent: int
    events_read: int
    slices: int
    responses: int
    compacted_away: int
    damaged: int
