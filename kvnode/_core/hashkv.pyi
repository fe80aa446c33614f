from kvnode._core.ranges import RangeReader

class HashKeys:
    code: int
    done: bool
    revision: int
    compact_revision: int
    current_revision: int
    def __init__(self, reader: RangeReader, revision: int = 0, whole: bool = False) -> None: ...
    @property
    def crc(self) -> int: ...
    @property
    def lowest(self) -> int: ...
    def step(self, work_max: int) -> bool: ...
