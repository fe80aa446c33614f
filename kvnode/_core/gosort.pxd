"""The order that Go's sort.Sort leaves equal elements in. Contents of gosort.pyx."""

# Both see positions of the array under sort, and `ctx` as given.
ctypedef bint (*less_fn)(void *ctx, size_t i, size_t j) noexcept nogil
ctypedef void (*swap_fn)(void *ctx, size_t i, size_t j) noexcept nogil

cdef void go_sort(void *ctx, size_t n, less_fn less, swap_fn swap) noexcept nogil
