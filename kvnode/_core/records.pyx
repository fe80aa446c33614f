"""Storage records: one version of one key in TREE_REVS.

Called by the state machine (append, delete), by Range, the watch hub, freeing and the scrubber
(read). A record is encoded straight into the page that the store hands out, and read where it
lies; only a message above 64 KiB is copied, out of its chunks.

TREE_REVS: key = main u64 BE + sub u32 BE + chunk u32 BE, so the tree's order is the log's order.
The value of chunk 0:

    0  u32 crc32c of bytes 4..
    4  u8  version = 1
    5  u8  flags: 1 tombstone, 2 chunked
    6  u8  depth: number of this version of the key, from 1, modulo 64; goes on across deletes
    7  u8  zero
    8  u64 prev_main: previous record of the key, 0 = none; across deletes too
    16 u32 prev_sub
    20 u32 kv_bytes: length of the whole KeyValue message
    24 the message as etcd marshals it; a tombstone's has key and mod_revision alone

The value of chunk c >= 1: u32 crc, then the next <= 64 KiB of the message; every chunk but the
last is full. That crc continues the one of chunk c-1, so a chunk of another record doesn't fit.

Example: key "a" = "1" put at revision 2 in an empty store:

    dbac7711 01 00 01 00 0000000000000000 00000000 0c000000
    0a0161 1002 1802 2001 2a0131

Invariants:
1. No byte of a record is believed before its CRC was checked; anything wrong is REC_CORRUPT.
2. kv_bytes <= 64 KiB exactly when the record isn't chunked; lengths agree with it exactly.
3. prev is an earlier revision than the record's own.
4. The crc that append_record returns covers every byte of every chunk.

Absent on purpose: caching, and any knowledge of which revision is current.
"""

from libc.string cimport memcpy, memset

from kvnode._core.buf cimport (
    kv_buf_clear,
    kv_load_be32,
    kv_load_be64,
    kv_load_u32,
    kv_load_u64,
    kv_put_bytes,
    kv_rd,
    kv_get_u8,
    kv_get_varint,
    kv_rd_init,
    kv_rd_left,
    kv_store_u32,
    kv_store_u64,
    kv_varint_write,
)
from kvnode._core.crc cimport kv_crc32c, kv_crc_init
from kvnode._core.etcdpb cimport kv_size, kv_write
from kvnode._core.store cimport ST_NOTFOUND, ST_OK, TREE_REVS

from kvnode.base.errors import CorruptionError

kv_crc_init()


cdef inline int store_code(int st) noexcept nogil:
    if st == ST_OK:
        return REC_OK
    return REC_NONE if st == ST_NOTFOUND else REC_FAILED


# --- append -------------------------------------------------------------------------------------

cdef inline void fill_head(uint8_t *d, uint8_t flags, uint8_t depth, uint64_t prev_main,
                           uint32_t prev_sub, uint32_t kv_bytes) noexcept nogil:
    d[4] = REC_VERSION
    d[5] = flags
    d[6] = depth
    d[7] = 0
    kv_store_u64(d + 8, prev_main)
    kv_store_u32(d + 16, prev_sub)
    kv_store_u32(d + 20, kv_bytes)


cdef int append_record(const kv_store *ops, void *txn, uint64_t main, uint32_t sub, uint8_t flags,
                       uint8_t depth, uint64_t prev_main, uint32_t prev_sub,
                       const KeyValue *kv, uint32_t *crc) noexcept nogil:
    cdef size_t n = kv_size(kv)
    cdef uint8_t room[REC_KEY_BYTES]
    cdef uint8_t *d
    if n > REC_CHUNK_BYTES:
        return append_chunked(ops, txn, main, sub, flags, depth, prev_main, prev_sub, kv, n, crc)
    if ops.append(txn, TREE_REVS, record_key(room, main, sub, 0), REC_HEAD_BYTES + n, &d) != ST_OK:
        return REC_FAILED
    fill_head(d, flags, depth, prev_main, prev_sub, <uint32_t>n)
    kv_write(d + REC_HEAD_BYTES, kv)
    crc[0] = kv_crc32c(0, d + 4, REC_HEAD_BYTES - 4 + n)
    kv_store_u32(d, crc[0])
    return REC_OK


# A message in three pieces: fields before the value's bytes, the value, the lease field.
ctypedef struct Pieces:
    kv_slice part[3]


