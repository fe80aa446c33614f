"""Sorting with exactly the result of Go's sort.Sort, equal elements included.

Called by ranges.pyx. etcd sorts a Range's keys with Go's sort.Sort, which is not stable but is
deterministic: it is pattern-defeating quicksort (Peters, arXiv 2106.05123) whose every choice
depends on n and on comparisons alone. Answers equal to etcd's, ties included, need the same
choices. Go has kept them since 1.19; tests/data/gosort.json holds what Go 1.26 answers.

The choices, in order, for a span of n elements:
- n <= 12: insertion sort, which is stable.
- more than bit_length(n of the whole array) unbalanced splits: heap sort.
- after an unbalanced split, three elements around the middle are swapped with ones drawn from
  xorshift64 seeded with n.
- pivot: n < 50 median of the three quartiles; else median of the medians of three neighbours at
  each quartile. No exchange while finding it: the span looks ascending; all 12: descending, and
  is reversed.
- looks ascending after a balanced split that moved nothing: repair at most five adjacent pairs
  and be done, if that sufficed.
- pivot not greater than the element left of the span: the elements equal to it are split off.
- else split, recurse into the smaller part, go on with the larger.
"""

from libc.stdint cimport uint64_t

cdef enum:
    INSERTION_MAX = 12
    NINTHER_MIN = 50
    REPAIR_MIN = 50
    REPAIRS_MAX = 5
    EXCHANGES_MAX = 12


ctypedef struct Sorter:
    void *ctx
    less_fn less
    swap_fn swap
    int exchanges             # while choosing a pivot


cdef inline bint lt(Sorter *s, size_t i, size_t j) noexcept nogil:
    return s.less(s.ctx, i, j)


cdef inline void swp(Sorter *s, size_t i, size_t j) noexcept nogil:
    s.swap(s.ctx, i, j)


cdef inline size_t bit_length(size_t n) noexcept nogil:
    cdef size_t bits = 0
    while n:
        bits += 1
        n >>= 1
    return bits


cdef void sink_left(Sorter *s, size_t first, size_t i) noexcept nogil:
    """Moves element i left past all greater ones, not beyond `first`."""
    while i > first and lt(s, i, i - 1):
        swp(s, i, i - 1)
        i -= 1


cdef void insertion_sort(Sorter *s, size_t a, size_t b) noexcept nogil:
    cdef size_t i
    for i in range(a + 1, b):
        sink_left(s, a, i)


cdef void sift_down(Sorter *s, size_t base, size_t root, size_t n) noexcept nogil:
    cdef size_t child = 2 * root + 1
    while child < n:
        if child + 1 < n and lt(s, base + child, base + child + 1):
            child += 1
        if not lt(s, base + root, base + child):
            return
        swp(s, base + root, base + child)
        root = child
        child = 2 * root + 1


cdef void heap_sort(Sorter *s, size_t a, size_t b) noexcept nogil:
    cdef size_t n = b - a, i
    i = (n - 1) // 2 + 1
    while i > 0:
        i -= 1
        sift_down(s, a, i, n)
    i = n
    while i > 0:
        i -= 1
        swp(s, a, a + i)
        sift_down(s, a, 0, i)


