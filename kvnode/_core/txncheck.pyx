"""etcd's rule against writing a key twice in one transaction, for one branch of it.

Caller: etcdpb.check_txn (both branches of the outermost transaction) and the unique-key check of
a put batch. Input: decoded operations, every key non-empty. Output: a code; nothing is kept.

The rule (etcd's api/v3rpc/key.go), which is not "no key twice", but for a list of operations:

1. The list's own delete ranges count before anything else. A range [key, range_end) holds a key
   k when key <= k < range_end; range_end "\\0" ("from key on") thus holds none, as in etcd.
2. Then its nested transactions in order: both branches by this rule, separately. A key put by
   the `success` branch must not be put by an earlier sibling, nor deleted by the list or by an
   earlier sibling's delete. The same for `failure`, which may repeat keys of its own `success`.
   Then both branches' deletes join the list's.
3. Then the list's own puts: none twice, none put by a nested one, none in a delete.

So a delete of a later sibling after an earlier sibling's put is allowed, and deletes may overlap.

Sizes are a client's to choose (64 MiB of operations with raised limits), so everything is
O(n log n): puts and single-key deletes are hash sets, ranges a treap by their begin where each
node knows the largest end below it. The hash is seeded by Python's per-process hash secret; the
verdict does not depend on it.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from kvnode._core.buf cimport kv_arena_alloc, kv_slice_cmp
from kvnode._core.codes cimport CODE_DUPLICATE_KEY, CODE_OK, CODE_UNAVAILABLE
from kvnode._core.etcdpb cimport OP_DELETE_RANGE, OP_PUT, OP_TXN, DeleteReq, TxnReq

cdef extern from *:
    """
    static inline uint64_t kv_mix(uint64_t a, uint64_t b) {
      __uint128_t m = (__uint128_t)a * b;
      return (uint64_t)m ^ (uint64_t)(m >> 64);
    }
    /* 16 bytes a multiplication; a tail shorter than that is padded with zeros, and the length
     * in the seed keeps paddings apart. */
    static inline uint64_t kv_key_hash(const uint8_t *p, size_t n, uint64_t seed) {
      uint64_t h = seed ^ (n * 0x9E3779B97F4A7C15ull), a, b;
      while (n >= 16) {
        memcpy(&a, p, 8); memcpy(&b, p + 8, 8);
        h = kv_mix(a ^ 0xA0761D6478BD642Full ^ h, b ^ seed ^ 0xE7037ED1A0B428DBull);
        p += 16; n -= 16;
      }
      a = 0; b = 0;
      if (n > 8) { memcpy(&a, p, 8); memcpy(&b, p + 8, n - 8); }
      else if (n) memcpy(&a, p, n);
      return kv_mix(a ^ 0x8EBC6AF09C88C6E3ull ^ h, b ^ seed ^ 0x589965CC75374CC3ull);
    }
    """
    uint64_t kv_key_hash(const uint8_t *p, size_t n, uint64_t seed) noexcept nogil
    uint64_t kv_mix(uint64_t a, uint64_t b) noexcept nogil

cdef uint64_t hash_seed = <uint64_t>(hash(b"kvnode.txncheck") & 0xFFFFFFFFFFFFFFFF) | 1
cdef uint64_t priority_mix = <uint64_t>0xA0761D6478BD642F


# --- a set of keys ------------------------------------------------------------------------------

cdef void keyset_init(KeySet *s, kv_arena *arena, size_t expected) noexcept nogil:
    """An arena without memory shows at the first addition."""
    cdef size_t slots = 16
    while slots < 2 * expected:
        slots *= 2
    s.arena = arena
    s.count = 0
    s.mask = slots - 1
    s.table = NULL
    s.keys = NULL
    if expected:
        keyset_alloc(s, slots)


cdef bint keyset_alloc(KeySet *s, size_t slots) noexcept nogil:
    """Fresh table for `slots`, keys kept; slots / 2 keys fit."""
    cdef uint64_t *table = <uint64_t *>kv_arena_alloc(s.arena, slots * sizeof(uint64_t))
    cdef kv_slice *keys = <kv_slice *>kv_arena_alloc(s.arena, (slots // 2) * sizeof(kv_slice))
    cdef size_t i
    if table == NULL or keys == NULL:
        return False
    memset(table, 0, slots * sizeof(uint64_t))
    if s.count:
        memcpy(keys, s.keys, s.count * sizeof(kv_slice))
    s.table = table
    s.keys = keys
    s.mask = slots - 1
    for i in range(s.count):
        keyset_place(s, i)
    return True


cdef inline uint64_t slot_of(const KeySet *s, uint64_t h) noexcept nogil:
    return h & s.mask


cdef void keyset_place(KeySet *s, size_t index) noexcept nogil:
    cdef uint64_t h = kv_key_hash(s.keys[index].p, s.keys[index].n, hash_seed)
    cdef size_t at = slot_of(s, h)
    while s.table[at]:
        at = (at + 1) & s.mask
    s.table[at] = (h >> 32) << 32 | <uint32_t>(index + 1)


cdef inline bint same(kv_slice a, kv_slice b) noexcept nogil:
    return a.n == b.n and kv_slice_cmp(a, b) == 0


cdef bint keyset_find(const KeySet *s, kv_slice key, uint64_t h, size_t *at) noexcept nogil:
    cdef size_t i = slot_of(s, h)
    cdef uint64_t entry
    while True:
        entry = s.table[i]
        if entry == 0:
            at[0] = i
            return False
        if entry >> 32 == h >> 32 and same(s.keys[<uint32_t>entry - 1], key):
            at[0] = i
            return True
        i = (i + 1) & s.mask


cdef int keyset_add(KeySet *s, kv_slice key) noexcept nogil:
    cdef uint64_t h = kv_key_hash(key.p, key.n, hash_seed)
    cdef size_t at = 0
    if s.table == NULL:
        if not keyset_alloc(s, s.mask + 1):
            return CODE_UNAVAILABLE
    elif 2 * (s.count + 1) > s.mask + 1:
        if not keyset_alloc(s, 2 * (s.mask + 1)):
            return CODE_UNAVAILABLE
    if keyset_find(s, key, h, &at):
        return CODE_DUPLICATE_KEY
    s.keys[s.count] = key
    s.count += 1
    s.table[at] = (h >> 32) << 32 | <uint32_t>s.count
    return CODE_OK


cdef bint keyset_has(const KeySet *s, kv_slice key) noexcept nogil:
    cdef size_t at = 0
    if s.count == 0:
        return False
    return keyset_find(s, key, kv_key_hash(key.p, key.n, hash_seed), &at)


# --- deleted keys: single ones and ranges --------------------------------------------------------

cdef struct Span:
    kv_slice begin
    kv_slice end
    kv_slice max_end          # largest end in the subtree
    Span *left
    Span *right
    Span *older               # list of all spans of the set
    uint64_t priority

cdef struct Deletes:
    KeySet points
    Span *root
    Span *newest
    uint64_t spans


cdef inline void span_update(Span *x) noexcept nogil:
    x.max_end = x.end
    if x.left != NULL and kv_slice_cmp(x.left.max_end, x.max_end) > 0:
        x.max_end = x.left.max_end
    if x.right != NULL and kv_slice_cmp(x.right.max_end, x.max_end) > 0:
        x.max_end = x.right.max_end


cdef Span *span_insert(Span *x, Span *z) noexcept nogil:
    """Treap insertion; random priorities keep the depth, and so this recursion, logarithmic."""
    cdef Span *child
    if x == NULL:
        return z
    if kv_slice_cmp(z.begin, x.begin) < 0:
        child = span_insert(x.left, z)
        x.left = child
        if child.priority > x.priority:
            x.left = child.right
            child.right = x
            span_update(x)
            x = child
    else:
        child = span_insert(x.right, z)
        x.right = child
        if child.priority > x.priority:
            x.right = child.left
            child.left = x
            span_update(x)
            x = child
    span_update(x)
    return x


cdef int deletes_add_span(Deletes *d, kv_slice begin, kv_slice end, kv_arena *arena) noexcept nogil:
    cdef Span *z
    if kv_slice_cmp(begin, end) >= 0:
        return CODE_OK          # holds no key
    z = <Span *>kv_arena_alloc(arena, sizeof(Span))
    if z == NULL:
        return CODE_UNAVAILABLE
    z.begin = begin
    z.end = end
    z.max_end = end
    z.left = NULL
    z.right = NULL
    z.older = d.newest
    d.newest = z
    d.spans += 1
    z.priority = kv_mix(d.spans ^ priority_mix, hash_seed)
    d.root = span_insert(d.root, z)
    return CODE_OK


cdef int deletes_add(Deletes *d, const DeleteReq *r, kv_arena *arena) noexcept nogil:
    if r.range_end.n:
        return deletes_add_span(d, r.key, r.range_end, arena)
    if keyset_add(&d.points, r.key) == CODE_UNAVAILABLE:
        return CODE_UNAVAILABLE
    return CODE_OK


cdef bint deletes_hold(const Deletes *d, kv_slice key) noexcept nogil:
    """Spans that begin at or before key are the left side of its search path: one of them holds
    key when the largest of their ends is over it."""
    cdef const Span *x = d.root
    if keyset_has(&d.points, key):
        return True
    while x != NULL:
        if kv_slice_cmp(x.begin, key) > 0:
            x = x.left
            continue
        if kv_slice_cmp(x.end, key) > 0:
            return True
        if x.left != NULL and kv_slice_cmp(x.left.max_end, key) > 0:
            return True
        x = x.right
    return False


cdef int deletes_join(Deletes *into, const Deletes *other, kv_arena *arena) noexcept nogil:
    cdef size_t i
    cdef const Span *x = other.newest
    for i in range(other.points.count):
        if keyset_add(&into.points, other.points.keys[i]) == CODE_UNAVAILABLE:
            return CODE_UNAVAILABLE
    while x != NULL:
        if deletes_add_span(into, x.begin, x.end, arena) != CODE_OK:
            return CODE_UNAVAILABLE
        x = x.older
    return CODE_OK


# --- the rule -----------------------------------------------------------------------------------

cdef int add_put(KeySet *puts, const Deletes *deletes, kv_slice key) noexcept nogil:
    if deletes_hold(deletes, key):
        return CODE_DUPLICATE_KEY
    return keyset_add(puts, key)


cdef int check_nested(const TxnReq *txn, KeySet *puts, Deletes *deletes,
                      kv_arena *arena) noexcept nogil:
    cdef KeySet then_puts
    cdef KeySet else_puts
    cdef Deletes then_deletes
    cdef Deletes else_deletes
    cdef size_t i
    cdef int code
    code = check_list(txn.success, txn.success_n, &then_puts, &then_deletes, arena)
    if code == CODE_OK:
        code = check_list(txn.failure, txn.failure_n, &else_puts, &else_deletes, arena)
    if code != CODE_OK:
        return code
    for i in range(then_puts.count):
        code = add_put(puts, deletes, then_puts.keys[i])
        if code != CODE_OK:
            return code
    for i in range(else_puts.count):
        code = add_put(puts, deletes, else_puts.keys[i])
        # The branches exclude each other; what success put has passed the deletes already.
        if code == CODE_DUPLICATE_KEY and keyset_has(&then_puts, else_puts.keys[i]):
            code = CODE_OK
        if code != CODE_OK:
            return code
    code = deletes_join(deletes, &then_deletes, arena)
    if code != CODE_OK:
        return code
    return deletes_join(deletes, &else_deletes, arena)


cdef int check_list(const Op *ops, size_t n, KeySet *puts, Deletes *deletes,
                    kv_arena *arena) noexcept nogil:
    cdef size_t i
    cdef size_t put_count = 0
    cdef int code
    keyset_init(&deletes.points, arena, 0)
    deletes.root = NULL
    deletes.newest = NULL
    deletes.spans = 0
    for i in range(n):
        if ops[i].kind == OP_PUT:
            put_count += 1
        elif ops[i].kind == OP_DELETE_RANGE:
            code = deletes_add(deletes, ops[i].body.delete_req, arena)
            if code != CODE_OK:
                return code
    keyset_init(puts, arena, put_count)
    for i in range(n):
        if ops[i].kind == OP_TXN:
            code = check_nested(ops[i].body.txn_req, puts, deletes, arena)
            if code != CODE_OK:
                return code
    for i in range(n):
        if ops[i].kind == OP_PUT:
            code = add_put(puts, deletes, ops[i].body.put_req.key)
            if code != CODE_OK:
                return code
    return CODE_OK


cdef int check_intervals(const Op *ops, size_t n, kv_arena *arena) noexcept nogil:
    cdef KeySet puts
    cdef Deletes deletes
    # One put or delete cannot clash with itself: the common transaction needs no sets.
    if n == 0 or (n == 1 and ops[0].kind != OP_TXN):
        return CODE_OK
    return check_list(ops, n, &puts, &deletes, arena)
