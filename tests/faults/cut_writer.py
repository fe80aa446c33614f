"""The process that writes while the power is cut (started by test_power_cut_store).

    python -m tests.faults.cut_writer STATE SEED MODE SYNC HOLD WRITEMAP STOP

MODE: node_start or process_restart; SYNC, HOLD: 0 leaves the step out that must be missed.
WRITEMAP: 1 writes through the map.
STOP: 0 writes until killed; n > 0 ends cleanly after n transactions; n < 0 dies after -n.
Prints "open INDEX DIGEST", then "saved INDEX" for each durable checkpoint, "at INDEX" every few
transactions. Transaction i is a function of (SEED, i) alone, so any state can be computed again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from kvnode._core.storetxn import TREE_KEYS, TREE_META, TREE_REVS, ReadTxn, WriteTxn
from kvnode.env.checkpoint import Checkpointer
from kvnode.env.store import open_for_write

KEYS = 3000
TREES = (TREE_META, TREE_REVS, TREE_KEYS)
REVS_KEPT = 400
Op = tuple[str, int, bytes, bytes]


def operations(seed: int, index: int) -> Iterator[Op]:
    """Transaction `index`: up to 100 operations, one record, the applied index."""
    rng = random.Random(f"{seed}-{index}")
    for _ in range(rng.randint(1, 100)):
        key = b"key-%d" % rng.randrange(KEYS)
        if rng.random() < 0.25:
            yield "delete", TREE_KEYS, key, b""
            continue
        size = 100_000 if rng.random() < 0.001 else 3000 if rng.random() < 0.02 else 40
        yield "put", TREE_KEYS, key, rng.randbytes(8) * (size // 8)
    record = rng.randbytes(rng.choice((50, 300, 300, 5000)))
    yield "append", TREE_REVS, struct.pack(">Q", index), record
    if index > REVS_KEPT:
        yield "delete", TREE_REVS, struct.pack(">Q", index - REVS_KEPT), b""
    yield "put", TREE_META, b"applied", struct.pack("<QQ", index, 1)


def perform(txn: WriteTxn, op: Op) -> None:
    what, tree, key, val = op
    if what == "put":
        old = txn.put_new(tree, key, val)
        if old is not None and len(old) == len(val):
            txn.put_over(tree, key, val)
        elif old is not None:
            txn.put(tree, key, val)
    elif what == "append":
        txn.append(tree, key, val)
    else:
        txn.delete(tree, key)


class Model:
    """The trees as dictionaries, moved forward by the same transactions."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.index = 0
        self.trees: dict[int, dict[bytes, bytes]] = {tree: {} for tree in TREES}

    def forward(self, index: int) -> None:
        for i in range(self.index + 1, index + 1):
            for what, tree, key, val in operations(self.seed, i):
                if what == "delete":
                    self.trees[tree].pop(key, None)
                else:
                    self.trees[tree][key] = val
        self.index = max(self.index, index)

    def digest(self) -> str:
        return digest_of(sorted(self.trees[tree].items()) for tree in TREES)


def digest_of(trees: Iterator) -> str:
    digest = hashlib.sha256()
    for items in trees:
        for key, val in items:
            digest.update(struct.pack("<II", len(key), len(val)) + key + val)
        digest.update(b"end")
    return digest.hexdigest()


def store_digest(txn: ReadTxn) -> str:
    return digest_of(txn.items(tree) for tree in TREES)


def provoke(path: Path, seed: int) -> None:
    """Writes random pages back early, the meta pages most of all."""
    libc = ctypes.CDLL(None, use_errno=True)
    rng = random.Random(seed)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    while True:
        pages = max(os.fstat(fd).st_size // 4096, 2)
        page = rng.randrange(2) if rng.random() < 0.3 else rng.randrange(pages)
        offset, size = ctypes.c_int64(page * 4096), ctypes.c_int64(4096 * rng.choice((1, 1, 8, 64)))
        libc.sync_file_range(fd, offset, size, 7)


def say(*words: object) -> None:
    print(*words, flush=True)


def reap(pointer: Checkpointer) -> None:
    if pointer.poll():
        say("saved", pointer.index)


def main() -> None:
    root, seed, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    sync, hold, writemap, stop = (int(word) for word in sys.argv[4:8])
    opened = open_for_write(
        root, mode, checkpoint_seconds=0.03, dirty_bytes=8 << 20,
        sync=bool(sync), hold=bool(hold), writemap=bool(writemap),
    )
    with opened.store.begin_read() as txn:
        say("open", opened.index, store_digest(txn))
    threading.Thread(
        target=provoke, args=(opened.folder / "data.mdb", opened.index), daemon=True
    ).start()
    index, done = opened.index, 0
    while True:
        index += 1
        done += 1
        with opened.store.begin_write() as txn:
            for op in operations(seed, index):
                perform(txn, op)
            txn.commit()
        opened.checkpointer.committed(index, 0)
        reap(opened.checkpointer)
        if index % 5 == 0:
            say("at", index)
        if done == -stop:
            os._exit(9)
        if done == stop:
            opened.close_clean(index)
            say("saved", index)
            os._exit(0)


if __name__ == "__main__":
    main()
