"""The envelope: how requests travel from a gateway into the log, and results back.

Callers: gateways build batches and read results, consensus merges batches into log entries, the
applier reads entries and writes results. A group is one (session, sequence) unit: it is executed
whole, in one transaction, and has one outcome. All integers are little-endian.

Batch (a proposal, and the data of a log entry of type NORMAL):

     0 u8  version = 1
     1 u8  zero
     2 u16 zero
     4 u32 groups
     8 groups, one after the other

Group, 80 bytes and its requests:

     0 u8  version = 1
     1 u8  flags         bit 0 FLAG_CLIENT_SESSION: session is a client's, not the gateway's
     2 u16 zero
     4 u32 count         requests
     8 u32 bytes         length of all requests, headers and bodies
    12 u32 user          0 = none
    16 u64 session       0 = none
    24 u64 sequence
    32 u64 lowest        lowest open sequence of the session
    40 u64 member        origin member
    48 u64 incarnation   of the origin gateway
    56 u32 slot          the gateway's number of the group, echoed in its result
    60 u32 zero
    64 u64 auth_revision
    72 u64 zero
    80 requests, each { u8 kind, u8 flags, u16 zero, u32 length } and the body, a client's bytes

Results (applier to gateway), groups one after the other, 24 bytes and the results:

     0 u32 slot
     4 u32 count
     8 u64 incarnation
    16 u32 bytes         length of what follows
    20 u8  state         0 executed now, 1 repeated, 2 refused whole
    21 u8  code          for state 2
    22 u16 zero
    24 results, each { u8 code, u8 kind, u16 zero, u32 length } and the answer's bytes

A batch of one group with one request, kind PUT, body 0a 01 61 (session 7, sequence 1, lowest 1,
member 9, incarnation 3, slot 5):

    01000000 01000000
    01010000 01000000 0b000000 00000000 0700000000000000 0100000000000000
    0100000000000000 0900000000000000 0300000000000000 05000000 00000000
    0000000000000000 0000000000000000
    01000000 03000000 0a0161

Invariants:

1. Every byte is accounted for: zero fields are zero, counts and lengths agree to the byte. A
   reader refuses anything else, so that a later version can give those bytes a meaning.
2. Flags that a version does not know are refused (ENV_BAD_FLAGS), never skipped.
3. Readers yield slices of the bytes they read: valid as long as those are.

Deliberately absent: checksums (the log's records and the links' transports have theirs) and any
look into a body (etcdpb.check_request).
"""


from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from kvnode._core.buf cimport (kv_buf_free, kv_buf_grow, kv_buf_init, kv_get_bytes, kv_load_u16,
                               kv_load_u32, kv_load_u64, kv_put_bytes, kv_rd_init, kv_rd_left,
                               kv_store_u16, kv_store_u32, kv_store_u64)
from kvnode._core.codes cimport CODE_MALFORMED, CODE_OK, CODE_UNKNOWN_FLAGS

from kvnode.base.errors import DecodeError


# --- batches: writing ---------------------------------------------------------------------------

cdef size_t env_begin_batch(kv_buf *b, uint32_t groups) noexcept nogil:
    cdef size_t at = b.n
    cdef uint8_t *d = kv_buf_grow(b, ENV_HEAD_BYTES)
    if d != NULL:
        d[0] = ENV_VERSION
        d[1] = 0
        kv_store_u16(d + 2, 0)
        kv_store_u32(d + 4, groups)
    return at


cdef void env_set_groups(kv_buf *b, size_t at, uint32_t groups) noexcept nogil:
    if not b.err:
        kv_store_u32(b.p + at + 4, groups)


