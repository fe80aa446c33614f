from kvnode._core.store import Store

Found = tuple[int, bytes, str]

class Slice:
    records: int
    heads: int
    tombstones: int
    sparse: int
    leased: int
    size: int
    findings: list[Found]
    after: bytes | None

class Checker:
    def __init__(self, store: Store) -> None: ...
    def records(self, start: bytes, bytes_max: int) -> Slice: ...
    def keys(self, start: bytes, count_max: int) -> Slice: ...
    def history(self, start: bytes, count_max: int) -> Slice: ...
    def leases(self, start: bytes, count_max: int) -> Slice: ...
    def attached(self, start: bytes, count_max: int) -> Slice: ...
