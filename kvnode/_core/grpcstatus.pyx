"""The gRPC status and text of each refusal, for answers that no Python writes.

Role: `base/codes.STATUS` as C structs, filled from it at import, so there is one table.
Callers: whatever finishes calls in Cython (`grpckv`, `watchcalls`, `leasecalls`).
"""

from libc.stdint cimport uint8_t
from libc.string cimport memset

from kvnode._core.codes cimport CODE_COUNT

from kvnode.base.codes import STATUS

cdef Status[CODE_COUNT] table
cdef Status unknown
# What the table points into.
cdef dict texts = {}


cdef int fill() except -1:
    cdef bytes text
    cdef int code
    memset(table, 0, sizeof(table))
    unknown.grpc = GRPC_INTERNAL
    unknown.text = <const uint8_t *> b"kvnode: unknown refusal"
    unknown.n = 23
    for number, (grpc, words) in STATUS.items():
        code = number
        assert 0 <= code < CODE_COUNT
        text = words.encode()
        texts[number] = text
        table[code].grpc = grpc
        table[code].text = <const uint8_t *> text
        table[code].n = len(text)
    assert len(texts) == CODE_COUNT
    return 0


fill()


cdef Status status_of(int code) noexcept nogil:
    return table[code] if 0 <= code < CODE_COUNT else unknown


def status(int code) -> tuple:
    """(gRPC status, text), as answers have them; for tests."""
    cdef Status s = status_of(code)
    return s.grpc, s.text[:s.n].decode() if s.n else ""
