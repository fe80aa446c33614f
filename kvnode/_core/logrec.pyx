"""Records of the log: framing, the batch encoder, the scanner, the table of entries.

Callers: wal/log.py (encode, read back), wal/recover.py (scan), wal/tools.py (dump, verify).
A record is a 48-byte header and its data, zero-padded to a multiple of 8; records stand one
behind the other from offset 0 of a segment. Integers little-endian:

     0 u32 header_crc      CRC32C of bytes 4..47, continued from the segment's seed
     4 u32 prev_crc        header_crc of the record before, also across segments (0: none)
     8 u32 data_crc        CRC32C of the data and its padding
    12 u32 length          bytes of data, without padding
    16 u16 magic           0x4c4b ("KL")
    18 u8  kind            1 segment head, 2 entry, 3 hard state, 4 configuration, 5 snapshot,
                           6 mark
    19 u8  entry_type      Raft's entry type; 0 for other kinds
    20 u32 zero
    24 u64 index           entry: its index; hard state: commit; snapshot: S; head: next index
    32 u64 term            entry, snapshot: its term; hard state: term; head: term of index - 1
    40 u64 durable_offset  offset in this segment below which all was synced when this was written
    48 data                hard state: u64 vote; snapshot and head: see wal/state.py

Hard state of term 7, vote 2, commit 9, first record of a segment of seed 0 (bytes 0..55):
    c2b776b2 00000000 c448501e 08000000 4b4c0300 00000000 0900000000000000 0700000000000000
    0000000000000000 0200000000000000

Invariants
 1. The seed is the CRC of the segment's number and salt. A header is whole only under its own
    segment's seed, and two seeds never accept the same header (a CRC continued from two
    different values differs), so bytes of a recycled segment's former life are no records, and
    nobody who stores a record's bytes as a value can make them one without knowing the salt.
 2. header_crc covers data_crc and prev_crc, so a record's CRC stands for the whole log below it.
 3. A mark lies behind the last synced record and is no link of the chain: the next record is
    written over it. It is written after the sync that it attests, never synced itself.
 4. An entry whose index was seen replaces it and all behind it; one above last + 1 is a gap.

Deliberately absent: files, and the decision what damage means (wal/recover.py).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset

from kvnode._core.buf cimport (
    kv_buf_clear, kv_buf_free, kv_buf_grow, kv_buf_init, kv_load_u16, kv_load_u32, kv_load_u64,
    kv_store_u16, kv_store_u32, kv_store_u64,
)
from kvnode._core.crc cimport kv_crc_init, kv_crc32c

from kvnode.base.errors import CorruptionError
from kvnode.base.limits import ENTRY_BYTES_MAX

kv_crc_init()

HEADER_BYTES = HEADER
SEGMENT_HEAD = KIND_SEGMENT_HEAD
ENTRY = KIND_ENTRY
HARD_STATE = KIND_HARD_STATE
CONFIGURATION = KIND_CONFIGURATION
SNAPSHOT = KIND_SNAPSHOT
MARK = KIND_MARK
KIND_NAMES = {
    SEGMENT_HEAD: "segment_head", ENTRY: "entry", HARD_STATE: "hard_state",
    CONFIGURATION: "configuration", SNAPSHOT: "snapshot", MARK: "mark",
}
# Ends at which every byte still may be an unsynced write; the others are never a torn tail.
TORN_REASONS = frozenset((END_SPACE, END_CHAIN, END_DATA))
CLOSED = END_MARK
REASONS = {
    END_SPACE: "no record header",
    END_CHAIN: "the record does not follow the one before (CRC chain)",
    END_DATA: "the record's data is damaged or incomplete",
    END_MARK: "end of synced records",
    END_GAP: "the record's index leaves a gap",
    END_FLOOR: "an entry at or below the snapshot's index",
    END_UNKNOWN: "a record of an unknown kind, written by a newer version",
    END_MEMORY: "out of memory",
    END_COMMITTED: "an entry replaces a committed one",
}

cdef size_t LENGTH_MAX = ENTRY_BYTES_MAX + (1 << 20)


cdef inline size_t padded(size_t n) noexcept nogil:
    return (n + 7) & ~<size_t>7


cdef inline bint whole(const uint8_t *h, uint32_t seed) noexcept nogil:
    """Whether 48 bytes are a header of this segment."""
    if kv_load_u16(h + 16) != MAGIC:
        return False
    return kv_crc32c(seed, h + 4, HEADER - 4) == kv_load_u32(h)


def segment_seed(number, salt):
    """The CRC from which a segment's headers are continued (invariant 1)."""
    cdef uint8_t b[12]
    kv_store_u64(b, number)
    kv_store_u32(b + 8, salt)
    return kv_crc32c(0, b, 12)