cdef void write_group_header(uint8_t *d, const Group *g, uint32_t count,
                             uint32_t n) noexcept nogil:
    d[0] = ENV_VERSION
    d[1] = g.flags
    kv_store_u16(d + 2, 0)
    kv_store_u32(d + 4, count)
    kv_store_u32(d + 8, n)
    kv_store_u32(d + 12, g.user)
    kv_store_u64(d + 16, g.session)
    kv_store_u64(d + 24, g.sequence)
    kv_store_u64(d + 32, g.lowest)
    kv_store_u64(d + 40, g.member)
    kv_store_u64(d + 48, g.incarnation)
    kv_store_u32(d + 56, g.slot)
    kv_store_u32(d + 60, 0)
    kv_store_u64(d + 64, g.auth_revision)
    kv_store_u64(d + 72, 0)


cdef size_t env_open_group(kv_buf *b, const Group *g) noexcept nogil:
    cdef size_t at = b.n
    cdef uint8_t *d = kv_buf_grow(b, ENV_GROUP_BYTES)
    if d != NULL:
        write_group_header(d, g, 0, 0)
    return at


cdef void env_add_request(kv_buf *b, size_t group_at, uint8_t kind, uint8_t flags,
                          const uint8_t *p, size_t n) noexcept nogil:
    cdef uint8_t *d = kv_buf_grow(b, ENV_REQUEST_BYTES)
    if d == NULL:
        return
    d[0] = kind
    d[1] = flags
    kv_store_u16(d + 2, 0)
    kv_store_u32(d + 4, <uint32_t>n)
    kv_put_bytes(b, p, n)
    if not b.err:
        d = b.p + group_at
        kv_store_u32(d + 4, kv_load_u32(d + 4) + 1)
        kv_store_u32(d + 8, <uint32_t>(b.n - group_at - ENV_GROUP_BYTES))


cdef void env_write_group(kv_buf *b, const Group *g) noexcept nogil:
    cdef uint8_t *d = kv_buf_grow(b, ENV_GROUP_BYTES)
    if d != NULL:
        write_group_header(d, g, g.count, <uint32_t>g.body.n)
        kv_put_bytes(b, g.body.p, g.body.n)


# --- batches: reading ---------------------------------------------------------------------------

cdef int env_read_head(kv_rd *r, uint32_t *left) noexcept nogil:
    cdef const uint8_t *p = kv_get_bytes(r, ENV_HEAD_BYTES)
    left[0] = 0
    if p == NULL:
        return ENV_BAD
    if p[0] != ENV_VERSION:
        return ENV_BAD_VERSION
    if p[1] != 0 or kv_load_u16(p + 2) != 0:
        return ENV_BAD
    left[0] = kv_load_u32(p + 4)
    return ENV_ITEM


cdef int env_next_group(kv_rd *r, uint32_t *left, Group *g) noexcept nogil:
    cdef const uint8_t *p
    cdef size_t n
    if left[0] == 0:
        return ENV_END if kv_rd_left(r) == 0 else ENV_BAD
    p = kv_get_bytes(r, ENV_GROUP_BYTES)
    if p == NULL:
        return ENV_BAD
    if p[0] != ENV_VERSION:
        return ENV_BAD_VERSION
    if p[1] & ~ENV_GROUP_FLAGS:
        return ENV_BAD_FLAGS
    if kv_load_u16(p + 2) or kv_load_u32(p + 60) or kv_load_u64(p + 72):
        return ENV_BAD
    n = kv_load_u32(p + 8)
    if kv_get_bytes(r, n) == NULL:
        return ENV_BAD
    g.flags = p[1]
    g.count = kv_load_u32(p + 4)
    g.user = kv_load_u32(p + 12)
    g.session = kv_load_u64(p + 16)
    g.sequence = kv_load_u64(p + 24)
    g.lowest = kv_load_u64(p + 32)
    g.member = kv_load_u64(p + 40)
    g.incarnation = kv_load_u64(p + 48)
    g.slot = kv_load_u32(p + 56)
    g.auth_revision = kv_load_u64(p + 64)
    g.body.p = p + ENV_GROUP_BYTES
    g.body.n = n
    g.whole.p = p
    g.whole.n = n + ENV_GROUP_BYTES
    left[0] -= 1
    return ENV_ITEM


cdef void env_requests(const Group *g, kv_rd *r, uint32_t *left) noexcept nogil:
    kv_rd_init(r, g.body.p, g.body.n)
    left[0] = g.count


