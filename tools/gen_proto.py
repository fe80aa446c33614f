"""Compiles kvnode/proto/*.proto into *_pb2.py (descriptors) and *_pb2.pyi (for the type checker).

Run by `make setup`; needs grpcio-tools. Writes a file only when its content changes, so that a
second run leaves every timestamp as it is. See kvnode/proto/__init__.py for why the modules are
not protoc's own.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "kvnode/proto"

MODULE = '''"""Messages of {proto}; written by tools/gen_proto.py, do not edit."""
# ruff: noqa
{imports}from kvnode.proto import load

load(
    globals(),
{literal}
)
'''


def compile_all(names: list[str], out: Path) -> descriptor_pb2.FileDescriptorSet:
    """Runs protoc: .pyi files into `out`, descriptors of all files returned in import order."""
    descriptors = out / "all.binpb"
    include = Path(grpc_tools.__file__).parent / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"-I{include}",
            f"--pyi_out={out}",
            "--include_imports",
            f"--descriptor_set_out={descriptors}",
            *(f"{FOLDER}/{name}" for name in names),
        ]
    )
    if status:
        raise SystemExit(status)
    return descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())


def module_text(file: descriptor_pb2.FileDescriptorProto) -> str:
    """The text of one generated module."""
    needed = [Path(name).with_suffix("") for name in file.dependency]
    imports = "".join(
        f"from {'.'.join(path.parent.parts)} import {path.name}_pb2\n" for path in needed
    )
    raw = file.SerializeToString()
    literal = "\n".join(f"    {raw[i : i + 60]!r}" for i in range(0, len(raw), 60))
    return MODULE.format(proto=file.name, imports=imports, literal=literal)


def write_if_changed(path: Path, text: str) -> bool:
    """True when the file was written."""
    if path.exists() and path.read_text() == text:
        return False
    path.write_text(text)
    return True


def main() -> int:
    names = sorted(path.name for path in (ROOT / FOLDER).glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        files = compile_all(names, out)
        written = 0
        for file in files.file:
            target = ROOT / re.sub(r"\.proto$", "_pb2.py", file.name)
            written += write_if_changed(target, module_text(file))
            stub = out / re.sub(r"\.proto$", "_pb2.pyi", file.name)
            written += write_if_changed(target.with_suffix(".pyi"), stub.read_text())
    print(f"proto: {len(names)} files, {written} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