def record_bytes(length):
    """Bytes that a record with `length` bytes of data takes in the file."""
    return HEADER + padded(length)


cdef class Chunk:
    """Encoded bytes on their way to the disk; a read-only buffer, freed with the object."""

    def __cinit__(self):
        kv_buf_init(&self.buf)

    def __dealloc__(self):
        kv_buf_free(&self.buf)

    def __len__(self):
        return self.buf.n

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.buf.p, <Py_ssize_t>self.buf.n, 1, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass


cdef class EntryTable:
    """Where each live entry is: 24 bytes an entry, in C.

    `first` is the index of the first row (or of the next entry, when empty), `floor` the index
    that no entry may be at or below (the snapshot's), `before_term` the term of `first` - 1, 0
    when not known.
    """

    def __cinit__(self, first=1, before_term=0, floor=0):
        self.rows = NULL
        self.start = self.count = self.cap = 0
        self.first = first
        self.before_term = before_term
        self.floor = floor

    def __dealloc__(self):
        free(self.rows)

    def __len__(self):
        return self.count

    @property
    def last(self):
        """Index of the last entry; `first` - 1 when there is none."""
        return self.first + self.count - 1

    cdef row_t *at(self, uint64_t index) noexcept nogil:
        if index < self.first or index - self.first >= self.count:
            return NULL
        return self.rows + self.start + (index - self.first)

    cdef int put(self, uint64_t index, const row_t *row) noexcept nogil:
        """Adds or replaces; 0 or an END_ reason."""
        cdef size_t cap
        cdef row_t *rows
        if index <= self.floor:
            return END_FLOOR
        if index > self.first + self.count:
            return END_GAP
        if index < self.first:
            self.first = index
            self.before_term = 0
            self.count = 0
        else:
            self.count = index - self.first
        if self.start + self.count == self.cap:
            if self.start > self.cap // 2:
                memmove(self.rows, self.rows + self.start, self.count * sizeof(row_t))
                self.start = 0
            else:
                cap = self.cap * 2 if self.cap else 256
                rows = <row_t *>realloc(self.rows, cap * sizeof(row_t))
                if rows == NULL:
                    return END_MEMORY
                self.rows = rows
                self.cap = cap
        self.rows[self.start + self.count] = row[0]
        self.count += 1
        return 0

    def add(self, uint64_t index, uint64_t term, uint32_t segment, uint64_t offset, uint32_t length,
            uint32_t kind=0):
        """Adds one entry as the encoder does; False when the index leaves a gap or is too low."""
        cdef row_t row
        row.term = term
        row.segment = segment
        row.offset8 = <uint32_t>(offset >> 3)
        row.length = length
        row.kind = kind
        return self.put(index, &row) == 0

    def term(self, uint64_t index):
        """The term of an entry, of `first` - 1 when known, else None."""
        cdef row_t *r = self.at(index)
        if r != NULL:
            return r.term
        if index + 1 == self.first and (self.before_term or index == 0):
            return self.before_term
        return None

    def locate(self, uint64_t index):
        """(segment, offset, length, entry type) of a live entry, or None."""
        cdef row_t *r = self.at(index)
        if r == NULL:
            return None
        return r.segment, <uint64_t>r.offset8 << 3, r.length, r.kind

    def span(self, uint64_t lo, uint64_t hi, uint64_t bytes_max):
        """(segment, offset, size, end): one read that yields the entries lo..end-1.

        All in one segment, end <= hi, together at most `bytes_max` of data unless it is one.
        """
        cdef row_t *a = self.at(lo)
        cdef row_t *r
        cdef uint64_t total, i = lo + 1, end
        if a == NULL:
            return None
        total = a.length
        end = (<uint64_t>a.offset8 << 3) + HEADER + padded(a.length)
        while i < hi:
            r = self.at(i)
            if r == NULL or r.segment != a.segment or total + r.length > bytes_max:
                break
            # A replaced stretch or many other records between two entries: read them apart.
            if (<uint64_t>r.offset8 << 3) - end > 65536:
                break
            total += r.length
            end = (<uint64_t>r.offset8 << 3) + HEADER + padded(r.length)
            i += 1
        return a.segment, <uint64_t>a.offset8 << 3, end - (<uint64_t>a.offset8 << 3), i

    def cut_above(self, uint64_t last):
        """Forgets the entries above `last`."""
        if last + 1 < self.first:
            self.count = 0
        elif last + 1 - self.first < self.count:
            self.count = last + 1 - self.first

    def cut_below(self, uint64_t first):
        """Forgets the entries below `first`; keeps the term of the one before it."""
        cdef row_t *r
        if first <= self.first:
            return
        r = self.at(first - 1)
        self.before_term = r.term if r != NULL else 0
        if first - self.first >= self.count:
            self.count = 0
            self.start = 0
        else:
            self.count -= first - self.first
            self.start += first - self.first
        self.first = first

    def restart(self, uint64_t floor, uint64_t term, uint64_t last):
        """A snapshot at `floor` of `term` took the place of all up to it; `last` is kept to."""
        if last <= floor or last > self.first + self.count - 1:
            self.count = self.start = 0
            self.first = floor + 1
        else:
            self.cut_above(last)
            self.cut_below(floor + 1)
        self.floor = floor
        if self.first == floor + 1:
            self.before_term = term

    def first_in(self, uint32_t segment):
        """Index of the first live entry that lies in `segment` or a later one; last + 1: none."""
        cdef size_t lo = 0, hi = self.count, mid
        while lo < hi:
            mid = (lo + hi) // 2
            if self.rows[self.start + mid].segment < segment:
                lo = mid + 1
            else:
                hi = mid
        return self.first + lo


