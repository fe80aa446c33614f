"""Runs the datadriven scripts; KVNODE_REWRITE=1 writes their outputs anew."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tests.raft.scripts import Script

SCRIPTS = sorted((Path(__file__).parent / "testdata").glob("*.txt"))


def play_lines(script: Script, lines: list[str]) -> tuple[Script, list[str]]:
    """Run command lines; returns the cluster, maybe a new one, and what was printed."""
    output: list[str] = []
    for line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "cluster":
            options = dict(word.split("=") for word in words[2:])
            script = Script(
                int(words[1]), **{key: ast.literal_eval(v) for key, v in options.items()}
            )
        else:
            output += script.run(words)
    return script, output


def run(text: str) -> str:
    """The script with the outputs that it has now."""
    script = Script()
    done = []
    for block in text.strip("\n").split("\n\n"):
        head, separator, _ = block.partition("\n----")
        if not separator:
            done.append(block)   # only comments
            continue
        script, output = play_lines(script, head.splitlines())
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
