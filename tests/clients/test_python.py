"""Python's etcd3 and aetcd: cases of our own, and the tests that their source packages carry."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.clients import programs
from tests.clients.conftest import Target
from tests.clients.suite import Result, need, run, say
from tests.support.etcd import Etcd, find, why_missing
from tests.support.node import Node

OWN_SECONDS_MAX = 280
VERSIONS = {"etcd3": "0.12.0", "aetcd": "1.0.0"}
# What one member without users, and etcdctl 3.7, can't pass by the tests' own making.
LEFT_OUT = {
    "etcd3": {
        "test_get_key_serializable": "stops two of three members",
        "test_get_prefix_serializable": "stops two of three members",
        "test_member_list": "counts three members",
        "test_snapshot": "etcdctl 3.7 has no `snapshot status`",
        "test_user_pwd_auth": "its own import fails with Python 3",
    },
    "aetcd": {"test_snapshot": "etcdctl 3.7 has no `snapshot status`"},
}
# What kvnode doesn't serve yet. One that passes is an error: it must leave this list.
LATER = {
    "etcd3": {},
    "aetcd": {"test_auth": "users"},
}


@pytest.mark.parametrize("client", sorted(VERSIONS))
def test_cases(server: Target, client: str) -> None:
    interpreter = need(programs.python, client)
    script = programs.HERE / "python" / f"{client}_suite.py"
    run(
        f"python {client} {VERSIONS[client]}", server.name,
        [interpreter, script, "127.0.0.1", server.port], cases_min=14,
        env={"PYTHONPATH": str(script.parent)},
    )


@contextlib.contextmanager
def _fresh(server: str, folder: Path) -> Iterator[int]:
    """The port of a server of a test-suite's own: the suites delete every key they find."""
    if server == "etcd":
        with Etcd(folder / "data", "--unsafe-no-fsync") as etcd:
            assert isinstance(etcd, Etcd)
            yield etcd.port
        return
    node = Node(folder / "data")
    with node:
        yield node.port
    node.fsck()


def _own_tests(client: str, server: str, interpreter: Path, source: Path, path: str) -> Result:
    """Runs a client's own tests on a fresh server."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        with _fresh(server, Path(name)) as port:
            endpoint = f"127.0.0.1:{port}"
            done = subprocess.run(
                [interpreter, "-m", "pytest", "-q", "-p", "endpoint_plugin", "-p", "no:warnings",
                 "-p", "no:cacheprovider", "-o", "addopts=", f"--junitxml={report}",
                 "-k", " and ".join(f"not {test}" for test in LEFT_OUT[client]), "tests"],
                cwd=source, capture_output=True, text=True, timeout=OWN_SECONDS_MAX,
                env=os.environ | {
                    "TEST_ENDPOINT": endpoint, "PYTHON_ETCD_HTTP_URL": f"http://{endpoint}",
                    "TEST_ETCD_HTTP_URL": f"http://{endpoint}", "TEST_ETCD_VERSION": "v3.7.1",
                    "PYTHONPATH": str(programs.HERE / "python"), "PATH": path,
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
            )
        assert report.is_file(), done.stdout[-4000:] + done.stderr[-2000:]
        result = Result(f"python {client}'s own tests", server, seconds=time.monotonic() - begun)
        for case in ElementTree.parse(report).iter("testcase"):
            name, problem = case.get("name", "?"), case.find("failure")
            problem = case.find("error") if problem is None else problem
            if problem is not None:
                result.failed.append(f"{name}: {(problem.text or '')[-1500:]}")
            elif case.find("skipped") is not None:
                result.skipped.append(name)
            else:
                result.ok += 1
    return result


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Result]]]:
    """The own tests of each client on each server: all at once, for most of the time they wait."""
    etcdctl = find("etcdctl")
    if etcdctl is None or find("etcd") is None:
        pytest.skip(why_missing())
    path = f"{etcdctl.parent}{os.pathsep}{os.environ['PATH']}"
    chosen = [
        (item.callspec.params["client"], item.callspec.params["kind"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_own_tests
    ]

    def start(client: str, server: str) -> Result:
        interpreter = programs.python(client)
        source = programs.python_source(client, VERSIONS[client], interpreter)
        return _own_tests(client, server, interpreter, source, path)

    with ThreadPoolExecutor(len(chosen)) as pool:
        yield {pair: pool.submit(start, *pair) for pair in chosen}


@pytest.mark.parametrize("kind", ["etcd", "kvnode"])
@pytest.mark.parametrize("client", sorted(VERSIONS))
def test_own_tests(
    client: str, kind: str, own: dict[tuple[str, str], Future[Result]]
) -> None:
    try:
        result = own[client, kind].result(OWN_SECONDS_MAX + 60)
    except programs.Missing as reason:
        pytest.skip(str(reason))
    later = LATER[client] if kind == "kvnode" else {}
    names = {entry.partition(":")[0] for entry in result.failed}
    result.expected = [entry for entry in result.failed if entry.partition(":")[0] in later]
    result.failed = [entry for entry in result.failed if entry not in result.expected]
    say(result)
    assert not result.failed, f"{result.line()}\n" + "\n".join(result.failed)
    assert not (passing := set(later) - names), f"served by now, so no exceptions: {passing}"
    assert result.ok > 60
