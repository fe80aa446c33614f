"""etcd's lease messages over bytes: decoders, the completion of a grant, encoders.

Callers: the state machine (leases.pyx), the gateway's fronts, consensus (through leaseclock.pyx).
Input: a client's own bytes, by the rules of etcdpb.pyx (unknown fields are skipped, the last of a
repeated field counts, anything malformed is CODE_MALFORMED). Field numbers are etcd's, see the
contents.

A grant is completed by the gateway and not by the state machine: an id must be the same on every
member, and the least TTL depends on one member's election timeout. It is appended, so the
client's bytes travel as they came:

    08 05                   TTL 5, no id
    08 05 10 ac 02          with id 300 appended
    08 01 10 07 08 02       TTL 1, id 7; the least TTL 2 appended

Encoders of responses begin behind the header, which etcdpb writes (put_compact_response).

Absent on purpose: any look into the state.
"""

from libc.string cimport memset

from kvnode._core.buf cimport (
    kv_buf_free,
    kv_buf_init,
    kv_get_varint,
    kv_put_u8,
    kv_put_varint,
    kv_rd_init,
    kv_rd_left,
)
from kvnode._core.codes cimport (
    CODE_MALFORMED,
    CODE_OK,
    CODE_UNKNOWN_KIND,
    KIND_LEASE_CHECKPOINT,
    KIND_LEASE_GRANT,
    KIND_LEASE_REVOKE,
)
from kvnode._core.pbfield cimport (
    int_field_size,
    next_bool,
    next_slice,
    next_tag,
    put_int_field,
    put_message_field,
    skip_field,
)


cdef inline int verdict(const kv_rd *r) noexcept nogil:
    return CODE_MALFORMED if r.bad else CODE_OK


cdef int decode_lease_grant(const uint8_t *p, size_t n, LeaseReq *out) noexcept nogil:
    cdef kv_rd r
    cdef uint32_t tag
    memset(out, 0, sizeof(LeaseReq))
    kv_rd_init(&r, p, n)
    while r.p < r.end:
        tag = next_tag(&r)
        if tag == 0x08:
            out.ttl = <int64_t>kv_get_varint(&r)
        elif tag == 0x10:
            out.id = <int64_t>kv_get_varint(&r)
        else:
            skip_field(&r, tag)
    return verdict(&r)


cdef int decode_lease(const uint8_t *p, size_t n, LeaseReq *out) noexcept nogil:
    cdef kv_rd r
    cdef uint32_t tag
    memset(out, 0, sizeof(LeaseReq))
    kv_rd_init(&r, p, n)
    while r.p < r.end:
        tag = next_tag(&r)
        if tag == 0x08:
            out.id = <int64_t>kv_get_varint(&r)
        elif tag == 0x10:
            out.keys = next_bool(&r)
        else:
            skip_field(&r, tag)
    return verdict(&r)


cdef int decode_checkpoint(kv_slice body, LeaseCheckpoint *out) noexcept nogil:
    cdef kv_rd r
    cdef uint32_t tag
    out.id = 0
    out.remaining = 0
    kv_rd_init(&r, body.p, body.n)
    while r.p < r.end:
        tag = next_tag(&r)
        if tag == 0x08:
            out.id = <int64_t>kv_get_varint(&r)
        elif tag == 0x10:
            out.remaining = <int64_t>kv_get_varint(&r)
        else:
            skip_field(&r, tag)
    return verdict(&r)


cdef int next_checkpoint(kv_rd *r, LeaseCheckpoint *out) noexcept nogil:
    cdef kv_slice body
    cdef uint32_t tag
    while kv_rd_left(r):
        tag = next_tag(r)
        if tag != 0x0A:
            skip_field(r, tag)
            continue
        next_slice(r, &body)
        if r.bad or decode_checkpoint(body, out) != CODE_OK:
            return -1
        return 1
    return -1 if r.bad else 0


