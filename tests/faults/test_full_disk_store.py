"""A full disk under the map: an error at a place of our choosing, and work again with room.

The writer runs in a process of its own, because what must not happen is SIGBUS.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cutdisk import CutDisk, available

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import os, sys
from pathlib import Path
from kvnode.base.errors import DiskError
from kvnode.env.store import open_for_write
from tests.support.store_reader import Reader

root, writemap = Path(sys.argv[1]), sys.argv[2] == "1"
filler = root.parent / "filler"
filler.write_bytes(bytes(16 << 20))
opened = open_for_write(root, writemap=writemap, checkpoint_seconds=0.05)
reader = Reader(root)

def write(index):
    with opened.store.begin_write() as txn:
        for i in range(50):
            txn.put(2, b"%d-%d" % (index, i), os.urandom(700))
        txn.put(2, b"big%d" % index, os.urandom(60_000))
        txn.commit()
    opened.checkpointer.committed(index)
    opened.checkpointer.poll()

index = reader.entries(2) // 51
try:
    while index < 5000:
        write(index)
        index += 1
except DiskError as error:
    print("full:", error, flush=True)
assert reader.entries(2) == 51 * index
print("latched:", opened.store.latched, flush=True)
if opened.store.latched:
    os._exit(0)
filler.unlink()
for step in range(20):
    write(index + step)
opened.checkpointer.checkpoint_now()
assert reader.entries(2) == 51 * (index + 20)
reader.close()
opened.close_clean()
print("done", flush=True)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[CutDisk]:
    reason = available(tmp_path)
    if reason:
        pytest.skip(reason)
    made = CutDisk(tmp_path / "small", 48)
    made.mount()
    yield made
    made.close()


def write(disk: CutDisk, writemap: bool) -> tuple[int, str]:
    words = [sys.executable, "-c", WRITER, str(disk.path / "state"), str(int(writemap))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_writemap_refuses_before_it_writes(disk: CutDisk) -> None:
    code, out = write(disk, True)
    assert code == 0, out
    assert "full: lmdb: allocate: No space left" in out and "latched: False" in out
    assert out.rstrip().endswith("done")


def test_plain_latches_at_the_commit_and_rolls_back(disk: CutDisk) -> None:
    code, out = write(disk, False)
    assert code == 0, out
    # LMDB makes EIO of a short write, which is how a disk fills up.
    assert "full: lmdb: commit: " in out and "latched: True" in out
    code, out = write(disk, False)
    assert code == 0, out
    assert "full:" in out, "it opened, went on from its checkpoint, and met the end again"
