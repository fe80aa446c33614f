"""kill -9 of a node's processes under etcd's Go client: see tests/clients/go/resume.

The client writes and watches all the while. Its watches resume by themselves: no event is missing,
none comes twice, all are the history's; no acknowledged write is lost, none is there twice.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.clients import programs
from tests.faults.test_kill import wait_reborn
from tests.support.node import Node
from tests.support.process import descendants

ROLES = ("gateway", "consensus", "applier")
WRITERS = 4
CHECK_EVERY = 20
ANSWER_SECONDS_MAX = 200


class Resume:
    """The Go program, a line of command and a line of answer at a time."""

    def __init__(self, endpoint: str) -> None:
        self.process = subprocess.Popen(
            [str(_program()), endpoint, str(WRITERS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> dict[str, int]:
        """Figures of an answer; fails with what the program found wrong."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        line = self._line()
        assert line.startswith("ok "), line or f"the program ended: {self.process.wait()}"
        words = line.removeprefix("ok ").split()
        return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=False)}

    def end(self) -> None:
        """Ends it if it still runs."""
        self.process.kill()
        self.process.wait()


def _program() -> Path:
    try:
        return programs.go("go", "resume")
    except programs.Missing as reason:
        pytest.skip(str(reason))


def kill_under_client(folder: Path, rounds: int, seed: int, node_share: float = 0.05) -> None:
    """`rounds` times: one process dies (now and then the whole node), the client goes on."""
    rng = random.Random(seed)
    _program()
    node = Node(folder / "data", "--checkpoint-interval", "200ms")
    node.start()
    client = Resume(f"127.0.0.1:{node.port}")
    killed = dict.fromkeys((*ROLES, "node"), 0)
    longest: list[int] = []
    begun = time.monotonic()
    try:
        for number in range(rounds):
            client.ask(f"wait {rng.choice((1, 5, 30, 100))}")
            role = "node" if rng.random() < node_share else rng.choice(ROLES)
            killed[role] += 1
            if role == "node":
                below = descendants(node.pid)
                os.kill(node.pid, signal.SIGKILL)
                node.kill()
                assert below
                node.start()
            else:
                wait_reborn(node, role, node.kill_process(role))
            longest.append(client.ask("wait 1")["longest"])
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                client.ask("check")
        figures = client.ask("end")
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, killed {killed}: {error}\n" + "\n".join(node.tail)) \
            from None
    finally:
        client.end()
        node.stop()
    node.fsck()
    longest.sort()
    print(f"\nclientv3, seed {seed}: killed {killed} in {time.monotonic() - begun:.0f} s; "
          f"{figures['revision']} revisions, {figures['events']} events at 6 watches, all the "
          f"history's; {figures['unsure']} writes given up; longest write around a kill: p50 "
          f"{longest[len(longest) // 2]} ms, max {longest[-1]} ms")
    assert figures["events"] > 0


def test_clientv3_goes_on_after_kills(tmp_path: Path) -> None:
    kill_under_client(tmp_path, rounds=20, seed=int(os.environ.get("KVNODE_SEED", 41)))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_clientv3_goes_on_after_many_kills(tmp_path: Path, seed: int) -> None:
    seed = int(os.environ.get("KVNODE_SEED", seed))
    kill_under_client(tmp_path, rounds=250, seed=seed)
