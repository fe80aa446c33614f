"""Declarations of memstore.pyx."""

from kvnode._core.store cimport Store


cdef class MemStore(Store):
    pass
