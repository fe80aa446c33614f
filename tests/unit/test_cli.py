"""The command line: etcdctl's output and exit statuses, errors, start-up cost.

Expected texts were taken from etcdctl 3.7.1 against etcd 3.7.1; cluster and member ids are the toy
node's.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kvnode.cli import output
from kvnode.cli.fault import Fault
from kvnode.cli.main import _COMMANDS, run, with_command
from kvnode.cli.txn import parse_compare, split_words, unquote
from kvnode.proto import rpc_pb2
from tests.unit.native_server import CLUSTER, MEMBER, FakeNode


class Done(NamedTuple):
    status: int
    out: bytes
    err: str


Run = Callable[..., Done]


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as node:
        yield node


@pytest.fixture
def bare(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = run(arguments)
        out, err = capsysbinary.readouterr()
        return Done(status, out, err.decode())

    return call


@pytest.fixture
def kv(node: FakeNode, bare: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("KVNODE_ENDPOINTS", node.endpoint)
    return bare


def header(revision: int) -> str:
    return (
        f'"header":{{"cluster_id":{CLUSTER},"member_id":{MEMBER},"revision":{revision},'
        f'"raft_term":2}}'
    )


def ok(done: Done) -> bytes:
    assert (done.status, done.err) == (0, "")
    return done.out


def test_put_and_get(kv: Run) -> None:
    assert ok(kv("put", "a", "1")) == b"OK\n"
    assert ok(kv("put", "a", "2", "--prev-kv")) == b"OK\na\n1\n"
    assert ok(kv("put", "b", "3", "-w", "json")).decode() == f"{{{header(4)}}}\n"
    assert ok(kv("put", "a", "4", "--prev-kv", "-w=json")).decode() == (
        f'{{{header(5)},"prev_kv":{{"key":"YQ==","create_revision":2,"mod_revision":3,"version":2,'
        f'"value":"Mg=="}}}}\n'
    )
    assert ok(kv("get", "a")) == b"a\n4\n"
    assert ok(kv("get", "a", "-w", "json")).decode() == (
        f'{{{header(5)},"kvs":[{{"key":"YQ==","create_revision":2,"mod_revision":5,"version":3,'
        f'"value":"NA=="}}],"count":1}}\n'
    )
    assert ok(kv("get", "a", "b")) == b"a\n4\n"
    assert ok(kv("get", "", "--prefix")) == b"a\n4\nb\n3\n"
    assert ok(kv("get", "", "--from-key", "--order", "DESCEND")) == b"b\n3\na\n4\n"
    assert ok(kv("get", "nokey")) == b""
    assert ok(kv("get", "nokey", "-w", "json")).decode() == f"{{{header(5)}}}\n"
    assert ok(kv("get", "", "--prefix", "--keys-only")) == b"a\n\nb\n\n"
    assert ok(kv("get", "a", "--print-value-only")) == b"4\n"
    assert ok(kv("get", "a", "--hex")) == b"\\x61\n\\x34\n"
    assert ok(kv("get", "", "--prefix", "--limit", "1", "-w", "json")).decode() == (
        f'{{{header(5)},"kvs":[{{"key":"YQ==","create_revision":2,"mod_revision":5,"version":3,'
        f'"value":"NA=="}}],"more":true,"count":2}}\n'
    )
    assert ok(kv("get", "", "--prefix", "--sort-by", "value", "--order", "ascend", "--limit=1",
                 "--consistency", "s")) == b"b\n3\n"  # fmt: skip


def test_count_only(kv: Run) -> None:
    kv("put", "a", "1")
    assert ok(kv("get", "", "--prefix", "--count-only")) == b"1\n"
    done = kv("get", "a", "--count-only", "-w", "json")
    assert ok(done).decode() == f'{{{header(2)},"count":1}}\n'


def test_put_from_stdin_and_odd_bytes(kv: Run) -> None:
    assert ok(kv("put", "s", stdin=b"line\n\0\xff")) == b"OK\n"
    assert ok(kv("get", "s", "--print-value-only")) == b"line\n\0\xff\n"
    assert ok(kv("put", "--", "-dash", "-v")) == b"OK\n"
    assert ok(kv("get", "--", "-dash")) == b"-dash\n-v\n"
    assert ok(kv("put", "key\udcff", "value\udc80")) == b"OK\n"
    assert ok(kv("get", "key\udcff")) == b"key\xff\nvalue\x80\n"
    assert ok(kv("put", "e", "")) == b"OK\n"
    assert ok(kv("put", "s", "--ignore-value", "--prev-kv", "--lease", "7b")) == (
        b"OK\ns\nline\n\0\xff\n"
    )
    assert b'"lease":123}' in ok(kv("get", "s", "-w", "json"))


def test_del(kv: Run) -> None:
    for key in "abcd":
        kv("put", key, key * 2)
    assert ok(kv("del", "nokey")) == b"0\n"
    assert ok(kv("del", "a", "--prev-kv")) == b"1\na\naa\n"
    assert ok(kv("del", "b", "--prev-kv", "-w", "json")).decode() == (
        f'{{{header(7)},"deleted":1,"prev_kvs":[{{"key":"Yg==","create_revision":3,'
        f'"mod_revision":3,"version":1,"value":"YmI="}}]}}\n'
    )
    assert ok(kv("del", "c", "d", "--range")) == b"1\n"
    assert ok(kv("del", "", "--from-key")) == b"1\n"
    assert ok(kv("del", "x", "--prefix", "-w", "json")).decode() == f"{{{header(9)}}}\n"


def test_del_of_a_range_waits(kv: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("kvnode.cli.kv.time.sleep", slept.append)
    done = kv("del", "a", "b")
    assert (done.status, done.out, slept) == (0, b"0\n", [2])
    assert 'Keys between "a" and "b" will be deleted' in done.err


def test_txn(kv: Run) -> None:
    kv("put", "k", "1")
    text = b'mod("k") > "0"\nval("k") = "1"\n\nput k 2\nget k\ndel nope\n\nput k 3\n\n'
    assert ok(kv("txn", stdin=text)) == b"SUCCESS\n\nOK\n\nk\n2\n\n0\n"
    text = b'ver("k") = "0"\n\n\nget k\nput k2 "some \\"x\\" v"\n\n'
    assert ok(kv("txn", stdin=text)) == b"FAILURE\n\nk\n2\n\nOK\n"
    assert ok(kv("get", "k2", "--print-value-only")) == b'some "x" v\n'
    text = b'ver("k") > "0"\n\nget k\nput k 5 --prev-kv\ndel k2 --prev-kv\n\n\n'
    assert ok(kv("txn", "-w", "json", stdin=text)).decode() == (
        f'{{{header(5)},"succeeded":true,"responses":[{{"Response":{{"response_range":{{"header":'
        f'{{"revision":5}},"kvs":[{{"key":"aw==","create_revision":2,"mod_revision":3,"version":2,'
        f'"value":"Mg=="}}],"count":1}}}}}},{{"Response":{{"response_put":{{"header":{{"revision":'
        f'5}},"prev_kv":{{"key":"aw==","create_revision":2,"mod_revision":3,"version":2,"value":'
        f'"Mg=="}}}}}}}},{{"Response":{{"response_delete_range":{{"header":{{"revision":5}},'
        f'"deleted":1,"prev_kvs":[{{"key":"azI=","create_revision":4,"mod_revision":4,"version":1,'
        f'"value":"c29tZSAieCIgdg=="}}]}}}}}}]}}\n'
    )
    assert ok(kv("txn", stdin=b'lease("k") != "a"\nc("k") < "9"\n\n\n\n')) == b"SUCCESS\n"
    assert ok(kv("txn", "-i", stdin=b'\nput nl "a\\nb"\nget nl\n\n\n')) == (
        b"compares:\nsuccess requests (get, put, del):\nfailure requests (get, put, del):\n"
        b"SUCCESS\n\nOK\n\nnl\na\nb\n"
    )


@pytest.mark.parametrize(
    ("stdin", "status", "error"),
    [
        (b'foo("k") = "0"\n\n\n\n', 3, 'malformed comparison: foo("k") = "0" (unknown target foo)'),
        (b'ver("k") ? "0"\n\n\n\n', 3, "malformed comparison"),
        (b'ver("k") == "0"\n\n\n\n', 3, "unknown operator =="),
        (b'ver(k) = "0"\n\n\n\n', 3, 'malformed comparison: ver(k) = "0"'),
        (b'ver("k") = "x"\n\n\n\n', 3, 'invalid txn compare request: ver("k") = "x"'),
        (b'ver("k") = "9223372036854775808"\n\n\n\n', 3, "invalid txn compare request"),
        (b"\nbogus x y\n\n\n", 3, "invalid txn request: bogus x y"),
        (b"\nput\n\n\n", 3, "invalid txn request: put"),
        (b"\nput k\n\n\n", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
        (b"\nget k --nope\n\n\n", 3, "invalid txn request: get k --nope"),
        (b'ver("k") = "1"\n', 3, "EOF"),
        (b'\nput a "\\q"\n\n\n', 3, "invalid escape"),
    ],
)
def test_bad_txn(kv: Run, stdin: bytes, status: int, error: str) -> None:
    done = kv("txn", stdin=stdin)
    assert (done.status, done.out) == (status, b"")
    assert done.err.startswith(f"Error: {error}") or error in done.err


def test_compaction(kv: Run) -> None:
    kv("put", "a", "1")
    kv("put", "a", "2")
    assert ok(kv("compaction", "3", "--physical")) == b"compacted revision 3\n"
    done = kv("compaction", "3")
    assert done.status == 1
    assert done.err.startswith(
        "Error: etcdserver: mvcc: required revision has been compacted\nHint: "
    )


def test_status_and_defrag(kv: Run, node: FakeNode) -> None:
    assert ok(kv("status")).decode() == (
        f"{node.endpoint}, {MEMBER:x}, 3.7.0, 3.7.0, 20 kB, 12 kB, 40%, 2.1 GB, true, false, 2, "
        f"26, 26, , , false\n"
    )
    assert ok(kv("status", "-w", "json")).decode() == (
        f'[{{"Endpoint":"{node.endpoint}","Status":{{{header(1)},"version":"3.7.0","dbSize":20480,'
        f'"leader":{MEMBER},"raftIndex":26,"raftTerm":2,"raftAppliedIndex":26,"dbSizeInUse":12288,'
        f'"storageVersion":"3.7.0","dbSizeQuota":2147483648}}}}]\n'
    )
    done = kv("defrag", "--endpoints", f"{node.endpoint},tcp://127.0.0.1:1",
              "--command-timeout", "300ms")  # fmt: skip
    assert done.status == 1
    assert done.out.startswith(f"Finished defragmenting kvnode member[{node.endpoint}]. ".encode())
    assert "Failed to defragment kvnode member[tcp://127.0.0.1:1]" in done.err


def test_verify_of_a_new_state_and_of_damage(bare: Run, tmp_path: Path) -> None:
    from kvnode.env.store import create_generation, set_current

    state, wal = tmp_path / "member" / "state", tmp_path / "member" / "wal"
    state.mkdir(parents=True)
    wal.mkdir()
    done = bare("verify", str(tmp_path))
    assert (done.status, done.out) == (1, b"")
    assert "no generation here" in done.err
    create_generation(state, 1, 1 << 26)
    set_current(state, 1)
    done = bare("verify", str(tmp_path))
    assert b"state: sound: generation 1, applied index 0, 0 keys" in done.out
    assert b"wal:   sound" in done.out or "wal:   damaged" in done.err
    checkpoint = next(p for p in (state / "00000001").iterdir() if "checkpoint" in p.name.lower())
    checkpoint.write_bytes(b"x" * checkpoint.stat().st_size)
    done = bare("verify", str(tmp_path))
    assert done.status == 1
    assert "state: damaged: " in done.err


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        ("get", 128, "get command needs one argument as key and an optional argument as range_end"),
        ("get a b --prefix", 128, "too many arguments, only accept one argument when `--prefix`"),
        ("get a --prefix --from-key", 128, "`--prefix` and `--from-key` cannot be set"),
        ("get a --keys-only --count-only", 128, "`--keys-only` and `--count-only` cannot be set"),
        ("get a --order FOO", 4, "bad sort order FOO"),
        ("get a --sort-by FOO", 4, "bad sort target FOO"),
        ("get a --consistency x", 4, 'unknown consistency flag "x"'),
        ("get a --min-mod-rev 9 --max-mod-rev 2", 4, "--min-mod-rev 9 is greater"),
        ("get a -w table", 4, "unsupported output format"),
        ("get a --print-value-only -w json", 128, "print-value-only is only for"),
        ("get a --bogus", 1, "No such option"),
        ("get a --limit x", 1, "Invalid value for '--limit'"),
        ("get a --rev 99", 1, "etcdserver: mvcc: required revision is a future revision"),
        ("get a --limit 9223372036854775808", 1, "Invalid value for '--limit'"),
        ("bogus", 1, "No such command 'bogus'"),
        ("watch a", 1, "etcdctl has it: `etcdctl watch`"),
        ("put", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
        ("put x", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
        ("put a v --ignore-value", 128, "put command needs only 1 argument when 'ignore-value'"),
        ("put a v --lease zz", 128, "bad lease ID"),
        ("put nk --ignore-value", 1, "etcdserver: key not found"),
        ("del", 128, "del command needs one argument as key and an optional argument"),
        ("del a b --prefix", 128, "too many arguments"),
        ("del x --prefix --from-key", 128, "`--prefix` and `--from-key` cannot be set"),
        ("txn extra", 128, "txn command does not accept argument"),
        ("compaction", 128, "compaction command needs 1 argument"),
        ("compaction x", 1, 'revision "x" is not a number'),
        ("compaction 999", 1, "etcdserver: mvcc: required revision is a future revision"),
        ("get a --endpoints 127.0.0.1:2379", 128, 'endpoint "127.0.0.1:2379" is not tcp://'),
        ("get a --command-timeout 5", 128, '--command-timeout "5": must be a duration'),
        ("verify /nonexistent", 128, "/nonexistent does not exist"),
        ("verify /proc/self/fd", 128, "is missing: is /proc/self/fd a kvnode data directory?"),
        ("wal dump /nonexistent", 128, "/nonexistent does not exist"),
        ("serve --nam x", 1, "unknown flag --nam; did you mean --name?"),
        ("config show --link tcp", 1, '--link "tcp": must be unix or zmq'),
    ],
)
def test_failures(kv: Run, arguments: str, status: int, error: str) -> None:
    done = kv(*arguments.split())
    assert done.err.startswith("Error: ")
    assert error in done.err
    assert (done.status, done.out) == (status, b"")


def test_empty_key(kv: Run) -> None:
    done = kv("get", "")
    assert (done.status, done.err.splitlines()[0]) == (1, "Error: etcdserver: key is not provided")


def test_nobody_there(bare: Run) -> None:
    done = bare("get", "a", "--endpoints", "tcp://127.0.0.1:1", "--command-timeout", "200ms")
    assert done.status == 1
    assert "no answer from tcp://127.0.0.1:1 in 0.2 s; nothing was changed" in done.err
    assert "kvnode serve" in done.err


def test_global_flags_before_and_after(bare: Run, node: FakeNode) -> None:
    bare("--endpoints", node.endpoint, "put", "a", "1")
    assert bare("--endpoints", "tcp://127.0.0.1:1", "-w", "json", "--token", "t", "get", "a",
                "--endpoints", node.endpoint, "-w", "simple").out == b"a\n1\n"  # fmt: skip
    assert node.hellos[-1].token == "t"


def test_reads_open_no_session(kv: Run, node: FakeNode) -> None:
    kv("get", "a")
    assert not node.hellos[-1].want_session
    kv("put", "a", "1")
    assert node.hellos[-1].want_session


def test_version_and_help(bare: Run) -> None:
    assert ok(bare("version")).startswith(b"kvnode version: ")
    text = ok(bare("--help")).decode()
    assert all(f"  {name} " in text for name in _COMMANDS)
    assert b"--quota-backend-bytes" in ok(bare("serve", "--help"))
    for name in ("get", "put", "del", "txn", "compaction", "status", "verify", "wal", "defrag"):
        assert ok(bare(name, "--help"))


def test_version_as_etcd_prints_it(bare: Run) -> None:
    lines = ok(bare("--version")).decode().splitlines()
    assert "etcd Version: 3.7.1" in lines
    assert lines[0].startswith("kvnode Version: ")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], ["serve"]),
        (["--data-dir", "x"], ["serve", "--data-dir", "x"]),
        (["-name=n1"], ["serve", "-name=n1"]),
        (["-wal-dir", "x"], ["serve", "-wal-dir", "x"]),
        (["--bogus"], ["serve", "--bogus"]),
        (["--version"], ["version", "--all"]),
        (["get", "--version"], ["get", "--version"]),
        (["--endpoints=x", "get", "a"], ["--endpoints=x", "get", "a"]),
        (["-w", "json", "status"], ["-w", "json", "status"]),
        (["-wjson", "status"], ["-wjson", "status"]),
        (["--help"], ["--help"]),
        (["-h"], ["-h"]),
    ],
)
def test_without_a_command_it_serves(given: list[str], meant: list[str]) -> None:
    assert with_command(given) == meant


def test_config_show(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_NAME", "n1")
    done = bare("config", "show", "--origin", "--gateways=2")
    assert b"name = n1    # variable ETCD_NAME\n" in done.out
    assert b"gateways = 2    # flag --gateways\n" in done.out
    assert b"data-dir = n1.kvnode    # default, derived\n" in done.out
    assert b'"gateways": 1' in ok(bare("config", "show", "-w", "json"))


def test_serve_hands_over_the_config(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvnode.procs import supervisor

    seen = []
    monkeypatch.setattr(supervisor, "run", lambda *given: seen.append(given) or 7)
    done = bare("serve", "--name", "n1", "--snapshot-count=1")
    (config, warnings), *_ = seen
    assert (done.status, config.name) == (7, "n1")
    assert "--snapshot-count" in warnings[0]


def test_interrupt_and_broken_pipe(kv: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvnode.client.sync.Client.call", interrupt)
    assert kv("get", "a").status == 5


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (20480, "20 kB"), (2 << 30, "2.1 GB")],
)
def test_human_bytes(size: int, text: str) -> None:
    assert output.human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ns"), (4.136439e-3, "4.136439ms"), (1.5, "1.5s"), (123.5, "2m3.5s"),
        (1.5e-6, "1.5µs"), (3661, "1h1m1s"), (0.000999, "999µs"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (r'"a\tb\\\"\x00\377\u00e9\U0001F600"', b'a\tb\\"\0\xff\xc3\xa9\xf0\x9f\x98\x80'),
        (r"`raw\n`", rb"raw\n"),
        ('""', b""),
    ],
)
def test_unquote(text: str, data: bytes) -> None:
    assert unquote(text, "") == data


def test_txn_words() -> None:
    assert split_words("put q 'x y'  \"a b\" c") == ["put", "q", "x y", "a b", "c"]
    with pytest.raises(Fault):
        unquote(r'"\uD800"', "")
    raw = parse_compare('value("k") != "v"')
    assert rpc_pb2.Compare.FromString(raw) == rpc_pb2.Compare(
        result=3, target=3, key=b"k", value=b"v")  # fmt: skip


def test_help_imports_little() -> None:
    """`kvnode --help` and a command before its I/O stay free of the heavy packages."""
    code = (
        "import sys\n"
        "from kvnode.cli.main import run\n"
        "run(['--help']); early = set(sys.modules)\n"
        "run(['get', '--help'])\n"
        "print(sorted({'numpy', 'structlog', 'rich', 'yaml', 'lmdb', 'zmq', 'google.protobuf',"
        " 'kvnode.client'} & early), sorted({'numpy', 'structlog', 'rich', 'yaml', 'lmdb',"
        " 'google.protobuf'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] []"
