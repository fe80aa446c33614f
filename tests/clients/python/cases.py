"""What the programs of cases share: see ../suite.py for the lines they print."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

CASES: list[Callable] = []
SECONDS_MAX = 30.0


def case(function: Callable) -> Callable:
    """Makes a case known; it gets the client and a prefix of its own."""
    CASES.append(function)
    return function


def equal(what: str, found: object, expected: object) -> None:
    """AssertionError unless they are equal."""
    assert found == expected, f"{what}: {found!r}, expected {expected!r}"


def until(what: str, holds: Callable[[], object]) -> None:
    """Asks again until it holds."""
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def _report(name: str, error: BaseException | None) -> bool:
    if error is None:
        print("ok", name, flush=True)
        return False
    if not isinstance(error, Exception):
        raise error
    text = "".join(traceback.format_exception(error)).strip().replace("\n", "\n\t")
    print(f"FAIL {name}: {error!r}\n\t{text}", flush=True)
    return True


def _end(failed: int) -> None:
    print(f"cases {len(CASES)} failed {failed}")
    sys.exit(failed > 0)


def main(client: Any) -> None:
    """Runs all cases one after another and exits."""
    failed = 0
    for function in CASES:
        error: BaseException | None = None
        try:
            client.delete_prefix(f"/{function.__name__}/")  # of an earlier run
            function(client, f"/{function.__name__}/")
        except BaseException as caught:
            error = caught
        failed += _report(function.__name__, error)
    _end(failed)


async def main_async(client: Any) -> None:
    """The same for cases that are coroutines."""
    failed = 0
    for function in CASES:
        assert inspect.iscoroutinefunction(function)
        error: BaseException | None = None
        prefix = f"/a-{function.__name__}/".encode()
        try:
            await client.delete_prefix(prefix)  # of an earlier run
            await asyncio.wait_for(function(client, prefix), SECONDS_MAX)
        except BaseException as caught:
            error = caught
        failed += _report(function.__name__, error)
    _end(failed)
