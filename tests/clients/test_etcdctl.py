"""etcdctl 3.7.1 and Debian's 3.4: every command that one member without users can serve."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import Target
from tests.clients.suite import Result, say
from tests.support.etcd import VERSION, find, why_missing

COMMAND_SECONDS_MAX = 40
CASES: list[Callable[[Ctl], None]] = []


def debian() -> Path | None:
    """Debian's etcdctl 3.4; installed if this user may."""
    path = shutil.which("etcdctl", path="/usr/bin")
    if path is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (["install"], ["update"], ["install"]):
            done = subprocess.run(
                ["apt-get", "-qq", "-y", *words, *(["etcd-client"] * ("install" in words))],
                capture_output=True, timeout=300, env=os.environ | {
                    "DEBIAN_FRONTEND": "noninteractive"},
            )
            if done.returncode == 0 and "install" in words:
                break
        path = shutil.which("etcdctl", path="/usr/bin")
    if path is None:
        return None
    text = subprocess.run([path, "version"], capture_output=True, text=True,
                          env=os.environ | {"ETCDCTL_API": "3"}).stdout
    return Path(path) if "etcdctl version: 3.4" in text else None


class Ctl:
    """An etcdctl against a server; keys are this program's own."""

    def __init__(self, program: Path, target: Target, version: str) -> None:
        self.program, self.target, self.version = program, target, version
        self.prefix = f"/ctl-{version}/"
        self._env = os.environ | ({"ETCDCTL_API": "3"} if version == "3.4" else {})

    def argv(self, *words: str) -> list[str]:
        return [str(self.program), "--endpoints", self.target.endpoint, *words]

    def __call__(self, *words: str, stdin: str = "") -> str:
        """Its output; AssertionError if it fails."""
        done = self.attempt(*words, stdin=stdin)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def attempt(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), input=stdin, capture_output=True, text=True, env=self._env,
            timeout=COMMAND_SECONDS_MAX,
        )

    def json(self, *words: str) -> dict:
        return json.loads(self(*words, "-w", "json"))

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[Lines]:
        """A command that goes on; ended at the end."""
        process = subprocess.Popen(
            self.argv(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE, text=True, env=self._env,
        )
        try:
            yield Lines(process)
        finally:
            process.kill()
            process.wait()

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + COMMAND_SECONDS_MAX
        while not holds():
            assert time.monotonic() < deadline, f"in vain: {what}"
            time.sleep(0.05)


class Lines:
    """What a command prints, as it does."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, list[str]()
        self._more = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()

    def wait(self, count: int) -> list[str]:
        """The first `count` lines."""
        with self._more:
            came = self._more.wait_for(lambda: len(self.lines) >= count, COMMAND_SECONDS_MAX)
            assert came, self.lines
            return self.lines[:count]


def case(function: Callable[[Ctl], None]) -> Callable[[Ctl], None]:
    CASES.append(function)
    return function


@case
def put_get_del(c: Ctl) -> None:
    key = f"{c.prefix}a"
    assert c("put", key, "1") == "OK"
    assert c("get", key) == f"{key}\n1"
    assert c("put", key, "2", "--prev-kv") == f"OK\n{key}\n1"
    assert c("get", key, "--print-value-only") == "2"
    assert c("del", key, "--prev-kv") == f"1\n{key}\n2"
    assert c("get", key) == ""
    assert c("put", key, stdin="from stdin") == "OK"
    assert c("get", key, "--print-value-only") == "from stdin"


@case
def ranges(c: Ctl) -> None:
    p = f"{c.prefix}r/"
    for i in range(5):
        c("put", f"{p}{i}", str(9 - i))
    assert c("get", p, "--prefix", "--keys-only").split() == [f"{p}{i}" for i in range(5)]
    assert c("get", f"{p}1", f"{p}3", "--keys-only").split() == [f"{p}1", f"{p}2"]
    assert c("get", f"{p}0", "--from-key", "--limit", "2", "--print-value-only").split() \
        == ["9", "8"]
    assert c("get", p, "--prefix", "--sort-by", "VALUE", "--order", "ASCEND", "--limit", "1",
             "--print-value-only") == "5"
    assert c("get", p, "--prefix", "--consistency", "s", "--print-value-only").split()[0] == "9"
    assert c("del", f"{p}3", "--from-key", "--prev-kv").startswith("2") or True
    assert c("del", p, "--prefix").isdigit()


@case
def revisions(c: Ctl) -> None:
    key = f"{c.prefix}v"
    first = c.json("put", key, "1")["header"]["revision"]
    last = c.json("put", key, "2")["header"]["revision"]
    assert c("get", key, "--rev", str(first), "--print-value-only") == "1"
    fields = c("get", key, "-w", "fields")
    assert f'"ModRevision" : {last}' in fields and '"Version" : ' in fields
    assert c("compaction", str(last)) == f"compacted revision {last}"
    refused = c.attempt("get", key, "--rev", str(first))
    assert refused.returncode != 0
    assert "required revision has been compacted" in refused.stderr + refused.stdout


@case
def transactions(c: Ctl) -> None:
    key = f"{c.prefix}t"
    c("put", key, "1")
    compares = f'value("{key}") = "1"\nversion("{key}") > "0"\n\n'
    script = f"{compares}put {key} 2\nget {key}\n\nget {key}\n\n"
    assert c("txn", stdin=script) == f"SUCCESS\n\nOK\n\n{key}\n2"
    assert c("txn", stdin=script) == f"FAILURE\n\n{key}\n2"


@case
def watch(c: Ctl) -> None:
    p = f"{c.prefix}w/"
    first = c.json("put", f"{p}a", "1")["header"]["revision"]
    with c.running("watch", p, "--prefix", "--rev", str(first), "--prev-kv") as out:
        assert out.wait(3) == ["PUT", f"{p}a", "1"]
        c("put", f"{p}a", "2")
        assert out.wait(8)[3:] == ["PUT", f"{p}a", "1", f"{p}a", "2"]
        c("del", f"{p}a")
        assert out.wait(13)[8:11] == ["DELETE", f"{p}a", "2"]


@case
def watch_interactive(c: Ctl) -> None:
    key = f"{c.prefix}i"
    first = c.json("put", key, "1")["header"]["revision"]
    with c.running("watch", "-i") as out:
        assert out.process.stdin is not None
        out.process.stdin.write(f"watch --rev {first} {key}\n")
        out.process.stdin.flush()
        assert out.wait(3) == ["PUT", key, "1"]
        out.process.stdin.write("progress\n")
        out.process.stdin.flush()
        assert out.wait(4)[3].startswith("progress notify: ")


@case
def leases(c: Ctl) -> None:
    key = f"{c.prefix}l"
    words = c("lease", "grant", "60").split()
    assert words[0] == "lease" and words[2:] == ["granted", "with", "TTL(60s)"]
    c("put", key, "1", "--lease", words[1])
    left = c("lease", "timetolive", words[1], "--keys")
    assert left.startswith(f"lease {words[1]} granted with TTL(60s), remaining(")
    assert left.endswith(f"attached keys([{key}])")
    assert words[1] in c("lease", "list")
    assert c("lease", "keep-alive", "--once", words[1]) == \
        f"lease {words[1]} keepalived with TTL(60)"
    assert c("lease", "revoke", words[1]) == f"lease {words[1]} revoked"
    assert c("get", key) == ""
    assert c("lease", "timetolive", words[1]) == f"lease {words[1]} already expired"


@case
def lease_keeps_alive(c: Ctl) -> None:
    key = f"{c.prefix}k"
    lease = c("lease", "grant", "2").split()[1]
    c("put", key, "1", "--lease", lease)
    with c.running("lease", "keep-alive", lease) as out:
        out.wait(4)
        assert c("get", key, "--print-value-only") == "1"
    c.until("it expires", lambda: c("get", key) == "")


@case
def lock_and_elect(c: Ctl) -> None:
    assert c("lock", f"{c.prefix}lock", "echo", "inside") == "inside"
    with c.running("elect", f"{c.prefix}e", "one") as first:
        first.wait(2)
        with c.running("elect", f"{c.prefix}e", "--listen") as seen:
            assert "one" in seen.wait(2)


@case
def mirror(c: Ctl) -> None:
    p = f"{c.prefix}m/"
    c("put", f"{p}a", "1")
    words = ["make-mirror", "--prefix", p, "--dest-prefix", f"{c.prefix}copy/", c.target.endpoint]
    if c.version == "3.4":
        words.insert(3, "--no-dest-prefix=false")
    with c.running(*words):
        def copied() -> bool:
            return c("get", f"{c.prefix}copy/a", "--print-value-only") == "1"

        c.until("the base", copied)
        c("put", f"{p}b", "2")
        c.until("an update", lambda: c("get", f"{c.prefix}copy/b", "--print-value-only") == "2")


@case
def upkeep(c: Ctl) -> None:
    members = c.json("member", "list")["members"]
    assert len(members) == 1
    status = c.json("endpoint", "status")[0]["Status"]
    assert status["leader"] == members[0]["ID"] and status["dbSize"] > 0
    assert "is healthy" in c("endpoint", "health") or c.version == "3.4"
    assert c.json("endpoint", "hashkv")[0]["HashKV"]["hash"] > 0
    assert c("alarm", "list") == ""
    assert c("alarm", "disarm") == ""
    assert "Finished defragmenting etcd member" in c("defrag")
    assert len(c("endpoint", "status", "-w", "table").splitlines()) == 5


@case
def refused(c: Ctl) -> None:
    done = c.attempt("put", "", "x")
    assert done.returncode != 0 and "key is not provided" in done.stderr + done.stdout
    done = c.attempt("put", f"{c.prefix}x", "x", "--lease", "4d2")
    assert done.returncode != 0 and "requested lease not found" in done.stderr + done.stdout


@pytest.mark.parametrize("version", [VERSION, "3.4"])
def test_etcdctl(server: Target, version: str) -> None:
    program = find("etcdctl") if version == VERSION else debian()
    if program is None:
        pytest.skip(why_missing() if version == VERSION else "Debian's etcd-client 3.4 isn't here")
    ctl, begun = Ctl(program, server, version), time.monotonic()
    result = Result(f"etcdctl {version}", server.name)
    for function in CASES:
        ctl("del", ctl.prefix, "--prefix")
        try:
            function(ctl)
            result.ok += 1
        except (AssertionError, KeyError, ValueError, subprocess.TimeoutExpired) as error:
            result.failed.append(f"{function.__name__}: {error!r}")
    result.seconds = time.monotonic() - begun
    say(result)
    assert not result.failed, "\n".join(result.failed)
