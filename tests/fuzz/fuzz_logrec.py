"""Any bytes: the scanner, the search for proof, the heads' decoders accept or refuse, no crash."""

from __future__ import annotations

import contextlib

from kvnode._core.logrec import (
    HEADER_BYTES,
    EntryTable,
    Scanner,
    decode_header,
    find_proof,
    read_entries,
    segment_seed,
)
from kvnode.base.errors import CorruptionError, DecodeError
from kvnode.wal.state import LogState, decode_head, decode_snapshot
from tests.oracle import logrec as oracle

SEED = segment_seed(1, 0)


def seal(data: bytes) -> bytes:
    """Makes a chain of whole headers of any bytes, to meet what lies behind the CRCs."""
    out, at, prev = bytearray(data), 0, 0
    while at + HEADER_BYTES <= len(out):
        length = int.from_bytes(out[at + 12 : at + 16], "little") % 200
        out[at + 12 : at + 16] = length.to_bytes(4, "little")
        out[at + 18] = out[at + 18] % 8
        out[at + 16 : at + 18] = oracle.MAGIC.to_bytes(2, "little")
        size = HEADER_BYTES + (length + 7) // 8 * 8
        out[at + 4 : at + 8] = prev.to_bytes(4, "little")
        body_crc = oracle.crc32c(bytes(out[at + HEADER_BYTES : at + size]))
        out[at + 8 : at + 12] = body_crc.to_bytes(4, "little")
        prev = oracle.crc32c(bytes(out[at + 4 : at + HEADER_BYTES]), SEED)
        out[at : at + 4] = prev.to_bytes(4, "little")
        at += size
    return bytes(out)


def fuzz(data: bytes) -> None:
    """Accepts, or raises only DecodeError or CorruptionError inside (swallowed here)."""
    sealed = data[:1] > b"\x80"
    data = seal(data[1:]) if sealed else data[1:]
    table = EntryTable()
    scanner = Scanner(data, SEED, 0, table, 1)
    kind = scanner.next()
    while kind:
        body = scanner.record_data()
        with contextlib.suppress(DecodeError):
            decode_head(body, scanner.record_index, scanner.record_term, scanner.record_prev)
        with contextlib.suppress(DecodeError):
            decode_snapshot(body, scanner.record_index, scanner.record_term, LogState(1, 1))
        kind = scanner.next()
    assert scanner.offset <= len(data) or not data
    find_proof(data, scanner.offset, SEED)
    decode_header(data, len(data) // 2, SEED)
    if len(table):
        with contextlib.suppress(CorruptionError):
            read_entries(data, 0, SEED, table, table.first, table.last + 1, "fuzz")