cdef class Encoder:
    """Encodes records for one segment into a growing buffer; `take` hands the buffer out."""

    def __cinit__(self):
        kv_buf_init(&self.buf)

    def __dealloc__(self):
        kv_buf_free(&self.buf)

    def begin(self, uint32_t seed, uint32_t crc, uint64_t offset, uint64_t durable_offset):
        """Continues at `offset` of a segment behind a record whose header_crc is `crc`."""
        assert self.buf.n == 0, "take() the former segment's bytes first"
        self.seed = seed
        self.crc = crc
        self.base = offset
        self.durable_offset = durable_offset

    @property
    def offset(self):
        """File offset of the next record."""
        return self.base + self.buf.n

    @property
    def pending_bytes(self):
        """Bytes encoded and not yet taken."""
        return self.buf.n

    cdef int put(self, int kind, int entry_type, uint64_t index, uint64_t term,
                 const uint8_t *data, size_t n) except -1:
        cdef size_t size = HEADER + padded(n)
        cdef uint8_t *h
        if n > LENGTH_MAX:
            raise AssertionError("record above the entry limit: the proposer must refuse it")
        h = kv_buf_grow(&self.buf, size)
        if h == NULL:
            raise MemoryError
        kv_store_u32(h + 4, self.crc)
        kv_store_u32(h + 12, <uint32_t>n)
        kv_store_u16(h + 16, MAGIC)
        h[18] = <uint8_t>kind
        h[19] = <uint8_t>entry_type
        kv_store_u32(h + 20, 0)
        kv_store_u64(h + 24, index)
        kv_store_u64(h + 32, term)
        kv_store_u64(h + 40, self.durable_offset)
        if n:
            memcpy(h + HEADER, data, n)
            memset(h + HEADER + n, 0, size - HEADER - n)
        kv_store_u32(h + 8, kv_crc32c(0, h + HEADER, size - HEADER))
        self.crc = kv_crc32c(self.seed, h + 4, HEADER - 4)
        kv_store_u32(h, self.crc)
        return 0

    def record(self, int kind, uint64_t index, uint64_t term, const uint8_t[::1] data not None):
        """Encodes one record that is no entry."""
        self.put(kind, 0, index, term, &data[0] if data.shape[0] else NULL, data.shape[0])

    def entries(self, list entries, Py_ssize_t at, EntryTable table not None, uint32_t segment,
                uint64_t room_end, bint fresh):
        """Encodes entries[at:], each (index, term, entry type, data), and puts them in `table`.

        Returns the position of the first one not taken because its record and a mark would pass
        `room_end`; in a fresh segment the first is taken whatever its size (invariant of
        wal/log.py: a record larger than a segment extends it).
        """
        cdef Py_buffer view
        cdef row_t row
        cdef uint64_t index, offset
        cdef int kind, got
        cdef Py_ssize_t i, n = len(entries)
        for i in range(at, n):
            e_index, e_term, e_type, e_data = entries[i]
            PyObject_GetBuffer(e_data, &view, PyBUF_SIMPLE)
            try:
                offset = self.base + self.buf.n
                if not fresh and offset + 2 * HEADER + padded(view.len) > room_end:
                    return i
                index = e_index
                kind = e_type
                row.term = e_term
                row.segment = segment
                row.offset8 = <uint32_t>(offset >> 3)
                row.length = <uint32_t>view.len
                row.kind = kind
                if view.len > <Py_ssize_t>LENGTH_MAX:
                    raise AssertionError("record above the entry limit")
                got = table.put(index, &row)
                if got != 0:
                    raise AssertionError(f"append of index {index}: {REASONS[got]}")
                self.put(KIND_ENTRY, kind, index, row.term, <const uint8_t *>view.buf, view.len)
                fresh = False
            finally:
                PyBuffer_Release(&view)
        return n

    def take(self):
        """The encoded bytes followed by a mark (HEADER bytes), which is not counted in `offset`."""
        cdef Chunk chunk = Chunk.__new__(Chunk)
        cdef uint64_t end = self.base + self.seal()
        chunk.buf = self.buf
        kv_buf_init(&self.buf)
        self.base = end
        return chunk

    cdef size_t seal(self) except? 0:
        """Puts a mark behind the encoded bytes; their number without it."""
        cdef uint32_t crc = self.crc
        cdef uint64_t durable = self.durable_offset
        cdef size_t n = self.buf.n
        self.durable_offset = self.base + n
        self.put(KIND_MARK, 0, 0, 0, NULL, 0)
        self.durable_offset = durable
        self.crc = crc
        return n

    cdef size_t lone(self, EntryTable table, const row_t *like, uint64_t index,
                     const uint8_t *data, size_t n, bint commits, uint64_t vote) except 0:
        """Encodes what the log writes for one lone entry: the entry, the hard state that commits
        the one before it (`commits`), a mark. `like`: term and segment. Bytes before the mark."""
        cdef row_t row = like[0]
        cdef uint8_t room[8]
        cdef int got
        row.offset8 = <uint32_t>(self.base >> 3)
        row.length = <uint32_t>n
        row.kind = 0
        got = table.put(index, &row)
        if got != 0:
            raise AssertionError(f"append of index {index}: {REASONS[got]}")
        self.put(KIND_ENTRY, 0, index, row.term, data, n)
        if commits:
            kv_store_u64(room, vote)
            self.put(KIND_HARD_STATE, 0, index - 1, row.term, room, 8)
        return self.seal()

    cdef void lone_durable(self, size_t n) noexcept:
        """What `lone` encoded is durable: goes on behind it, in the same buffer."""
        self.base += n
        self.durable_offset = self.base
        kv_buf_clear(&self.buf)


