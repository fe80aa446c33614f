"""The scrubber: reads everything again, at a bounded rate; and `verify`, the same at once, offline.

LMDB returns flipped bits without an error, so records have a CRC, and something has to look at
those that nobody reads. What is checked is written in _core/storecheck.pyx.

Callers: the applier between batches (Scrubber.slice), `kvnode verify` (verify). Outputs: findings,
counts, how long a pass takes.

Invariants
 1. A slice reads at most SLICE_RANGE_BYTES of records (or SLICE_KEYS entries) in one snapshot and
    ends it: the scrubber never pins pages between slices.
 2. Over any longer time it reads at most `bytes_per_second`; a pass over B bytes is therefore
    over in about B / bytes_per_second, the period in which any damaged record is found.
 3. verify() leaves the data directory as the next start would find it: it rolls an unclean map
    back, as each start does, and writes nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kvnode._core.store import Store
from kvnode._core.storecheck import Checker, Slice
from kvnode._core.storetxn import TREE_HIST, TREE_META, TREE_REVS, StoreError
from kvnode.base.errors import CorruptionError, DiskError
from kvnode.base.limits import MIB, QUOTA_BYTES_DEFAULT, SLICE_RANGE_BYTES
from kvnode.env.checkpoint import APPLIED, read_checkpoint
from kvnode.env.lmdbstore import TREE_NAMES, LmdbStore
from kvnode.env.store import (
    DATA,
    USE_LOCK,
    WRITER_LOCK,
    FileLock,
    current_generation,
    folder_of,
    is_clean,
    map_bytes,
    roll_back,
)

SCRUB_BYTES_PER_SECOND = 8 * MIB
SLICE_KEYS = 250
ENTRY_BYTES = 100           # what an entry of the small trees is counted as, with its page
BURST_SECONDS = 1.0


class Finding(NamedTuple):
    """Something that does not fit. `key` is the tree's own key (a user's key in `keys`)."""

    tree: str
    key: bytes
    text: str

    def __str__(self) -> str:
        if self.tree == "revs" and len(self.key) == 16:
            parts = (self.key[:8], self.key[8:12], self.key[12:])
            main, sub, chunk = (int.from_bytes(part, "big") for part in parts)
            return f"tree revs, revision {main}.{sub}, chunk {chunk}: {self.text}"
        shown = self.key if len(self.key) <= 80 else self.key[:80] + b"..."
        return f"tree {self.tree}, key {shown!r}: {self.text}"


def named(found: list[tuple[int, bytes, str]]) -> list[Finding]:
    names = [name.decode() for name in TREE_NAMES]
    return [Finding(names[tree] if tree >= 0 else "?", key, text) for tree, key, text in found]


@dataclass
class Totals:
    """Counts of one pass."""

    records: int = 0
    heads: int = 0
    tombstones: int = 0
    sparse: int = 0
    record_bytes: int = 0
    keys: int = 0
    deleted_keys: int = 0
    history: int = 0
    leases: int = 0
    attached: int = 0
    leased_keys: int = 0


STAGES = ("records", "keys", "history", "leases", "attached")
FIRST = {"records": b"", "keys": b"\x00", "history": b"", "leases": b"", "attached": b""}


class Pass:
    """One walk over everything, a slice at a time."""

    def __init__(self, store: Store) -> None:
        self.checker = Checker(store)
        self.totals = Totals()
        self.stage = 0
        self.at = FIRST[STAGES[0]]

    @property
    def over(self) -> bool:
        return self.stage == len(STAGES)

    def slice(self) -> tuple[list[Finding], int]:
        """Findings of the next slice, and the bytes it read."""
        name = STAGES[self.stage]
        if name == "records":
            piece = self.checker.records(self.at, SLICE_RANGE_BYTES)
        else:
            piece = getattr(self.checker, name)(self.at, SLICE_KEYS)
        self._count(name, piece)
        if piece.after is None:
            self.stage += 1
            self.at = b"" if self.over else FIRST[STAGES[self.stage]]
        else:
            self.at = piece.after
        size = piece.size if name == "records" else piece.records * ENTRY_BYTES
        return named(piece.findings), size

    def _count(self, name: str, piece: Slice) -> None:
        totals = self.totals
        if name == "records":
            totals.records += piece.records
            totals.heads += piece.heads
            totals.tombstones += piece.tombstones
            totals.sparse += piece.sparse
            totals.record_bytes += piece.size
        elif name == "keys":
            totals.keys += piece.records
            totals.deleted_keys += piece.tombstones
            totals.leased_keys += piece.leased
        else:
            setattr(totals, name, getattr(totals, name) + piece.records)


class Scrubber:
    """Passes without end over one store, at `bytes_per_second`. Belongs to one thread."""

    def __init__(
        self,
        store: Store,
        bytes_per_second: int = SCRUB_BYTES_PER_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.rate = bytes_per_second
        self.passes = 0
        self.last_pass_seconds = 0.0
        self.last_totals = Totals()
        self._clock = clock
        self._pass = Pass(store)
        self._began = self._next = clock()

    def due_in(self) -> float:
        """Seconds until the next slice may run; 0: now."""
        return max(0.0, self._next - self._clock())

    def slice(self) -> list[Finding]:
        """One slice if it is due, else nothing. Any finding: this member's data is corrupt.

        Blocking: about a millisecond, plus page faults.
        """
        now = self._clock()
        if now < self._next:
            return []
        found, size = self._pass.slice()
        # A scrubber that waited for a busy writer may catch up, but not with a long burst.
        self._next = max(self._next, now - BURST_SECONDS) + size / self.rate
        if self._pass.over:
            self.passes += 1
            self.last_totals = self._pass.totals
            self.last_pass_seconds = now - self._began
            self.restart()
        return found

    def restart(self, store: Store | None = None) -> None:
        """Begins a new pass, over another store after a switch of generations."""
        if store is not None:
            self.store = store
        self._pass = Pass(self.store)
        self._began = self._clock()
        # An empty store's pass costs nothing: don't run it in a circle.
        self._next = max(self._next, self._began + 0.1)


@dataclass
class Report:
    """What verify() saw."""

    generation: int
    index: int = 0
    term: int = 0
    rolled_back: bool = False
    used_bytes: int = 0
    totals: Totals = field(default_factory=Totals)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings


def check_counts(store: LmdbStore, totals: Totals) -> list[Finding]:
    """Sums that must agree when nobody writes."""
    found = []
    if totals.heads != totals.keys:
        text = f"{totals.keys} keys, but {totals.heads} records are the latest of a key"
        found.append(Finding("keys", b"", text))
    with store.begin_read() as txn:
        entries = txn.entries(TREE_HIST)
        if not totals.sparse == totals.history == entries:
            text = f"{totals.sparse} 64th versions, {totals.history} of {entries} entries read"
            found.append(Finding("hist", b"", text))
        if totals.leased_keys != totals.attached:
            text = f"{totals.leased_keys} keys have a lease, {totals.attached} are attached to one"
            found.append(Finding("lease_keys", b"", text))
        if txn.entries(TREE_REVS) < totals.records:
            found.append(Finding("revs", b"", "more records were read than the tree counts"))
        if txn.get(TREE_META, b"applied") is None and totals.records:
            found.append(Finding("meta", b"applied", "applied index is missing"))
    return found


def verify(
    root: str | os.PathLike[str],
    quota_bytes: int = QUOTA_BYTES_DEFAULT,
    progress: Callable[[Totals], None] | None = None,
) -> Report:
    """Checks a stopped node's state whole.

    Raises InUseError while the node runs, DiskError when there is no state, CorruptionError when
    the map or its checkpoint can't even be opened. An unclean map is rolled back to its
    checkpoint first (the log holds the rest), because what lies above was never synced.
    """
    root = Path(root)
    generation = current_generation(root)
    if generation is None:
        raise DiskError(f"{root}: no generation here: not a node's state, or it never started")
    folder = folder_of(root, generation)
    writer = FileLock(root / WRITER_LOCK, exclusive=True)
    try:
        use = FileLock(folder / USE_LOCK, exclusive=True)
        try:
            return verify_folder(root, folder, generation, quota_bytes, progress)
        finally:
            use.close()
    finally:
        writer.close()


def verify_folder(
    root: Path,
    folder: Path,
    generation: int,
    quota_bytes: int,
    progress: Callable[[Totals], None] | None,
) -> Report:
    saved = read_checkpoint(folder)
    if saved is None:
        raise CorruptionError("the generation in use has no checkpoint", str(folder))
    report = Report(generation, saved.index, saved.term)
    if not is_clean(root, generation, saved):
        roll_back(folder, saved)
        report.rolled_back = True
    store = LmdbStore(folder, map_bytes(quota_bytes), readonly=True)
    try:
        if store.info()["last_txn"] != saved.txn:
            text = f"map is at transaction {store.info()['last_txn']}, checkpoint at {saved.txn}"
            raise CorruptionError(text, str(folder / DATA))
        run = Pass(store)
        while not run.over:
            report.findings += run.slice()[0]
            if progress is not None:
                progress(run.totals)
        report.totals = run.totals
        if not report.findings:
            report.findings += check_counts(store, run.totals)
        with store.begin_read() as txn:
            report.used_bytes = txn.used_bytes()
            if (txn.get(TREE_META, b"applied") or bytes(16)) != APPLIED.pack(
                saved.index, saved.term
            ):
                report.findings.append(
                    Finding("meta", b"applied", "is not the checkpoint's applied index")
                )
    except StoreError as error:
        report.findings.append(Finding("?", b"", str(error)))
    finally:
        store.close()
    return report
