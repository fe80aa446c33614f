"""Where a node's log goes: --log-outputs, in both formats."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.base.config import Config
from kvnode.procs.process import log_handler, set_up_log


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("output", "stream"),
    [("default", "stderr"), ("stderr", "stderr"), ("stdout", "stdout"),
     ("systemd/journal", "stderr")],
)  # fmt: skip
def test_streams(output: str, stream: str) -> None:
    handler = log_handler(output)
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is getattr(sys, stream)


def test_files_are_appended_to(tmp_path: Path, root: logging.Logger) -> None:
    one, other = tmp_path / "one.log", tmp_path / "other.log"
    one.write_text("kept\n")
    set_up_log(Config(log_outputs=(str(one), str(other)), log_format="json", log_level="warn"))
    root.info("not said")
    root.warning("said", extra={"fields": {"n": 1}})
    kept, line = one.read_text().splitlines()
    assert kept == "kept"
    record = json.loads(line)
    assert (record["level"], record["msg"], record["n"]) == ("warn", "said", 1)
    assert other.read_text().splitlines() == [line]


def test_a_file_that_cannot_be_opened_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        set_up_log(Config(log_outputs=(str(tmp_path / "none" / "x"),)))
