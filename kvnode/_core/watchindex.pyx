"""The index of watched keys and intervals: a hash table and an interval tree.

Called by watchhub. Watchers of the same key or the same interval share one node, so an event
costs one look-up, plus one visit for each distinct interval that holds its key, however many
watchers stand behind it.

Exact keys are in a chained hash table. Intervals are in a treap ordered by (key, end); each node
knows the one of its subtree that ends last, so a search for the intervals that hold a key leaves
out subtrees that end before it: O(log n + found).

Invariants:
1. No two linked nodes have equal kind, key and end.
2. far(t) ends last among t, its left and its right subtree. NODE_FROM ends after every key.
3. A priority is drawn when a node is made and never changes: the tree's depth does not depend on
   the order in which clients bring their intervals.
"""

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from kvnode._core.buf cimport kv_load_u64, kv_slice_cmp

cdef enum:
    BUCKETS_MIN = 64


cdef void node_free(Node *node) noexcept nogil:
    free(node)


cdef void found_free(Found *found) noexcept nogil:
    free(found.nodes)
    memset(found, 0, sizeof(Found))


cdef inline bint add_found(Found *found, Node *node) noexcept nogil:
    cdef Node **more
    cdef size_t cap
    if found.n == found.cap:
        cap = found.cap * 2 if found.cap else 16
        more = <Node **> realloc(found.nodes, cap * sizeof(Node *))
        if more == NULL:
            return False
        found.nodes = more
        found.cap = cap
    found.nodes[found.n] = node
    found.n += 1
    return True


# --- the tree -----------------------------------------------------------------------------------

cdef inline int end_cmp(const Node *a, const Node *b) noexcept nogil:
    if a.kind == NODE_FROM or b.kind == NODE_FROM:
        return (a.kind == NODE_FROM) - (b.kind == NODE_FROM)
    return kv_slice_cmp(a.end, b.end)


cdef inline int node_cmp(const Node *a, const Node *b) noexcept nogil:
    cdef int c = kv_slice_cmp(a.key, b.key)
    return c if c else end_cmp(a, b)


cdef inline bint ends_behind(const Node *node, kv_slice key) noexcept nogil:
    return node.kind == NODE_FROM or kv_slice_cmp(key, node.end) < 0


cdef inline void set_far(Node *t) noexcept nogil:
    t.far = t
    if t.left != NULL and end_cmp(t.left.far, t.far) > 0:
        t.far = t.left.far
    if t.right != NULL and end_cmp(t.right.far, t.far) > 0:
        t.far = t.right.far


cdef void split(Node *t, const Node *at, Node **low, Node **high) noexcept nogil:
    """t without `at` itself, into what sorts before it and what sorts after."""
    if t == NULL:
        low[0] = NULL
        high[0] = NULL
        return
    if node_cmp(t, at) < 0:
        split(t.right, at, &t.right, high)
        low[0] = t
    else:
        split(t.left, at, low, &t.left)
        high[0] = t
    set_far(t)


cdef Node *merge(Node *low, Node *high) noexcept nogil:
    if low == NULL:
        return high
    if high == NULL:
        return low
    if low.priority > high.priority:
        low.right = merge(low.right, high)
        set_far(low)
        return low
    high.left = merge(low, high.left)
    set_far(high)
    return high


cdef Node *insert(Node *t, Node *node) noexcept nogil:
    if t == NULL or node.priority > t.priority:
        split(t, node, &node.left, &node.right)
        set_far(node)
        return node
    if node_cmp(node, t) < 0:
        t.left = insert(t.left, node)
    else:
        t.right = insert(t.right, node)
    set_far(t)
    return t


cdef Node *remove(Node *t, Node *node) noexcept nogil:
    if t == NULL:
        return NULL
    if t == node:
        return merge(t.left, t.right)
    if node_cmp(node, t) < 0:
        t.left = remove(t.left, node)
    else:
        t.right = remove(t.right, node)
    set_far(t)
    return t


cdef bint stab(Node *t, kv_slice key, Found *found) noexcept nogil:
    while t != NULL:
        if not ends_behind(t.far, key):
            return True
        if t.left != NULL and not stab(t.left, key, found):
            return False
        if kv_slice_cmp(t.key, key) > 0:
            return True
        if ends_behind(t, key) and not add_found(found, t):
            return False
        t = t.right
    return True


# --- both ---------------------------------------------------------------------------------------