cdef class Scanner:
    """Reads a segment's records in order, entries into the table, until something else comes.

    `next()` returns the kind of a record that the caller must look at (head, configuration,
    snapshot; `record_*` describe it) or 0 at the end, where `offset` is the end of the last good
    record and `reason` says why it ended. Term, vote and commit are kept here. `prev_crc` None
    accepts any first record (the first segment that is left).
    """

    def __init__(self, const uint8_t[::1] data not None, uint32_t seed, prev_crc,
                 EntryTable table not None, uint32_t segment):
        self.view = data
        self.n = data.shape[0]
        self.p = &data[0] if self.n else NULL
        self.seed = seed
        self.chained = prev_crc is not None
        self.crc = prev_crc if prev_crc is not None else 0
        self.table = table
        self.segment = segment
        self.offset = self.durable_offset = self.records = 0
        self.term = self.vote = self.commit = 0
        self.reason = END_SPACE

    def set_table(self, EntryTable table not None):
        """The table to fill from here on (the head said where entries begin)."""
        self.table = table

    def set_hard_state(self, uint64_t term, uint64_t vote, uint64_t commit):
        """The hard state in force where the scan begins."""
        self.term = term
        self.vote = vote
        self.commit = commit

    def next(self):
        cdef int got
        with nogil:
            got = self.step()
        return got

    def record_data(self):
        """Data of the record that next() stopped at."""
        return bytes(self.view[self.record_offset + HEADER:
                               self.record_offset + HEADER + self.record_length])

    cdef int step(self) noexcept nogil:
        cdef const uint8_t *h
        cdef size_t length, size
        cdef uint64_t index
        cdef row_t row
        cdef int kind, got
        while True:
            if self.offset + HEADER > self.n or not whole(self.p + self.offset, self.seed):
                self.reason = END_SPACE
                return 0
            h = self.p + self.offset
            kind = h[18]
            length = kv_load_u32(h + 12)
            if self.chained and kv_load_u32(h + 4) != self.crc:
                self.reason = END_CHAIN
                return 0
            if kind == KIND_MARK and kv_load_u64(h + 40) == self.offset:
                self.durable_offset = self.offset
                self.reason = END_MARK
                return 0
            size = HEADER + padded(length)
            if length > LENGTH_MAX or size > self.n - self.offset:
                self.reason = END_DATA
                return 0
            if kv_crc32c(0, h + HEADER, size - HEADER) != kv_load_u32(h + 8):
                self.reason = END_DATA
                return 0
            index = kv_load_u64(h + 24)
            if kind == KIND_ENTRY:
                if index <= self.commit and index - self.table.first < self.table.count:
                    self.reason = END_COMMITTED
                    return 0
                row.term = kv_load_u64(h + 32)
                row.segment = self.segment
                row.offset8 = <uint32_t>(self.offset >> 3)
                row.length = <uint32_t>length
                row.kind = h[19]
                got = self.table.put(index, &row)
                if got != 0:
                    self.reason = got
                    return 0
            elif kind == KIND_HARD_STATE and length == 8:
                self.commit = index
                self.term = kv_load_u64(h + 32)
                self.vote = kv_load_u64(h + HEADER)
            elif kind == KIND_MARK or kind < 1 or kind > KIND_MARK or kind == KIND_HARD_STATE:
                self.reason = END_UNKNOWN
                return 0
            self.records += 1
            if kv_load_u64(h + 40) > self.durable_offset:
                self.durable_offset = kv_load_u64(h + 40)
            self.record_offset = self.offset
            self.record_index = index
            self.record_term = kv_load_u64(h + 32)
            self.record_length = <uint32_t>length
            self.record_prev = kv_load_u32(h + 4)
            self.crc = kv_load_u32(h)
            self.chained = True
            self.offset += size
            if kind != KIND_ENTRY and kind != KIND_HARD_STATE:
                return kind


