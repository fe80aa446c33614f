"""The scrubber and verify: silent on good stores, and each kind of damage is found."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode._core.memstore import MemStore
from kvnode._core.storetxn import TREE_HIST, TREE_KEYS, TREE_REVS
from kvnode.base.errors import CorruptionError, DiskError
from kvnode.env import scrub
from kvnode.env.lmdbstore import LmdbStore
from kvnode.env.scrub import Finding, Pass, Scrubber, check_counts, verify
from kvnode.env.store import InUseError, open_for_write
from tests.support.mvcc_writer import Writer

ROOT = Path(__file__).resolve().parents[2]
LONG = b"p" * 511


def history(store, seed: int = 3) -> Writer:
    """A store with short, long and chunked, deleted and compacted keys."""
    rng = random.Random(seed)
    writer = Writer(store)
    keys = [b"k%d" % i for i in range(40)] + [LONG + b"%d" % i for i in range(12)]
    for step in range(600):
        key = rng.choice(keys)
        if rng.random() < 0.2:
            writer.write((key, None))
        else:
            big = 200_000 if step % 150 == 7 else 30
            writer.write((key, rng.randbytes(big), rng.randrange(3)), (b"hot", b"%d" % step))
    writer.compact(200)
    writer.free(0, 200)
    writer.commit()
    return writer


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemStore | LmdbStore]:
    if request.param == "memory":
        yield MemStore()
        return
    opened = LmdbStore(tmp_path, 1 << 30)
    yield opened
    opened.close()


def scan(store) -> tuple[Pass, list[Finding]]:
    run, found = Pass(store), []
    while not run.over:
        found += run.slice()[0]
    return run, found


def test_a_good_store_has_no_findings(store, monkeypatch: pytest.MonkeyPatch) -> None:
    history(store).close()
    whole, found = scan(store)
    assert found == [] and check_counts(store, whole.totals) == []
    totals = whole.totals
    assert totals.records > 500 and totals.sparse >= 3 and totals.deleted_keys > 0
    monkeypatch.setattr(scrub, "SLICE_RANGE_BYTES", 1)
    monkeypatch.setattr(scrub, "SLICE_KEYS", 1)
    pieces, found = scan(store)
    assert found == [] and pieces.totals == totals


def spoil(writer: Writer, how: str) -> None:
    """Damages what the writer wrote, in the way of the name."""
    txn = writer.txn
    revs, keys = list(txn.items(TREE_REVS)), dict(txn.items(TREE_KEYS))
    single = [k for k, v in revs if k[12:] == bytes(4) and not v[5]]
    chunk = next(k for k, v in revs if k[12:] != bytes(4))
    head = struct.unpack_from("<Q", keys[b"hot"])[0]
    name = struct.pack(">QII", head, struct.unpack_from("<I", keys[b"hot"], 32)[0], 0)
    value = dict(revs)[name]
    match how:
        case "flip":
            key = random.Random(how).choice(single)
            changed = bytearray(dict(revs)[key])
            changed[random.Random(how).randrange(len(changed))] ^= 16
            txn.put(TREE_REVS, key, bytes(changed))
        case "chunk":
            changed = bytearray(dict(revs)[chunk])
            changed[-1] ^= 1
            txn.put(TREE_REVS, chunk, bytes(changed))
        case "no chunk":
            txn.delete(TREE_REVS, chunk)
        case "stray chunk":
            txn.put(TREE_REVS, single[-1][:12] + b"\x00\x00\x00\x05", b"stray")
        case "no record":
            txn.delete(TREE_REVS, name)
        case "no key":
            txn.delete(TREE_KEYS, b"hot")
        case "old key":
            older = next(k for k in single if k[8:12] == name[8:12] and k != name)
            meta = struct.pack("<Q", int.from_bytes(older[:8], "big")) + keys[b"hot"][8:]
            txn.put(TREE_KEYS, b"hot", meta)
        case "version" | "lease" | "depth" | "deleted":
            place = {"version": 16, "lease": 24, "depth": 37, "deleted": 36}[how]
            meta = bytearray(keys[b"hot"])
            meta[place] ^= 1
            txn.put(TREE_KEYS, b"hot", bytes(meta))
        case "moved":
            txn.put(TREE_REVS, struct.pack(">QII", head + 5, 0, 0), value)
        case "history":
            txn.delete(TREE_HIST, next(k for k, _ in txn.items(TREE_HIST)))
        case "stray history":
            txn.put(TREE_HIST, bytes(20), b"")
        case "odd key":
            txn.put(TREE_REVS, b"\x00odd", b"x")
        case "bucket":
            bucket = next(k for k in keys if len(k) == 511)
            txn.put(TREE_KEYS, bucket, keys[bucket][:-1])
        case _:
            raise AssertionError(how)
    writer.commit()


DAMAGE = {
    "flip": "damaged", "chunk": "chunk", "no chunk": "chunk", "stray chunk": "belongs to no",
    "no record": "missing", "no key": "not in the key tree", "old key": "newer than",
    "version": "disagree in create", "lease": "disagree in create", "depth": "disagree in depth",
    "deleted": "whether the key is deleted", "moved": "another revision",
    "history": "missing in the history", "stray history": "names a record", "odd key": "revision",
    "bucket": "damaged",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_found(store, how: str) -> None:
    writer = history(store)
    spoil(writer, how)
    writer.close()
    _, found = scan(store)
    assert any(DAMAGE[how] in f.text for f in found), found
    assert all(str(f).startswith(f"tree {f.tree}") for f in found)


def test_scrubber_keeps_its_rate_and_passes_again() -> None:
    store = MemStore()
    history(store).close()
    now = [0.0]
    scrubber = Scrubber(store, bytes_per_second=200_000, clock=lambda: now[0])
    while scrubber.passes < 2:
        assert scrubber.slice() == []
        now[0] += 0.05
    size = scrubber.last_totals.record_bytes
    assert size / 200_000 * 0.7 < scrubber.last_pass_seconds < size / 200_000 * 1.3 + 2


def test_scrubber_finds_within_a_pass_while_writers_go_on(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, 1 << 30)
    writer = history(store)
    now = [0.0]
    scrubber = Scrubber(store, clock=lambda: now[0])
    for step in range(50):
        assert scrubber.slice() == []
        writer.write((b"k1", b"%d" % step))
        writer.commit()
        now[0] += 1.0
    spoil(writer, "flip")
    writer.close()
    passes, found = scrubber.passes, []
    while scrubber.passes < passes + 2:
        found += scrubber.slice()
        now[0] += 1.0
    assert found
    store.close()


# --- verify -------------------------------------------------------------------------------------


def make_state(root: Path, clean: bool = True) -> None:
    opened = open_for_write(root, checkpoint_seconds=3600.0)
    writer = history(opened.store)
    writer.close()
    opened.checkpointer.committed()
    opened.checkpointer.checkpoint_now()
    if clean:
        opened.close_clean()
    else:
        opened.close()


@pytest.mark.parametrize("clean", [True, False])
def test_verify_a_stopped_state(tmp_path: Path, clean: bool) -> None:
    make_state(tmp_path, clean)
    for _ in range(2):
        report = verify(tmp_path)
        assert report.ok, report.findings
        assert (report.generation, report.rolled_back) == (1, not clean)
        assert report.index > 5000
        assert report.totals.heads == report.totals.keys > 40
    again = open_for_write(tmp_path)
    assert again.rolled_back is not clean
    again.close()


def test_verify_refuses_a_running_node_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="no generation"):
        verify(tmp_path)
    opened = open_for_write(tmp_path)
    with pytest.raises(InUseError):
        verify(tmp_path)
    opened.close()


def test_verify_refuses_a_damaged_checkpoint(tmp_path: Path) -> None:
    make_state(tmp_path)
    path = tmp_path / "00000001" / "checkpoint"
    data = bytearray(path.read_bytes())
    data[24] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="damaged"):
        verify(tmp_path)


VERIFY = """
import sys
from kvnode.base.errors import DiskError
from kvnode.env.scrub import verify
try:
    report = verify(sys.argv[1])
