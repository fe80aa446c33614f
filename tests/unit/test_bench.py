"""The benchmarks' own arithmetic: their data, ratios and verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gen
from bench.common import Row, Sample, figure
from kvnode._core.loadcore import encode_put_batches, key_text
from kvnode.proto import kvnodepb_pb2


def samples(*values: float) -> list[Sample]:
    return [Sample(value) for value in values]


def test_the_files_hold_the_load_generators_keys(tmp_path: Path) -> None:
    records, lines = tmp_path / "records", tmp_path / "lines"
    gen.write_records(records, 9, 120, first=7)
    gen.write_jsonl(lines, 9, 120, first=7)
    batches = encode_put_batches(records.read_bytes(), 50)
    puts = [put for body in batches for put in kvnodepb_pb2.PutBatch.FromString(body).puts]
    assert [put.key for put in puts] == [key_text(9, 7 + i) for i in range(120)]
    assert {len(put.value) for put in puts} == {256}
    assert len({put.value for put in puts}) == 120
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert rows == [{"key": p.key.decode(), "value": p.value.decode()} for p in puts]


def test_chunks_do_not_show_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    gen.write_records(whole, 3, 100)
    monkeypatch.setattr(gen, "CHUNK", 7)
    gen.write_records(cut, 3, 100)
    assert whole.read_bytes() == cut.read_bytes()


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    row = Row("puts", "/s", 2, 5, True, samples(10, 100, 10), samples(20, 700, 60))
    assert row.ratio() == 6
    assert row.verdict() == "aim"


@pytest.mark.parametrize(
    ("higher", "kvnode", "verdict"),
    [(True, 10, "aim"), (True, 4, "ok"), (True, 3.9, "BELOW"), (False, 1, "aim"),
     (False, 1.6, "ok"), (False, 1.7, "BELOW")],
)
def test_a_verdict_knows_which_side_is_better(higher: bool, kvnode: float, verdict: str) -> None:
    bounds = (2, 4) if higher else (0.8, 0.5)
    row = Row("x", "s", *bounds, higher, samples(2), samples(kvnode))
    assert row.verdict() == verdict


def test_a_missing_side_has_no_ratio() -> None:
    row = Row("x", "s", 1, 1, True, samples(2))
    assert row.ratio() is None
    assert row.verdict() == "-"


def test_figures_are_short() -> None:
    assert [figure(v) for v in (123456.7, 250.04, 1.2345)] == ["123,457", "250.0", "1.23"]