cdef int check_lease_request(int kind, const uint8_t *p, size_t n) noexcept nogil:
    cdef LeaseCheckpoint point
    cdef LeaseReq req
    cdef kv_rd r
    cdef int rc
    if kind == KIND_LEASE_GRANT:
        return decode_lease_grant(p, n, &req)
    if kind == KIND_LEASE_REVOKE:
        return decode_lease(p, n, &req)
    if kind != KIND_LEASE_CHECKPOINT:
        return CODE_UNKNOWN_KIND
    kv_rd_init(&r, p, n)
    rc = next_checkpoint(&r, &point)
    while rc == 1:
        rc = next_checkpoint(&r, &point)
    return CODE_OK if rc == 0 else CODE_MALFORMED


cdef int lease_grant_complete(const uint8_t *p, size_t n, int64_t new_id, int64_t ttl_min,
                              kv_buf *added) noexcept nogil:
    cdef LeaseReq req
    cdef int code = decode_lease_grant(p, n, &req)
    if code != CODE_OK:
        return code
    if req.id == 0:
        put_int_field(added, 0x10, <uint64_t>new_id)
    if req.ttl < ttl_min:
        put_int_field(added, 0x08, <uint64_t>ttl_min)
    return CODE_OK


cdef void put_lease_grant(kv_buf *b, int64_t id, int64_t ttl) noexcept nogil:
    put_int_field(b, 0x08, <uint64_t>ttl)
    put_int_field(b, 0x10, <uint64_t>id)


cdef void put_lease_revoke(kv_buf *b, int64_t id) noexcept nogil:
    put_int_field(b, 0x08, <uint64_t>id)


cdef void put_checkpoint(kv_buf *b, int64_t id, int64_t remaining) noexcept nogil:
    kv_put_u8(b, 0x0A)
    kv_put_u8(b, <uint8_t>(int_field_size(<uint64_t>id) + int_field_size(<uint64_t>remaining)))
    put_int_field(b, 0x08, <uint64_t>id)
    put_int_field(b, 0x10, <uint64_t>remaining)


cdef void put_lease_response(kv_buf *b, int64_t id, int64_t ttl) noexcept nogil:
    put_int_field(b, 0x10, <uint64_t>id)
    put_int_field(b, 0x18, <uint64_t>ttl)


cdef void put_time_to_live(kv_buf *b, int64_t id, int64_t ttl, int64_t granted) noexcept nogil:
    put_int_field(b, 0x10, <uint64_t>id)
    put_int_field(b, 0x18, <uint64_t>ttl)
    put_int_field(b, 0x20, <uint64_t>granted)


cdef void put_lease_key(kv_buf *b, kv_slice key) noexcept nogil:
    put_message_field(b, 0x2A, key.p, key.n)


cdef void put_lease_status(kv_buf *b, int64_t id) noexcept nogil:
    cdef size_t size = int_field_size(<uint64_t>id)
    kv_put_u8(b, 0x12)
    kv_put_varint(b, size)
    put_int_field(b, 0x08, <uint64_t>id)


def complete_grant(bytes body not None, long long new_id, long long ttl_min):
    """A LeaseGrantRequest as it is proposed; ValueError if `body` is none."""
    cdef kv_buf added
    cdef int code
    kv_buf_init(&added)
    try:
        code = lease_grant_complete(body, len(body), new_id, ttl_min, &added)
        if code != CODE_OK:
            raise ValueError("not a LeaseGrantRequest")
        return body + (<char *>added.p)[:added.n] if added.n else body
    finally:
        kv_buf_free(&added)


def parse(int kind, bytes body not None):
    """(id, ttl, keys) of a lease request, or [(id, remaining)] of a LeaseCheckpointRequest.

    ValueError if it is malformed. For tests and for what Python does once a request of its own.
    """
    cdef LeaseCheckpoint point
    cdef LeaseReq req
    cdef kv_rd r
    cdef int rc
    if kind == KIND_LEASE_CHECKPOINT:
        found = []
        kv_rd_init(&r, <const uint8_t *>body, len(body))
        rc = next_checkpoint(&r, &point)
        while rc == 1:
            found.append((point.id, point.remaining))
            rc = next_checkpoint(&r, &point)
        if rc != 0:
            raise ValueError("malformed")
        return found
    rc = decode_lease_grant(body, len(body), &req) if kind == KIND_LEASE_GRANT \
        else decode_lease(body, len(body), &req)
    if rc != CODE_OK:
        raise ValueError("malformed")
    return req.id, req.ttl, bool(req.keys)