cdef void copy_span(uint8_t *dst, const Pieces *p, size_t offset, size_t n) noexcept nogil:
    """Bytes offset..offset+n of the pieces laid end to end."""
    cdef size_t take
    cdef int i
    for i in range(3):
        if n == 0:
            return
        if offset >= p.part[i].n:
            offset -= p.part[i].n
            continue
        take = p.part[i].n - offset
        if take > n:
            take = n
        memcpy(dst, p.part[i].p + offset, take)
        dst += take
        n -= take
        offset = 0


cdef int append_chunked(const kv_store *ops, void *txn, uint64_t main, uint32_t sub, uint8_t flags,
                        uint8_t depth, uint64_t prev_main, uint32_t prev_sub,
                        const KeyValue *kv, size_t n, uint32_t *crc) noexcept nogil:
    cdef Pieces pieces
    cdef KeyValue front = kv[0], tail
    cdef uint8_t room[REC_KEY_BYTES]
    cdef uint8_t lead[8192]
    cdef uint8_t rear[16]
    cdef uint8_t *d
    cdef size_t at, take
    cdef uint32_t chunk = 0, sum = 0
    front.value.n = 0
    front.lease = 0
    if n > 0xFFFFFFFFu or kv_size(&front) > sizeof(lead) - 16:
        return REC_FAILED               # limits.py keeps both far away
    d = kv_write(lead, &front)
    if kv.value.n:
        d[0] = 0x2A                     # field 5, length-delimited
        d = kv_varint_write(d + 1, kv.value.n)
    pieces.part[0].p = lead
    pieces.part[0].n = d - lead
    pieces.part[1] = kv.value
    memset(&tail, 0, sizeof(tail))
    tail.lease = kv.lease
    pieces.part[2].p = rear
    pieces.part[2].n = kv_write(rear, &tail) - rear
    at = 0
    while at < n:
        take = n - at if n - at < REC_CHUNK_BYTES else REC_CHUNK_BYTES
        if chunk == 0:
            if ops.append(txn, TREE_REVS, record_key(room, main, sub, 0),
                          REC_HEAD_BYTES + take, &d) != ST_OK:
                return REC_FAILED
            fill_head(d, flags | REC_CHUNKED, depth, prev_main, prev_sub, <uint32_t>n)
            copy_span(d + REC_HEAD_BYTES, &pieces, 0, take)
            sum = kv_crc32c(0, d + 4, REC_HEAD_BYTES - 4 + take)
        else:
            if ops.append(txn, TREE_REVS, record_key(room, main, sub, chunk),
                          4 + take, &d) != ST_OK:
                return REC_FAILED
            copy_span(d + 4, &pieces, at, take)
            sum = kv_crc32c(sum, d + 4, take)
        kv_store_u32(d, sum)
        at += take
        chunk += 1
    crc[0] = sum
    return REC_OK


# --- read ---------------------------------------------------------------------------------------

cdef int decode_record_key(kv_slice key, uint64_t *main, uint32_t *sub,
                           uint32_t *chunk) noexcept nogil:
    if key.n != REC_KEY_BYTES:
        return REC_CORRUPT
    main[0] = kv_load_be64(key.p)
    sub[0] = kv_load_be32(key.p + 8)
    chunk[0] = kv_load_be32(key.p + 12)
    return REC_OK


cdef int decode_record(kv_slice value, uint64_t main, uint32_t sub, Record *rec) noexcept nogil:
    cdef const uint8_t *p = value.p
    cdef size_t part
    if value.n < REC_HEAD_BYTES:
        return REC_CORRUPT
    rec.crc = kv_load_u32(p)
    if kv_crc32c(0, p + 4, value.n - 4) != rec.crc:
        return REC_CORRUPT
    part = value.n - REC_HEAD_BYTES
    rec.main = main
    rec.sub = sub
    rec.flags = p[5]
    rec.depth = p[6]
    rec.prev_main = kv_load_u64(p + 8)
    rec.prev_sub = kv_load_u32(p + 16)
    rec.kv_bytes = kv_load_u32(p + 20)
    rec.kv.p = p + REC_HEAD_BYTES
    rec.kv.n = part
    if (p[4] != REC_VERSION or (p[5] & ~(REC_TOMBSTONE | REC_CHUNKED)) or p[7] or p[6] >= 64):
        return REC_CORRUPT
    # Chains must lead back, or a walk along prev would not end.
    if rec.prev_main > main or (rec.prev_main == main and rec.prev_sub >= sub):
        return REC_CORRUPT
    if rec.flags & REC_CHUNKED:
        if part != REC_CHUNK_BYTES or rec.kv_bytes <= REC_CHUNK_BYTES:
            return REC_CORRUPT
    elif part != rec.kv_bytes or part > REC_CHUNK_BYTES:
        return REC_CORRUPT
    return REC_OK


