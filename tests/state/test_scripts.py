"""Runs the datadriven scripts; KVNODE_REWRITE=1 writes their outputs anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.state.scripts import Script

SCRIPTS = sorted((Path(__file__).parent / "testdata").glob("*.txt"))


def run(text: str) -> str:
    """The script with the outputs that it has now."""
    script = Script()
    done = []
    for block in text.strip("\n").split("\n\n"):
        head, separator, _ = block.partition("\n----")
        if not separator:
            done.append(block)  # only comments
            continue
        output: list[str] = []
        for line in head.splitlines():
            if not line.startswith("#"):
                output += script.run(line)
        done.append("\n".join([head, "----", *output]))
    return "\n\n".join(done) + "\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    text = path.read_text()
    now = run(text)
    if os.environ.get("KVNODE_REWRITE"):
        path.write_text(now)
    else:
        assert now == text
