"""The base class of stores; see store.pxd for the contract of the function table."""


cdef class Store:
    """Owns a filled `kv_store` table. Subclasses: env.lmdbstore.LmdbStore, memstore.MemStore."""
