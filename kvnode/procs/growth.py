"""A full map is made larger, and what failed for lack of room is done again.

Role: address space for the map is reserved so generously that this is the rare path. When it is
used up, LMDB refuses a write with MDB_MAP_FULL: the transaction is aborted and the machine over it
is dead, but the store is sound (env/lmdbstore, invariant 4).
Callers: procs/applier and procs/upkeep, in the one thread that writes. Readers of other processes
take the new size with their next snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from kvnode._core.machine import Machine
from kvnode.base.errors import DiskError
from kvnode.env.lmdbstore import LmdbStore

log = logging.getLogger("applier")

GROWTH = 2
Result = TypeVar("Result")


def with_room(
    store: LmdbStore,
    machine: Machine,
    anew: Callable[[LmdbStore], Machine],
    work: Callable[[Machine], Result],
    make_way: Callable[[], None] = lambda: None,
) -> tuple[Machine, Result]:
    """`work` on the machine, or on one loaded anew from the larger map; that machine, the result.

    `work` is a single transaction: a full map aborted it whole, so it is done again whole.
    `make_way` ends what reads the map at length in this process. Errors: DiskError for anything
    but a full map.
    """
    while True:
        try:
            return machine, work(machine)
        except DiskError:
            if not store.map_full:
                raise
        make_way()
        before = store.info()["map_bytes"]
        store.grow(before * GROWTH)
        log.info("the map grows", extra={"fields": {"from-bytes": before, "to-bytes":
                 store.info()["map_bytes"]}})
        machine = anew(store)
