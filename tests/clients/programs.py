"""The foreign clients' programs: fetched and built once, in build/clients, with pinned versions.

Role: turns tests/clients/{go,coredns,python,node,java,rust} into something that runs. Callers: the
tests beside it, tests/faults/test_clientv3_kill.py.

Invariants:
1. A program is made again only when one of its files, or a tool's version, changed (a stamp holds
   their checksum); two test runs at once take turns (a lock).
2. What a machine lacks is no failure of kvnode's: no tool, no way to a package registry. That is a
   printed skip with its reason (`Missing`). A program that doesn't compile is a failure.
3. Fetching is by the language's own client and its configuration; versions are pinned by go.sum,
   package-lock.json, Cargo.lock, pom.xml and the requirements files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = HERE.parents[1] / "build" / "clients"
FETCH_SECONDS_MAX = 600
BUILD_SECONDS_MAX = 900
_ADDRESS = '[std::env::var("TEST_ENDPOINT").unwrap()]'
ENV: Mapping[str, str] = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}


class Missing(Exception):
    """A program can't be had on this machine; the text is the reason of a skip."""


def tool(name: str, *more_places: str) -> str:
    """The path of a program of the machine's."""
    places = os.pathsep.join([os.environ.get("PATH", ""), *more_places])
    found = shutil.which(name, path=places)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-8:])


