"""What does a put cost in LMDB: one 40-byte entry at a random key, one 330-byte record appended?

The store alone: no state machine, no log. Random 32-byte keys, `--batch` puts a transaction.
Prints us/put of the stages, puts/s by wall clock, the bytes dirtied a put (which is what the disk
must take in, since pages of a pinned interval are never reused), and the longest transaction.

    python -m bench.core_store [--keys N] [--batch N]... [--dir DIR] [--mode MODE]...

Modes: plain, sorted (keys sorted inside the batch), writemap, writemap-sorted; each without
checkpoints, then (name ends in +cp) with checkpoints and the write budget, the waiting included.
"""

from __future__ import annotations

import argparse
import array
import importlib.util
import os
import random
import tempfile
import time
from pathlib import Path
from types import ModuleType

from kvnode.base.limits import CHECKPOINT_DIRTY_BYTES
from kvnode.env.store import open_for_write

SEED = 1
RECORD_BYTES = 330
KEY_BYTES = 32
MODES = (
    "plain", "sorted", "writemap", "writemap-sorted",
    "plain+cp", "sorted+cp", "writemap+cp", "writemap-sorted+cp",
)
ROOT = Path(__file__).resolve().parents[1]


def build_loop() -> ModuleType:
    """Compiles core_store_loop.pyx into build/bench and imports it."""
    from Cython.Build import cythonize
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    os.chdir(ROOT)
    made = cythonize(
        "bench/core_store_loop.pyx", build_dir="build/cython", quiet=True,
        compiler_directives={"language_level": 3, "boundscheck": False, "wraparound": False},
    )
    command = build_ext(Distribution({"ext_modules": made}))
    command.build_lib = command.build_temp = "build/bench"
    command.ensure_finalized()
    command.run()
    spec = importlib.util.spec_from_file_location(made[0].name, command.get_outputs()[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(loop: ModuleType, folder: str, keys: bytes, batch: int, mode: str) -> str:
    checkpoints = mode.endswith("+cp")
    opened = open_for_write(
        folder,
        writemap=mode.startswith("writemap"),
        checkpoint_seconds=1.0 if checkpoints else 1e9,
        dirty_bytes=CHECKPOINT_DIRTY_BYTES if checkpoints else 1 << 60,
        hold=checkpoints,
    )
    store, pointer = opened.store, opened.checkpointer
    spent = array.array("L", [0, 0, 0])
    count = len(keys) // KEY_BYTES
    view = memoryview(keys)
    waited = longest = 0.0
    began, cpu = time.monotonic(), time.process_time()
    for at in range(0, count, batch):
        n = min(batch, count - at)
        start = time.monotonic()
        piece = view[at * KEY_BYTES : (at + n) * KEY_BYTES]
        loop.run(store, piece, n, at + 1, RECORD_BYTES, "sorted" in mode, spent)
        pointer.committed()
        longest = max(longest, time.monotonic() - start)
        pointer.poll()
        if pointer.must_wait():
            start = time.monotonic()
            pointer.wait()
            waited += time.monotonic() - start
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    append, put, commit = (ns / 1000 / count for ns in spent)
    size = (opened.folder / "data.mdb").stat().st_size
    line = (
        f"{mode:16} batch {batch:6}  {count / wall:9.0f}/s wall {count / cpu:9.0f}/s cpu  "
        f"us/put: append {append:.2f} key {put:.2f} commit {commit:.2f}  "
        f"{store.dirtied_bytes / count:6.0f} B/put dirtied  file {size >> 20} MiB  "
        f"longest {longest * 1000:.0f} ms"
    )
    if checkpoints:
        line += (
            f"  {pointer.taken} checkpoints, last {pointer.last_seconds * 1000:.0f} ms, "
            f"waited {waited / wall * 100:.0f}%"
        )
    pointer.wait()
    opened.close()
    return line


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--keys", type=int, default=1_000_000)
    options.add_argument("--batch", type=int, action="append")
    options.add_argument("--dir")
    options.add_argument("--mode", action="append", choices=MODES)
    args = options.parse_args()
    loop = build_loop()
    rng = random.Random(SEED)
    keys = rng.randbytes(args.keys * KEY_BYTES)
    print(f"seed {SEED}, {args.keys} keys, record {RECORD_BYTES} B, cpus {os.cpu_count()}, "
          f"load {os.getloadavg()[0]:.1f}")
    for batch in args.batch or [1000]:
        for mode in args.mode or MODES:
            with tempfile.TemporaryDirectory(dir=args.dir) as folder:
                print(measure(loop, folder, keys, batch, mode), flush=True)


if __name__ == "__main__":
    main()
