# distutils: include_dirs = kvnode/_core
"""The inner loop of bench/core_store.py: batches of puts through the store's function table."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcmp, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from kvnode._core.buf cimport kv_slice, kv_store_be64
from kvnode._core.store cimport ST_EXISTS, ST_OK, TREE_KEYS, TREE_REVS, Store

cdef enum:
    KEY = 32
    META = 40


cdef uint64_t now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef int compare(const void *a, const void *b) noexcept nogil:
    return memcmp((<const uint8_t **>a)[0], (<const uint8_t **>b)[0], KEY)


cdef int batch_puts(Store store, const uint8_t **keys, uint32_t n, uint64_t main, uint32_t size,
                    bint ordered, uint64_t *spent) noexcept nogil:
    cdef void *txn
    cdef uint8_t meta[META]
    cdef uint8_t name[16]
    cdef uint8_t *dst
    cdef kv_slice k, v, old
    cdef uint32_t i
    cdef int rc
    cdef uint64_t t0 = now(), t1
    memset(meta, 7, META)
    memset(name, 0, 16)
    if store.ops.begin_write(store.ops.env, &txn) != ST_OK:
        return -1
    for i in range(n):
        kv_store_be64(name, main + i)
        k.p = name
        k.n = 16
        if store.ops.append(txn, TREE_REVS, k, size, &dst) != ST_OK:
            return -1
        memset(dst, i & 255, size)
    t1 = now()
    spent[0] += t1 - t0
    if ordered:
        qsort(keys, n, sizeof(void *), compare)
    for i in range(n):
        k.p = keys[i]
        k.n = KEY
        v.p = meta
        v.n = META
        rc = store.ops.put_new(txn, TREE_KEYS, k, v, &old)
        if rc == ST_EXISTS:
            rc = store.ops.put_over(txn, TREE_KEYS, k, v)
        if rc != ST_OK:
            return -1
    t0 = now()
    spent[1] += t0 - t1
    rc = store.ops.commit(txn)
    spent[2] += now() - t0
    return rc


def run(Store store, const unsigned char[::1] keys not None, unsigned int n, unsigned long main,
        unsigned int size, bint ordered, unsigned long[::1] spent not None):
    """One transaction of n puts; keys are n x 32 bytes. Adds ns to spent: append, keys, commit."""
    cdef const uint8_t **refs = <const uint8_t **>malloc(n * sizeof(void *))
    cdef uint32_t i
    cdef int rc
    for i in range(n):
        refs[i] = &keys[i * KEY]
    with nogil:
        rc = batch_puts(store, refs, n, main, size, ordered, <uint64_t *>&spent[0])
    free(refs)
    if rc != ST_OK:
        raise RuntimeError(store.ops.last_error(store.ops.env).decode())
