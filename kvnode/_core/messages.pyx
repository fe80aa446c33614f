"""The Python side of the codec: requests as bytes without protobuf objects, and views for tests.

Callers: the Python client and load generators (`encode_*`), the tests and tools (`check`,
`decode`, `answer_*`). What the functions make is equal to the last byte to protobuf's
deterministic serialization of the same message; see etcdpb.pyx for formats and rules.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport (kv_arena, kv_arena_free, kv_arena_init, kv_buf, kv_buf_free,
                               kv_buf_grow, kv_buf_init, kv_put_bytes, kv_put_u8, kv_put_varint,
                               kv_slice, kv_varint_size, kv_varint_write)
from kvnode._core.codes cimport CODE_OK
from kvnode._core.etcdpb cimport *
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

    No object a put: 1,000 puts of 32 + 256 bytes take about 25 us.
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
