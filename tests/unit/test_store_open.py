"""Starts, marks, roll-back, checkpoints: env.store and env.checkpoint over a real map."""

from __future__ import annotations

import hashlib
import os
import random
import select
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from kvnode._core.crc32c import crc32c
from kvnode._core.storetxn import TREE_KEYS, TREE_META, TREE_REVS, StoreError
from kvnode.base.errors import CorruptionError, DiskError
from kvnode.env import store as env_store
from kvnode.env.checkpoint import Checkpoint, read_checkpoint
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.store import (
    InUseError,
    Opened,
    current_generation,
    open_for_read,
    open_for_write,
)
from tests.fuzz import fuzz_checkpoint
from tests.support.store_reader import Reader

REPOSITORY = Path(__file__).resolve().parents[2]
QUIET = {"checkpoint_seconds": 3600.0}


def apply(opened: Opened, index: int, count: int = 10) -> None:
    """One transaction as the applier's: data with its applied index."""
    with opened.store.begin_write() as txn:
        for i in range(count):
            txn.put(TREE_KEYS, b"%d-%d" % (index % 7, i), b"v%d" % index)
        txn.append(TREE_REVS, struct.pack(">Q", index), b"r" * 200)
        txn.put(TREE_META, b"applied", struct.pack("<QQ", index, 1))
        txn.commit()
    opened.checkpointer.committed(index, 0)


def applied(opened: Opened) -> int:
    with opened.store.begin_read() as txn:
        return struct.unpack("<QQ", txn.get(TREE_META, b"applied") or bytes(16))[0]


def content(store: LmdbStore) -> list[list[tuple[bytes, bytes]]]:
    with store.begin_read() as txn:
        return [list(txn.items(tree)) for tree in (TREE_META, TREE_REVS, TREE_KEYS)]


def test_first_start_makes_a_generation_with_a_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "state"
    opened = open_for_write(root)
    assert (opened.generation, opened.index) == (1, 0)
    assert read_checkpoint(opened.folder) == opened.checkpointer.saved
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in [root, opened.folder, *opened.folder.iterdir(), *root.iterdir()]
    }
    assert {name for name, mode in modes.items() if mode & 0o077} == set()
    opened.close()


def test_a_crash_rolls_back_to_the_checkpoint_and_replays(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 21):
        apply(opened, index)
    opened.checkpointer.checkpoint_now()
    expected = content(opened.store)
    for index in range(21, 41):
        apply(opened, index)
    after = content(opened.store)
    opened.close()
    again = open_for_write(tmp_path, **QUIET)
    assert again.rolled_back and again.index == 20 == applied(again)
    assert content(again.store) == expected
    for index in range(21, 41):
        apply(again, index)
    assert content(again.store) == after
    again.close()


def test_a_clean_stop_keeps_everything(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 6):
        apply(opened, index)
    expected = content(opened.store)
    opened.close_clean(5)
    assert (tmp_path / env_store.CLEAN).exists()
    again = open_for_write(tmp_path, **QUIET)
    assert not again.rolled_back and again.index == 5
    assert content(again.store) == expected
    assert not (tmp_path / env_store.CLEAN).exists(), "the mark goes before the first write"
    again.close()
    assert open_for_write(tmp_path, **QUIET).rolled_back