def find_proof(const uint8_t[::1] data not None, uint64_t start, uint32_t seed):
    """Looks at every 8-byte step from `start` on for whole headers of this segment.

    Returns (offset of the first header whose durable_offset is above `start`, or -1; that
    durable_offset; end of the last whole header, or `start`). The first is the proof that
    damage at `start` is no torn tail; the last bounds what a cut must zero.
    """
    cdef size_t n = data.shape[0], at = (start + 7) & ~<uint64_t>7, end = start
    cdef const uint8_t *p
    cdef Py_ssize_t proof = -1
    cdef uint64_t durable = 0
    if n == 0:
        return -1, 0, start
    p = &data[0]
    with nogil:
        while at + HEADER <= n:
            if kv_load_u16(p + at + 16) == MAGIC and whole(p + at, seed):
                if proof < 0 and kv_load_u64(p + at + 40) > start:
                    proof = <Py_ssize_t>at
                    durable = kv_load_u64(p + at + 40)
                end = at + HEADER
            at += 8
    return proof, durable, end


def decode_header(const uint8_t[::1] data not None, uint64_t offset, uint32_t seed):
    """(header_crc, prev_crc, data_crc, length, kind, entry type, index, term, durable_offset),
    or None where no whole header of this segment stands."""
    cdef const uint8_t *h
    if <uint64_t>data.shape[0] < HEADER or offset > <uint64_t>data.shape[0] - HEADER:
        return None
    h = &data[offset]
    if not whole(h, seed):
        return None
    return (kv_load_u32(h), kv_load_u32(h + 4), kv_load_u32(h + 8), kv_load_u32(h + 12), h[18],
            h[19], kv_load_u64(h + 24), kv_load_u64(h + 32), kv_load_u64(h + 40))


