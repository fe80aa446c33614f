"""Go's sort.Sort as plain Python: the slow twin of _core/gosort.pyx, which has the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Sorter:
    def __init__(self, items: list[T], less: Callable[[T, T], bool]) -> None:
        self.d = items
        self._less = less

    def less(self, i: int, j: int) -> bool:
        return self._less(self.d[i], self.d[j])

    def swap(self, i: int, j: int) -> None:
        self.d[i], self.d[j] = self.d[j], self.d[i]

    def insertion(self, a: int, b: int) -> None:
        for i in range(a + 1, b):
            j = i
            while j > a and self.less(j, j - 1):
                self.swap(j, j - 1)
                j -= 1

    def heap(self, a: int, b: int) -> None:
        def down(root: int, n: int) -> None:
            while (child := 2 * root + 1) < n:
                if child + 1 < n and self.less(a + child, a + child + 1):
                    child += 1
                if not self.less(a + root, a + child):
                    return
                self.swap(a + root, a + child)
                root = child

        n = b - a
        for i in range((n - 1) // 2, -1, -1):
            down(i, n)
        for i in range(n - 1, -1, -1):
            self.swap(a, a + i)
            down(0, i)

    def scatter(self, a: int, n: int) -> None:
        x = n
        middle = a + n // 4 * 2
        for place in (middle - 1, middle, middle + 1):
            x ^= (x << 13) & (1 << 64) - 1
            x ^= x >> 7
            x ^= (x << 17) & (1 << 64) - 1
            other = x & (1 << n.bit_length()) - 1
            self.swap(place, a + (other - n if other >= n else other))

    def median(self, i: int, j: int, k: int) -> int:
        if self.less(j, i):
            i, j, self.exchanges = j, i, self.exchanges + 1
        if self.less(k, j):
            j, self.exchanges = k, self.exchanges + 1
        if self.less(j, i):
            j, self.exchanges = i, self.exchanges + 1
        return j

    def pivot(self, a: int, n: int) -> int:
        self.exchanges = 0
        i, j, k = (a + n // 4 * q for q in (1, 2, 3))
        if n >= 50:
            i, j, k = (self.median(m - 1, m, m + 1) for m in (i, j, k))
        return self.median(i, j, k)

    def repair(self, a: int, b: int) -> bool:
        i = a + 1
        for _ in range(5):
            while i < b and not self.less(i, i - 1):
                i += 1
            if i == b:
                return True
            if b - a < 50:
                return False
            self.swap(i, i - 1)
            j = i - 1
            while i - a >= 2 and j > a and self.less(j, j - 1):
                self.swap(j, j - 1)
                j -= 1
            j = i + 1
            while b - i >= 2 and j < b and self.less(j, j - 1):
                self.swap(j, j - 1)
                j += 1
        return False

    def split(self, a: int, b: int, left: Callable[[int], bool]) -> tuple[int, bool]:
        """Elements of a+1..b for which left() holds come first; their end, and if any moved."""
        i, j, moved = a + 1, b, False
        while True:
            while i < j and left(i):
                i += 1
            while i < j and not left(j - 1):
                j -= 1
            if i >= j:
                return i, moved
            moved = True
            self.swap(i, j - 1)
            i, j = i + 1, j - 1

    def sort(self, a: int, b: int, bad_left: int) -> None:
        balanced, moved = True, False
        while True:
            n = b - a
            if n <= 12:
                return self.insertion(a, b)
            if bad_left == 0:
                return self.heap(a, b)
            if not balanced:
                self.scatter(a, n)
                bad_left -= 1
            pivot = self.pivot(a, n)
            ascending = self.exchanges == 0
            if self.exchanges == 12:
                self.d[a:b] = self.d[a:b][::-1]
                pivot, ascending = b - 1 - (pivot - a), True
            if balanced and not moved and ascending and self.repair(a, b):
                return None
            equal = a > 0 and not self.less(a - 1, pivot)
            self.swap(a, pivot)
            if equal:
                a, _ = self.split(a, b, lambda i, p=a: not self.less(p, i))
                continue
            end, moved = self.split(a, b, lambda i, p=a: self.less(i, p))
            middle = end - 1
            self.swap(middle, a)
            if middle - a < b - middle:
                balanced = middle - a >= n // 8
                self.sort(a, middle, bad_left)
                a = middle + 1
            else:
                balanced = b - middle >= n // 8
                self.sort(middle + 1, b, bad_left)
                b = middle


def go_sorted(items: list[T], key: Callable[[T], object], descending: bool = False) -> list[T]:
    """The items in the order that sort.Sort (or sort.Sort of sort.Reverse) leaves them in."""
    if descending:
        sorter = _Sorter(list(items), lambda x, y: key(y) < key(x))  # type: ignore[operator]
    else:
        sorter = _Sorter(list(items), lambda x, y: key(x) < key(y))  # type: ignore[operator]
    sorter.sort(0, len(items), len(items).bit_length())
    return sorter.d
