"""The slow twin of stores: sorted dictionaries, one copy a transaction."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class OracleTxn:
    """A transaction over copies of the trees; commit() hands them back."""

    def __init__(self, store: OracleStore) -> None:
        self.store = store
        self.trees = [dict(tree) for tree in store.trees]
        self.found: set[tuple[int, bytes]] = set()

    def get(self, tree: int, key: bytes) -> bytes | None:
        return self.trees[tree].get(key)

    def entries(self, tree: int) -> int:
        return len(self.trees[tree])

    def put(self, tree: int, key: bytes, val: bytes) -> None:
        self.trees[tree][key] = val

    def put_new(self, tree: int, key: bytes, val: bytes) -> bytes | None:
        old = self.trees[tree].get(key)
        if old is None:
            self.trees[tree][key] = val
        return old

    def put_over(self, tree: int, key: bytes, val: bytes) -> None:
        assert len(self.trees[tree][key]) == len(val)
        self.trees[tree][key] = val

    def append(self, tree: int, key: bytes, val: bytes) -> None:
        assert not self.trees[tree] or key > max(self.trees[tree])
        self.trees[tree][key] = val

    def delete(self, tree: int, key: bytes) -> bool:
        return self.trees[tree].pop(key, None) is not None

    def seek(self, tree: int, key: bytes) -> tuple[bytes, bytes] | None:
        return self._at(tree, bisect_left(sorted(self.trees[tree]), key))

    def after(self, tree: int, key: bytes) -> tuple[bytes, bytes] | None:
        return self._at(tree, bisect_right(sorted(self.trees[tree]), key))

    def before(self, tree: int, key: bytes) -> tuple[bytes, bytes] | None:
        place = bisect_left(sorted(self.trees[tree]), key) - 1
        return None if place < 0 else self._at(tree, place)

    def _at(self, tree: int, place: int) -> tuple[bytes, bytes] | None:
        keys = sorted(self.trees[tree])
        return (keys[place], self.trees[tree][keys[place]]) if place < len(keys) else None

    def items(self, tree: int) -> list[tuple[bytes, bytes]]:
        return sorted(self.trees[tree].items())

    def commit(self) -> None:
        self.store.trees = self.trees


class OracleStore:
    """Committed trees."""

    def __init__(self, count: int) -> None:
        self.trees: list[dict[bytes, bytes]] = [{} for _ in range(count)]

    def begin_write(self) -> OracleTxn:
        return OracleTxn(self)

    begin_read = begin_write
