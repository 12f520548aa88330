"""A run of a real engine is scored against what was predicted of it, shows that, and betters the next prediction."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from bench.predicted import queries_of
from bench.scored import foretell, keep, score
from harness import receipts
from harness.scenario import from_resolved
from harness.store import RunFolder
from reports import foretold, html, markdown, text
from reports.summary import summarize
from sizing.predict import predict

REFERENCE = Path("results/reference")


def _kv(name: str) -> tuple[float, float, str, float]:
    """(predicted KV tokens, what vLLM logged, the label, the interval's width) of a reference run."""
    record = RunFolder.open(REFERENCE / name).read_run()
    query = queries_of(from_resolved(record.scenario), "H100 SXM 80GB", None, {"vllm": "0.24.0"})[0][2]
    assert not isinstance(query, str)
    found = predict(query).memory["kv_capacity_tokens"]
    logged = next(f.value for f in record.engines[0].facts if f.name == "kv_capacity_tokens")
    assert isinstance(logged, int | float)
    return float(found.value or 0), float(logged), found.label, float(found.high or 0) - float(found.low or 0)


def test_a_start_at_another_utilization_makes_kv_tokens_exact_and_the_report_shows_the_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEBENCH_HOME", str(tmp_path / "home"))
    before = _kv("1b-bf16")
    shutil.copytree(REFERENCE / "1b-bf16-util06", tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    found = foretell(folder, folder.read_run())
    summary = summarize(folder)
    keep(score(folder.path, summary=summary, found=found))
    predicted, logged, label, width = _kv("1b-bf16")
    assert abs(predicted / logged - 1) < 0.01
    assert abs(predicted / logged - 1) < abs(before[0] / before[1] - 1)
    assert (before[2], label) == ("derived", "calibrated")
    assert width < before[3]

    # What was kept with the run is what was predicted before it taught anything, also when it is made again.
    kept = (folder.path / foretold.FILE).read_text()
    foretold.save(folder, [])
    assert (folder.path / foretold.FILE).read_text() == kept
    assert {item["label"] for item in json.loads(kept)} == {"derived"}

    summary = summarize(folder)
    rows = foretold.rows(summary)
    assert [row[2] for row in rows if row[0] == "start"] == ["KV tokens"]
    assert {"TTFT p50", "TPOT p95", "Output tok/s"} <= {row[2] for row in rows}
    assert {row[-1] for row in rows} <= {"yes", "no"}
    out = io.StringIO()
    Console(file=out, width=200).print(text.render(summary))
    assert "within their 80 % interval" in out.getvalue()
    assert "Predicted against measured" in markdown.render(summary)
    assert "Predicted against measured" in html.write_all(folder)[1].read_text()

    # A second lesson, predicted with what the first taught, does not undo it.
    first, speed = receipts.read("vllm_start"), receipts.read("speed")
    keep(score(folder.path, summary=summary))
    again = receipts.read("vllm_start")[len(first) :]
    assert again[0]["extra_bytes"] == pytest.approx(first[0]["extra_bytes"], abs=2**20)
    for one, two in zip(speed, receipts.read("speed")[len(speed) :], strict=True):
        # The server process in front does not scale with the steps: about the same, not exactly.
        assert two["measured_over_predicted"] == pytest.approx(one["measured_over_predicted"], rel=0.35)


def test_a_damaged_prediction_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    assert foretold.load(folder) == []
    (folder.path / foretold.FILE).write_text('[{"engine": 1}]')
    assert foretold.load(folder) == []