cdef int env_next_request(kv_rd *r, uint32_t *left, Request *q) noexcept nogil:
    cdef const uint8_t *p
    if left[0] == 0:
        return ENV_END if kv_rd_left(r) == 0 else ENV_BAD
    p = kv_get_bytes(r, ENV_REQUEST_BYTES)
    if p == NULL or kv_load_u16(p + 2) != 0:
        return ENV_BAD
    if p[1] & ~ENV_REQUEST_FLAGS:
        return ENV_BAD_FLAGS
    q.kind = p[0]
    q.flags = p[1]
    q.body.n = kv_load_u32(p + 4)
    q.body.p = kv_get_bytes(r, q.body.n)
    if q.body.p == NULL:
        return ENV_BAD
    left[0] -= 1
    return ENV_ITEM


cdef int env_check_batch(const uint8_t *p, size_t n, uint32_t *groups,
                         uint64_t *requests) noexcept nogil:
    cdef kv_rd r
    cdef kv_rd rr
    cdef uint32_t left
    cdef uint32_t left_requests
    cdef Group g
    cdef Request q
    cdef int v
    groups[0] = 0
    requests[0] = 0
    kv_rd_init(&r, p, n)
    v = env_read_head(&r, &left)
    if v != ENV_ITEM:
        return v
    while True:
        v = env_next_group(&r, &left, &g)
        if v != ENV_ITEM:
            return ENV_ITEM if v == ENV_END else v
        groups[0] += 1
        env_requests(&g, &rr, &left_requests)
        while True:
            v = env_next_request(&rr, &left_requests, &q)
            if v == ENV_END:
                break
            if v != ENV_ITEM:
                return v
            requests[0] += 1


cdef int env_code(int verdict) noexcept nogil:
    if verdict >= 0:
        return CODE_OK
    return CODE_UNKNOWN_FLAGS if verdict == ENV_BAD_FLAGS else CODE_MALFORMED


# --- results ------------------------------------------------------------------------------------

cdef size_t res_open_group(kv_buf *b, uint32_t slot, uint64_t incarnation, uint8_t state,
                           uint8_t code) noexcept nogil:
    cdef size_t at = b.n
    cdef uint8_t *d = kv_buf_grow(b, RES_GROUP_BYTES)
    if d != NULL:
        kv_store_u32(d, slot)
        kv_store_u32(d + 4, 0)
        kv_store_u64(d + 8, incarnation)
        kv_store_u32(d + 16, 0)
        d[20] = state
        d[21] = code
        kv_store_u16(d + 22, 0)
    return at


cdef inline void count_result(kv_buf *b, size_t group_at) noexcept nogil:
    cdef uint8_t *d = b.p + group_at
    kv_store_u32(d + 4, kv_load_u32(d + 4) + 1)
    kv_store_u32(d + 16, <uint32_t>(b.n - group_at - RES_GROUP_BYTES))


cdef size_t res_open(kv_buf *b, size_t group_at, uint8_t kind) noexcept nogil:
    cdef size_t at = b.n
    cdef uint8_t *d = kv_buf_grow(b, RES_REQUEST_BYTES)
    if d != NULL:
        d[0] = 0
        d[1] = kind
        kv_store_u16(d + 2, 0)
        kv_store_u32(d + 4, 0)
    return at


cdef void res_close(kv_buf *b, size_t group_at, size_t mark, uint8_t code) noexcept nogil:
    if b.err:
        return
    b.p[mark] = code
    kv_store_u32(b.p + mark + 4, <uint32_t>(b.n - mark - RES_REQUEST_BYTES))
    count_result(b, group_at)


cdef void res_add(kv_buf *b, size_t group_at, uint8_t code, uint8_t kind,
                  const uint8_t *p, size_t n) noexcept nogil:
    cdef size_t mark = res_open(b, group_at, kind)
    kv_put_bytes(b, p, n)
    res_close(b, group_at, mark, code)


