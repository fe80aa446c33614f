"""MemStore: the store's function table over ordered trees in memory.

Callers: the cluster simulator and unit tests. Production uses env.lmdbstore.

Each tree is a treap whose nodes are shared between versions: a transaction holds its own roots,
and a write copies the nodes on its path only where another version still refers to them. So
commit is one swap of roots, abort drops them, and any number of read transactions keep their
snapshot while a writer goes on, as in LMDB. A node's priority is a hash of its key, so a tree's
shape depends on its content alone and a run repeats exactly.

Invariants
 1. refs of a node or item = number of roots, parent nodes and cursors that point at it.
 2. A node with refs > 1 is never changed; an item is never changed after its append was filled.
 3. left < node < right in key order; priority of a node >= those of its children.
 4. One write transaction at a time; a second begin_write fails instead of blocking.

Not here: threads (no locks, one thread at a time), durability, a size limit. Out of memory ends
the process. A cursor that met the end (ST_NOTFOUND) stays there until it is positioned again; a
fresh one starts with cursor_next at the first entry, with cursor_prev at the last.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport FILE, fputs, stderr
from libc.stdlib cimport abort as die, calloc, free, malloc
from libc.string cimport memcpy, memset

from kvnode._core.buf cimport kv_slice, kv_slice_cmp
from kvnode._core.store cimport (
    ST_EXISTS,
    ST_FAILED,
    ST_KEY_MAX,
    ST_NOTFOUND,
    ST_OK,
    TREE_COUNT,
    Store,
)

from kvnode._core.storetxn import ReadTxn, WriteTxn

cdef enum:
    CUR_FRESH = 0
    CUR_AT = 1
    CUR_END = 2

    ENTRY_OVERHEAD = 16     # what LMDB's node header and page slot cost, about

ctypedef struct item:
    size_t refs
    size_t klen
    size_t vlen

ctypedef struct node:
    size_t refs
    uint64_t prio
    item *it
    node *left
    node *right

ctypedef struct mem_env:
    node *roots[TREE_COUNT]
    uint64_t entries[TREE_COUNT]
    uint64_t bytes
    bint writing
    size_t readers
    const char *error

ctypedef struct mem_txn:
    mem_env *env
    bint writes
    node *roots[TREE_COUNT]
    uint64_t entries[TREE_COUNT]
    uint64_t bytes
    mem_cur *cursors

ctypedef struct mem_cur:
    mem_txn *txn
    mem_cur *next
    mem_cur *prev
    item *at
    int tree
    int state


# ---- items and nodes ---------------------------------------------------------------------------

cdef void *need(void *p) noexcept nogil:
    if p == NULL:
        fputs(b"kvnode: memstore: out of memory\n", <FILE *>stderr)
        die()
    return p


cdef inline uint8_t *item_key(item *it) noexcept nogil:
    return <uint8_t *>(it + 1)


cdef inline kv_slice key_of(item *it) noexcept nogil:
    cdef kv_slice s
    s.p = item_key(it)
    s.n = it.klen
    return s


cdef inline kv_slice val_of(item *it) noexcept nogil:
    cdef kv_slice s
    s.p = item_key(it) + it.klen
    s.n = it.vlen
    return s


cdef item *item_new(kv_slice key, const uint8_t *val, size_t n) noexcept nogil:
    cdef item *it = <item *>need(malloc(sizeof(item) + key.n + n + 1))
    it.refs = 1
    it.klen = key.n
    it.vlen = n
    memcpy(item_key(it), key.p, key.n)
    if val != NULL:
        memcpy(item_key(it) + key.n, val, n)
    return it


cdef void item_drop(item *it) noexcept nogil:
    it.refs -= 1
    if it.refs == 0:
        free(it)


cdef uint64_t priority(kv_slice key) noexcept nogil:
    cdef uint64_t h = <uint64_t>0xcbf29ce484222325
    cdef size_t i
    for i in range(key.n):
        h = (h ^ key.p[i]) * <uint64_t>0x100000001b3
    h ^= h >> 32
    h *= <uint64_t>0x9E3779B97F4A7C15
    return h ^ (h >> 29)


cdef void node_drop(node *t) noexcept nogil:
    cdef node *right
    while t != NULL:
        t.refs -= 1
        if t.refs:
            return
        item_drop(t.it)
        node_drop(t.left)
        right = t.right
        free(t)
        t = right


cdef node *node_own(node *t) noexcept nogil:
    """Consumes a reference, returns a node that may be changed."""
    cdef node *c
    if t.refs == 1:
        return t
    c = <node *>need(malloc(sizeof(node)))
    c[0] = t[0]
    c.refs = 1
    t.refs -= 1
    c.it.refs += 1
    if c.left != NULL:
        c.left.refs += 1
    if c.right != NULL:
        c.right.refs += 1
    return c


# ---- treap -------------------------------------------------------------------------------------

cdef item *find(node *t, kv_slice key) noexcept nogil:
    cdef int c
    while t != NULL:
        c = kv_slice_cmp(key, key_of(t.it))
        if c == 0:
            return t.it
        t = t.left if c < 0 else t.right
    return NULL


cdef item *bound(node *t, kv_slice key, bint above, bint or_equal) noexcept nogil:
    """The nearest entry above (or below) key, key itself included with or_equal."""
    cdef item *best = NULL
    cdef int c
    while t != NULL:
        c = kv_slice_cmp(key_of(t.it), key)
        if c == 0 and or_equal:
            return t.it
        if above:
            if c > 0:
                best = t.it
                t = t.left
            else:
                t = t.right
        elif c < 0:
            best = t.it
            t = t.right
        else:
            t = t.left
    return best


cdef item *edge(node *t, bint last) noexcept nogil:
    if t == NULL:
        return NULL
    while True:
        if last:
            if t.right == NULL:
                return t.it
            t = t.right
        else:
            if t.left == NULL:
                return t.it
            t = t.left


cdef void split(node *t, kv_slice key, node **left, node **right) noexcept nogil:
    """Consumes t; key is not in it."""
    if t == NULL:
        left[0] = NULL
        right[0] = NULL
        return
    t = node_own(t)
    if kv_slice_cmp(key_of(t.it), key) < 0:
        left[0] = t
        split(t.right, key, &t.right, right)
    else:
        right[0] = t
        split(t.left, key, left, &t.left)


cdef node *merge(node *a, node *b) noexcept nogil:
    """Consumes both; every key of a is below every key of b."""
    if a == NULL:
        return b
    if b == NULL:
        return a
    if a.prio >= b.prio:
        a = node_own(a)
        a.right = merge(a.right, b)
        return a
    b = node_own(b)
    b.left = merge(a, b.left)
    return b


cdef node *insert(node *t, item *it, uint64_t prio) noexcept nogil:
    """Consumes t and it; the key is not in t."""
    cdef node *n
    if t == NULL or prio > t.prio:
        n = <node *>need(malloc(sizeof(node)))
        n.refs = 1
        n.prio = prio
        n.it = it
        split(t, key_of(it), &n.left, &n.right)
        return n
    t = node_own(t)
    if kv_slice_cmp(key_of(it), key_of(t.it)) < 0:
        t.left = insert(t.left, it, prio)
    else:
        t.right = insert(t.right, it, prio)
    return t


cdef void replace(node **slot, item *it) noexcept nogil:
    """Puts `it` where its key stands already; consumes it."""
    cdef int c
    while True:
        slot[0] = node_own(slot[0])
        c = kv_slice_cmp(key_of(it), key_of(slot[0].it))
        if c == 0:
            item_drop(slot[0].it)
            slot[0].it = it
            return
        slot = &slot[0].left if c < 0 else &slot[0].right


cdef void remove(node **slot, kv_slice key) noexcept nogil:
    """Takes out an entry that is there."""
    cdef node *t
    cdef int c
    while True:
        slot[0] = node_own(slot[0])
        t = slot[0]
        c = kv_slice_cmp(key, key_of(t.it))
        if c == 0:
            slot[0] = merge(t.left, t.right)
            item_drop(t.it)
            free(t)
            return
        slot = &t.left if c < 0 else &t.right


# ---- transactions ------------------------------------------------------------------------------

cdef int fail(mem_env *env, const char *text) noexcept nogil:
    env.error = text
    return ST_FAILED


cdef mem_txn *txn_new(mem_env *env, bint writes) noexcept nogil:
    cdef mem_txn *t = <mem_txn *>need(calloc(1, sizeof(mem_txn)))
    cdef int i
    t.env = env
    t.writes = writes
    t.bytes = env.bytes
    for i in range(TREE_COUNT):
        t.roots[i] = env.roots[i]
        t.entries[i] = env.entries[i]
        if t.roots[i] != NULL:
            t.roots[i].refs += 1
    return t


cdef void txn_free(mem_txn *t) noexcept nogil:
    cdef int i
    while t.cursors != NULL:
        mem_cursor_close(t.cursors)
    for i in range(TREE_COUNT):
        node_drop(t.roots[i])
    free(t)


cdef int mem_begin_write(void *env, void **txn) noexcept nogil:
    cdef mem_env *e = <mem_env *>env
    if e.writing:
        return fail(e, b"a write transaction is active")
    e.writing = True
    txn[0] = txn_new(e, True)
    return ST_OK


cdef int mem_commit(void *txn) noexcept nogil:
    cdef mem_txn *t = <mem_txn *>txn
    cdef mem_env *e = t.env
    cdef node *old
    cdef int i
    for i in range(TREE_COUNT):
        old = e.roots[i]
        e.roots[i] = t.roots[i]
        t.roots[i] = old
        e.entries[i] = t.entries[i]
    e.bytes = t.bytes
    e.writing = False
    txn_free(t)
    return ST_OK


cdef void mem_abort(void *txn) noexcept nogil:
    (<mem_txn *>txn).env.writing = False
    txn_free(<mem_txn *>txn)


cdef int mem_begin_read(void *env, void **txn) noexcept nogil:
    cdef mem_env *e = <mem_env *>env
    e.readers += 1
    txn[0] = txn_new(e, False)
    return ST_OK


cdef void mem_end_read(void *txn) noexcept nogil:
    (<mem_txn *>txn).env.readers -= 1
    txn_free(<mem_txn *>txn)


# ---- single operations -------------------------------------------------------------------------

cdef int mem_get(void *txn, int tree, kv_slice key, kv_slice *val) noexcept nogil:
    cdef item *it = find((<mem_txn *>txn).roots[tree], key)
    if it == NULL:
        return ST_NOTFOUND
    val[0] = val_of(it)
    return ST_OK


cdef int check_key(mem_txn *t, kv_slice key) noexcept nogil:
    if not t.writes:
        return fail(t.env, b"write in a read transaction")
    if key.n == 0 or key.n > ST_KEY_MAX:
        return fail(t.env, b"key is empty or longer than 511 bytes")
    return ST_OK


cdef void set_item(mem_txn *t, int tree, item *old, item *it) noexcept nogil:
    if old != NULL:
        t.bytes -= old.vlen
        t.bytes += it.vlen
        replace(&t.roots[tree], it)
        return
    t.bytes += it.klen + it.vlen + ENTRY_OVERHEAD
    t.entries[tree] += 1
    t.roots[tree] = insert(t.roots[tree], it, priority(key_of(it)))


cdef int mem_put(void *txn, int tree, kv_slice key, kv_slice val) noexcept nogil:
    cdef mem_txn *t = <mem_txn *>txn
    if check_key(t, key) != ST_OK:
        return ST_FAILED
    set_item(t, tree, find(t.roots[tree], key), item_new(key, val.p, val.n))
    return ST_OK


cdef int mem_put_new(
    void *txn, int tree, kv_slice key, kv_slice val, kv_slice *existing
) noexcept nogil:
    cdef mem_txn *t = <mem_txn *>txn
    cdef item *old
    if check_key(t, key) != ST_OK:
        return ST_FAILED
    old = find(t.roots[tree], key)
    if old != NULL:
        existing[0] = val_of(old)
        return ST_EXISTS
    set_item(t, tree, NULL, item_new(key, val.p, val.n))
    return ST_OK


cdef int mem_put_over(void *txn, int tree, kv_slice key, kv_slice val) noexcept nogil:
    cdef mem_txn *t = <mem_txn *>txn
    cdef item *old
    if check_key(t, key) != ST_OK:
        return ST_FAILED
    old = find(t.roots[tree], key)
    if old == NULL or old.vlen != val.n:
        return fail(t.env, b"put_over without a put_new that found a value of this size")
    set_item(t, tree, old, item_new(key, val.p, val.n))
    return ST_OK


cdef int mem_append(void *txn, int tree, kv_slice key, size_t n, uint8_t **dst) noexcept nogil:
    cdef mem_txn *t = <mem_txn *>txn
    cdef item *last
    cdef item *it
    if check_key(t, key) != ST_OK:
        return ST_FAILED
    last = edge(t.roots[tree], True)
    if last != NULL and kv_slice_cmp(key, key_of(last)) <= 0:
        return fail(t.env, b"append of a key that does not sort last")
    it = item_new(key, NULL, n)
    set_item(t, tree, NULL, it)
    dst[0] = item_key(it) + it.klen
    return ST_OK


cdef int mem_delete(void *txn, int tree, kv_slice key) noexcept nogil:
    cdef mem_txn *t = <mem_txn *>txn
    cdef item *old
    if check_key(t, key) != ST_OK:
        return ST_FAILED
    old = find(t.roots[tree], key)
    if old == NULL:
        return ST_NOTFOUND
    t.bytes -= old.klen + old.vlen + ENTRY_OVERHEAD
    t.entries[tree] -= 1
    remove(&t.roots[tree], key)
    return ST_OK


# ---- cursors -----------------------------------------------------------------------------------

cdef int mem_cursor_open(void *txn, int tree, void **cur) noexcept nogil:
    cdef mem_txn *t = <mem_txn *>txn
    cdef mem_cur *c = <mem_cur *>need(calloc(1, sizeof(mem_cur)))
    c.txn = t
    c.tree = tree
    c.next = t.cursors
    if c.next != NULL:
        c.next.prev = c
    t.cursors = c
    cur[0] = c
    return ST_OK


cdef void mem_cursor_close(void *cur) noexcept nogil:
    cdef mem_cur *c = <mem_cur *>cur
    if c.at != NULL:
        item_drop(c.at)
    if c.prev != NULL:
        c.prev.next = c.next
    else:
        c.txn.cursors = c.next
    if c.next != NULL:
        c.next.prev = c.prev
    free(c)


cdef int settle(mem_cur *c, item *it, kv_slice *k, kv_slice *v) noexcept nogil:
    if it != NULL:
        it.refs += 1
    if c.at != NULL:
        item_drop(c.at)
    c.at = it
    c.state = CUR_END if it == NULL else CUR_AT
    if it == NULL:
        return ST_NOTFOUND
    k[0] = key_of(it)
    v[0] = val_of(it)
    return ST_OK


cdef int mem_cursor_seek(void *cur, kv_slice key, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef mem_cur *c = <mem_cur *>cur
    return settle(c, bound(c.txn.roots[c.tree], key, True, True), k, v)


cdef int mem_cursor_first(void *cur, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef mem_cur *c = <mem_cur *>cur
    return settle(c, edge(c.txn.roots[c.tree], False), k, v)


cdef int mem_cursor_last(void *cur, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef mem_cur *c = <mem_cur *>cur
    return settle(c, edge(c.txn.roots[c.tree], True), k, v)


cdef int mem_cursor_next(void *cur, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef mem_cur *c = <mem_cur *>cur
    if c.state == CUR_FRESH:
        return mem_cursor_first(cur, k, v)
    if c.state == CUR_END:
        return ST_NOTFOUND
    return settle(c, bound(c.txn.roots[c.tree], key_of(c.at), True, False), k, v)


cdef int mem_cursor_prev(void *cur, kv_slice *k, kv_slice *v) noexcept nogil:
    cdef mem_cur *c = <mem_cur *>cur
    if c.state == CUR_FRESH:
        return mem_cursor_last(cur, k, v)
    if c.state == CUR_END:
        return ST_NOTFOUND
    return settle(c, bound(c.txn.roots[c.tree], key_of(c.at), False, False), k, v)


cdef uint64_t mem_used_bytes(void *txn) noexcept nogil:
    return (<mem_txn *>txn).bytes


cdef uint64_t mem_entries(void *txn, int tree) noexcept nogil:
    return (<mem_txn *>txn).entries[tree]


cdef const char *mem_last_error(void *env) noexcept nogil:
    return (<mem_env *>env).error


cdef class MemStore(Store):
    """An empty store. Transactions must end before it is dropped (they keep it alive)."""

    def __cinit__(self):
        memset(&self.ops, 0, sizeof(self.ops))
        self.ops.env = need(calloc(1, sizeof(mem_env)))
        (<mem_env *>self.ops.env).error = b""
        self.ops.begin_write = mem_begin_write
        self.ops.commit = mem_commit
        self.ops.abort = mem_abort
        self.ops.begin_read = mem_begin_read
        self.ops.end_read = mem_end_read
        self.ops.get = mem_get
        self.ops.put = mem_put
        self.ops.put_new = mem_put_new
        self.ops.put_over = mem_put_over
        self.ops.append = mem_append
        self.ops.delete = mem_delete
        self.ops.cursor_open = mem_cursor_open
        self.ops.cursor_close = mem_cursor_close
        self.ops.cursor_seek = mem_cursor_seek
        self.ops.cursor_first = mem_cursor_first
        self.ops.cursor_last = mem_cursor_last
        self.ops.cursor_next = mem_cursor_next
        self.ops.cursor_prev = mem_cursor_prev
        self.ops.used_bytes = mem_used_bytes
        self.ops.entries = mem_entries
        self.ops.last_error = mem_last_error

    def begin_write(self):
        """A WriteTxn; fails while another is active."""
        return WriteTxn(self)

    def begin_read(self):
        """A ReadTxn on the last committed state."""
        return ReadTxn(self)

    def clone(self):
        """A second store with the same committed content, sharing its nodes."""
        cdef MemStore other = MemStore()
        cdef mem_env *e = <mem_env *>self.ops.env
        cdef mem_env *o = <mem_env *>other.ops.env
        cdef int i
        for i in range(TREE_COUNT):
            o.roots[i] = e.roots[i]
            o.entries[i] = e.entries[i]
            if o.roots[i] != NULL:
                o.roots[i].refs += 1
        o.bytes = e.bytes
        return other

    def __dealloc__(self):
        cdef mem_env *e = <mem_env *>self.ops.env
        cdef int i
        if e != NULL:
            for i in range(TREE_COUNT):
                node_drop(e.roots[i])
            free(e)
            self.ops.env = NULL
