"""etcd's KV messages over bytes: structs, checks, encoders. Table of contents of etcdpb.pyx.

Lifetimes: every kv_slice of a decoded struct points into the body it was decoded from; arrays and
nested structs live in the kv_arena (kv_arena_init once, kv_arena_reset per request or batch).
Nothing here raises or touches Python objects; functions return CODE_* of codes.pxd unless said.
Out of memory latches `err` of the arena, and the verdict then means nothing.
Encoders append to a kv_buf, whose owner checks `err` once at the end.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_arena, kv_buf, kv_slice

cdef enum:
    # RequestOp's oneof: field number of the set member, the same numbers as in ResponseOp
    OP_NONE = 0
    OP_RANGE = 1
    OP_PUT = 2
    OP_DELETE_RANGE = 3
    OP_TXN = 4

    SORT_NONE = 0
    SORT_ASCEND = 1
    SORT_DESCEND = 2

    SORT_BY_KEY = 0
    SORT_BY_VERSION = 1
    SORT_BY_CREATE = 2
    SORT_BY_MOD = 3
    SORT_BY_VALUE = 4

    COMPARE_EQUAL = 0
    COMPARE_GREATER = 1
    COMPARE_LESS = 2
    COMPARE_NOT_EQUAL = 3

    TARGET_VERSION = 0
    TARGET_CREATE = 1
    TARGET_MOD = 2
    TARGET_VALUE = 3
    TARGET_LEASE = 4

    # Compare's oneof target_union: field number of the set member, 0 = none set
    UNION_NONE = 0
    UNION_VERSION = 4
    UNION_CREATE = 5
    UNION_MOD = 6
    UNION_VALUE = 7
    UNION_LEASE = 8

# --- decoded requests ---------------------------------------------------------------------------

cdef struct PutReq:
    kv_slice key
    kv_slice value
    int64_t lease
    bint prev_kv
    bint ignore_value
    bint ignore_lease

cdef struct RangeReq:
    kv_slice key
    kv_slice range_end
    int64_t limit
    int64_t revision
    int32_t sort_order
    int32_t sort_target
    bint serializable
    bint keys_only
    bint count_only
    int64_t min_mod_revision
    int64_t max_mod_revision
    int64_t min_create_revision
    int64_t max_create_revision

cdef struct DeleteReq:
    kv_slice key
    kv_slice range_end
    bint prev_kv

cdef struct CompactReq:
    int64_t revision
    bint physical

cdef struct Compare:
    int32_t result        # COMPARE_*; other numbers are kept (etcd's meaning: the state machine's)
    int32_t target        # TARGET_*
    int32_t union_case    # UNION_*: which value the client set, independent of target
    int64_t number        # when union_case is one of the int64 members
    kv_slice value        # when union_case is UNION_VALUE
    kv_slice key
    kv_slice range_end

cdef union OpBody:
    RangeReq *range_req
    PutReq *put_req
    DeleteReq *delete_req
    TxnReq *txn_req

cdef struct Op:
    int kind              # OP_*
    OpBody body           # the member that kind names

cdef struct TxnReq:
    Compare *compare
    size_t compare_n
    Op *success
    size_t success_n
    Op *failure
    size_t failure_n

cdef struct KeyValue:
    kv_slice key
    int64_t create_revision
    int64_t mod_revision
    int64_t version
    kv_slice value
    int64_t lease

cdef struct RespHeader:
    uint64_t cluster_id
    uint64_t member_id
    int64_t revision
    uint64_t raft_term

cdef int decode_put(const uint8_t *p, size_t n, PutReq *out) noexcept nogil
cdef int decode_range(const uint8_t *p, size_t n, RangeReq *out) noexcept nogil
cdef int decode_delete_range(const uint8_t *p, size_t n, DeleteReq *out) noexcept nogil
cdef int decode_compact(const uint8_t *p, size_t n, CompactReq *out) noexcept nogil
cdef int decode_txn(const uint8_t *p, size_t n, TxnReq *out, kv_arena *arena) noexcept nogil
cdef int decode_kv(const uint8_t *p, size_t n, KeyValue *out) noexcept nogil

# --- batches: kvnodepb.PutBatch and kvnodepb.TxnBatch (both: repeated message = 1) --------------

cdef struct BatchIter:
    const uint8_t *p
    const uint8_t *end

cdef void batch_iter(BatchIter *it, const uint8_t *p, size_t n) noexcept nogil
# 1: *item is the next message's bytes; 0: end; -1: malformed. Other fields are skipped.
cdef int next_in_batch(BatchIter *it, kv_slice *item) noexcept nogil

# --- checks, in etcd's order (api/v3rpc); keys over KEY_BYTES_MAX last --------------------------

cdef int check_put(const PutReq *r) noexcept nogil
cdef int check_range(const RangeReq *r) noexcept nogil
cdef int check_delete_range(const DeleteReq *r) noexcept nogil
# max_ops: --max-txn-ops. The arena gets the scratch sets of the duplicate-key check.
cdef int check_txn(const TxnReq *r, int64_t max_ops, kv_arena *arena) noexcept nogil
# Decodes and checks a body of any KIND_* that goes into the log or is a Range.
# PUT_BATCH and TXN_BATCH: only that every item decodes, since an item is refused alone (by its
# index, when applied); PUT_BATCH_ONE: the first refused put refuses all, keys must be unique.
cdef int check_request(int kind, const uint8_t *p, size_t n, int64_t max_txn_ops,
                       kv_arena *arena) noexcept nogil

# --- encoders -----------------------------------------------------------------------------------

# KeyValue as Go marshals it: field order, zero fields omitted.
cdef size_t kv_size(const KeyValue *kv) noexcept nogil
# Fills kv_size bytes and returns their end.
cdef uint8_t *kv_write(uint8_t *dst, const KeyValue *kv) noexcept nogil
cdef void put_kv(kv_buf *b, const KeyValue *kv) noexcept nogil

# Of the message, without tag and length.
cdef size_t header_size(const RespHeader *h) noexcept nogil
# Every `h` below may be NULL: no header field. A header of zeros is written as an empty message.
cdef void put_header(kv_buf *b, const RespHeader *h) noexcept nogil
# Puts the header field in front of what was encoded from `at` on: for answers whose revision is
# known only when they are complete (begin them with h = NULL).
cdef void insert_header(kv_buf *b, size_t at, const RespHeader *h) noexcept nogil

# prev_kv: raw KeyValue message, p = NULL for none
cdef void put_put_response(kv_buf *b, const RespHeader *h, kv_slice prev_kv) noexcept nogil
cdef void put_compact_response(kv_buf *b, const RespHeader *h) noexcept nogil

# DeleteRangeResponse: gather prev_kvs as fields in a buffer of their own, then write the whole.
cdef void add_prev_kv(kv_buf *fields, kv_slice raw_kv) noexcept nogil
cdef void put_delete_response(kv_buf *b, const RespHeader *h, int64_t deleted,
                              const uint8_t *prev_fields, size_t prev_n) noexcept nogil

# RangeResponse: begin, add..., finish.
cdef void range_begin(kv_buf *b, const RespHeader *h) noexcept nogil
cdef void range_add(kv_buf *b, kv_slice raw_kv) noexcept nogil
# The same without the value; 0, or -1 when raw_kv is not a KeyValue (nothing is written).
cdef int range_add_keys_only(kv_buf *b, kv_slice raw_kv) noexcept nogil
cdef void range_finish(kv_buf *b, bint more, int64_t count) noexcept nogil
# A raw KeyValue in the canonical form without its value; 0 or -1 as above.
cdef int put_kv_keys_only(kv_buf *b, kv_slice raw_kv) noexcept nogil

# A length-prefixed field whose length is known at its end: open, write, close (innermost first).
cdef size_t field_open(kv_buf *b, uint32_t field) noexcept nogil
cdef void field_close(kv_buf *b, size_t mark) noexcept nogil

# TxnResponse: txn_begin; per executed op: m = op_open(kind), the response of that kind
# (OP_TXN: txn_begin again), op_close(m). An op of OP_NONE is opened and closed with nothing inside.
cdef void txn_begin(kv_buf *b, const RespHeader *h, bint succeeded) noexcept nogil
cdef size_t op_open(kv_buf *b, int kind) noexcept nogil
cdef void op_close(kv_buf *b, int kind, size_t mark) noexcept nogil

# kvnodepb.BatchResponse: batch_begin, refusals in index order, batch_finish.
cdef void batch_begin(kv_buf *b, const RespHeader *h) noexcept nogil
cdef void batch_refuse(kv_buf *b, uint32_t index, uint32_t code) noexcept nogil
cdef void batch_finish(kv_buf *b, int64_t first_revision, int64_t last_revision,
                       uint64_t applied) noexcept nogil

# kvnodepb.SessionOpen {uint64 session=1; bool gateway=2; string client_name=3} and SessionClose
# {uint64 session=1}
cdef struct SessionReq:
    uint64_t session
    bint gateway
    kv_slice client_name

cdef int decode_session(const uint8_t *p, size_t n, SessionReq *out) noexcept nogil

# etcdserverpb.AlarmRequest
cdef struct AlarmReq:
    int32_t action        # 0 GET, 1 ACTIVATE, 2 DEACTIVATE
    uint64_t member_id
    int32_t alarm         # 0 NONE, 1 NOSPACE, 2 CORRUPT

cdef int decode_alarm(const uint8_t *p, size_t n, AlarmReq *out) noexcept nogil
# AlarmResponse {header=1; repeated AlarmMember alarms=2}
cdef void alarm_add(kv_buf *b, uint64_t member_id, int32_t alarm) noexcept nogil
