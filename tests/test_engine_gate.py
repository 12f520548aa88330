"""The whole gate on real engines: an option that slows vLLM fails it, and nothing changed never does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import bench, scenario

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]

VLLM = """{{name: {name}, kind: vllm, model: "builtin:tiny", env: {{VLLM_CPU_KVCACHE_SPACE: 1}},
     args: {{max_model_len: 512, enforce_eager: true, enable_prefix_caching: false{more}}}}}"""
OLLAMA = """{{name: {name}, kind: ollama, model: "builtin:tiny", options: {{num_thread: 1}},
     env: {{OLLAMA_NUM_PARALLEL: 2, OLLAMA_CONTEXT_LENGTH: 1024{more}}}}}"""
SCENARIO = """name: gate
engines:
  - {before}
  - {after}
workload: {{kind: synthetic, input_tokens: 48, output_tokens: 12}}
load:
  - {{kind: concurrency, levels: [{streams}], requests: 100}}
warmup: {{requests: 4}}
gate:
  limits: {{{limit}: 20%}}
  min_repeats: 3
  max_repeats: {most}
"""


def gated(folder: Path, engine: str, change: str, **more: object) -> tuple[int, str]:
    """(exit code, all that was said) of a gate between an engine and the same with a change."""
    before, after = engine.format(name="before", more=""), engine.format(name="after", more=change)
    text = SCENARIO.format(before=before, after=after, **more)
    done = bench("gate", "run", scenario(folder, text=text), "--baseline", "before", "--candidate", "after",
                 "--out", folder / "run", "--write", folder / "gate.md", timeout_s=1700)  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_vllm_with_fewer_sequences_at_a_time_fails_the_gate(tmp_path: Path) -> None:
    """One request at a time instead of eight: the time to the first token is that of a queue."""
    code, said = gated(tmp_path, VLLM, ", max_num_seqs: 1", streams=8, limit="ttft_p50", most=3)
    assert code == 1, said
    verdict = json.loads((tmp_path / "run" / "gate.json").read_text())
    (check,) = [check for check in verdict["checks"] if not check["guard"]]
    assert check["design"] == "interleaved"
    assert check["change_low"] > 0.2
    assert "**FAIL**" in (tmp_path / "gate.md").read_text()


def test_a_change_that_changes_nothing_never_fails(tmp_path: Path) -> None:
    code, said = gated(tmp_path, OLLAMA, ", OLLAMA_KEEP_ALIVE: 30m", streams=2, limit="ttft_p95", most=6)
    assert code in (0, 3), said
