"""Prints this machine's Debian package index as JSONL for `kvnode import`.

    python examples/apt_index.py | kvnode import - --job-id apt

Key: /debian/package/NAME/VERSION/ARCHITECTURE/ORIGIN, value: the stanza's fields as JSON. ORIGIN is
the package list it came from, since two lists may hold the same version.

Reads the lists that apt keeps (/var/lib/apt/lists; packed ones through apt-helper). When there is
none it runs `apt-get update` once; if there is still none it ends with status 1 and says why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LISTS = Path("/var/lib/apt/lists")
_PACKED = (".lz4", ".gz", ".xz", ".zst", ".bz2")
_HELPER = "/usr/lib/apt/apt-helper"


def package_lists(folder: Path) -> list[Path]:
    """Files of the package index, packed or not, sorted."""
    return sorted(
        path
        for path in folder.glob("*_Packages*")
        if path.name.endswith("_Packages") or path.suffix in _PACKED
    )


def find_lists(folder: Path) -> list[Path]:
    """The package lists; fetches them if there are none. SystemExit with what is wrong."""
    found = package_lists(folder)
    if found:
        return found
    print(f"no package lists in {folder}; running apt-get update", file=sys.stderr)
    try:
        done = subprocess.run(["apt-get", "update"], stdout=sys.stderr, check=False)
    except FileNotFoundError:
        raise SystemExit("apt-get is not there: this is no Debian or Ubuntu") from None
    found = package_lists(folder)
    if not found:
        raise SystemExit(
            f"still no package lists in {folder}; apt-get update ended with {done.returncode} "
            "(it needs root and the network)"
        )
    return found


def read_list(path: Path) -> str:
    """The text of one list, unpacked by apt's own helper."""
    if path.name.endswith("_Packages"):
        return path.read_text(encoding="utf-8")
    try:
        done = subprocess.run([_HELPER, "cat-file", str(path)], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{path}: cannot unpack it: {error}") from None
    return done.stdout.decode("utf-8")


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The packages of a list: field names to values, continued lines joined by newlines."""
    fields: dict[str, str] = {}
    name = ""
    for line in text.split("\n"):
        if not line:
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if not name:
                raise SystemExit(f"a continued line without a field: {line[:80]!r}")
            fields[name] += "\n" + line[1:]
        else:
            name, colon, value = line.partition(":")
            if not colon:
                raise SystemExit(f"not a field: {line[:80]!r}")
            fields[name] = value.strip()
    if fields:
        yield fields


def records(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """(key, value) of every package of every list."""
    for path in paths:
        origin = path.name.partition("_Packages")[0]
        for fields in stanzas(read_list(path)):
            try:
                key = "/".join(("/debian/package", fields["Package"], fields["Version"],
                                fields["Architecture"], origin))  # fmt: skip
            except KeyError as missing:
                raise SystemExit(f"{path}: a package without {missing}: {fields}") from None
            yield key, json.dumps(fields, ensure_ascii=False)


def main() -> None:
    """Prints all records, their number on standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", type=Path, default=LISTS, help="apt's folder of lists")
    lists = find_lists(parser.parse_args().lists)
    count = 0
    write = sys.stdout.write
    for key, value in records(lists):
        write(json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n")
        count += 1
    if not count:
        raise SystemExit(f"the {len(lists)} package lists hold no package")
    print(f"{count} packages from {len(lists)} lists", file=sys.stderr)


if __name__ == "__main__":
    main()
