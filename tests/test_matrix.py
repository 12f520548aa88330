"""`matrix:` of a scenario file: which engines come of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.matrix import expanded
from harness.scenario import from_resolved
from harness.scenariofile import load_scenario

FILE = """\
name: grid
engines:
  - {name: one, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, args: {time_scale: 0.2}}
  - {name: two, kind: sim, model: meta-llama/Llama-3.1-8B-Instruct, policy: ollama}
%s
load: [{kind: concurrency, levels: [2], requests: 20}]
"""


def test_every_engine_once_for_each_combination(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(FILE % "matrix: {quantization: [bf16, fp8], args.max_num_seqs: [8, 16]}")
    scenario = load_scenario(path)
    assert [e.name for e in scenario.engines] == [
        f"{name}-{form}-{seqs}" for name in ("one", "two") for form in ("bf16", "fp8") for seqs in (8, 16)
    ]  # fmt: skip
    second = scenario.engines[1]
    assert second.kind == "sim"
    assert (second.quantization, second.args) == ("bf16", {"time_scale": 0.2, "max_num_seqs": 16})
    again = from_resolved(scenario.resolved())  # what a resumed run reads: not multiplied once more
    assert again == scenario
    assert again.hash() == scenario.hash()


def test_names_are_made_of_the_values() -> None:
    made = expanded([{"name": "v"}], {"model": ["org/Model 8B", "./x/y"], "args.kv": [None, True]})
    assert [e["name"] for e in made] == ["v-Model-8B-None", "v-Model-8B-True", "v-y-None", "v-y-True"]
    assert made[0] == {"name": "v-Model-8B-None", "model": "org/Model 8B", "args": {"kv": None}}


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ("matrix: {quantization: []}", "wants a list of values"),
        ("matrix: {quantization: fp8}", "wants a list of values"),
        ("matrix: {model.name: [a]}", "leads through `model`"),
        ("matrix: {quantisation: [a]}", "unknown key"),
        ("matrix: {quantization: [bf16, bf16]}", "is there twice"),
        ("matrix: [a]", "matrix"),
    ],
)
def test_what_cannot_be_multiplied_is_refused(tmp_path: Path, matrix: str, said: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(FILE % matrix)
    with pytest.raises(InputError, match=said):
        load_scenario(path)
