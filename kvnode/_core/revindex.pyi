from kvnode._core.storetxn import ReadTxn, WriteTxn

Entry = tuple[int, int, int, int, int, bool, int]

def get(txn: ReadTxn, key: bytes) -> Entry | None: ...
def at(
    txn: ReadTxn, key: bytes, revision: int, floor: int = 0
) -> tuple[tuple[int, int] | None, int]: ...
def scan(txn: ReadTxn, start: bytes, end: bytes) -> list[tuple[bytes, Entry]]: ...
def read(txn: ReadTxn, main: int, sub: int = 0) -> tuple[int, int, int, int, bytes] | None: ...
def write(
    txn: WriteTxn,
    main: int,
    sub: int,
    key: bytes,
    value: bytes | None,
    lease: int = 0,
    floor: int = 0,
) -> int | None: ...
def free(txn: WriteTxn, main: int, sub: int, compacted: int) -> None: ...
