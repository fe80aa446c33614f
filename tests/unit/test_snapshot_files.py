"""Snapshot files over real maps: made, received, installed, and killed between every two steps."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvnode.base.errors import CorruptionError, DecodeError, DiskError
from kvnode.env import incoming as env_incoming
from kvnode.env.generation import GenerationBuilder, install
from kvnode.env.incoming import IncomingFolder, IncomingThread, folders, is_ready, remove_obsolete
from kvnode.env.outgoing import FOLDER, CopyError, OutgoingFile, SnapshotCopy, clear, path_of
from kvnode.env.store import RECEIVED, current_generation, generations, open_for_write
from kvnode.wire.snapfile import TAIL_BYTES, FileName, decode_tail
from tests.support.store_reader import Reader
from tests.unit.test_store_open import QUIET, apply, content

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = 77
PIECE = 10_000
Content = list[list[tuple[bytes, bytes]]]


@pytest.fixture
def made(tmp_path: Path) -> tuple[OutgoingFile, Content]:
    """A snapshot at index 60 of a leader's map that has freed pages, and what is in it."""
    return make(tmp_path / "leader")


def make(root: Path) -> tuple[OutgoingFile, Content]:
    opened = open_for_write(root, **QUIET)
    for index in range(1, 61):
        apply(opened, index, 200)
    copy = SnapshotCopy(opened.store, root, CLUSTER, 5, 0)
    copy.start()
    assert select.select([copy.fileno()], [], [], 30)[0]
    name = copy.poll()
    assert name is not None and name[:3] == (60, 1, 5)
    copy.close()
    expected = content(opened.store)
    for index in range(61, 70):
        apply(opened, index)
    opened.close()
    return OutgoingFile(root, name), expected


def receive(folder: IncomingFolder, file: OutgoingFile, to: int | None = None) -> None:
    while folder.have < (file.name.size if to is None else to):
        size = min(PIECE, file.name.size - folder.have)
        folder.write(folder.have, file.read(folder.have, size))


def behind(root: Path) -> None:
    """A member that has applied 10 entries."""
    opened = open_for_write(root, **QUIET)
    for index in range(1, 11):
        apply(opened, index)
    opened.close_clean(10)


def test_a_copy_has_a_tail_and_does_not_pin(made: tuple[OutgoingFile, Content]) -> None:
    file, _ = made
    raw = file.path.read_bytes()
    tail = decode_tail(raw[-TAIL_BYTES:])
    assert tail[1:] == (60, 1, CLUSTER, 5, len(raw) - TAIL_BYTES)
    assert file.read(0, 100) == raw[:100]
    with pytest.raises(DiskError, match="cut short"):
        file.read(len(raw) - 10, 20)
    file.remove()
    assert not file.path.exists()


def test_a_received_file_becomes_the_generation_in_use(
    tmp_path: Path, made: tuple[OutgoingFile, Content]
) -> None:
    file, expected = made
    root = tmp_path / "behind"
    behind(root)
    opened = open_for_write(root, **QUIET)
    old, reader = opened.folder, Reader(root)
    folder = IncomingFolder(root, CLUSTER, file.name)
    folder.open()
    receive(folder, file)
    assert not is_ready(root, "60-1", 60, 1)
    folder.finish()
    folder.close()
    assert is_ready(root, "60-1", 60, 1) and current_generation(root) == 1
    retired = install(opened, "60-1", 60, 1)
    assert content(opened.store) == expected
    assert opened.generation == current_generation(root) == 2
    assert not folders(root) and not (opened.folder / RECEIVED).exists()
    assert not retired.wait() and old.exists(), "a reader still has it"
    reader.close()
    assert retired.wait() and not old.exists()
    for index in range(61, 65):
        apply(opened, index)
    after = content(opened.store)
    opened.checkpointer.checkpoint_now()
    opened.close()
    again = open_for_write(root, **QUIET)
    assert (again.generation, again.index) == (2, 64) and content(again.store) == after
    with pytest.raises(CorruptionError, match="is not here"):
        install(again, "90-1", 90, 1)
    again.close()