def test_a_mark_that_does_not_fit_counts_as_none(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    apply(opened, 1)
    opened.close_clean(1)
    (tmp_path / env_store.CLEAN).write_text("1 1 0\n")
    again = open_for_write(tmp_path, **QUIET)
    assert again.rolled_back and again.index == 1
    again.close()


def test_a_start_pins_the_checkpoint_before_the_first_write(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 31):
        apply(opened, index, 200)
    opened.close_clean(30)
    for _ in range(2):
        # Without the pin the first interval reuses pages of T; the second round rolls back.
        opened = open_for_write(tmp_path, **QUIET)
        expected = content(opened.store)
        for index in range(31, 131):
            apply(opened, index, 200)
        opened.close()
        again = open_for_write(tmp_path, **QUIET)
        assert again.rolled_back and content(again.store) == expected
        again.close()


def test_without_the_pin_the_roll_back_is_seen_to_fail(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 31):
        apply(opened, index, 200)
    expected = content(opened.store)
    opened.close_clean(30)
    assert content_elsewhere(tmp_path) == digest(expected)
    opened = open_for_write(tmp_path, hold=False, **QUIET)
    for index in range(31, 131):
        apply(opened, index, 200)
    opened.close()
    assert content_elsewhere(tmp_path) != digest(expected)


def content_elsewhere(root: Path) -> str:
    """Digest read by a process of its own: a map with reused pages may end it in any way."""
    words = [sys.executable, "-c", CONTENT, str(root)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def digest(trees: list[list[tuple[bytes, bytes]]]) -> str:
    return hashlib.sha256(repr(trees).encode()).hexdigest()


CONTENT = """
import sys
from tests.unit.test_store_open import QUIET, content, digest, open_for_write
print(digest(content(open_for_write(sys.argv[1], **QUIET).store)))
"""
RESTART = """
import os, sys
from tests.unit.test_store_open import apply, open_for_write, QUIET
opened = open_for_write(sys.argv[1], **QUIET)
for index in range(1, 51):
    apply(opened, index)
os._exit(9)
"""


def test_process_restart_keeps_commits_and_takes_a_checkpoint(tmp_path: Path) -> None:
    words = [sys.executable, "-c", RESTART, str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, check=False)
    assert done.returncode == 9
    reader = Reader(tmp_path)
    assert reader.generation == 1
    opened = open_for_write(tmp_path, mode="process_restart", **QUIET)
    assert not opened.rolled_back and opened.index == 50 == applied(opened)
    assert read_checkpoint(opened.folder) == opened.checkpointer.saved
    apply(opened, 51)
    assert reader.entries(TREE_REVS) == 51
    reader.close()
    opened.close()
    again = open_for_write(tmp_path, **QUIET)
    assert again.rolled_back and again.index == 50
    again.close()


def test_restart_of_a_writer_that_died_while_opening_is_a_node_start(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    apply(opened, 1)
    opened.close()
    (tmp_path / env_store.RUNNING).unlink()
    again = open_for_write(tmp_path, mode="process_restart", **QUIET)
    assert again.rolled_back and again.index == 0
    again.close()


def test_a_second_writer_and_a_roll_back_under_readers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_store, "LOCK_WAIT_SECONDS", 0.0)
    opened = open_for_write(tmp_path)
    with pytest.raises(InUseError, match="a node is running"):
        open_for_write(tmp_path)
    with pytest.raises(StoreError, match="open already"):
        open_for_read(tmp_path)
    reader = Reader(tmp_path)
    opened.close()
    with pytest.raises(InUseError, match=r"use\.lock"):
        open_for_write(tmp_path)
    reader.close()
    open_for_write(tmp_path).close()


def test_interrupted_first_start_begins_again(tmp_path: Path) -> None:
    (tmp_path / "00000001").mkdir()
    (tmp_path / "00000001" / "data.mdb").write_bytes(b"half")
    opened = open_for_write(tmp_path)
    assert current_generation(tmp_path) == 1 and opened.index == 0
    opened.close()


def test_lost_current_is_not_an_empty_node(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path)
    apply(opened, 1)
    opened.close_clean(1)
    (tmp_path / "CURRENT").unlink()
    with pytest.raises(CorruptionError, match="CURRENT is missing"):
        open_for_write(tmp_path)


def test_truncated_map_is_refused(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 20):
        apply(opened, index)
    opened.checkpointer.checkpoint_now()
    folder = opened.folder
    opened.close()
    os.truncate(folder / "data.mdb", 4096 * 3)
    with pytest.raises(CorruptionError, match="shorter than its checkpoint"):
        open_for_write(tmp_path)


@pytest.mark.parametrize("place", [0, 8, 12, 16, 24, 48, 3000, -1])
def test_damaged_checkpoint_is_refused(tmp_path: Path, place: int) -> None:
    opened = open_for_write(tmp_path)
    path = opened.folder / "checkpoint"
    opened.close()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        open_for_write(tmp_path)


def test_checkpoint_file_golden() -> None:
    page = bytearray(4096)
    struct.pack_into("<II", page, 16, 0xBEEFC0DE, 1)
    struct.pack_into("<Q", page, 136, 99)
    struct.pack_into("<Q", page, 144, 7)
    saved = Checkpoint(7, 300, 2, bytes(page))
    data = saved.encode()
    assert data[:48].hex() == (
        "4b564e434b505431" "01000000" "00100000" "0700000000000000"
        "2c01000000000000" "0200000000000000" "0000000000000000"
    )
    assert Checkpoint.decode(data) == saved
    assert saved.map_bytes_min == 100 * 4096
    assert saved.page_for_slot(1)[:9] == b"\x01" + bytes(8)
    for cut in (0, 10, 51, 4000, len(data) - 1):
        with pytest.raises(CorruptionError):
            Checkpoint.decode(data[:cut])


def test_mutated_checkpoint_files() -> None:
    page = bytearray(4096)
    struct.pack_into("<II", page, 16, 0xBEEFC0DE, 1)
    struct.pack_into("<Q", page, 144, 7)
    whole = Checkpoint(7, 300, 2, bytes(page)).encode()
    rng = random.Random(11)
    fuzz_checkpoint.fuzz(whole)
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(160 if rng.random() < 0.7 else len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        if rng.random() < 0.5 and len(data) > 4:
            data[-4:] = crc32c(bytes(data[:-4])).to_bytes(4, "little")
        fuzz_checkpoint.fuzz(bytes(data))


def test_checkpoints_follow_time_and_dirt(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, checkpoint_seconds=0.0)
    apply(opened, 1)
    pointer = opened.checkpointer
    assert pointer.running
    assert select.select([pointer.fileno()], [], [], 30)[0]
    assert pointer.poll() and pointer.index == 1 and pointer.taken == 1
    assert not pointer.poll() and not pointer.running, "nothing was written since"
    opened.close()


def test_write_budget_begins_checkpoints_and_slows_down(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, checkpoint_seconds=3600.0, dirty_bytes=1 << 20)
    pointer = opened.checkpointer
    index = 0
    while not pointer.running:
        index += 1
        apply(opened, index, 100)
        assert index < 1000
    assert not pointer.must_wait()
    while not pointer.must_wait():
        index += 1
        apply(opened, index, 100)
        assert index < 2000
    pointer.wait()
    assert not pointer.must_wait()
    opened.close()


def test_a_failed_sync_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    apply(opened, 1)

    def broken(path: Path, data: bytes) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("kvnode.env.checkpoint.write_durably", broken)
    with pytest.raises(DiskError, match="Input/output"):
        opened.checkpointer.checkpoint_now()
    with pytest.raises(StoreError, match="checkpoint failed"):
        opened.store.begin_write()
    assert read_checkpoint(opened.folder).index == 0
    opened.close()
