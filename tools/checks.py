"""The house's checks in one go: ruff, mypy, cython-lint, layers, sizes, forbidden words.

    python tools/checks.py [NAME ...]

Exit status 1 if one fails; what it found is printed. `tests/unit/test_house.py` runs the same.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES_MAX = {".py": 650, ".pyx": 1000, ".h": 400}
# Only `env` meets the outside world; these rooms run inside a simulator too.
SANS_IO = ("raft", "state", "wal", "wire", "base", "_core", "proto")
OUTSIDE = re.compile(
    r"^\s*(?:import|from)\s+(time|random|socket|zmq|lmdb|select|subprocess|asyncio|threading|pickle)\b"
)
# base/config reads files and the environment for the CLI; the log's tools are for a person.
OUTSIDE_ALLOWED: dict[str, set[str]] = {
    "base/ports.py": {"socket"},
    "_core/loadcore.pyx": {"random"},
}
UNSAFE = re.compile(r"\b(recv_pyobj|send_pyobj|pickle\.|marshal\.loads|eval\(|exec\()")


def tool(name: str, *arguments: str) -> list[str]:
    """A linter's complaints. `name` is a command of the environment this Python runs in."""
    commands = Path(sys.executable).parent
    done = subprocess.run(
        [commands / name, *arguments],
        cwd=ROOT,
        # cython-lint starts pycodestyle by name.
        env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ.get('PATH', '')}"},
        capture_output=True,
        text=True,
    )
    return [] if done.returncode == 0 else [done.stdout + done.stderr]


def sources() -> list[Path]:
    """The project's own code, without what is generated."""
    found = []
    for top in ("kvnode", "tests", "bench", "tools", "examples"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix in (".py", ".pyx", ".pxd", ".h") and not path.name.endswith("_pb2.py"):
                found.append(path)
    return found


def check_ruff() -> list[str]:
    return tool("ruff", "check", ".")


def check_mypy() -> list[str]:
    return tool("mypy")


def check_cython() -> list[str]:
    return tool("cython-lint", "kvnode", "bench")


def check_layers() -> list[str]:
    return tool("lint-imports", "--no-cache")


def check_sizes() -> list[str]:
    out = []
    for path in sources():
        limit = LINES_MAX.get(path.suffix)
        lines = len(path.read_text().splitlines())
        if limit and lines > limit:
            out.append(f"{path.relative_to(ROOT)}: {lines} lines, {limit} are a room's most")
    return out


def check_outside() -> list[str]:
    """Sans-IO rooms import nothing that reaches outside; _core imports only _core and base."""
    out = []
    for path in sources():
        place = path.relative_to(ROOT)
        text = path.read_text()
        if place.parts[0] != "kvnode":
            continue
        name = "/".join(place.parts[1:])
        for number, line in enumerate(text.splitlines(), 1):
            match = OUTSIDE.match(line)
            if (
                match
                and place.parts[1] in SANS_IO
                and match[1] not in OUTSIDE_ALLOWED.get(name, set())
            ):
                out.append(f"{place}:{number}: {match[1]} belongs to env")
            if UNSAFE.search(line):
                out.append(f"{place}:{number}: no object serialization, no eval")
            if place.parts[1] == "_core":
                up = re.match(r"^\s*(?:from|import|cimport)\s+kvnode\.(\w+)", line)
                if up and up[1] not in ("_core", "base"):
                    out.append(f"{place}:{number}: _core imports {up[1]}")
    return out


CHECKS: dict[str, Callable[[], list[str]]] = {
    "ruff": check_ruff,
    "mypy": check_mypy,
    "cython-lint": check_cython,
    "layers": check_layers,
    "sizes": check_sizes,
    "outside": check_outside,
}


def main() -> int:
    """Runs the named checks, or all."""
    bad = 0
    for name in sys.argv[1:] or CHECKS:
        found = CHECKS[name]()
        print(f"{name}: {'ok' if not found else ''}")
        for line in found:
            print(line)
        bad += bool(found)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