cdef class Index:
    """Nodes by what they watch. seed: keeps clients from choosing keys of one bucket."""

    def __cinit__(self, unsigned long long seed=0):
        self.seed = seed
        self.dice = seed ^ 0x9E3779B97F4A7C15
        self.buckets = <Node **> calloc(BUCKETS_MIN, sizeof(Node *))
        if self.buckets == NULL:
            raise MemoryError
        self.mask = BUCKETS_MIN - 1

    def __dealloc__(self):
        # The nodes are the hub's, which unlinks them all.
        free(self.buckets)

    cdef uint64_t hash_of(self, kv_slice key) noexcept nogil:
        cdef uint64_t h = self.seed ^ (key.n * <uint64_t>0x9E3779B97F4A7C15)
        cdef size_t at = 0
        cdef uint64_t word
        while at < key.n:
            if key.n - at >= 8:
                word = kv_load_u64(key.p + at)
            else:
                word = 0
                memcpy(&word, key.p + at, key.n - at)
            h = (h ^ word) * <uint64_t>0xD6E8FEB86659FD93
            h ^= h >> 32
            at += 8
        h *= <uint64_t>0xD6E8FEB86659FD93
        return h ^ (h >> 29)

    cdef bint grow(self) noexcept nogil:
        cdef size_t mask = self.mask * 2 + 1, i
        cdef Node **buckets = <Node **> calloc(mask + 1, sizeof(Node *))
        cdef Node *node
        cdef Node *rest
        if buckets == NULL:
            return False
        for i in range(self.mask + 1):
            node = self.buckets[i]
            while node != NULL:
                rest = node.chain
                node.chain = buckets[node.hash & mask]
                buckets[node.hash & mask] = node
                node = rest
        free(self.buckets)
        self.buckets = buckets
        self.mask = mask
        return True

    cdef Node *get(self, kv_slice key, kv_slice end, int kind) noexcept nogil:
        cdef Node *t
        cdef Node probe
        cdef uint64_t h = 0
        cdef uint8_t *room
        cdef int c
        if kind == NODE_KEY:
            h = self.hash_of(key)
            t = self.buckets[h & self.mask]
            while t != NULL:
                if t.hash == h and kv_slice_cmp(t.key, key) == 0:
                    return t
                t = t.chain
        else:
            probe.key = key
            probe.end = end
            probe.kind = kind
            t = self.root
            while t != NULL:
                c = node_cmp(&probe, t)
                if c == 0:
                    return t
                t = t.left if c < 0 else t.right
        if kind != NODE_RANGE:
            end.n = 0
        t = <Node *> malloc(sizeof(Node) + key.n + end.n)
        if t == NULL:
            return NULL
        memset(t, 0, sizeof(Node))
        room = <uint8_t *> (t + 1)
        memcpy(room, key.p, key.n)
        if end.n:
            memcpy(room + key.n, end.p, end.n)
        t.key.p = room
        t.key.n = key.n
        t.end.p = room + key.n
        t.end.n = end.n
        t.kind = kind
        t.linked = True
        if kind == NODE_KEY:
            t.hash = h
            if self.keys > self.mask:
                self.grow()               # without memory the chains get longer
            t.chain = self.buckets[h & self.mask]
            self.buckets[h & self.mask] = t
            self.keys += 1
        else:
            self.dice ^= self.dice << 13
            self.dice ^= self.dice >> 7
            self.dice ^= self.dice << 17
            t.priority = self.dice
            self.root = insert(self.root, t)
            self.intervals += 1
        return t

    cdef void unlink(self, Node *node) noexcept nogil:
        cdef Node **link
        if not node.linked:
            return
        node.linked = False
        if node.kind == NODE_KEY:
            link = &self.buckets[node.hash & self.mask]
            while link[0] != node:
                link = &link[0].chain
            link[0] = node.chain
            self.keys -= 1
        else:
            self.root = remove(self.root, node)
            self.intervals -= 1

    cdef bint find(self, kv_slice key, Found *found) noexcept nogil:
        cdef Node *t
        cdef uint64_t h
        found.n = 0
        if self.keys:
            h = self.hash_of(key)
            t = self.buckets[h & self.mask]
            while t != NULL:
                if t.hash == h and kv_slice_cmp(t.key, key) == 0:
                    if not add_found(found, t):
                        return False
                    break
                t = t.chain
        return stab(self.root, key, found)


# --- for tests ----------------------------------------------------------------------------------

cdef class Interests:
    """An index of its own, with names of nodes as Python values."""

    cdef Index index
    cdef Found found
    cdef dict held

    def __cinit__(self, unsigned long long seed=0):
        self.index = Index(seed)
        self.held = {}
        memset(&self.found, 0, sizeof(Found))

    def __dealloc__(self):
        cdef Node *node
        for address in self.held.values():
            node = <Node *> <size_t> address
            node_free(node)
        found_free(&self.found)

    def add(self, bytes key not None, bytes end=None):
        """Watches one key (end None), a range, or from a key on (end empty)."""
        cdef kv_slice k, e
        cdef Node *node
        k.p = key
        k.n = len(key)
        e.p = NULL
        e.n = 0
        if end:
            e.p = end
            e.n = len(end)
        node = self.index.get(k, e, NODE_KEY if end is None else NODE_RANGE if end else NODE_FROM)
        if node == NULL:
            raise MemoryError
        self.held[key, end] = <size_t> node

    def drop(self, bytes key not None, bytes end=None):
        cdef Node *node = <Node *> <size_t> self.held.pop((key, end))
        self.index.unlink(node)
        node_free(node)

    def find(self, bytes key not None):
        """{(key, end)} of all that hold `key`."""
        cdef kv_slice k
        cdef Node *node
        cdef size_t i
        k.p = key
        k.n = len(key)
        if not self.index.find(k, &self.found):
            raise MemoryError
        names = set()
        for i in range(self.found.n):
            node = self.found.nodes[i]
            start = (<const char *> node.key.p)[:node.key.n] if node.key.n else b""
            end = (<const char *> node.end.p)[:node.end.n] if node.end.n else b""
            name = (start, None if node.kind == NODE_KEY else end)
            assert name not in names
            names.add(name)
        return names
