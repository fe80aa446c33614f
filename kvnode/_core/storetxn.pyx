"""A store's transactions as Python objects: one call an operation, values copied out.

Used where Python touches single records: tests, tools, TREE_META at start. The apply loop and the
read path use the function table (store.pxd) directly and never come through here.

Invariants
 1. Everything returned is a copy; nothing of the store's memory outlives the call.
 2. A transaction that is dropped without commit is aborted, a read transaction is ended.
 3. ST_FAILED becomes StoreError with the store's last_error text.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from kvnode._core.buf cimport kv_slice
from kvnode._core cimport store as st
from kvnode._core.store cimport ST_EXISTS, ST_FAILED, ST_NOTFOUND, Store

from kvnode.base.errors import DiskError

TREE_META = st.TREE_META
TREE_REVS = st.TREE_REVS
TREE_KEYS = st.TREE_KEYS
TREE_HIST = st.TREE_HIST
TREE_SESSIONS = st.TREE_SESSIONS
TREE_LEASES = st.TREE_LEASES
TREE_LEASE_KEYS = st.TREE_LEASE_KEYS
TREE_AUTH = st.TREE_AUTH
TREE_COUNT = st.TREE_COUNT


class StoreError(DiskError):
    """The store cannot go on with this transaction (full map, I/O error); abort it."""


cdef inline kv_slice to_slice(bytes b) noexcept:
    cdef kv_slice s
    s.p = <const uint8_t *>PyBytes_AS_STRING(b)
    s.n = <size_t>PyBytes_GET_SIZE(b)
    return s


cdef inline bytes from_slice(kv_slice s):
    return PyBytes_FromStringAndSize(<const char *>s.p, <Py_ssize_t>s.n)


cdef class ReadTxn:
    """A snapshot; use as a context manager or call end()."""

    def __cinit__(self, Store store not None, *args):
        self.store = store
        self.ops = &store.ops
        self.txn = NULL

    def __init__(self, Store store not None):
        self.check(self.ops.begin_read(self.ops.env, &self.txn))

    cdef int need(self) except -1:
        if self.txn == NULL:
            raise StoreError("transaction has ended")
        return 0

    cdef int check(self, int rc) except -1:
        if rc == ST_FAILED:
            text = self.ops.last_error(self.ops.env)
            raise StoreError(text.decode("utf-8", "replace"))
        return 0

    def get(self, int tree, bytes key not None):
        """The value, or None."""
        cdef kv_slice val
        self.need()
        cdef int rc = self.ops.get(self.txn, tree, to_slice(key), &val)
        self.check(rc)
        return None if rc == ST_NOTFOUND else from_slice(val)

    def entries(self, int tree):
        """Number of entries of a tree."""
        self.need()
        return self.ops.entries(self.txn, tree)

    def used_bytes(self):
        """Bytes of live pages over all trees."""
        self.need()
        return self.ops.used_bytes(self.txn)

    def cursor(self, int tree):
        """A cursor; close it before the transaction ends."""
        return Cursor(self, tree)

    def items(self, int tree, bytes start not None=b""):
        """(key, value) pairs from the first key >= start."""
        cdef Cursor c = Cursor(self, tree)
        try:
            item = c.seek(start) if start else c.first()
            while item is not None:
                yield item
                item = c.next()
        finally:
            c.close()

    def end(self):
        """Ends the snapshot; a second call does nothing."""
        if self.txn != NULL:
            if self.writes:
                self.ops.abort(self.txn)
            else:
                self.ops.end_read(self.txn)
            self.txn = NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.end()

    def __dealloc__(self):
        if self.txn != NULL:
            if self.writes:
                self.ops.abort(self.txn)
            else:
                self.ops.end_read(self.txn)


cdef class WriteTxn(ReadTxn):
    """The one write transaction; leaving the context without commit() aborts."""

    def __init__(self, Store store not None):
        self.writes = True
        self.check(self.ops.begin_write(self.ops.env, &self.txn))

    def put(self, int tree, bytes key not None, bytes val not None):
        self.need()
        self.check(self.ops.put(self.txn, tree, to_slice(key), to_slice(val)))

    def put_new(self, int tree, bytes key not None, bytes val not None):
        """None when inserted, the value that is there otherwise."""
        cdef kv_slice existing
        self.need()
        cdef int rc = self.ops.put_new(self.txn, tree, to_slice(key), to_slice(val), &existing)
        self.check(rc)
        return from_slice(existing) if rc == ST_EXISTS else None

    def put_over(self, int tree, bytes key not None, bytes val not None):
        """Overwrites what the last put_new of this tree found, same size."""
        self.need()
        self.check(self.ops.put_over(self.txn, tree, to_slice(key), to_slice(val)))

    def append(self, int tree, bytes key not None, bytes val not None):
        """Adds an entry whose key sorts after every other."""
        cdef uint8_t *dst
        self.need()
        cdef size_t n = <size_t>PyBytes_GET_SIZE(val)
        self.check(self.ops.append(self.txn, tree, to_slice(key), n, &dst))
        memcpy(dst, PyBytes_AS_STRING(val), n)

    def delete(self, int tree, bytes key not None):
        """Whether the key was there."""
        self.need()
        cdef int rc = self.ops.delete(self.txn, tree, to_slice(key))
        self.check(rc)
        return rc != ST_NOTFOUND

    def commit(self):
        """Publishes all or nothing; the transaction is over either way."""
        cdef void *txn = self.txn
        self.need()
        self.txn = NULL
        cdef int rc
        with nogil:
            rc = self.ops.commit(txn)
        self.check(rc)

    def abort(self):
        """Drops everything written."""
        self.end()


cdef class Cursor:
    """Walks one tree in key order; every step returns (key, value) copies or None at the end."""

    def __cinit__(self, ReadTxn owner not None, int tree):
        owner.need()
        self.owner = owner
        self.cur = NULL
        owner.check(owner.ops.cursor_open(owner.txn, tree, &self.cur))

    def seek(self, bytes key not None):
        """The first entry >= key."""
        cdef kv_slice k
        cdef kv_slice v
        self.need_open()
        return self.item(self.owner.ops.cursor_seek(self.cur, to_slice(key), &k, &v), k, v)

    def first(self):
        cdef kv_slice k
        cdef kv_slice v
        self.need_open()
        return self.item(self.owner.ops.cursor_first(self.cur, &k, &v), k, v)

    def last(self):
        cdef kv_slice k
        cdef kv_slice v
        self.need_open()
        return self.item(self.owner.ops.cursor_last(self.cur, &k, &v), k, v)

    def next(self):
        cdef kv_slice k
        cdef kv_slice v
        self.need_open()
        return self.item(self.owner.ops.cursor_next(self.cur, &k, &v), k, v)

    def prev(self):
        cdef kv_slice k
        cdef kv_slice v
        self.need_open()
        return self.item(self.owner.ops.cursor_prev(self.cur, &k, &v), k, v)

    cdef int need_open(self) except -1:
        if self.cur == NULL:
            raise StoreError("cursor is closed")
        return self.owner.need()

    cdef object item(self, int rc, kv_slice k, kv_slice v):
        self.owner.check(rc)
        return None if rc == ST_NOTFOUND else (from_slice(k), from_slice(v))

    def close(self):
        """Must come before the end of the transaction."""
        if self.cur != NULL and self.owner.txn != NULL:
            self.owner.ops.cursor_close(self.cur)
        self.cur = NULL

    def __dealloc__(self):
        # After the transaction's end the handle is the store's to free: it closed it then.
        if self.cur != NULL and self.owner is not None and self.owner.txn != NULL:
            self.owner.ops.cursor_close(self.cur)
