"""The documents are true to the code: tables, names, links, commands.

Tables between `<!-- name: begin -->` and `<!-- name: end -->` are made here; KVNODE_REWRITE=1
writes them anew.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, replace
from functools import cache
from pathlib import Path

import pytest

from kvnode.api.http import client_app
from kvnode.api.later import LATER
from kvnode.api.metrics import render
from kvnode.api.service import SERVICES
from kvnode.base.config import OPTIONS, Config, parse_list
from kvnode.base.foreign import INERT, REFUSED
from kvnode.cli.main import cli
from tests.unit.test_metrics import readings

ROOT = Path(__file__).parents[2]
ETCD_PAGE = ROOT / "docs" / "etcd.md"
PAGES = [ROOT / name for name in (
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md",
    "docs/protocol.md", "docs/etcd.md")]  # fmt: skip
DURATIONS = (("h", 3600), ("m", 60), ("s", 1))


# --- tables -------------------------------------------------------------------------------------


def table(head: str, rows: Iterable[Iterable[str]]) -> list[str]:
    cells = head.count("|") - 1
    return [head, "|" + "---|" * cells, *(f"| {' | '.join(row)} |" for row in rows), ""]


def default(name: str) -> str:
    """The default as one would write it."""
    (item,) = [f for f in fields(Config) if f.name == name.replace("-", "_")]
    value = item.default
    assert value is not MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        for unit, seconds in DURATIONS:
            if value and not value % seconds:
                return f"{value / seconds:g}{unit}"
        return f"{value * 1000:g}ms" if value else "0"
    return str(value)


def flags() -> list[str]:
    def rows(wanted: Callable[[str], bool]) -> list[list[str]]:
        return [
            [f"`--{name}`", f"`{default(name)}`" if default(name) else "", option.help]
            for name, option in OPTIONS.items()
            if wanted(name)
        ]

    def grouped(known: dict[str, str]) -> list[list[str]]:
        reasons = dict.fromkeys(known.values())
        return [
            [", ".join(f"`--{name}`" for name in sorted(known) if known[name] == why), why]
            for why in reasons
        ]

    head = "| flag | default | |"
    lines = ["etcd's flags that act:", ""]
    lines += table(head, rows(lambda n: OPTIONS[n].etcd and OPTIONS[n].acts))
    lines += ["Checked and kept, but nothing acts on them yet; setting one gives a warning:", ""]
    lines += table(head, rows(lambda n: OPTIONS[n].etcd and not OPTIONS[n].acts))
    lines += ["Accepted; what is said of them once at start:", ""]
    lines += table("| flags | |", grouped({n: why for n, (_, why) in INERT.items()}))
    lines += ["Refused, because ignoring one would promise what is not kept:", ""]
    lines += table("| flags | |", grouped({n: why for n, (_, why) in REFUSED.items()}))
    lines += ["A name with `experimental-` before it is the same flag. kvnode's own:", ""]
    lines += table(head, rows(lambda n: not OPTIONS[n].etcd))
    return lines[:-1]


def rpcs() -> list[str]:
    def names(service: str, later: bool) -> str:
        return ", ".join(r.name for r in SERVICES[service] if (r.path in LATER) == later)

    head = "| service | served | not in this version |"
    return table(head, ([f"`{s}`", names(s, False), names(s, True)] for s in SERVICES))[:-1]


def metrics() -> list[str]:
    text = render(replace(readings(), features={"A": True})).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE)
    return table("| name | type | |", ([f"`{n}`", kinds[n], h] for n, h in helps))[:-1]


@pytest.mark.parametrize("make", [rpcs, flags, metrics], ids=lambda make: make.__name__)
def test_table(make: Callable[[], list[str]]) -> None:
    begin, end = (f"<!-- {make.__name__}: {word} -->" for word in ("begin", "end"))
    text = ETCD_PAGE.read_text()
    before, rest = text.split(begin + "\n")
    found, after = rest.split(end)
    wanted = "\n".join(make()) + "\n"
    if os.environ.get("KVNODE_REWRITE"):
        ETCD_PAGE.write_text(before + begin + "\n" + wanted + end + after)
    else:
        assert found == wanted, "make data-rewrite writes docs/etcd.md's tables anew"


def test_http_paths_are_named() -> None:
    """Every page that the client port serves stands in the table of docs/etcd.md."""

    class Site:
        config = Config(advertise_client_urls=parse_list("http://localhost:2379"))

    router = client_app(Site()).inner  # type: ignore[arg-type, attr-defined]
    paths = {route.path for route in router.routes}
    text = ETCD_PAGE.read_text()
    missing = [p for p in sorted(paths) if p.count("/") == 1 and f"`{p}`" not in text
               and f" {p}/..." not in text]  # fmt: skip
    assert paths and missing == []


# --- names --------------------------------------------------------------------------------------


@cache
def sources() -> dict[str, str]:
    """Text of each source file by its path in the repository."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True,
    )  # fmt: skip
    listed = done.stdout.split() or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py*")]
    kinds = (".py", ".pyx", ".pxd", ".proto", ".sh", ".h")
    return {
        name: (ROOT / name).read_text() if name.endswith(kinds) else ""
        for name in listed
        if (ROOT / name).is_file()
    }


def code_spans(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_are_named_exist(page: Path) -> None:
    missing = []
    for span in code_spans(page):
        if not re.fullmatch(r"[\w./-]+\.(pyx|pxd|py|md|toml|proto)", span) or span.startswith("x."):
            continue
        if not any(name == span or name.endswith(f"/{span}") for name in sources()):
            missing.append(span)
    assert [m for m in missing if m not in ("codes.py",)] == []


def test_functions_that_architecture_names_exist() -> None:
    """`Class.name` is a member of that class; a plain name in a table of a life is in the code."""
    text = "\n".join(sources().values())
    page = ROOT / "ARCHITECTURE.md"
    missing = []
    for span in code_spans(page):
        if found := re.fullmatch(r"([A-Z]\w+)\.([a-z_]\w*)", span):
            kind, name = found.groups()
            is_class = re.search(rf"\bclass {kind}\b", text)
            is_member = re.search(rf"\b(def|cdef|cpdef)\b.*\b{name}\(|\bself\.{name}\b", text)
            if not (is_class and is_member):
                missing.append(span)
    lives = re.findall(r"^## Life of .*?(?=^## )", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(lives) >= 3
    for cell in re.findall(r"^\|[^|]*\|([^|]*)\|", "\n".join(lives), re.MULTILINE):
        for span in re.findall(r"`([a-z_]\w*)`", cell):
            if not re.search(rf"\b{span}\(", text):
                missing.append(span)
    assert missing == []


# --- links and commands -------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text().replace("\n", " ")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        to = page if not file else (page.parent / file)
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands(page: Path) -> None:
    """`kvnode COMMAND` in a shell's block is a command; `make TARGET` anywhere is a target."""
    text = page.read_text()
    known = set(cli.list_commands(None))  # type: ignore[arg-type]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    blocks = "\n".join(re.findall(r"```(?:console|sh)\n(.*?)```", text, re.DOTALL))
    said = re.findall(r"(?:^|\| |/)(?:\$ )?(?:\.venv/bin/)?kvnode (?:-w json )?([a-z]\S*)", blocks,
                      re.MULTILINE)  # fmt: skip
    wrong = [name for name in said if name not in known and not name.startswith("0.")]
    wrong += [name for name in re.findall(r"(?:^|[`$] ?)make ([a-z-]+)", text, re.MULTILINE)
              if name not in targets]  # fmt: skip
    assert wrong == []
