"""Answers dropped at every hop: the same (session, sequence) comes again and is executed once.

The applier leaves out results, the gateway leaves out proposals, a proxy cuts the connections of
clients in the middle of answers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.base.failpoint import FOLDER_VARIABLE, VARIABLE
from tests.faults.history import Verdict, Writers
from tests.faults.proxy import Proxy
from tests.support.node import Node

HOPS = {"applier to gateway": "applier:result:40:drop", "to consensus": "gateway:proposal:40:drop"}


def drop_messages(folder: Path, point: str, answers: int, seed: int) -> Verdict:
    node = Node(folder / "data", env={VARIABLE: point, FOLDER_VARIABLE: str(folder)})
    node.start()
    try:
        writers = Writers(node.endpoint, count=4, seed=seed, timeout=90)
        writers.start()
        writers.wait_answered(answers, 240)
        writers.finish()
        verdict = writers.check()
    finally:
        node.stop()
    node.fsck()
    return verdict


def cut_connections(folder: Path, answers: int, seed: int, window: bool = True) -> Verdict:
    node = Node(folder / "data", env={} if window else {"KVNODE_TEST_NO_WINDOW": "1"})
    node.start()
    proxy = Proxy(node.zmq_port, seed)
    proxy.start()
    try:
        writers = Writers(proxy.endpoint, count=4, seed=seed, timeout=90)
        writers.start()
        writers.wait_answered(answers, 240)
        proxy.cutting = False
        writers.finish()
        verdict = writers.check()
        print(f"\nconnections cut: {proxy.cuts}, {proxy.dropped_bytes} bytes dropped; {verdict}")
    finally:
        proxy.close()
        node.stop()
    node.fsck()
    return verdict


@pytest.mark.parametrize("hop", HOPS)
def test_dropped_inside_the_node(tmp_path: Path, hop: str) -> None:
    verdict = drop_messages(tmp_path, HOPS[hop], answers=1000, seed=5)
    print(f"\n{hop}, every 40th message dropped: {verdict}")
    assert verdict.sound, "\n".join(verdict.notes)
    assert verdict.unknown == 0


def test_cut_connections(tmp_path: Path) -> None:
    verdict = cut_connections(tmp_path, answers=1500, seed=6)
    assert verdict.sound, "\n".join(verdict.notes)
    assert verdict.repeated > 0 and verdict.unknown == 0


def test_cut_connections_without_the_window_are_noticed(tmp_path: Path) -> None:
    verdict = cut_connections(tmp_path, answers=600, seed=7, window=False)
    assert verdict.doubled > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_long(tmp_path: Path) -> None:
    for number, hop in enumerate(HOPS):
        verdict = drop_messages(tmp_path / str(number), HOPS[hop], answers=10_000, seed=50)
        print(f"\n{hop}, every 40th message dropped: {verdict}")
        assert verdict.sound and verdict.unknown == 0, "\n".join(verdict.notes)
    verdict = cut_connections(tmp_path / "cut", answers=15_000, seed=60)
    assert verdict.sound and verdict.unknown == 0, "\n".join(verdict.notes)