cdef void scatter(Sorter *s, size_t a, size_t n) noexcept nogil:
    cdef uint64_t x = n
    cdef size_t mask = (<size_t>1 << bit_length(n)) - 1
    cdef size_t middle = a + (n // 4) * 2, k, other
    if n < 8:
        return
    for k in range(3):
        x ^= x << 13
        x ^= x >> 7
        x ^= x << 17
        other = <size_t>x & mask
        if other >= n:
            other -= n
        swp(s, middle - 1 + k, a + other)


cdef size_t median(Sorter *s, size_t i, size_t j, size_t k) noexcept nogil:
    cdef size_t t
    if lt(s, j, i):
        s.exchanges += 1
        t = i
        i = j
        j = t
    if lt(s, k, j):
        s.exchanges += 1
        j = k                 # the greatest is of no more interest
    if lt(s, j, i):
        s.exchanges += 1
        j = i
    return j


cdef size_t choose_pivot(Sorter *s, size_t a, size_t n) noexcept nogil:
    cdef size_t quarter = n // 4
    cdef size_t i = a + quarter, j = a + quarter * 2, k = a + quarter * 3
    s.exchanges = 0
    if n >= NINTHER_MIN:
        i = median(s, i - 1, i, i + 1)
        j = median(s, j - 1, j, j + 1)
        k = median(s, k - 1, k, k + 1)
    if n >= 8:
        j = median(s, i, j, k)
    return j


cdef bint repair(Sorter *s, size_t a, size_t b) noexcept nogil:
    """True when the span is sorted after at most REPAIRS_MAX adjacent pairs were put right."""
    cdef size_t i = a + 1, j
    cdef int _
    for _ in range(REPAIRS_MAX):
        while i < b and not lt(s, i, i - 1):
            i += 1
        if i == b:
            return True
        if b - a < REPAIR_MIN:
            return False
        swp(s, i, i - 1)
        if i - a >= 2:
            # Left of the span nothing is greater than anything in it, so `a` bounds the walk.
            sink_left(s, a, i - 1)
        if b - i >= 2:
            j = i + 1
            while j < b and lt(s, j, j - 1):
                swp(s, j, j - 1)
                j += 1
    return False


cdef size_t split_equal(Sorter *s, size_t a, size_t b, size_t pivot) noexcept nogil:
    """Elements equal to the pivot first; returns where the greater ones begin."""
    cdef size_t i = a + 1, j = b        # j: one behind the last undecided
    swp(s, a, pivot)
    while True:
        while i < j and not lt(s, a, i):
            i += 1
        while i < j and lt(s, a, j - 1):
            j -= 1
        if i >= j:
            return i
        swp(s, i, j - 1)
        i += 1
        j -= 1


cdef size_t split(Sorter *s, size_t a, size_t b, size_t pivot, bint *moved) noexcept nogil:
    """Elements less than the pivot, the pivot (its place is returned), the others."""
    cdef size_t i = a + 1, j = b
    swp(s, a, pivot)
    moved[0] = False
    while True:
        while i < j and lt(s, i, a):
            i += 1
        while i < j and not lt(s, j - 1, a):
            j -= 1
        if i >= j:
            break
        moved[0] = True
        swp(s, i, j - 1)
        i += 1
        j -= 1
    swp(s, j - 1, a)
    return j - 1


cdef void sort_span(Sorter *s, size_t a, size_t b, size_t bad_left) noexcept nogil:
    cdef bint balanced = True, moved = False, ascending
    cdef size_t n, pivot, middle
    while True:
        n = b - a
        if n <= INSERTION_MAX:
            insertion_sort(s, a, b)
            return
        if bad_left == 0:
            heap_sort(s, a, b)
            return
        if not balanced:
            scatter(s, a, n)
            bad_left -= 1
        pivot = choose_pivot(s, a, n)
        ascending = s.exchanges == 0
        if s.exchanges == EXCHANGES_MAX:
            for middle in range(n // 2):
                swp(s, a + middle, b - 1 - middle)
            pivot = b - 1 - (pivot - a)
            ascending = True
        if balanced and not moved and ascending and repair(s, a, b):
            return
        if a > 0 and not lt(s, a - 1, pivot):
            a = split_equal(s, a, b, pivot)
            continue
        middle = split(s, a, b, pivot, &moved)
        if middle - a < b - middle:
            balanced = middle - a >= n // 8
            sort_span(s, a, middle, bad_left)
            a = middle + 1
        else:
            balanced = b - middle >= n // 8
            sort_span(s, middle + 1, b, bad_left)
            b = middle


cdef void go_sort(void *ctx, size_t n, less_fn less, swap_fn swap) noexcept nogil:
    cdef Sorter s
    if n <= 1:
        return
    s.ctx = ctx
    s.less = less
    s.swap = swap
    s.exchanges = 0
    sort_span(&s, 0, n, bit_length(n))


# --- for the tests ------------------------------------------------------------------------------

ctypedef struct Numbered:
    long long *values
    size_t *order
    bint descending


cdef bint numbered_less(void *ctx, size_t i, size_t j) noexcept nogil:
    cdef Numbered *a = <Numbered *>ctx
    if a.descending:
        return a.values[a.order[j]] < a.values[a.order[i]]
    return a.values[a.order[i]] < a.values[a.order[j]]


cdef void numbered_swap(void *ctx, size_t i, size_t j) noexcept nogil:
    cdef Numbered *a = <Numbered *>ctx
    cdef size_t t = a.order[i]
    a.order[i] = a.order[j]
    a.order[j] = t


def order(list values not None, bint descending=False):
    """The positions of `values` (int64) in the order that sort.Sort would leave them in."""
    import array
    cdef Py_ssize_t n = len(values)
    cdef long long[::1] v = array.array("q", values)
    cdef unsigned long long[::1] o = array.array("Q", range(n))
    cdef Numbered a
    if n == 0:
        return []
    a.values = &v[0]
    a.order = <size_t *>&o[0]
    a.descending = descending
    go_sort(&a, n, numbered_less, numbered_swap)
    return list(o)