cdef void res_refuse_group(kv_buf *b, uint32_t slot, uint64_t incarnation, uint32_t count,
                           uint8_t code) noexcept nogil:
    """No results follow: count says how many requests the code stands for."""
    cdef size_t at = res_open_group(b, slot, incarnation, STATE_REFUSED, code)
    if not b.err:
        kv_store_u32(b.p + at + 4, count)


cdef int res_next_group(kv_rd *r, ResultGroup *g) noexcept nogil:
    cdef const uint8_t *p
    if kv_rd_left(r) == 0:
        return ENV_END
    p = kv_get_bytes(r, RES_GROUP_BYTES)
    if p == NULL or kv_load_u16(p + 22) != 0 or p[20] > STATE_REFUSED:
        return ENV_BAD
    g.slot = kv_load_u32(p)
    g.count = kv_load_u32(p + 4)
    g.incarnation = kv_load_u64(p + 8)
    g.state = p[20]
    g.code = p[21]
    g.body.n = kv_load_u32(p + 16)
    g.body.p = kv_get_bytes(r, g.body.n)
    if g.body.p == NULL:
        return ENV_BAD
    # A refused group has a code and no results, the others results and no code.
    if (g.state == STATE_REFUSED) != (g.code != CODE_OK):
        return ENV_BAD
    if g.state == STATE_REFUSED and g.body.n != 0:
        return ENV_BAD
    return ENV_ITEM


cdef void res_results(const ResultGroup *g, kv_rd *r, uint32_t *left) noexcept nogil:
    kv_rd_init(r, g.body.p, g.body.n)
    left[0] = 0 if g.state == STATE_REFUSED else g.count


cdef int res_next(kv_rd *r, uint32_t *left, Result *q) noexcept nogil:
    cdef const uint8_t *p
    if left[0] == 0:
        return ENV_END if kv_rd_left(r) == 0 else ENV_BAD
    p = kv_get_bytes(r, RES_REQUEST_BYTES)
    if p == NULL or kv_load_u16(p + 2) != 0:
        return ENV_BAD
    q.code = p[0]
    q.kind = p[1]
    q.body.n = kv_load_u32(p + 4)
    q.body.p = kv_get_bytes(r, q.body.n)
    if q.body.p == NULL:
        return ENV_BAD
    left[0] -= 1
    return ENV_ITEM


# --- Python side --------------------------------------------------------------------------------

cdef int refuse(int verdict, str what) except -1:
    if verdict == ENV_BAD_FLAGS:
        raise DecodeError(f"{what}: unknown flags")
    if verdict == ENV_BAD_VERSION:
        raise DecodeError(f"{what}: unknown version")
    raise DecodeError(f"{what}: malformed")


cdef bytes take(kv_buf *b):
    """The buffer's content as bytes; frees the buffer."""
    cdef bytes out
    if b.err:
        kv_buf_free(b)
        raise MemoryError
    try:
        out = PyBytes_FromStringAndSize(<char *>b.p, b.n) if b.n else b""
    finally:
        kv_buf_free(b)
    return out


cdef inline bytes bytes_of(kv_slice s):
    return PyBytes_FromStringAndSize(<const char *>s.p, s.n)


cdef inline kv_slice slice_of(bytes s) noexcept:
    cdef kv_slice out
    out.p = <const uint8_t *>PyBytes_AS_STRING(s)
    out.n = <size_t>PyBytes_GET_SIZE(s)
    return out


cdef int group_of(dict d, Group *g) except -1:
    g.flags = d.get("flags", 0)
    g.count = 0
    g.user = d.get("user", 0)
    g.session = d.get("session", 0)
    g.sequence = d.get("sequence", 0)
    g.lowest = d.get("lowest", 0)
    g.member = d.get("member", 0)
    g.incarnation = d.get("incarnation", 0)
    g.slot = d.get("slot", 0)
    g.auth_revision = d.get("auth_revision", 0)
    return 0


