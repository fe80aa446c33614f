"""Unary calls that took longer than --warning-unary-request-duration are noted."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode._core.h2 import Http2

UNARY, STREAM = "/x.S/Unary", "/x.S/Stream"
NOTED_MAX = 64


class Site:
    """Two methods whose calls are ended by the test, and a clock of its own."""

    def __init__(self) -> None:
        self.http2 = Http2()
        self.now = 1_000_000
        self.http2.set_clock(self.now)
        self.calls: list[Any] = []
        self.http2.route_python(UNARY, self.calls.append, False, False)
        self.http2.route_python(STREAM, self.calls.append, False, True)

    def run(self, path: str, took_us: int, status: int = 0) -> None:
        self.http2.open_local(path, lambda data: None, lambda code, text: None)
        self.http2.flush()
        self.now += took_us
        self.http2.set_clock(self.now)
        self.calls.pop().finish(status, "")
        self.http2.flush()


@pytest.fixture
def site() -> Site:
    made = Site()
    made.http2.set_slow(300_000)
    return made


def test_only_what_is_longer(site: Site) -> None:
    site.run(UNARY, 300_000)
    site.run(UNARY, 300_001, 14)
    assert site.http2.take_slow() == ([(UNARY, 300_001, 14)], 1)
    assert site.http2.take_slow() == ([], 0)


def test_a_stream_may_take_its_time(site: Site) -> None:
    site.run(STREAM, 10_000_000)
    assert site.http2.take_slow() == ([], 0)


def test_the_list_is_bounded_and_the_count_is_not(site: Site) -> None:
    for _ in range(NOTED_MAX + 5):
        site.run(UNARY, 400_000)
    calls, count = site.http2.take_slow()
    assert (len(calls), count) == (NOTED_MAX, NOTED_MAX + 5)
    site.run(UNARY, 400_000)
    assert site.http2.take_slow()[1] == 1


def test_off() -> None:
    site = Site()
    site.run(UNARY, 10_000_000)
    assert site.http2.take_slow() == ([], 0)
