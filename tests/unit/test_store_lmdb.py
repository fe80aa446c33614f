"""What only LmdbStore has: growth, latching, readers of other processes, renewal, copies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvnode._core.storetxn import TREE_KEYS, TREE_META, StoreError
from kvnode.base.errors import CorruptionError
from kvnode.env.lmdbstore import LmdbStore, engine_version

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]


def fill(store: LmdbStore, name: bytes, count: int, size: int = 1000) -> None:
    with store.begin_write() as txn:
        for i in range(count):
            txn.put(TREE_KEYS, b"%s-%d" % (name, i), bytes([i % 251]) * size)
        txn.commit()


def child(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )


def test_engine_is_the_system_library() -> None:
    assert engine_version().startswith("LMDB 0.9.")


def test_full_map_fails_the_transaction_and_growth_saves_it(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, MIB)
    fill(store, b"a", 10)
    pin = store.pin()
    with pytest.raises(StoreError, match="MDB_MAP_FULL"):
        fill(store, b"b", 2000)
    assert store.map_full and not store.latched
    with store.begin_read() as txn:
        with pytest.raises(StoreError, match="transactions are active"):
            store.grow(16 * MIB)
        assert txn.entries(TREE_KEYS) == 10
    store.grow(16 * MIB)
    assert not store.map_full
    fill(store, b"b", 2000)
    assert pin.get(TREE_KEYS, b"a-3") == b"\x03" * 1000, "a pin outlives the growth"
    assert pin.get(TREE_KEYS, b"b-3") is None
    pin.close()
    store.close()


READER = """
import sys
from kvnode.env.lmdbstore import LmdbStore
store = LmdbStore(sys.argv[1], 1 << 20, readonly=True)
held = store.begin_read() if sys.argv[2] == "hold" else None
print("open", flush=True)
sys.stdin.readline()
if held is not None:
    try:
        store.begin_read()
    except Exception as error:
        print(error, flush=True)
    sys.stdin.readline()
    assert held.entries(2) == 10
    held.end()
with store.begin_read() as txn:
    print(txn.entries(2), flush=True)
"""


@pytest.mark.parametrize("how", ["idle", "hold"])
def test_readers_adopt_a_grown_map(tmp_path: Path, how: str) -> None:
    store = LmdbStore(tmp_path, MIB)
    fill(store, b"a", 10)
    reader = child(READER, str(tmp_path), how)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "open\n"
    store.grow(64 * MIB)
    fill(store, b"b", 5000)
    if how == "hold":
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert "MDB_MAP_RESIZED" in reader.stdout.readline()
    out, _ = reader.communicate("\n", timeout=60)
    assert (reader.returncode, out.split()[-1]) == (0, "5010")
    store.close()


def test_a_failed_commit_latches(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from kvnode._core.storetxn import StoreError
from kvnode.env.lmdbstore import LmdbStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LmdbStore(sys.argv[1], 64 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
def fill():
    with store.begin_write() as txn:
        for i in range(1000):
            txn.put(2, b"%d" % i, b"x" * 1000)
        txn.commit()
try:
    fill()
except StoreError as error:
    print("commit:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for begin in (store.begin_write, store.begin_read):
    try:
        begin()
    except StoreError as error:
        print("begin:", error)
"""
    out, _ = child(code, str(tmp_path)).communicate(timeout=60)
    lines = out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("commit: lmdb: commit: "), out
    assert [line.split(": ", 1)[1] for line in lines[1:]] == [lines[0].split(": ", 1)[1]] * 2


def test_dead_readers_are_checked_away(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 64 * MIB)
    fill(store, b"a", 10)
    reader = child(READER, str(tmp_path), "hold")
    assert reader.stdout is not None and reader.stdout.readline() == "open\n"
    assert store.reader_check() == 0
    os.kill(reader.pid, signal.SIGKILL)
    reader.communicate()
    assert store.reader_check() == 1
    store.close()


def test_snapshots_are_renewed(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 64 * MIB)
    for _ in range(100):
        with store.begin_read() as one, store.begin_read() as two:
            assert one.entries(TREE_KEYS) == two.entries(TREE_KEYS)
    assert store.info()["readers"] <= 2 and store.info()["reads"] == 0
    store.close()


def test_many_snapshots_at_once(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 64 * MIB, max_readers=100)
    held = [store.begin_read() for _ in range(100)]
    with pytest.raises(StoreError, match="MDB_READERS_FULL"):
        store.begin_read()
    for txn in held:
        txn.end()
    store.begin_read().end()
    store.close()


def test_close_refuses_while_transactions_are_active(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 64 * MIB)
    txn = store.begin_read()
    with pytest.raises(StoreError, match="active"):
        store.close()
    txn.end()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.begin_read()


def test_read_only_cannot_write(tmp_path: Path) -> None:
    LmdbStore(tmp_path, 64 * MIB).close()
    store = LmdbStore(tmp_path, 64 * MIB, readonly=True)
    with pytest.raises(StoreError, match="read-only"):
        store.begin_write()
    store.close()


def test_not_a_map(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(os.urandom(1) * 40_000)
    with pytest.raises((CorruptionError, StoreError)):
        LmdbStore(tmp_path, 64 * MIB)


def test_compact_copy_through_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "map").mkdir()
    store = LmdbStore(tmp_path / "map", 256 * MIB)
    fill(store, b"a", 20_000)
    fill(store, b"b", 10)
    with store.begin_write() as txn:
        for i in range(20_000):
            txn.delete(TREE_KEYS, b"a-%d" % i)
        txn.commit()
    with (tmp_path / "copy" / "data.mdb").open("wb") as out:
        store.copy_to(out.fileno())
    copy = LmdbStore(tmp_path / "copy", 256 * MIB)
    with copy.begin_read() as mine, store.begin_read() as other:
        assert list(mine.items(TREE_KEYS)) == list(other.items(TREE_KEYS))
    sizes = [(tmp_path / name / "data.mdb").stat().st_size for name in ("copy", "map")]
    assert sizes[0] * 20 < sizes[1]
    copy.close()
    store.close()


def test_dirt_is_counted_from_above_and_not_far(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 256 * MIB)
    for i in range(20):
        fill(store, b"%d" % i, 500, 100)
    pin = store.pin()
    store.begin_read().end()
    pages, counted = store.info()["last_page"], store.dirtied_bytes
    for i in range(20):
        fill(store, b"%d" % i, 50, 100)
    with store.begin_write() as txn:
        txn.put(TREE_META, b"big", b"x" * MIB)
        txn.commit()
    # While all is pinned, every page written is a new one, but for those free before.
    written = (store.info()["last_page"] - pages) * store.page_bytes
    assert written < store.dirtied_bytes - counted < 3 * written + 2 * MIB
    pin.close()
    store.close()


def mapped_bytes(path: Path) -> int:
    """Resident bytes of the map of `path` in this process."""
    inside, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if "-" in words[0]:
            inside = words[-1] == str(path / "data.mdb")
        elif inside and words[0] == "Rss:":
            found += int(words[1]) * 1024
    return found


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 256 * MIB)
    for _ in range(2):
        fill(store, b"a", 20_000)
        with store.begin_read() as txn:
            before = list(txn.items(TREE_KEYS))
            assert mapped_bytes(tmp_path) > MIB
            store.release()
            assert mapped_bytes(tmp_path) == 0
            assert list(txn.items(TREE_KEYS)) == before
        store.grow(512 * MIB)
    store.release()
    assert mapped_bytes(tmp_path) == 0
    store.close()