def fetch(argv: Sequence[str], folder: Path) -> None:
    """A step that needs a package registry; `Missing` if it fails."""
    try:
        done = subprocess.run(
            argv, cwd=folder, env=ENV, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{Path(argv[0]).name}: no packages in {FETCH_SECONDS_MAX} s") from None
    if done.returncode != 0:
        raise Missing(f"{Path(argv[0]).name}: no packages\n{_tail(done.stdout + done.stderr)}")


def build(argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> str:
    """A step that must succeed; its standard output."""
    done = subprocess.run(
        argv, cwd=folder, env=env or ENV, capture_output=True, text=True,
        timeout=BUILD_SECONDS_MAX,
    )
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def _checksum(folder: Path, names: Sequence[str], tool_version: str) -> str:
    digest = hashlib.sha256(tool_version.encode())
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.is_file() and (not names or below.parts[0] in names):
            digest.update(f"{below}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _turn(name: str) -> Iterator[None]:
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made(
    name: str, source: Path, version: str, make: Callable[[Path], None],
    names: Sequence[str] = (),
) -> Path:
    """The folder of a program, made by `make` if `source` (or `names` in it) changed."""
    with _turn(name):
        folder, stamp = BUILT / name, BUILT / f"{name}.stamp"
        wanted = _checksum(source, names, version)
        if not stamp.is_file() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            folder.mkdir(exist_ok=True)
            make(folder)
            stamp.write_text(wanted)
    return folder


def go(module: str, program: str) -> Path:
    """A Go program: `program` is a folder of tests/clients/`module`, or the module itself (".")."""
    compiler = tool("go", "/usr/local/go/bin")
    version = build([compiler, "version"], HERE)
    source = HERE / module
    name = module if program == "." else f"{module}-{program}"

    def make(folder: Path) -> None:
        fetch([compiler, "mod", "download"], source)
        build([compiler, "build", "-o", str(folder / name), f"./{program}"], source)

    return made(name, source, version, make, ("go.mod", "go.sum", program, "main.go")) / name


def python(name: str) -> Path:
    """The interpreter of a virtual environment with python/`name`.txt in it."""
    source = HERE / "python"

    def make(folder: Path) -> None:
        shutil.rmtree(folder)
        build([sys.executable, "-m", "venv", str(folder)], HERE)
        pip = [str(folder / "bin/python"), "-m", "pip", "-q", "--disable-pip-version-check"]
        fetch([*pip, "install", "-r", str(source / f"{name}.txt")], HERE)

    return made(f"py-{name}", source, sys.version, make, (f"{name}.txt",)) / "bin/python"


def python_source(name: str, version: str, interpreter: Path) -> Path:
    """The unpacked source distribution of a Python package, with its own tests."""

    def make(folder: Path) -> None:
        fetch(
            [str(interpreter), "-m", "pip", "-q", "--disable-pip-version-check", "download",
             "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-d", str(folder),
             f"{name}=={version}"],
            HERE,
        )
        archive = next(folder.glob("*.tar.gz"))
        shutil.unpack_archive(archive, folder, filter="data")

    return made(f"src-{name}", HERE / "python", version, make, (f"{name}.txt",)) / (
        f"{name}-{version}"
    )


def node() -> Path:
    """The folder with node_modules of node/package.json."""
    npm = tool("npm")
    version = build([tool("node"), "--version"], HERE)

    def make(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, folder)
        fetch([npm, "ci", "--omit=dev", "--no-audit", "--no-fund", "--ignore-scripts"], folder)

    return made("node", HERE / "node", version, make, ("package.json", "package-lock.json"))


def java() -> list[str]:
    """The command that runs java/'s program, its classpath in it."""
    machine, compiler, maven = tool("java"), tool("javac"), tool("mvn")
    version = build([compiler, "-version"], HERE)
    source = HERE / "java"

    def make(folder: Path) -> None:
        paths = folder / "classpath"
        fetch(
            [maven, "-q", "-B", "-f", str(source / "pom.xml"), "dependency:build-classpath",
             f"-Dmdep.outputFile={paths}"],
            folder,
        )
        build(
            [compiler, "--release", "17", "-Xlint:all,-processing", "-cp", paths.read_text(), "-d",
             str(folder / "classes"), *map(str, sorted(source.rglob("*.java")))],
            folder,
        )

    folder = made("java", source, version, make)
    return [machine, "-cp", f"{folder / 'classes'}:{(folder / 'classpath').read_text()}", "Suite"]


def _cargo() -> tuple[str, str]:
    cargo = tool("cargo", str(Path.home() / ".cargo/bin"))
    tool("protoc")
    return cargo, build([cargo, "--version"], HERE)


def rust() -> Path:
    """The program of rust/."""
    cargo, version = _cargo()
    source = HERE / "rust"

    def make(folder: Path) -> None:
        fetch([cargo, "fetch", "--locked", "-q"], source)
        build(
            [cargo, "build", "--locked", "--offline", "-q", "--target-dir", str(folder)], source
        )

    return made("rust", source, version, make, ("Cargo.toml", "Cargo.lock", "src")) / (
        "debug/clients"
    )


def rust_own_tests() -> Path:
    """The folder with the test programs of the etcd-client crate itself, its address a variable."""
    cargo, version = _cargo()
    source = HERE / "rust"
    rust()  # fetched, and most of it built

    def make(folder: Path) -> None:
        described = json.loads(build(
            [cargo, "metadata", "--locked", "--offline", "--format-version", "1"], source
        ))
        crate = next(
            Path(entry["manifest_path"]).parent
            for entry in described["packages"] if entry["name"] == "etcd-client"
        )
        copy = folder / "crate"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(crate, copy)
        for path in (copy / "tests").glob("*.rs"):
            text = path.read_text().replace("[DEFAULT_TEST_ENDPOINT]", _ADDRESS)
            path.write_text(text.replace('["localhost:2379"]', _ADDRESS))
        shutil.copy(source / "Cargo.lock", copy / "Cargo.lock")
        fetch(
            [cargo, "test", "--no-run", "-q", "--tests", "--config", "profile.test.debug=0",
             "--target-dir", str(BUILT / "rust")],
            copy,
        )
        found = build(
            [cargo, "test", "--no-run", "--tests", "--config", "profile.test.debug=0",
             "--message-format", "json", "--target-dir", str(BUILT / "rust")],
            copy,
        )
        for line in found.splitlines():
            entry = json.loads(line)
            if entry.get("executable") and entry["target"]["kind"] == ["test"]:
                shutil.copy(entry["executable"], folder / entry["target"]["name"])

    return made("rust-own", source, version, make, ("Cargo.lock",))
