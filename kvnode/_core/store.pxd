"""The store that the state machine runs over, as a table of C functions.

`env/lmdbstore` fills the table from LMDB, `_core/memstore` from an ordered map in memory; one
apply loop runs over both. A tree is named by its number. Keys are at most ST_KEY_MAX bytes.

Every function returns ST_OK, ST_NOTFOUND (no such key, end of the tree), ST_EXISTS (put_new) or
ST_FAILED (the store cannot go on: full map, I/O error; the text is in last_error). After
ST_FAILED the transaction is only good for abort.

Slices returned by get and by cursors point into the store: they are valid until the next write
of the same transaction, or its end. Cursors stay usable across writes of their transaction, but
their slices do not: seek again.
"""

from libc.stdint cimport uint8_t, uint64_t

from kvnode._core.buf cimport kv_slice

cdef enum:
    ST_OK = 0
    ST_NOTFOUND = 1
    ST_EXISTS = 2
    ST_FAILED = -1

    ST_KEY_MAX = 511

    TREE_META = 0        # small named values: applied index, revisions, configuration
    TREE_REVS = 1        # revision -> record, append-only
    TREE_KEYS = 2        # key -> key meta
    TREE_HIST = 3        # (key hash, revision) of every 64th version, for reads at old revisions
    TREE_SESSIONS = 4    # session -> window of outcomes
    TREE_LEASES = 5      # lease -> lease record
    TREE_LEASE_KEYS = 6  # (lease, key hash, ...) -> attached key
    TREE_AUTH = 7
    TREE_COUNT = 8

ctypedef struct kv_store:
    void *env
    # transactions; begin_* store a handle in *txn
    int (*begin_write)(void *env, void **txn) noexcept nogil
    int (*commit)(void *txn) noexcept nogil
    void (*abort)(void *txn) noexcept nogil
    int (*begin_read)(void *env, void **txn) noexcept nogil
    void (*end_read)(void *txn) noexcept nogil
    # single operations
    int (*get)(void *txn, int tree, kv_slice key, kv_slice *val) noexcept nogil
    int (*put)(void *txn, int tree, kv_slice key, kv_slice val) noexcept nogil
    # inserts, or ST_EXISTS with *existing the value that is there (nothing written)
    int (*put_new)(
        void *txn, int tree, kv_slice key, kv_slice val, kv_slice *existing
    ) noexcept nogil
    # overwrites the value that the last put_new of this txn and tree found, same size: saves one
    # descent
    int (*put_over)(void *txn, int tree, kv_slice key, kv_slice val) noexcept nogil
    # key must sort after every key of the tree; *dst receives n writable bytes to be filled at once
    int (*append)(void *txn, int tree, kv_slice key, size_t n, uint8_t **dst) noexcept nogil
    int (*delete)(void *txn, int tree, kv_slice key) noexcept nogil
    # cursors
    int (*cursor_open)(void *txn, int tree, void **cur) noexcept nogil
    void (*cursor_close)(void *cur) noexcept nogil
    # first >= key
    int (*cursor_seek)(void *cur, kv_slice key, kv_slice *k, kv_slice *v) noexcept nogil
    int (*cursor_first)(void *cur, kv_slice *k, kv_slice *v) noexcept nogil
    int (*cursor_last)(void *cur, kv_slice *k, kv_slice *v) noexcept nogil
    int (*cursor_next)(void *cur, kv_slice *k, kv_slice *v) noexcept nogil
    int (*cursor_prev)(void *cur, kv_slice *k, kv_slice *v) noexcept nogil
    # bytes of live pages (all trees), and the number of entries of a tree
    uint64_t (*used_bytes)(void *txn) noexcept nogil
    uint64_t (*entries)(void *txn, int tree) noexcept nogil
    const char *(*last_error)(void *env) noexcept nogil

# A Python object that owns a kv_store: passed between extensions as this base class.
cdef class Store:
    cdef kv_store ops