except DiskError as error:
    print(error)
    sys.exit(3)
print(*report.findings, sep="\\n")
sys.exit(0 if report.ok else 3)
"""


def test_flipped_bytes_in_live_records_are_found(tmp_path: Path) -> None:
    """Every flip inside a record's bytes in the file; a page that no longer parses may kill."""
    make_state(tmp_path / "good")
    data = (tmp_path / "good" / "00000001" / "data.mdb").read_bytes()
    store = LmdbStore(tmp_path / "good" / "00000001", 1 << 30, readonly=True)
    with store.begin_read() as txn:
        records = [v for k, v in txn.items(TREE_REVS) if k[12:] == bytes(4) and len(v) > 40]
    store.close()
    rng = random.Random(5)
    for number in range(6):
        value = rng.choice(records)
        root = tmp_path / f"bad{number}"
        shutil.copytree(tmp_path / "good", root)
        path = root / "00000001" / "data.mdb"
        changed = bytearray(data)
        offset = rng.randrange(len(value))
        at = data.find(value)
        while at >= 0:
            changed[at + offset] ^= 1 << rng.randrange(8)
            at = data.find(value, at + 1)
        path.write_bytes(changed)
        done = subprocess.run(
            [sys.executable, "-c", VERIFY, str(root)], cwd=ROOT, capture_output=True, text=True,
            check=False,
        )
        assert done.returncode == 3, (number, done)
