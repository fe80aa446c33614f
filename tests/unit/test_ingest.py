"""Records from JSONL and manifests: what is read, where it is kept, what is refused and why."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest

from kvnode.ingest.jsonl import read_jsonl
from kvnode.ingest.manifests import read_manifests
from kvnode.ingest.records import BadRecord, Chunk, IngestError, Limits
from kvnode.ingest.resources import Resources
from kvnode.ingest.sources import digest, find_sources

DATA = Path(__file__).parents[1] / "data" / "ingest"


def jsonl(data: bytes, skip_bad: bool = False, batch: int = 1000, block: int = 1 << 20,
          limits: Limits | None = None) -> list[Chunk]:
    return list(read_jsonl(io.BytesIO(data), "s", 0, 0, batch, limits or Limits(), skip_bad, block))


def pairs(chunks: list[Chunk]) -> list[tuple[bytes, bytes]]:
    return [pair for chunk in chunks for pair in zip(chunk.keys, chunk.values, strict=True)]


def bads(chunks: list[Chunk]) -> list[BadRecord]:
    return [bad for chunk in chunks for bad in chunk.bad]


def manifests(text: str | bytes, skip_bad: bool = False, is_json: bool = False) -> list[Chunk]:
    data = text.encode() if isinstance(text, str) else text
    return list(read_manifests(data, "s", 0, Resources(), Limits(), skip_bad, is_json))


def test_jsonl_sample() -> None:
    assert pairs(jsonl((DATA / "records.jsonl").read_bytes())) == [
        (b"plain", b"text"), (b"again", b"first"), (b"order", b"fields in any order"),
        (b"again", b"second"), (b"binary", b"\0\xff\1\2"),
        ("unicode/\u00e9\U0001f600".encode(), b"\0\n\"\xc3\xa9"), (b"empty", b""),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_jsonl_positions(seed: int) -> None:
    """Every line has one position, however blocks and batches fall, blanks and bad lines in it."""
    rng = random.Random(seed)
    wanted, lines = {}, []
    for i in range(rng.randrange(1, 200)):
        kind = rng.random()
        if kind < 0.05:
            lines.append(b"" if kind < 0.03 else b" \t")
        elif kind < 0.08:
            lines.append(b'{"key":1}')
        else:
            wanted[i] = b"k%d" % i
            lines.append(b'{"key":"k%d","value":"%s"}' % (i, b"v" * rng.randrange(40)))
    data = rng.choice([b"\n", b"\r\n"]).join(lines) + rng.choice([b"", b"\n"])
    count = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    at, got = 0, {}
    for chunk in jsonl(data, True, rng.randrange(1, 50), rng.randrange(1, 2000)):
        assert chunk.start == at
        at = chunk.end
        for i, key in enumerate(chunk.keys):
            position = chunk.start + i if chunk.positions is None else chunk.positions[i]
            assert chunk.line_of(i) == position + 1
            got[position] = key
        cut = chunk.cut(chunk.start + 1, chunk.end)
        assert cut.keys == [k for p, k in got.items() if chunk.start + 1 <= p < chunk.end]
    assert at == count and got == wanted


@pytest.mark.parametrize(("line", "reason"), [
    (b'{"key":"a"}', "neither `value` nor `value_b64`"),
    (b'{"value":"a"}', "missing required field `key`"),
    (b'{"key":"","value":"a"}', "key is empty"),
    (b'{"key":1,"value":"a"}', "Expected `str`"),
    (b'{"key":"a","value":1}', "Expected `str"),
    (b'{"key":"a","value":null}', "Expected `str"),
    (b'{"key":"a","value":"b","value_b64":"aGk="}', "both there"),
    (b'{"key":"a","value":"b","lease":7}', "unknown field `lease`"),
    (b'{"key":"a","value_b64":"?"}', "base64"),
    (b'{"key":"a","value":"b"', "not JSON"),
    (b'{"key":"a","value":"b"}{"key":"c","value":"d"}', "not JSON"),
    (b'{"key":"a",', "not JSON"),
    (b'["a","b"]', "not a record"),
    (b"hello", "not JSON"),
    (b'{"key":"a","value":"\xff"}', "not JSON"),
    (b'{"key":"a","value":"\\ud800"}', "not JSON"),
    (b"\x7fELF\x02\x01\x00\x00", "binary data"),
    (b'{"key":"%s","value":"b"}' % (b"k" * 4097), "4097 bytes; at most 4096"),
    (b'{"key":"a","value":"%s"}' % (b"v" * (3 << 19)), "at most 1572864"),
])  # fmt: skip
def test_bad_line(line: bytes, reason: str) -> None:
    data = b'{"key":"x","value":"1"}\n' + line + b'\n{"key":"y","value":"2"}\n'
    chunks = jsonl(data)
    assert pairs(chunks) == [(b"x", b"1")], "nothing behind it"
    [bad] = bads(chunks)
    assert str(bad).startswith("s:2: ") and reason in bad.reason
    assert bad.position == 1 and bad.status == 3
    chunks = jsonl(data, skip_bad=True)
    assert pairs(chunks) == [(b"x", b"1"), (b"y", b"2")] and len(bads(chunks)) == 1


def test_record_over_lines_is_refused() -> None:
    """Two records in one line and one in two lines: as many records as lines, and yet not JSONL."""
    two = b'{"key":"a","value":"1"}{"key":"b","value":"2"}\n{"key":"c",\n"value":"3"}\n'
    assert len(bads(jsonl(two, skip_bad=True))) == 3


def test_prefix() -> None:
    limits = Limits(prefix=b"p/")
    assert pairs(jsonl(b'{"key":"a","value":"1"}\n', limits=limits)) == [(b"p/a", b"1")]
    assert "empty" in bads(jsonl(b'{"key":"","value":"1"}\n', limits=limits))[0].reason


def test_manifest_sample() -> None:
    got = {key.decode(): json.loads(value) for key, value in
           pairs(manifests((DATA / "manifests.yaml").read_bytes()))}  # fmt: skip
    assert list(got) == [
        "/registry/services/specs/default/web", "/registry/minions/one",
        "/registry/deployments/prod/web", "/registry/namespaces/prod",
        "/registry/roles/prod/reader",
        "/registry/apiextensions.k8s.io/customresourcedefinitions/geese.birds.example.org",
        "/registry/birds.example.org/geese/grey",
        "/registry/birds.example.org/canaries/default/first",
    ]  # fmt: skip
    web = got["/registry/services/specs/default/web"]
    assert web["metadata"]["labels"] == {"true": True, "=": "="}
    assert [port["port"] for port in web["spec"]["ports"]] == [15, 1000]
    assert got["/registry/roles/prod/reader"]["kind"] == "Role"


@pytest.mark.parametrize(("version", "kind", "path"), [
    ("v1", "Endpoints", "services/endpoints/default/"),
    ("v1", "ReplicationController", "controllers/default/"),
    ("v1", "PersistentVolume", "persistentvolumes/"),
    ("networking.k8s.io/v1", "Ingress", "ingress/default/"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies/default/"),
    ("networking.k8s.io/v1", "IngressClass", "ingressclasses/"),
    ("storage.k8s.io/v1", "StorageClass", "storageclasses/"),
    ("apiregistration.k8s.io/v1", "APIService", "apiregistration.k8s.io/apiservices/"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers/default/"),
    ("monitoring.coreos.com/v1", "Prometheus", "monitoring.coreos.com/prometheuses/default/"),
])  # fmt: skip
def test_places(version: str, kind: str, path: str) -> None:
    text = json.dumps({"apiVersion": version, "kind": kind, "metadata": {"name": "n"}})
    for is_json in (True, False):
        [(key, value)] = pairs(manifests(text, is_json=is_json))
        assert key.decode() == f"/registry/{path}n"
        assert value == b'{"apiVersion":"%s","kind":"%s","metadata":{"name":"n"}}' % (
            version.encode(), kind.encode())  # fmt: skip


@pytest.mark.parametrize(("text", "line", "reason"), [
    ("kind: Pod\napiVersion: v1\n", 4, "needs a `metadata.name`"),
    ("kind: Pod\napiVersion: v1\nmetadata: {}\n", 4, "`metadata.name` is missing"),
    ("kind: Pod\napiVersion: v1\nmetadata: {name: ''}\n", 4, "is empty"),
    ("kind: Pod\napiVersion: v1\nmetadata: {name: 5}\n", 4, "put it in quotes"),
    ("kind: Pod\napiVersion: v1\nmetadata: {name: a/b}\n", 4, "may not contain"),
    ("kind: Pod\napiVersion: v1\nmetadata: {name: a, namespace: ..}\n", 4, "may not contain"),
    ("kind: Pod\napiVersion: v1\nmetadata: {generateName: a}\n", 4, "generateName"),
    ("apiVersion: v1\nmetadata: {name: a}\n", 4, "needs a `kind`"),
    ("kind: Pod\nmetadata: {name: a}\n", 4, "needs an `apiVersion`"),
    ("kind: PodList\napiVersion: v1\nitems: {a: 1}\n", 4, "`items` must be a list"),
    ("- a\n", 4, "an object is needed, this is a list"),
    ("hello\n", 4, "not an object"),
    ("a: b: c\n", 4, "not YAML"),
    ("a: 1\na: 2\n", 5, "already set"),
    ("a: [1\n", 5, "not YAML"),
    ("a: \x00\x01\x7fELF\n", 1, "not YAML"),
    ("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata: {x: " + "v" * (3 << 19) + "}\n",
     4, "at most 1572864"),
])  # fmt: skip
def test_bad_manifest(text: str, line: int, reason: str) -> None:
    good = "{kind: Pod, apiVersion: v1, metadata: {name: %s}}\n"
    data = "#\n" + good % "x" + "---\n" + text + "---\n" + good % "z"
    chunks = manifests(data)
    assert [key for key, _ in pairs(chunks)] == [b"/registry/pods/default/x"]
    [bad] = bads(chunks)
    assert reason in bad.reason, bad.reason
    if line > 1:
        assert bad.line == line
    chunks = manifests(data, skip_bad=True)
    assert len(pairs(chunks)) == 2 and len(bads(chunks)) == 1


@pytest.mark.parametrize("text", [
    "", "{", '{"a":1} x', '{"a":1,"a":2}', '{"a":NaN}', '"x"', "[" * 100000, "\x00", "[1,2]",
])  # fmt: skip
def test_bad_json_file(text: str) -> None:
    assert len(bads(manifests(text, is_json=True))) == 1


def test_sources(tmp_path: Path) -> None:
    for name in ("b.yaml", "a/z.jsonl", "a/x.json", "a/.hidden/q.json", "LICENSE", "c.YML"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = find_sources([str(tmp_path)], None)
    names = [str(Path(source.name).relative_to(tmp_path)) for source in found.sources]
    assert names == ["b.yaml", "c.YML", "a/x.json", "a/z.jsonl"]
    assert [source.format for source in found.sources] == ["yaml", "yaml", "json", "jsonl"]
    assert sorted(Path(path).name for path in found.left_out) == [".hidden", "LICENSE"]
    assert found.bytes_total == 8
    first = digest(found.sources, "")
    assert first == digest(found.sources, "") and first[0] != digest(found.sources, "p")[0]
    (tmp_path / "b.yaml").write_text("[]")
    assert digest(found.sources, "")[1] != first[1]
    for paths in (["-", "-"], [str(tmp_path / "none")], [str(tmp_path / "LICENSE")],
                  [str(tmp_path / "a/.hidden/..")]):  # fmt: skip
        if paths[0].endswith(".."):
            continue
        with pytest.raises(IngestError):
            find_sources(paths, None)
