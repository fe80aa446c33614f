from kvnode._core.store import Store
from kvnode._core.storetxn import ReadTxn

class RangeReader:
    LONG: int
    def __init__(self, store: Store, slice_work: int = 0, slice_bytes: int = 0) -> None: ...
    def refresh(self) -> None: ...
    def close(self) -> None: ...
    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    @property
    def freed_revision(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def applied_term(self) -> int: ...
    def serve(
        self,
        kind: int,
        body: bytes,
        cluster_id: int = 0,
        member_id: int = 0,
        raft_term: int = 0,
    ) -> tuple[int, bytes]: ...
    def serve_all(
        self,
        kind: int,
        bodies: list[bytes],
        cluster_id: int = 0,
        member_id: int = 0,
        raft_term: int = 0,
    ) -> tuple[list[tuple[int, int]], bytes]: ...

class LongRange:
    code: int
    done: bool
    def __init__(
        self,
        reader: RangeReader,
        body: bytes,
        cluster_id: int = 0,
        member_id: int = 0,
        raft_term: int = 0,
        items_bytes_max: int = 0,
    ) -> None: ...
    @property
    def revision(self) -> int: ...
    @property
    def steps(self) -> int: ...
    def step(self, work_max: int, bytes_max: int) -> bool: ...
    def take(self) -> bytes: ...

def execute(
    txn: ReadTxn, body: bytes, current: int, compacted: int = 0, floor: int = 0
) -> tuple[int, bytes]: ...