def build_batch(groups):
    """A batch from dicts of group fields (missing ones are 0), with "requests": a sequence of
    (kind, body). For tests and for what is proposed rarely; gateways use the C functions."""
    cdef kv_buf b
    cdef Group g
    cdef kv_slice body
    cdef size_t at
    cdef uint8_t kind
    groups = list(groups)
    kv_buf_init(&b)
    try:
        env_begin_batch(&b, <uint32_t>len(groups))
        for d in groups:
            group_of(d, &g)
            at = env_open_group(&b, &g)
            for k, request in d["requests"]:
                kind = k
                body = slice_of(<bytes?>request)
                env_add_request(&b, at, kind, 0, body.p, body.n)
    except BaseException:
        kv_buf_free(&b)
        raise
    return take(&b)


def parse_batch(bytes data not None):
    """The groups of a batch as dicts like build_batch's. Raises DecodeError."""
    cdef kv_slice s = slice_of(data)
    cdef kv_rd r
    cdef kv_rd rr
    cdef uint32_t left = 0
    cdef uint32_t left_requests = 0
    cdef Group g
    cdef Request q
    cdef list out = []
    cdef list requests
    cdef int v
    kv_rd_init(&r, s.p, s.n)
    v = env_read_head(&r, &left)
    if v != ENV_ITEM:
        refuse(v, "batch")
    while True:
        v = env_next_group(&r, &left, &g)
        if v == ENV_END:
            return out
        if v != ENV_ITEM:
            refuse(v, "group")
        requests = []
        env_requests(&g, &rr, &left_requests)
        while True:
            v = env_next_request(&rr, &left_requests, &q)
            if v == ENV_END:
                break
            if v != ENV_ITEM:
                refuse(v, "request")
            requests.append((q.kind, bytes_of(q.body)))
        out.append({"flags": g.flags, "user": g.user, "session": g.session,
                    "sequence": g.sequence, "lowest": g.lowest, "member": g.member,
                    "incarnation": g.incarnation, "slot": g.slot,
                    "auth_revision": g.auth_revision, "requests": requests})


def check_batch(bytes data not None):
    """(groups, requests) of a batch whose every length and flag is right. Raises DecodeError."""
    cdef kv_slice s = slice_of(data)
    cdef uint32_t groups
    cdef uint64_t requests
    cdef int v = env_check_batch(s.p, s.n, &groups, &requests)
    if v != ENV_ITEM:
        refuse(v, "batch")
    return groups, requests


def merge(batches):
    """One batch with the groups of all, in order: how consensus makes an entry of proposals.

    Only heads are looked at: the parts must have been checked (check_batch) when they came in.
    Raises DecodeError for a part without a good head.
    """
    cdef kv_buf b
    cdef kv_rd r
    cdef kv_slice s
    cdef uint32_t left = 0
    cdef uint64_t groups = 0
    cdef size_t at
    cdef int v = ENV_ITEM
    if len(batches) == 1:
        return batches[0]
    kv_buf_init(&b)
    at = env_begin_batch(&b, 0)
    for part in batches:
        if not isinstance(part, bytes):
            kv_buf_free(&b)
            raise TypeError("batches must be bytes")
        s = slice_of(<bytes>part)
        kv_rd_init(&r, s.p, s.n)
        v = env_read_head(&r, &left)
        if v != ENV_ITEM:
            break
        groups += left
        kv_put_bytes(&b, r.p, kv_rd_left(&r))
    if v != ENV_ITEM or groups > 0xFFFFFFFF:
        kv_buf_free(&b)
        refuse(v, "batch to merge")
    env_set_groups(&b, at, <uint32_t>groups)
    return take(&b)


GROUP_COLUMNS = [("offset", "<i8"), ("bytes", "<i8"), ("first", "<i8"), ("count", "<i8"),
                 ("session", "<u8"), ("sequence", "<u8"), ("slot", "<u4"), ("flags", "u1")]
