"""The Python side of the codec: requests as bytes without protobuf objects, and views for tests.

Callers: the Python client and load generators (`encode_*`), the tests and tools (`check`,
`decode`, `answer_*`). What the functions make is equal to the last byte to protobuf's
deterministic serialization of the same message; see etcdpb.pyx for formats and rules.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t

from kvnode._core.buf cimport (kv_arena, kv_arena_free, kv_arena_init, kv_arena_reset, kv_buf,
                               kv_buf_clear, kv_buf_free, kv_buf_grow, kv_buf_init, kv_put_bytes,
                               kv_put_u8, kv_put_varint, kv_rd, kv_rd_init, kv_slice,
                               kv_varint_size, kv_varint_write)
from kvnode._core.codes cimport *
from kvnode._core.etcdpb cimport *
from kvnode._core.leasepb cimport (LeaseCheckpoint, LeaseReq, check_lease_request, decode_lease,
                                   decode_lease_grant, next_checkpoint, put_checkpoint,
                                   put_lease_grant, put_lease_revoke)
from kvnode._core.pbfield cimport (bytes_field_size, int_field_size, put_bytes_field,
                                   put_int_field, put_message_field, write_bytes_field,
                                   write_int_field)


# --- encoding requests --------------------------------------------------------------------------

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


cdef inline kv_slice slice_of(bytes s) noexcept:
    cdef kv_slice out
    out.p = <const uint8_t *>PyBytes_AS_STRING(s)
    out.n = <size_t>PyBytes_GET_SIZE(s)
    return out


def encode_put(bytes key not None, bytes value not None, int64_t lease=0, bint prev_kv=False,
               bint ignore_value=False, bint ignore_lease=False):
    """PutRequest as bytes."""
    cdef kv_buf b
    kv_buf_init(&b)
    put_bytes_field(&b, 0x0A, slice_of(key))
    put_bytes_field(&b, 0x12, slice_of(value))
    put_int_field(&b, 0x18, <uint64_t>lease)
    put_int_field(&b, 0x20, prev_kv)
    put_int_field(&b, 0x28, ignore_value)
    put_int_field(&b, 0x30, ignore_lease)
    return take(&b)


def encode_lease_grant(int64_t ttl, int64_t id=0):
    """LeaseGrantRequest as bytes."""
    cdef kv_buf b
    kv_buf_init(&b)
    put_lease_grant(&b, id, ttl)
    return take(&b)


def encode_lease(int64_t id, bint keys=False):
    """LeaseRevokeRequest, LeaseKeepAliveRequest or LeaseTimeToLiveRequest as bytes."""
    cdef kv_buf b
    kv_buf_init(&b)
    put_lease_revoke(&b, id)
    put_int_field(&b, 0x10, keys)
    return take(&b)


def encode_checkpoints(points):
    """LeaseCheckpointRequest of (id, remaining seconds) pairs."""
    cdef kv_buf b
    kv_buf_init(&b)
    for id, remaining in points:
        put_checkpoint(&b, id, remaining)
    return take(&b)


def encode_range(bytes key not None, bytes range_end not None=b"", int64_t limit=0,
                 int64_t revision=0, int sort_order=0, int sort_target=0, bint serializable=False,
                 bint keys_only=False, bint count_only=False, int64_t min_mod_revision=0,
                 int64_t max_mod_revision=0, int64_t min_create_revision=0,
                 int64_t max_create_revision=0):
    """RangeRequest as bytes."""
    cdef kv_buf b
    kv_buf_init(&b)
    put_bytes_field(&b, 0x0A, slice_of(key))
    put_bytes_field(&b, 0x12, slice_of(range_end))
    put_int_field(&b, 0x18, <uint64_t>limit)
    put_int_field(&b, 0x20, <uint64_t>revision)
    put_int_field(&b, 0x28, <uint64_t><int64_t>sort_order)
    put_int_field(&b, 0x30, <uint64_t><int64_t>sort_target)
    put_int_field(&b, 0x38, serializable)
    put_int_field(&b, 0x40, keys_only)
    put_int_field(&b, 0x48, count_only)
    put_int_field(&b, 0x50, <uint64_t>min_mod_revision)
    put_int_field(&b, 0x58, <uint64_t>max_mod_revision)
    put_int_field(&b, 0x60, <uint64_t>min_create_revision)
    put_int_field(&b, 0x68, <uint64_t>max_create_revision)
    return take(&b)


def encode_delete_range(bytes key not None, bytes range_end not None=b"", bint prev_kv=False):
    """DeleteRangeRequest as bytes."""
    cdef kv_buf b
    kv_buf_init(&b)
    put_bytes_field(&b, 0x0A, slice_of(key))
    put_bytes_field(&b, 0x12, slice_of(range_end))
    put_int_field(&b, 0x18, prev_kv)
    return take(&b)


def encode_compact(int64_t revision, bint physical=False):
    """CompactionRequest as bytes."""
    cdef kv_buf b
    kv_buf_init(&b)
    put_int_field(&b, 0x08, <uint64_t>revision)
    put_int_field(&b, 0x10, physical)
    return take(&b)


def encode_compare(bytes key not None, int result, int target, operand=None,
                   bytes range_end not None=b""):
    """Compare as bytes. operand: an int, bytes when target is VALUE, or None to leave the
    oneof unset (which compares with 0 or empty)."""
    cdef kv_buf b
    cdef int64_t number
    cdef kv_slice value
    kv_buf_init(&b)
    put_int_field(&b, 0x08, <uint64_t><int64_t>result)
    put_int_field(&b, 0x10, <uint64_t><int64_t>target)
    put_bytes_field(&b, 0x1A, slice_of(key))
    # A member of a oneof is written even when it is zero.
    if operand is None:
        pass
    elif target == TARGET_VALUE:
        value = slice_of(<bytes?>operand)
        put_message_field(&b, 0x3A, value.p, value.n)
    else:
        number = operand
        kv_put_u8(&b, 0x40 if target == TARGET_LEASE else <uint8_t>((4 + target) << 3))
        kv_put_varint(&b, <uint64_t>number)
    if range_end:
        kv_put_varint(&b, 0x202)
        kv_put_varint(&b, <uint64_t>len(range_end))
        value = slice_of(range_end)
        kv_put_bytes(&b, value.p, value.n)
    return take(&b)


def encode_op(int kind, bytes request not None):
    """RequestOp as bytes; kind: 1 range, 2 put, 3 delete range, 4 transaction."""
    cdef kv_buf b
    cdef kv_slice body = slice_of(request)
    kv_buf_init(&b)
    put_message_field(&b, <uint8_t>(kind << 3 | 2), body.p, body.n)
    return take(&b)


cdef int put_items(kv_buf *b, uint8_t tag, items) except -1:
    cdef kv_slice body
    for item in items:
        body = slice_of(<bytes?>item)
        put_message_field(b, tag, body.p, body.n)
    return 0


def encode_txn(compare=(), success=(), failure=()):
    """TxnRequest as bytes, from encoded Compare and RequestOp messages."""
    cdef kv_buf b
    kv_buf_init(&b)
    try:
        put_items(&b, 0x0A, compare)
        put_items(&b, 0x12, success)
        put_items(&b, 0x1A, failure)
    except BaseException:
        kv_buf_free(&b)
        raise
    return take(&b)


def encode_batch(messages):
    """PutBatch or TxnBatch as bytes, from its encoded messages."""
    return encode_txn(messages)


def encode_put_batch(keys, values, int64_t lease=0):
    """PutBatch as bytes from equally long sequences of bytes, all puts under one lease.

    No object a put: 1,000 puts of 32 + 256 bytes take about 15 us.
    """
    cdef kv_buf b
    cdef kv_slice key
    cdef kv_slice value
    cdef size_t n
    cdef uint8_t *d
    cdef Py_ssize_t i
    cdef list key_list = keys if type(keys) is list else list(keys)
    cdef list value_list = values if type(values) is list else list(values)
    if len(key_list) != len(value_list):
        raise ValueError(f"{len(key_list)} keys but {len(value_list)} values")
    kv_buf_init(&b)
    for i in range(len(key_list)):
        if type(key_list[i]) is not bytes or type(value_list[i]) is not bytes:
            kv_buf_free(&b)
            raise TypeError("keys and values must be bytes")
        key = slice_of(<bytes>key_list[i])
        value = slice_of(<bytes>value_list[i])
        n = (bytes_field_size(key.n) + bytes_field_size(value.n)
             + int_field_size(<uint64_t>lease))
        d = kv_buf_grow(&b, 1 + kv_varint_size(n) + n)
        if d == NULL:
            break
        d[0] = 0x0A
        d = kv_varint_write(d + 1, n)
        d = write_bytes_field(d, 0x0A, key)
        d = write_bytes_field(d, 0x12, value)
        write_int_field(d, 0x18, <uint64_t>lease)
    return take(&b)


def check(int kind, bytes body not None, int64_t max_txn_ops=128):
    """check_request for Python callers: the CODE_* as an int."""
    cdef kv_arena arena
    cdef kv_slice s = slice_of(body)
    cdef int code
    kv_arena_init(&arena)
    with nogil:
        code = check_request(kind, s.p, s.n, max_txn_ops, &arena)
    kv_arena_free(&arena)
    if arena.err:
        raise MemoryError
    return code


# --- views of requests (tests, log dump) ---------------------------------------------------------

cdef inline bytes bytes_of(kv_slice s):
    return PyBytes_FromStringAndSize(<const char *>s.p, s.n)


cdef dict put_view(const PutReq *r):
    return {"key": bytes_of(r.key), "value": bytes_of(r.value), "lease": r.lease,
            "prev_kv": bool(r.prev_kv), "ignore_value": bool(r.ignore_value),
            "ignore_lease": bool(r.ignore_lease)}


cdef dict range_view(const RangeReq *r):
    return {"key": bytes_of(r.key), "range_end": bytes_of(r.range_end), "limit": r.limit,
            "revision": r.revision, "sort_order": r.sort_order, "sort_target": r.sort_target,
            "serializable": bool(r.serializable), "keys_only": bool(r.keys_only),
            "count_only": bool(r.count_only), "min_mod_revision": r.min_mod_revision,
            "max_mod_revision": r.max_mod_revision,
            "min_create_revision": r.min_create_revision,
            "max_create_revision": r.max_create_revision}


cdef dict delete_view(const DeleteReq *r):
    return {"key": bytes_of(r.key), "range_end": bytes_of(r.range_end),
            "prev_kv": bool(r.prev_kv)}


cdef dict compare_view(const Compare *c):
    cdef dict out = {"result": c.result, "target": c.target, "key": bytes_of(c.key),
                     "range_end": bytes_of(c.range_end)}
    if c.union_case == UNION_VALUE:
        out["value"] = bytes_of(c.value)
    elif c.union_case != UNION_NONE:
        out[UNION_NAMES[c.union_case]] = c.number
    return out


UNION_NAMES = {4: "version", 5: "create_revision", 6: "mod_revision", 8: "lease"}


cdef dict op_view(const Op *op):
    if op.kind == OP_PUT:
        return {"request_put": put_view(op.body.put_req)}
    if op.kind == OP_RANGE:
        return {"request_range": range_view(op.body.range_req)}
    if op.kind == OP_DELETE_RANGE:
        return {"request_delete_range": delete_view(op.body.delete_req)}
    if op.kind == OP_TXN:
        return {"request_txn": txn_view(op.body.txn_req)}
    return {}


cdef dict txn_view(const TxnReq *r):
    cdef size_t i
    return {"compare": [compare_view(&r.compare[i]) for i in range(r.compare_n)],
            "success": [op_view(&r.success[i]) for i in range(r.success_n)],
            "failure": [op_view(&r.failure[i]) for i in range(r.failure_n)]}


cdef tuple lease_one(int kind, kv_slice s):
    cdef LeaseCheckpoint point
    cdef LeaseReq lease
    cdef kv_rd r
    cdef int code = check_lease_request(kind, s.p, s.n)
    if code:
        return code, None
    if kind == KIND_LEASE_GRANT:
        decode_lease_grant(s.p, s.n, &lease)
        return code, {"TTL": lease.ttl, "ID": lease.id}
    if kind == KIND_LEASE_REVOKE:
        decode_lease(s.p, s.n, &lease)
        return code, {"ID": lease.id, "keys": bool(lease.keys)}
    points = []
    kv_rd_init(&r, s.p, s.n)
    while next_checkpoint(&r, &point) == 1:
        points.append({"ID": point.id, "remaining_TTL": point.remaining})
    return code, {"checkpoints": points}


cdef tuple decode_one(int kind, kv_slice s, kv_arena *arena):
    cdef PutReq put
    cdef RangeReq rng
    cdef DeleteReq delete
    cdef CompactReq compact
    cdef TxnReq txn
    cdef SessionReq session
    cdef AlarmReq alarm
    cdef int code
    if kind == KIND_PUT:
        code = decode_put(s.p, s.n, &put)
        return code, None if code else put_view(&put)
    if kind == KIND_RANGE:
        code = decode_range(s.p, s.n, &rng)
        return code, None if code else range_view(&rng)
    if kind == KIND_DELETE_RANGE:
        code = decode_delete_range(s.p, s.n, &delete)
        return code, None if code else delete_view(&delete)
    if kind == KIND_TXN:
        code = decode_txn(s.p, s.n, &txn, arena)
        return code, None if code else txn_view(&txn)
    if kind == KIND_COMPACT:
        code = decode_compact(s.p, s.n, &compact)
        return code, None if code else {"revision": compact.revision,
                                        "physical": bool(compact.physical)}
    if kind == KIND_SESSION_OPEN or kind == KIND_SESSION_CLOSE:
        code = decode_session(s.p, s.n, &session)
        return code, None if code else {"session": session.session,
                                        "gateway": bool(session.gateway),
                                        "client_name": bytes_of(session.client_name)}
    if kind == KIND_ALARM:
        code = decode_alarm(s.p, s.n, &alarm)
        return code, None if code else {"action": alarm.action, "memberID": alarm.member_id,
                                        "alarm": alarm.alarm}
    return lease_one(kind, s)


def decode(int kind, bytes body not None):
    """(code, fields by their protobuf names or None); of a batch kind a list of such fields."""
    cdef kv_arena arena
    cdef kv_slice item
    cdef BatchIter it
    cdef int single
    cdef int more = 1
    cdef list items = []
    if kind not in (KIND_PUT_BATCH, KIND_PUT_BATCH_ONE, KIND_TXN_BATCH):
        kv_arena_init(&arena)
        try:
            return decode_one(kind, slice_of(body), &arena)
        finally:
            kv_arena_free(&arena)
    single = KIND_TXN if kind == KIND_TXN_BATCH else KIND_PUT
    item = slice_of(body)
    batch_iter(&it, item.p, item.n)
    kv_arena_init(&arena)
    try:
        while True:
            more = next_in_batch(&it, &item)
            if more <= 0:
                return (CODE_MALFORMED, None) if more < 0 else (CODE_OK, items)
            code, fields = decode_one(single, item, &arena)
            if code:
                return code, None
            items.append(fields)
    finally:
        kv_arena_free(&arena)


def decode_keyvalue(bytes raw not None):
    """(code, fields of a KeyValue or None)."""
    cdef KeyValue kv
    cdef kv_slice s = slice_of(raw)
    cdef int code = decode_kv(s.p, s.n, &kv)
    if code:
        return code, None
    return code, {"key": bytes_of(kv.key), "create_revision": kv.create_revision,
                  "mod_revision": kv.mod_revision, "version": kv.version,
                  "value": bytes_of(kv.value), "lease": kv.lease}


# --- answers (tests) ------------------------------------------------------------------------------
# header: (cluster_id, member_id, revision, raft_term) or None for no header field.

cdef RespHeader *header_of(header, RespHeader *h) except? NULL:
    if header is None:
        return NULL
    h.cluster_id, h.member_id, h.revision, h.raft_term = header
    return h


def encode_keyvalue(bytes key not None, int64_t create_revision=0, int64_t mod_revision=0,
                    int64_t version=0, bytes value not None=b"", int64_t lease=0):
    """KeyValue as the store keeps it."""
    cdef kv_buf b
    cdef KeyValue kv
    kv.key = slice_of(key)
    kv.create_revision = create_revision
    kv.mod_revision = mod_revision
    kv.version = version
    kv.value = slice_of(value)
    kv.lease = lease
    kv_buf_init(&b)
    put_kv(&b, &kv)
    return take(&b)


def keys_only(bytes raw not None):
    """A raw KeyValue without its value, or None when it is not one."""
    cdef kv_buf b
    kv_buf_init(&b)
    if put_kv_keys_only(&b, slice_of(raw)):
        kv_buf_free(&b)
        return None
    return take(&b)


cdef int put_answer(kv_buf *b, int kind, dict a, bint late_header) except -1:
    """Appends the response of an op kind; late_header takes the way of insert_header."""
    cdef RespHeader h
    cdef RespHeader *header = header_of(a.get("header"), &h)
    cdef RespHeader *now = NULL if late_header else header
    cdef kv_buf prevs
    cdef kv_slice raw
    cdef size_t at = b.n
    cdef size_t mark
    if kind == OP_PUT:
        raw.p = NULL
        raw.n = 0
        if a.get("prev_kv") is not None:
            raw = slice_of(a["prev_kv"])
        put_put_response(b, now, raw)
    elif kind == OP_DELETE_RANGE:
        kv_buf_init(&prevs)
        for kv in a.get("prev_kvs", ()):
            add_prev_kv(&prevs, slice_of(kv))
        put_delete_response(b, now, a.get("deleted", 0), prevs.p, prevs.n)
        kv_buf_free(&prevs)
    elif kind == OP_RANGE:
        range_begin(b, now)
        for kv in a.get("kvs", ()):
            if a.get("keys_only"):
                range_add_keys_only(b, slice_of(kv))
            else:
                range_add(b, slice_of(kv))
        range_finish(b, a.get("more", False), a.get("count", 0))
    elif kind == OP_TXN:
        txn_begin(b, now, a.get("succeeded", False))
        for op_kind, answer in a.get("responses", ()):
            mark = op_open(b, op_kind)
            put_answer(b, op_kind, answer, late_header)
            op_close(b, op_kind, mark)
    if late_header:
        insert_header(b, at, header)
    return 0


def encode_answer(int op_kind, dict answer not None, bint late_header=False):
    """Response message of an op kind (1 range, 2 put, 3 delete range, 4 transaction) from its
    fields; kvs are raw KeyValue messages, responses are (op_kind, answer)."""
    cdef kv_buf b
    kv_buf_init(&b)
    try:
        put_answer(&b, op_kind, answer, late_header)
    except BaseException:
        kv_buf_free(&b)
        raise
    return take(&b)


def encode_batch_answer(header, refused=(), int64_t first_revision=0, int64_t last_revision=0,
                        uint64_t applied=0):
    """BatchResponse; refused: (index, code) in index order."""
    cdef kv_buf b
    cdef RespHeader h
    cdef const RespHeader *hp = header_of(header, &h)
    kv_buf_init(&b)
    batch_begin(&b, hp)
    for index, code in refused:
        batch_refuse(&b, index, code)
    batch_finish(&b, first_revision, last_revision, applied)
    return take(&b)


def encode_compact_answer(header):
    """CompactionResponse."""
    cdef kv_buf b
    cdef RespHeader h
    cdef const RespHeader *hp = header_of(header, &h)
    kv_buf_init(&b)
    put_compact_response(&b, hp)
    return take(&b)


def encode_alarm_answer(header, alarms=()):
    """AlarmResponse; alarms: (member id, alarm type)."""
    cdef kv_buf b
    cdef RespHeader h
    cdef const RespHeader *hp = header_of(header, &h)
    kv_buf_init(&b)
    put_header(&b, hp)
    for member_id, alarm in alarms:
        alarm_add(&b, member_id, alarm)
    return take(&b)


# --- measured from within (bench/core_codec.py) ---------------------------------------------------

def repeat_check(int kind, bytes body not None, Py_ssize_t times, int64_t max_txn_ops=128):
    """Decodes and checks the same body `times` times; returns the last code."""
    cdef kv_arena arena
    cdef kv_slice s = slice_of(body)
    cdef int code = 0
    cdef Py_ssize_t _
    kv_arena_init(&arena)
    with nogil:
        for _ in range(times):
            kv_arena_reset(&arena)
            code = check_request(kind, s.p, s.n, max_txn_ops, &arena)
    kv_arena_free(&arena)
    return code


def repeat_put_answer(header, Py_ssize_t times):
    """Encodes a PutResponse `times` times; returns its size in bytes."""
    cdef kv_buf b
    cdef RespHeader h
    cdef const RespHeader *hp = header_of(header, &h)
    cdef kv_slice none
    cdef Py_ssize_t _
    cdef size_t size = 0
    none.p = NULL
    none.n = 0
    kv_buf_init(&b)
    with nogil:
        for _ in range(times):
            kv_buf_clear(&b)
            put_put_response(&b, hp, none)
            size = b.n
    kv_buf_free(&b)
    return size


def repeat_keyvalue(bytes raw not None, Py_ssize_t times):
    """Decodes and encodes a KeyValue `times` times; returns its size in bytes."""
    cdef kv_buf b
    cdef KeyValue kv
    cdef kv_slice s = slice_of(raw)
    cdef Py_ssize_t _
    kv_buf_init(&b)
    with nogil:
        for _ in range(times):
            kv_buf_clear(&b)
            decode_kv(s.p, s.n, &kv)
            put_kv(&b, &kv)
    s.n = b.n
    kv_buf_free(&b)
    return s.n
