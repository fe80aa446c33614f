"""Types of logrec.pyx."""

from typing import TypeAlias

from typing_extensions import Buffer

HEADER_BYTES: int
SEGMENT_HEAD: int
ENTRY: int
HARD_STATE: int
CONFIGURATION: int
SNAPSHOT: int
MARK: int
KIND_NAMES: dict[int, str]
TORN_REASONS: frozenset[int]
CLOSED: int
REASONS: dict[int, str]
ADVICE: str

EntryTuple: TypeAlias = tuple[int, int, int, bytes]

def segment_seed(number: int, salt: int) -> int: ...
def record_bytes(length: int) -> int: ...
def find_proof(data: Buffer, start: int, seed: int) -> tuple[int, int, int]: ...
def decode_header(
    data: Buffer, offset: int, seed: int
) -> tuple[int, int, int, int, int, int, int, int, int] | None: ...
def read_entries(
    data: Buffer, base: int, seed: int, table: EntryTable, lo: int, hi: int, path: str
) -> list[EntryTuple]: ...

class Chunk(Buffer):
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class EntryTable:
    first: int
    floor: int
    before_term: int
    last: int
    def __init__(self, first: int = 1, before_term: int = 0, floor: int = 0) -> None: ...
    def __len__(self) -> int: ...
    def add(
        self, index: int, term: int, segment: int, offset: int, length: int, kind: int = 0
    ) -> bool: ...
    def term(self, index: int) -> int | None: ...
    def locate(self, index: int) -> tuple[int, int, int, int] | None: ...
    def span(self, lo: int, hi: int, bytes_max: int) -> tuple[int, int, int, int] | None: ...
    def cut_above(self, last: int) -> None: ...
    def cut_below(self, first: int) -> None: ...
    def restart(self, floor: int, term: int, last: int) -> None: ...
    def first_in(self, segment: int) -> int: ...

class Encoder:
    crc: int
    durable_offset: int
    offset: int
    pending_bytes: int
    def begin(self, seed: int, crc: int, offset: int, durable_offset: int) -> None: ...
    def record(self, kind: int, index: int, term: int, data: Buffer) -> None: ...
    def entries(
        self,
        entries: list[tuple[int, int, int, Buffer]],
        at: int,
        table: EntryTable,
        segment: int,
        room_end: int,
        fresh: bool,
    ) -> int: ...
    def take(self) -> Chunk: ...

class Scanner:
    crc: int
    offset: int
    durable_offset: int
    term: int
    vote: int
    commit: int
    record_offset: int
    record_index: int
    record_term: int
    record_length: int
    record_prev: int
    records: int
    reason: int
    def __init__(
        self, data: Buffer, seed: int, prev_crc: int | None, table: EntryTable, segment: int
    ) -> None: ...
    def set_table(self, table: EntryTable) -> None: ...
    def set_hard_state(self, term: int, vote: int, commit: int) -> None: ...
    def next(self) -> int: ...
    def record_data(self) -> bytes: ...