cdef int read_head(const kv_store *ops, void *txn, uint64_t main, uint32_t sub,
                   Record *rec) noexcept nogil:
    cdef uint8_t room[REC_KEY_BYTES]
    cdef kv_slice value
    cdef int st = ops.get(txn, TREE_REVS, record_key(room, main, sub, 0), &value)
    if st != ST_OK:
        return store_code(st)
    return decode_record(value, main, sub, rec)


cdef int finish_record(const kv_store *ops, void *txn, Record *rec, kv_buf *buf) noexcept nogil:
    cdef uint8_t room[REC_KEY_BYTES]
    cdef kv_slice value
    cdef size_t have, want
    cdef uint32_t chunk = 1, sum = rec.crc
    cdef int st
    if not rec.flags & REC_CHUNKED:
        return REC_OK
    kv_buf_clear(buf)
    kv_put_bytes(buf, rec.kv.p, rec.kv.n)
    have = rec.kv.n
    while have < rec.kv_bytes:
        want = rec.kv_bytes - have
        if want > REC_CHUNK_BYTES:
            want = REC_CHUNK_BYTES
        st = ops.get(txn, TREE_REVS, record_key(room, rec.main, rec.sub, chunk), &value)
        if st != ST_OK:
            return REC_CORRUPT if st == ST_NOTFOUND else REC_FAILED
        if value.n != want + 4:
            return REC_CORRUPT
        sum = kv_crc32c(sum, value.p + 4, want)
        if sum != kv_load_u32(value.p):
            return REC_CORRUPT
        kv_put_bytes(buf, value.p + 4, want)
        have += want
        chunk += 1
    if buf.err:
        return REC_NOMEM
    rec.kv.p = buf.p
    rec.kv.n = buf.n
    return REC_OK


cdef int read_record(const kv_store *ops, void *txn, uint64_t main, uint32_t sub, Record *rec,
                     kv_buf *buf) noexcept nogil:
    cdef int rc = read_head(ops, txn, main, sub, rec)
    if rc == REC_OK and rec.flags & REC_CHUNKED:
        return finish_record(ops, txn, rec, buf)
    return rc


cdef int delete_record(const kv_store *ops, void *txn, uint64_t main, uint32_t sub,
                       Record *gone) noexcept nogil:
    cdef uint8_t room[REC_KEY_BYTES]
    cdef Record rec
    cdef uint32_t chunk, chunks
    cdef int st, rc = read_head(ops, txn, main, sub, &rec)
    if rc != REC_OK:
        return rc
    chunks = (rec.kv_bytes + REC_CHUNK_BYTES - 1) // REC_CHUNK_BYTES
    if chunks == 0:
        chunks = 1
    for chunk in range(chunks):
        st = ops.delete(txn, TREE_REVS, record_key(room, main, sub, chunk))
        if st != ST_OK:
            return REC_CORRUPT if st == ST_NOTFOUND else REC_FAILED
    if gone != NULL:
        gone[0] = rec
        gone.kv.p = NULL
        gone.kv.n = 0
    return REC_OK


cdef int key_of_kv(kv_slice kv, kv_slice *key) noexcept nogil:
    # Records are written by kv_write alone, so the key is the first field or there is none.
    cdef kv_rd r
    cdef uint64_t n
    kv_rd_init(&r, kv.p, kv.n)
    if kv_get_u8(&r) != 0x0A:
        return REC_CORRUPT
    n = kv_get_varint(&r)
    if r.bad or n == 0 or n > kv_rd_left(&r):
        return REC_CORRUPT
    key.p = r.p
    key.n = <size_t>n
    return REC_OK


# --- for Python: `kvnode verify`, tests and fuzzing ---------------------------------------------

def decode(bytes value not None, unsigned long long main, unsigned int sub=0):
    """Decodes the value of chunk 0: (flags, depth, prev_main, prev_sub, kv_bytes, kv).

    `kv` is the part of the message in this chunk. Errors: CorruptionError, nothing else.
    """
    cdef kv_slice s
    cdef Record rec
    s.p = value
    s.n = len(value)
    if decode_record(s, main, sub, &rec) != REC_OK:
        raise CorruptionError(f"record ({main}, {sub}) is damaged")
    return (rec.flags, rec.depth, rec.prev_main, rec.prev_sub, rec.kv_bytes,
            (<const char *>rec.kv.p)[:rec.kv.n])
