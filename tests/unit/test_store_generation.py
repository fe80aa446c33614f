"""New generations: copies under writers, catching up, switching, interrupted builds."""

from __future__ import annotations

import select
import shutil
from pathlib import Path

import pytest

from kvnode._core.storetxn import TREE_KEYS
from kvnode.env import generation as env_generation
from kvnode.env.generation import BuildError, GenerationBuilder
from kvnode.env.store import (
    current_generation,
    generations,
    open_for_write,
    set_current,
)
from tests.support.store_reader import Reader
from tests.unit.test_store_open import QUIET, applied, apply, content


def catch_up(builder: GenerationBuilder, to: int) -> None:
    """Replays the "log": apply() is a function of the index."""

    class New:
        store = builder.store
        checkpointer = builder.checkpointer

    for index in range(builder.index + 1, to + 1):
        apply(New, index)  # type: ignore[arg-type]


def test_defrag_while_writing(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 101):
        apply(opened, index, 300)
    with opened.store.begin_write() as txn:
        for key, _ in list(txn.items(TREE_KEYS)):
            if not key.endswith(b"7"):
                txn.delete(TREE_KEYS, key)
        txn.commit()
    builder = GenerationBuilder(opened)
    builder.copy()
    for index in range(101, 131):
        apply(opened, index)
    assert select.select([builder.fileno()], [], [], 60)[0] and builder.poll()
    assert 100 <= builder.index <= 130
    catch_up(builder, 130)
    expected = content(opened.store)
    old = opened.folder
    reader = Reader(tmp_path)
    assert reader.generation == 1
    retired = builder.switch()
    assert opened.generation == 2 == current_generation(tmp_path)
    assert content(opened.store) == expected
    assert (opened.folder / "data.mdb").stat().st_size * 2 < (old / "data.mdb").stat().st_size
    assert not retired.wait() and old.exists(), "a reader still has it open"
    assert reader.entries(TREE_KEYS) == len(expected[2])
    reader.close()
    assert retired.wait() and not old.exists()
    for index in range(131, 141):
        apply(opened, index)
    opened.checkpointer.checkpoint_now()
    opened.close()
    again = open_for_write(tmp_path, **QUIET)
    assert (again.generation, again.index, applied(again)) == (2, 140, 140)
    again.close()


def test_crash_after_the_switch_opens_the_copy_and_replays(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 51):
        apply(opened, index)
    builder = GenerationBuilder(opened)
    builder.copy()
    builder.wait()
    catch_up(builder, 50)
    retired = builder.switch()
    apply(opened, 51)
    opened.close()
    retired.store.close = lambda: None  # type: ignore[method-assign]
    retired._checkpointer.close()
    type(retired.store).close(retired.store)
    again = open_for_write(tmp_path, **QUIET)
    assert (again.generation, again.rolled_back, again.index) == (2, True, builder.index)
    assert generations(tmp_path) == [2], "the old one is removed by the start"
    again.close()


def test_an_interrupted_build_does_no_harm(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    apply(opened, 1)
    builder = GenerationBuilder(opened)
    builder.copy()
    builder.wait()
    builder.checkpointer.close()
    builder.store.close()
    opened.close_clean(1)
    (tmp_path / "00000009").mkdir()
    (tmp_path / "00000009" / "data.mdb").write_bytes(b"half")
    assert generations(tmp_path) == [1, 2, 9]
    again = open_for_write(tmp_path, **QUIET)
    assert generations(tmp_path) == [1] and (again.generation, again.index) == (1, 1)
    again.close()


def test_a_snapshot_record_without_its_rename_is_switched_to(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    apply(opened, 1)
    builder = GenerationBuilder(opened)
    store = builder.create()
    assert builder.poll() and builder.index == 0
    with store.begin_write() as txn:
        txn.put(TREE_KEYS, b"from", b"snapshot")
        txn.commit()
    builder.checkpointer.checkpoint_now()
    builder.checkpointer.close()
    store.close()
    opened.close()
    again = open_for_write(tmp_path, wanted_generation=builder.number, **QUIET)
    assert again.generation == 2
    with again.store.begin_read() as txn:
        assert txn.get(TREE_KEYS, b"from") == b"snapshot"
    again.close()


def test_an_empty_generation_is_filled_and_sealed(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 10):
        apply(opened, index)
    builder = GenerationBuilder(opened)
    builder.create()
    catch_up(builder, 9)
    expected = content(opened.store)
    retired = builder.switch(seal_now=True)
    assert retired.wait()
    opened.close()
    again = open_for_write(tmp_path, **QUIET)
    assert again.index == 9 and content(again.store) == expected
    again.close()


def test_current_never_names_an_unfinished_folder(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    (tmp_path / "00000002").mkdir()
    with pytest.raises(Exception, match="without a checkpoint"):
        set_current(tmp_path, 2)
    opened.close()


def test_abandon_and_rate(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    for index in range(1, 101):
        apply(opened, index, 300)
    builder = GenerationBuilder(opened, bytes_per_second=1)
    builder.copy()
    builder.abandon()
    assert generations(tmp_path) == [1]
    opened.close_clean(100)


def test_no_room_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    monkeypatch.setattr(env_generation, "SPACE_RESERVE_BYTES", 1 << 60)
    with pytest.raises(BuildError, match="are free"):
        GenerationBuilder(opened).copy()
    assert generations(tmp_path) == [1]
    opened.close()


def test_a_failed_copy_leaves_the_old_one(tmp_path: Path) -> None:
    opened = open_for_write(tmp_path, **QUIET)
    apply(opened, 1)
    builder = GenerationBuilder(opened)
    folder = builder.folder
    builder.copy()
    builder._done.wait()
    shutil.rmtree(folder)
    with pytest.raises(Exception, match="00000002"):
        builder.poll()
    apply(opened, 2)
    opened.close_clean(2)
