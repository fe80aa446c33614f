"""etcd's rule against writing a key twice in one transaction. Table of contents of txncheck.pyx.

Only types come from etcdpb.pxd, so that etcdpb may import this module. All memory is the arena's.
"""

from libc.stdint cimport uint32_t, uint64_t

from kvnode._core.buf cimport kv_arena, kv_slice
from kvnode._core.etcdpb cimport Op

cdef struct KeySet:
    kv_slice *keys            # in order of addition
    size_t count
    uint64_t *table           # 0 = empty; hash's high half << 32 | index + 1
    size_t mask               # slots - 1, a power of two less one
    kv_arena *arena

cdef void keyset_init(KeySet *s, kv_arena *arena, size_t expected) noexcept nogil
# CODE_OK: added; CODE_DUPLICATE_KEY: was there; CODE_UNAVAILABLE: out of memory (arena.err)
cdef int keyset_add(KeySet *s, kv_slice key) noexcept nogil
cdef bint keyset_has(const KeySet *s, kv_slice key) noexcept nogil

# One branch of a transaction: CODE_OK, CODE_DUPLICATE_KEY or CODE_UNAVAILABLE.
cdef int check_intervals(const Op *ops, size_t n, kv_arena *arena) noexcept nogil