POINTS = (
    "snapshot-synced", "snapshot-received", "snapshot-checked", "snapshot-sealed", "install",
    "install-renamed", "installed",
)
CHILD = """
import sys
from pathlib import Path
from kvnode.base import failpoint
from kvnode.env.generation import install
from kvnode.env.incoming import IncomingFolder
from kvnode.env.outgoing import OutgoingFile
from kvnode.env.store import open_for_write
from kvnode.wire.snapfile import FileName
from tests.unit.test_snapshot_files import CLUSTER, receive
failpoint.arm("applier")
leader, root, mode, size = sys.argv[1:]
name = FileName(60, 1, 5, int(size))
opened = open_for_write(root, mode, checkpoint_seconds=3600.0)
folder = IncomingFolder(Path(root), CLUSTER, name)
folder.open()
print(folder.have, flush=True)
if not folder.complete:
    receive(folder, OutgoingFile(Path(leader), name))
    folder.finish()
install(opened, "60-1", 60, 1)
"""


@pytest.mark.parametrize("mode", ["node_start", "process_restart"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at(
    point: str, mode: str, tmp_path: Path, made: tuple[OutgoingFile, Content],
) -> None:  # fmt: skip
    """The next start takes up what is there, and ends with the snapshot in use."""
    file, expected = made
    root = tmp_path / "behind"
    behind(root)
    arguments = [sys.executable, "-c", CHILD, str(tmp_path / "leader"), str(root)]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "KVNODE_FAILPOINT": f"applier:{point}:1",
        "KVNODE_FAILPOINT_DIR": str(tmp_path),
    }
    first = subprocess.run(
        [*arguments, "node_start", str(file.name.size)], env=environment, timeout=60,
        stdout=subprocess.PIPE,
    )
    assert first.returncode == -signal.SIGKILL, first
    installed = point == "installed"
    assert current_generation(root) == (2 if installed else 1)
    opened = open_for_write(root, mode, checkpoint_seconds=3600.0)  # type: ignore[arg-type]
    if installed:
        assert opened.index == 60
    else:
        assert opened.index == 10 and generations(root) == [1]
        whole = point in ("snapshot-sealed", "install", "install-renamed")
        assert is_ready(root, "60-1", 60, 1) == whole
        folder = IncomingFolder(root, CLUSTER, file.name)
        folder.open()
        if point == "snapshot-checked":
            assert folder.have == file.name.size - TAIL_BYTES
        if not whole:
            receive(folder, file)
            folder.finish()
        assert folder.complete
        assert install(opened, "60-1", 60, 1).wait()
    assert content(opened.store) == expected and not folders(root)
    opened.close()


def test_what_is_durable_is_resumed(
    tmp_path: Path, made: tuple[OutgoingFile, Content], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = made
    monkeypatch.setattr(env_incoming, "SYNC_BYTES", 3 * PIECE)
    folder = IncomingFolder(tmp_path, CLUSTER, file.name)
    folder.open()
    receive(folder, file, 7 * PIECE)
    folder.close()
    again = IncomingFolder(tmp_path, CLUSTER, file.name)
    again.open()
    assert again.have == 6 * PIECE
    receive(again, file)
    again.finish()
    again.close()
    third = IncomingFolder(tmp_path, CLUSTER, file.name)
    third.open()
    assert third.complete and third.have == file.name.size


def test_another_file_at_the_same_place_begins_anew(
    tmp_path: Path, made: tuple[OutgoingFile, Content]
) -> None:
    file, _ = made
    for name in (file.name, file.name._replace(file=6), FileName(61, 1, 5, 1000)):
        folder = IncomingFolder(tmp_path, CLUSTER, name)
        folder.open()
        assert folder.have == 0 and folders(tmp_path) == [folder.path]
        folder.write(0, bytes(100))
        folder.sync()
        folder.close()
    assert remove_obsolete(tmp_path, 60) == 61 and folders(tmp_path)
    assert remove_obsolete(tmp_path, 61) == 0 and not folders(tmp_path)


@pytest.mark.parametrize("at", [0, 5000, -200, -TAIL_BYTES + 20, -1])
def test_a_flipped_bit_anywhere_is_found(
    at: int, tmp_path: Path, made: tuple[OutgoingFile, Content]
) -> None:
    file, _ = made
    raw = bytearray(file.path.read_bytes())
    raw[at] ^= 4
    folder = IncomingFolder(tmp_path, CLUSTER, file.name)
    folder.open()
    folder.write(0, bytes(raw))
    with pytest.raises((CorruptionError, DecodeError), match="damaged"):
        folder.finish()
    folder.close()
    assert not is_ready(tmp_path, "60-1", 60, 1)


def test_another_clusters_file_and_a_false_name_are_refused(
    tmp_path: Path, made: tuple[OutgoingFile, Content]
) -> None:
    file, _ = made
    for cluster, name in ((78, file.name), (CLUSTER, file.name._replace(index=61))):
        folder = IncomingFolder(tmp_path, cluster, name)
        folder.open()
        folder.write(0, file.path.read_bytes())
        with pytest.raises(CorruptionError, match="not"):
            folder.finish()
        folder.remove()


def news(thread: IncomingThread, count: int) -> list[tuple[object, ...]]:
    out: list[tuple[object, ...]] = []
    while len(out) < count:
        assert select.select([thread.fileno()], [], [], 30)[0]
        out += thread.poll()
    return out


def test_the_thread_tells_what_it_did(
    tmp_path: Path, made: tuple[OutgoingFile, Content]
) -> None:
    file, _ = made
    name, half = file.name, file.name.size // 2
    thread = IncomingThread(tmp_path, CLUSTER)
    thread.begin(name)
    thread.write(0, file.read(0, half))
    thread.write(half, file.read(half, name.size - half))
    thread.finish()
    assert news(thread, 4) == [
        ("opened", name, 0, False), ("written", name, half), ("written", name, name.size),
        ("finished", name),
    ]
    thread.begin(name._replace(file=9))
    thread.write(0, b"x" * name.size)
    thread.finish()
    said = news(thread, 3)
    assert [n[0] for n in said] == ["opened", "written", "broken"]
    assert not folders(tmp_path)
    thread.begin(name)
    news(thread, 1)
    thread.discard(60)
    thread.close()
    assert not folders(tmp_path)


def test_no_room_is_an_error_before_anything_is_written(
    tmp_path: Path, made: tuple[OutgoingFile, Content], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = made
    monkeypatch.setattr(env_incoming, "SPACE_RESERVE_BYTES", 1 << 60)
    with pytest.raises(DiskError, match="make room"):
        IncomingFolder(tmp_path, CLUSTER, file.name).open()
    assert not folders(tmp_path)


def test_a_copy_that_is_stopped_or_fails_leaves_nothing(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 101):
        apply(opened, index, 300)
    copy = SnapshotCopy(opened.store, tmp_path, CLUSTER, 1, 1)
    copy.start()
    copy.close()
    assert list((tmp_path / FOLDER).iterdir()) == []
    with pytest.raises(CopyError, match="stopped"):
        copy.poll()
    (tmp_path / FOLDER / "1-1-0000000000000001.snap").write_bytes(b"old")
    clear(tmp_path)
    assert not (tmp_path / FOLDER).exists()
    assert path_of(tmp_path, FileName(1, 1, 1, 5)).parent == tmp_path / FOLDER
    opened.close_clean(100)


def test_a_defragmentation_and_a_snapshot_side_by_side(
    tmp_path: Path, made: tuple[OutgoingFile, Content]
) -> None:
    """The number of the generation is chosen when it is installed."""
    file, expected = made
    root = tmp_path / "behind"
    behind(root)
    opened = open_for_write(root, **QUIET)
    folder = IncomingFolder(root, CLUSTER, file.name)
    folder.open()
    receive(folder, file)
    builder = GenerationBuilder(opened)
    builder.copy()
    builder.wait()
    builder.switch().wait()
    folder.finish()
    folder.close()
    install(opened, "60-1", 60, 1).wait()
    assert opened.generation == 3 and content(opened.store) == expected
    opened.close()
