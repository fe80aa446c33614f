"""The extensions under AddressSanitizer and UndefinedBehaviorSanitizer, with their own tests.

The tree is copied, built with KVNODE_SANITIZE=1 and its unit tests of `_core` (fuzz rounds
included) run in that copy; any report of a sanitizer fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    "test_etcdpb.py", "test_envelope.py", "test_logrec.py", "test_records.py",
    "test_revindex.py", "test_ranges.py", "test_machine.py", "test_store_conformance.py",
    "test_watch.py", "test_watchpb.py", "test_h2.py", "test_h2_flow.py",
]
SKIPPED_PARTS = {".git", ".venv", "build", "bin", ".hypothesis", "__pycache__", ".mypy_cache"}


def _library(name: str) -> str:
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return os.path.realpath(found) if os.path.isabs(found) else ""


@pytest.mark.slow
def test_core_under_sanitizers(tmp_path: Path) -> None:
    asan, ubsan = _library("libasan.so"), _library("libubsan.so")
    if not asan or not ubsan:
        pytest.skip("gcc has no sanitizer libraries here")
    copy = tmp_path / "tree"

    def ignore(_: str, names: list[str]) -> set[str]:
        return {n for n in names if n in SKIPPED_PARTS or n.endswith(".so")}

    shutil.copytree(ROOT, copy, ignore=ignore)
    environment = {
        **os.environ,
        "KVNODE_SANITIZE": "1",
        "PYTHONPATH": str(copy),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:abort_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j", "2"],
        cwd=copy, env=environment, check=True, capture_output=True,
    )
    present = [f"tests/unit/{t}" for t in TESTS if (copy / "tests/unit" / t).exists()]
    assert present
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-m", "not slow", "--timeout", "1200", *present],
        cwd=copy, env={**environment, "LD_PRELOAD": f"{asan} {ubsan}"},
        capture_output=True, text=True,
    )
    output = done.stdout + done.stderr
    assert "runtime error:" not in output and "AddressSanitizer" not in output, output[-8000:]
    assert done.returncode == 0, output[-8000:]