def read_entries(const uint8_t[::1] data not None, uint64_t base, uint32_t seed,
                 EntryTable table not None, uint64_t lo, uint64_t hi, path):
    """Entries lo..hi-1 out of bytes read at file offset `base`, as tuples like append's.

    CorruptionError where the bytes are not the record that the table names.
    """
    cdef uint64_t i, off
    cdef row_t *r
    cdef const uint8_t *h
    cdef size_t n = data.shape[0], size
    cdef list out = []
    for i in range(lo, hi):
        r = table.at(i)
        if r == NULL:
            raise AssertionError(f"entry {i} is not in the log")
        off = (<uint64_t>r.offset8 << 3) - base
        size = HEADER + padded(r.length)
        if off > n or size > n - off:
            raise CorruptionError(f"entry {i} is cut short; {ADVICE}", path, base + off)
        h = &data[off]
        if not whole(h, seed) or kv_load_u64(h + 24) != i or kv_load_u64(h + 32) != r.term \
                or kv_load_u32(h + 12) != r.length \
                or kv_crc32c(0, h + HEADER, size - HEADER) != kv_load_u32(h + 8):
            raise CorruptionError(f"entry {i} is damaged; {ADVICE}", path, base + off)
        out.append((i, r.term, h[19], (<const char *>h + HEADER)[:r.length]))
    return out


ADVICE = (
    "a synced log record can't be read back. Stop this node, keep a copy of its data directory, "
    "and restore it from a backup or remove the member and add it anew so that it is filled from "
    "the leader"
)
