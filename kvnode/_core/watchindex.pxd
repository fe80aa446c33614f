"""Which watchers a key concerns: nodes of equal interest, found by key. See watchindex.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvnode._core.buf cimport kv_slice

cdef enum:
    NODE_KEY = 0         # one key
    NODE_RANGE = 1       # [key, end)
    NODE_FROM = 2        # [key, ...)

    SIDES = 2            # lists of watchers that a node keeps apart

# All watchers of one key or one interval. first and last are the hub's (its Watcher *).
cdef struct Node:
    kv_slice key         # copies, behind the struct
    kv_slice end
    int kind
    uint32_t refs        # watchers that name it, in no list too
    uint32_t prevs       # of these, those that want prev_kv
    void *first[SIDES]
    void *last[SIDES]
    # what the present slice holds for it: the hub's
    uint32_t hit_first
    uint32_t hit_last
    Node *touched_next
    bint touched
    # the index's own
    bint linked
    uint64_t hash
    Node *chain          # NODE_KEY: next in its bucket
    Node *left           # else: the tree's
    Node *right
    Node *far            # of the subtree: the node that ends last
    uint64_t priority

# Up to `cap` nodes that a key concerns.
cdef struct Found:
    Node **nodes
    size_t n
    size_t cap

cdef class Index:
    cdef Node **buckets
    cdef size_t mask
    cdef size_t keys
    cdef size_t intervals
    cdef Node *root
    cdef uint64_t seed
    cdef uint64_t dice
    # the node of exactly this interest, made if need be; NULL without memory
    cdef Node *get(self, kv_slice key, kv_slice end, int kind) noexcept nogil
    # takes it out; it is not freed
    cdef void unlink(self, Node *node) noexcept nogil
    # all nodes that `key` concerns, into found (overwritten); False without memory
    cdef bint find(self, kv_slice key, Found *found) noexcept nogil
    cdef bint grow(self) noexcept nogil
    cdef uint64_t hash_of(self, kv_slice key) noexcept nogil

cdef void node_free(Node *node) noexcept nogil
cdef void found_free(Found *found) noexcept nogil
