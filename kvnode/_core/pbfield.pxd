"""Fields of protobuf messages: the inline readers and writers that the codecs are made of.

Readers work on a kv_rd and latch `bad`; what is malformed stands in etcdpb.pyx (4). Writers either
fill memory reserved by size (`write_*`, returning the end) or append to a kv_buf (`put_*`). Tags
are written as bytes, so these writers are for field numbers up to 15.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from kvnode._core.buf cimport (kv_buf, kv_buf_need, kv_get_bytes, kv_get_varint, kv_put_u8,
                               kv_put_varint, kv_rd, kv_slice, kv_varint_size, kv_varint_write)

cdef enum:
    PB_GROUP_DEPTH_MAX = 100


# --- readers -------------------------------------------------------------------------------------

cdef inline uint32_t short_varint(kv_rd *r) noexcept nogil:
    """A tag or length: at most 5 bytes and 32 bits."""
    cdef uint64_t v = 0
    cdef int i
    cdef uint8_t c
    for i in range(5):
        if r.p >= r.end:
            break
        c = r.p[0]
        r.p += 1
        v |= <uint64_t>(c & 0x7F) << (7 * i)
        if c < 0x80:
            if v >> 32:
                break
            return <uint32_t>v
    r.bad = 1
    r.p = r.end
    return 0


cdef inline uint32_t next_tag(kv_rd *r) noexcept nogil:
    """The next field's tag; a tag of field 0 is malformed, so 0 stands for malformed."""
    cdef uint32_t tag
    if r.p < r.end and r.p[0] < 0x80:
        tag = r.p[0]
        r.p += 1
    else:
        tag = short_varint(r)
    if tag < 8:
        r.bad = 1
        r.p = r.end
        return 0
    return tag


cdef inline void next_slice(kv_rd *r, kv_slice *out) noexcept nogil:
    cdef uint32_t n
    if r.p < r.end and r.p[0] < 0x80:
        n = r.p[0]
        r.p += 1
    else:
        n = short_varint(r)
    if n > <size_t>(r.end - r.p) or n > 0x7FFFFFFF:
        r.bad = 1
        r.p = r.end
        n = 0
    out.p = r.p
    out.n = n
    r.p += n


cdef inline bint next_bool(kv_rd *r) noexcept nogil:
    return kv_get_varint(r) != 0


cdef inline void skip_group(kv_rd *r, uint32_t number) noexcept nogil:
    cdef uint32_t[PB_GROUP_DEPTH_MAX] open_numbers
    cdef int depth = 1
    cdef uint32_t tag
    open_numbers[0] = number
    while r.p < r.end:
        tag = next_tag(r)
        if tag & 7 == 3:
            if depth == PB_GROUP_DEPTH_MAX:
                break
            open_numbers[depth] = tag >> 3
            depth += 1
        elif tag & 7 == 4:
            depth -= 1
            if open_numbers[depth] != tag >> 3:
                break
            if depth == 0:
                return
        else:
            skip_field(r, tag)
    r.bad = 1
    r.p = r.end


cdef inline void skip_field(kv_rd *r, uint32_t tag) noexcept nogil:
    """Passes over the field behind its tag; latches r.bad when it is malformed."""
    cdef kv_slice s
    cdef uint32_t wire = tag & 7
    if wire == 0:
        kv_get_varint(r)
    elif wire == 1:
        kv_get_bytes(r, 8)
    elif wire == 2:
        next_slice(r, &s)
    elif wire == 5:
        kv_get_bytes(r, 4)
    elif wire == 3:
        skip_group(r, tag >> 3)
    else:
        r.bad = 1
        r.p = r.end


# --- writers ----------------------------------------------------------------------------------

cdef inline size_t bytes_field_size(size_t n) noexcept nogil:
    """Of a bytes field with a one-byte tag, omitted when empty."""
    return 1 + kv_varint_size(n) + n if n else 0


cdef inline size_t int_field_size(uint64_t v) noexcept nogil:
    return 1 + kv_varint_size(v) if v else 0


cdef inline uint8_t *write_bytes_field(uint8_t *d, uint8_t tag, kv_slice s) noexcept nogil:
    if s.n:
        d[0] = tag
        d = kv_varint_write(d + 1, s.n)
        memcpy(d, s.p, s.n)
        d += s.n
    return d


cdef inline uint8_t *write_int_field(uint8_t *d, uint8_t tag, uint64_t v) noexcept nogil:
    if v:
        d[0] = tag
        d = kv_varint_write(d + 1, v)
    return d


cdef inline void put_int_field(kv_buf *b, uint8_t tag, uint64_t v) noexcept nogil:
    if v:
        kv_put_u8(b, tag)
        kv_put_varint(b, v)


cdef inline void put_message_field(kv_buf *b, uint8_t tag, const uint8_t *p,
                                   size_t n) noexcept nogil:
    """A message field that is present even when empty."""
    cdef uint8_t *d
    if not kv_buf_need(b, n + 11):
        return
    d = b.p + b.n
    d[0] = tag
    d = kv_varint_write(d + 1, n)
    if n:
        memcpy(d, p, n)
    b.n = <size_t>(d + n - b.p)


cdef inline void put_bytes_field(kv_buf *b, uint8_t tag, kv_slice s) noexcept nogil:
    if s.n:
        put_message_field(b, tag, s.p, s.n)
