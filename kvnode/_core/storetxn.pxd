"""Declarations of storetxn.pyx: a store's transactions as Python objects."""

from kvnode._core.buf cimport kv_slice
from kvnode._core.store cimport Store, kv_store


cdef class ReadTxn:
    cdef Store store
    cdef kv_store *ops
    cdef void *txn
    cdef bint writes
    cdef int need(self) except -1
    cdef int check(self, int rc) except -1


cdef class WriteTxn(ReadTxn):
    pass


cdef class Cursor:
    cdef ReadTxn owner
    cdef void *cur
    cdef int need_open(self) except -1
    cdef object item(self, int rc, kv_slice k, kv_slice v)