REQUEST_COLUMNS = [("group", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("kind", "u1")]

cdef packed struct GroupRow:
    long long offset
    long long bytes
    long long first
    long long count
    uint64_t session
    uint64_t sequence
    uint32_t slot
    uint8_t flags

cdef packed struct RequestRow:
    long long group
    long long offset
    long long length
    uint8_t kind


def columns(bytes data not None):
    """(groups, requests): numpy arrays over one batch, one row each, offsets into `data`.

    groups: offset and bytes of the whole group, first (row of its first request), count,
    session, sequence, slot, flags. requests: group (row), offset and length of the body, kind.
    For Python that must look into a batch without an object a request. Raises DecodeError.
    """
    cdef kv_slice s = slice_of(data)
    cdef uint32_t group_count
    cdef uint64_t request_count
    cdef int v = env_check_batch(s.p, s.n, &group_count, &request_count)
    cdef kv_rd r
    cdef kv_rd rr
    cdef uint32_t left = 0
    cdef uint32_t left_requests = 0
    cdef Group g
    cdef Request q
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j = 0
    cdef GroupRow[::1] group_rows
    cdef RequestRow[::1] request_rows
    if v != ENV_ITEM:
        refuse(v, "batch")
    import numpy as np      # 40 ms and 10 MB that a process without columns does without

    groups = np.empty(group_count, GROUP_COLUMNS)
    requests = np.empty(request_count, REQUEST_COLUMNS)
    group_rows = groups
    request_rows = requests
    with nogil:
        kv_rd_init(&r, s.p, s.n)
        env_read_head(&r, &left)
        while env_next_group(&r, &left, &g) == ENV_ITEM:
            group_rows[i].offset = g.whole.p - s.p
            group_rows[i].bytes = <long long>g.whole.n
            group_rows[i].first = j
            group_rows[i].count = g.count
            group_rows[i].session = g.session
            group_rows[i].sequence = g.sequence
            group_rows[i].slot = g.slot
            group_rows[i].flags = g.flags
            env_requests(&g, &rr, &left_requests)
            while env_next_request(&rr, &left_requests, &q) == ENV_ITEM:
                request_rows[j].group = i
                request_rows[j].offset = q.body.p - s.p
                request_rows[j].length = <long long>q.body.n
                request_rows[j].kind = q.kind
                j += 1
            i += 1
    return groups, requests


def build_results(groups):
    """Results from dicts {slot, incarnation, state, code, results: [(code, kind, body)]}; for
    state 2 {slot, incarnation, state, code, count}. For tests."""
    cdef kv_buf b
    cdef kv_slice body
    cdef size_t at
    kv_buf_init(&b)
    try:
        for d in groups:
            if d["state"] == STATE_REFUSED:
                res_refuse_group(&b, d["slot"], d["incarnation"], d["count"], d["code"])
                continue
            at = res_open_group(&b, d["slot"], d["incarnation"], d["state"], 0)
            for code, kind, answer in d["results"]:
                body = slice_of(<bytes?>answer)
                res_add(&b, at, code, kind, body.p, body.n)
    except BaseException:
        kv_buf_free(&b)
        raise
    return take(&b)


def parse_results(bytes data not None):
    """Dicts like build_results's. Raises DecodeError."""
    cdef kv_slice s = slice_of(data)
    cdef kv_rd r
    cdef kv_rd rr
    cdef uint32_t left = 0
    cdef ResultGroup g
    cdef Result q
    cdef list out = []
    cdef list results
    cdef dict d
    cdef int v
    kv_rd_init(&r, s.p, s.n)
    while True:
        v = res_next_group(&r, &g)
        if v == ENV_END:
            return out
        if v != ENV_ITEM:
            refuse(v, "result group")
        d = {"slot": g.slot, "incarnation": g.incarnation, "state": g.state, "code": g.code}
        out.append(d)
        if g.state == STATE_REFUSED:
            d["count"] = g.count
            continue
        results = d["results"] = []
        res_results(&g, &rr, &left)
        while True:
            v = res_next(&rr, &left, &q)
            if v == ENV_END:
                break
            if v != ENV_ITEM:
                refuse(v, "result")
            results.append((q.code, q.kind, bytes_of(q.body)))
