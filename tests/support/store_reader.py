"""A reader of a state's folder in a process of its own: no process opens a map twice.

    with Reader(root) as reader:
        reader.entries(tree)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]

CODE = """
import sys
from kvnode.env.store import open_for_read
store, generation = open_for_read(sys.argv[1])
print(generation, flush=True)
for line in sys.stdin:
    with store.begin_read() as txn:
        print(txn.entries(int(line)), flush=True)
store.close()
"""


class Reader:
    """Opens at once; `generation` is the one it reads."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(root)], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.generation = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def entries(self, tree: int) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{tree}\n")
        self.process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
