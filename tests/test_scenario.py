"""Scenario files: each fault is named with its file, line and path; what is good survives run.json unchanged."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.loads import ConcurrencyLoad
from harness.scenario import Scenario, from_resolved, json_schema
from harness.scenariofile import load_scenario
from harness.yamlfile import YamlFile
from scenarios import shipped

BASE = """\
name: test
engines:
  - {name: a, kind: sim, model: m}
load:
  - {kind: concurrency, levels: [1], requests: 5}
"""
ENGINE, LOAD = "{name: a, kind: sim, model: m}", "{kind: concurrency, levels: [1], requests: 5}"


def _load(folder: Path, text: str) -> Scenario:
    path = folder / "test.yaml"
    path.write_text(text)
    return load_scenario(path)


def _faults(folder: Path, text: str) -> list[str]:
    """The lines of the error, without the file's name."""
    with pytest.raises(InputError) as caught:
        _load(folder, text)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(str(folder / "test.yaml") + ":") for line in lines), lines
    return [line.removeprefix(str(folder / "test.yaml") + ":") for line in lines]


FAULTS = {
    "unknown key": (BASE + "wormup: {requests: 2}\n", "6: wormup: unknown key 'wormup'; did you mean 'warmup'?"),
    "unknown key of an engine": (
        BASE.replace("model: m", "model: m, hardwear: x"),
        "3: engines.0.hardwear: unknown key 'hardwear'; did you mean 'hardware'?",
    ),
    "unknown argument of the baseline": (
        BASE.replace(ENGINE, "{name: a, kind: transformers, model: m, args: {bach: 8}}"),
        "3: engines.0.args.bach: unknown key 'bach'; did you mean 'batch'?",
    ),
    "unknown key of a load": (
        BASE.replace("requests: 5", "requests: 5, rate: 3"),
        "5: load.0.rate: unknown key 'rate'; known here: duration, kind, levels, requests, start",
    ),
    "unknown key deep in a workload": (
        BASE.replace(ENGINE, "name: a\n    kind: sim\n    model: m\n    workload:\n      sampling: {top_pp: 1}"),
        "7: engines.0.workload.sampling.top_pp: unknown key 'top_pp'; did you mean 'top_p'?",
    ),
    "an engine where a workload belongs": (
        BASE.replace(ENGINE, "&a " + ENGINE) + "workload: *a\n",
        "6: workload: unknown kind; one of 'synthetic', 'sharegpt', 'jsonl'",
    ),
    "unknown key of a workload": (
        BASE + "workload: {kind: sharegpt, fiel: x}\n",
        "6: workload.fiel: unknown key 'fiel'; did you mean 'file'?",
    ),
    "unknown key of a workload without a kind": (
        BASE + "workload: {input_token: 5}\n",
        "6: workload.input_token: unknown key 'input_token'; did you mean 'input_tokens'?",
    ),
    "unknown key of lengths": (
        BASE + "workload:\n  output_tokens:\n    {kind: normal, mean: 5, std: 1, max: 9}\n",
        "8: workload.output_tokens.std: unknown key 'std'; did you mean 'stddev'?",
    ),
    "unknown kind of lengths": (
        BASE + "workload: {turns: {kind: zipf}}\n",
        "6: workload.turns: unknown kind; one of 'uniform', 'normal', 'lognormal', 'empirical'",
    ),
    "lengths without a kind": (BASE + "workload: {turns: {max: 3}}\n", "6: workload.turns: the key 'kind' is missing"),
    "lengths without a bound": (
        BASE + "workload: {input_tokens: {kind: lognormal, median: 9, sigma: 1}}\n",
        "6: workload.input_tokens.max: the key 'max' is missing",
    ),
    "no length": (BASE + "workload: {input_tokens: 0}\n", "6: workload.input_tokens: input should be greater than or"),
    "a length as text": (
        BASE + "workload: {input_tokens: '9'}\n",
        "6: workload.input_tokens: input should be a valid in",
    ),
    "a pause without a unit": (
        BASE + "workload: {turns: 2, think_time: 2}\n",
        "6: workload.think_time: not a duration: 2",
    ),
    "a pause without turns": (BASE + "workload: {think_time: 2s}\n", "6: workload: `think_time` is between the turns"),
    "a prefix as long as the prompt": (
        BASE + "workload: {input_tokens: 64, shared_prefix: {tokens: 64}}\n",
        "6: workload: `shared_prefix.tokens` (64) is a part of `input_tokens`",
    ),
    "token ids in a session": (
        BASE + "workload: {turns: 2, prompt: token_ids}\n",
        "6: workload: `prompt: token_ids` takes",
    ),
    "token ids in a chat": (
        BASE + "workload: {api: chat, prompt: token_ids}\n",
        "6: workload: `prompt: token_ids` needs",
    ),
    "no such file of conversations": (
        BASE + "workload: {kind: sharegpt, file: none.json}\n",
        "6: workload.file: no such file: ",
    ),
    "a file that is no conversations": (BASE + "workload: {kind: sharegpt, file: test.yaml}\n", "6: workload: "),
    "key twice": (BASE + "name: other\n", "6: name: the key 'name' is there twice"),
    "key twice, deep": (
        BASE.replace("kind: sim", "kind: sim, kind: sim"),
        "3: engines.0.kind: the key 'kind' is there",
    ),
    "wrong unit": (BASE.replace("requests: 5", "duration: 5kg"), "5: load.0.duration: not a duration: '5kg' (write"),
    "bare number": (BASE.replace("requests: 5", "duration: 5"), "5: load.0.duration: not a duration: 5 (write for"),
    "negative": (BASE.replace("requests: 5", "duration: -5s"), "5: load.0.duration: a duration must be finite and not"),
    "zero": (
        BASE.replace("requests: 5", "duration: 0s"),
        "5: load.0.duration: input should be greater than 0, not '0s'",
    ),
    "minutes as YAML 1.1 reads them": (BASE.replace("requests: 5", "duration: 1:30"), "5: load.0.duration: not a dura"),
    "missing name": (BASE.replace("name: test\n", ""), "1: name: the key 'name' is missing"),
    "missing model": (BASE.replace(", model: m", ""), "3: engines.0.model: the key 'model' is missing"),
    "missing rate": (BASE.replace("concurrency, levels: [1]", "poisson"), "5: load.0.rate: the key 'rate' is missing"),
    "missing kind": (BASE.replace("kind: sim, ", ""), "3: engines.0: the key 'kind' is missing"),
    "unknown kind": (
        BASE.replace("kind: sim", "kind: tgi"),
        "3: engines.0: unknown kind; one of 'vllm', 'ollama', 'open",
    ),
    "kind is a list": (BASE.replace("kind: sim", "kind: [sim]"), "3: engines.0: unknown kind; one of"),
    "level 0": (BASE.replace("[1]", "[4, 0]"), "5: load.0.levels.1: input should be greater than or equal to 1, not 0"),
    "level is text": (BASE.replace("[1]", "['4']"), "5: load.0.levels.0: input should be a valid integer, not '4'"),
    "level is true": (BASE.replace("[1]", "[yes]"), "5: load.0.levels.0: input should be a valid integer, not True"),
    "levels twice": (BASE.replace("[1]", "[1, 2, 1]"), "4: load: the load 'c1' is there twice"),
    "no levels": (BASE.replace("[1]", "[]"), "5: load.0.levels: list should have at least 1 item"),
    "requests and duration": (
        BASE.replace("requests: 5", "requests: 5, duration: 5s"),
        "5: load.0: give either `requests` or `duration`",
    ),
    "neither": (BASE.replace(", requests: 5", ""), "5: load.0: give either `requests` or `duration`"),
    "engine twice": (
        BASE.replace("load:", "  - {name: a, kind: sim, model: k}\nload:"),
        "2: engines: the engine 'a' is there twice",
    ),
    "base_url without /v1": (
        BASE.replace("kind: sim", "kind: openai, base_url: 'http://h:1/api/'"),
        "3: engines.0.base_url: must end in /v1: http://h:1/api/v1",
    ),
    "base_url without http": (
        BASE.replace("kind: sim", "kind: openai, base_url: 'h:1/v1'"),
        "3: engines.0.base_url: must start with http:// or https://",
    ),
    "an Ollama's base_url without http": (
        BASE.replace("kind: sim", "kind: ollama, base_url: 'localhost:11434'"),
        "3: engines.0.base_url: must start with http",
    ),
    "unknown target": (
        BASE + "slo:\n  e2e_p99: 1s\n  ttft: 5s\n",
        "8: slo.ttft: unknown target 'ttft': write for example",
    ),
    "target without unit": (BASE + "slo: {ttft_p95: 5}\n", "6: slo.ttft_p95: not a duration: 5"),
    "an env of mappings": (
        BASE.replace("model: m", "model: m, env: {A: {b: 1}}"),
        "3: engines.0.env.A: nothing of this",
    ),
    "a mapping in a list of args": (
        BASE.replace("kind: sim, model: m", "kind: vllm, model: m, args: {b: [1, {c: d}]}"),
        "3: engines.0.args.b.1: nothing of this kind can stand here, not {'c': 'd'}",
    ),
    "command as text": (
        BASE.replace("model: m", "model: m, command: 'sh -c x'"),
        "3: engines.0.command: input should be",
    ),
    "a name that is a path": (BASE.replace("name: test", "name: ../x"), "1: name: only letters, digits"),
    "a name with a line end": (BASE.replace("name: test", 'name: "a\\n"'), "1: name: only letters, digits"),
    "engines is null": (BASE.replace("\n  - " + ENGINE, ""), "2: engines: input should be a valid list, not None"),
    "no YAML": ("a: [1, 2\nb: }", "2: not valid YAML: "),
    "tabs": ("name: t\n\tload: 3\n", "2: not valid YAML: found character '\\t' that cannot start"),
    "control character": (BASE + "seed: \x01\n", "6: not valid YAML: the character #x0001 is not allowed"),
    "two documents": (BASE + "---\n" + BASE, "6: not valid YAML: but found another document"),
    "custom tag": (BASE + "seed: !foo 3\n", "6: not valid YAML: could not determine a constructor for the tag '!foo'"),
    "python tag": (BASE + "seed: !!python/name:os.system\n", "6: not valid YAML: could not determine a constructor"),
    "bytes": (BASE.replace("model: m", "model: !!binary aGk="), "3: engines.0.model: tag:yaml.org,2002:binary is not"),
    "NaN": (BASE + "seed: .nan\n", "6: seed: not a finite number"),
    "inf in a list": (
        BASE.replace("model: m", "model: m, args: {x: [1, -.inf]}"),
        "3: engines.0.args.x.1: not a finite",
    ),
    "a number of thousands of digits": (BASE + "seed: " + "9" * 5000, "6: seed: "),
    "key is a list": ("? [a, b]\n: 3\n" + BASE, "1: a key must be plain text"),
    "merge key": (
        BASE.replace("requests: 5", "<<: {requests: 5}"),
        "5: load.0.<<: merge keys are not supported: write",
    ),
    "unknown alias": ("name: *b\n" + BASE, "1: not valid YAML: found undefined alias 'b'"),
    "only NaN": (".nan", "1: not a finite number"),
    "a list": ("- a\n- b\n", "1: a scenario is a mapping of keys, not a list"),
    "a word": ("hello", "1: a scenario is a mapping of keys, not one value"),
    "empty": ("", "1: engines: the key 'engines' is missing"),
    "only a comment": ("# nothing\n", "1: load: the key 'load' is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_line_and_path(fault: str, tmp_path: Path) -> None:
    text, wanted = FAULTS[fault]
    found = _faults(tmp_path, text)
    assert any(line.startswith(wanted) for line in found), found
    assert all(re.match(r"\d+: ", line) for line in found), found
    assert "Value error" not in "".join(found)


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    found = _faults(tmp_path, BASE.replace("levels: [1]", "levels: [0]") + "repeats: 0\nwormup: 1\n")
    assert [line.split(":")[1].strip() for line in found] == ["load.0.levels.0", "repeats", "wormup"]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "a: " + "[" * 200 + "]" * 200,
        "a: " + "[" * 800 + "]" * 800,
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    ],
    ids=["list in itself", "mapping in itself", "deep", "deeper than Python", "a billion parts"],
)
def test_a_bomb_is_refused_at_once(text: str, tmp_path: Path) -> None:
    began = time.process_time()
    (found,) = _faults(tmp_path, text)
    assert "nested too deeply" in found
    assert time.process_time() - began < 10


def test_unreadable_files(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x7fELF\x02\xff\xfe\x00")
    for path, wanted in (
        (tmp_path, "is a folder"),
        (binary, "cannot be read"),
        (tmp_path / "none.yaml", "no such file"),
    ):
        with pytest.raises(InputError, match=re.escape(str(path)) + ".*" + wanted) as caught:
            load_scenario(path)
        assert caught.value.remedy


def test_text_stays_text(tmp_path: Path) -> None:
    """YAML 1.1 makes a date of 2024-01-01 (and fails at 2024-13-45) and 750 of 12:30."""
    path = tmp_path / "x.yaml"
    path.write_text("\ufeffa: 2024-13-45\nb: 2024-01-01\nc: 12:30\nd: 007x\n1: on\n")
    assert YamlFile(path).data == {"a": "2024-13-45", "b": "2024-01-01", "c": "12:30", "d": "007x", "1": True}


def test_lines_of_parts(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a:\n  - b: 1\n    c:\n      d: 2\n  - 3\n")
    file = YamlFile(path)
    assert [file.line(p) for p in (("a",), ("a", 0, "c", "d"), ("a", 1), ("a", 0, "nowhere"), ())] == [1, 4, 5, 2, 1]


FULL = """\
name: full
engines:
  - name: v
    kind: vllm
    model: org/m
    args: {max_model_len: 8192, enforce_eager: true, none: null, hf_overrides: {a: [1, x]}, list: [a, 1, 2.5, false]}
    env: {A: 1, B: 0.5, C: true, D: text}
    ready_timeout: 20min
  - {name: o, kind: ollama, model: "m:8b", base_url: "http://localhost:11434", options: {num_gpu: 99}}
  - {name: x, kind: openai, model: m, base_url: "https://host:1/v1/", flavor: vllm, headers: {A: b}}
  - {name: s, kind: sim, model: m, workload: {input_tokens: 7}, command: [docker, run], port: 8000}
workload: {input_tokens: 16, sampling: {temperature: 1, seed: 3, stop: [x]}, api: chat}
load:
  - {kind: concurrency, levels: [1, 4], requests: 200}
  - {kind: concurrency, levels: [4], duration: 1m, start: burst}
  - {kind: poisson, rate: 120/min, duration: 500ms}
  - {kind: constant, rate: 2.5, requests: 3}
slo: {ttft_p95: 500ms, itl_mean: 812us}
repeats: 3
"""


def test_resolved_and_back(tmp_path: Path) -> None:
    scenario = _load(tmp_path, FULL)
    kept = json.loads(json.dumps(scenario.resolved(), allow_nan=False))
    again = from_resolved(kept)
    assert again == scenario
    assert again.hash() == scenario.hash()
    assert kept["engines"][0]["ready_timeout"] == 1200
    assert kept["load"][2]["rate"] == 2
    assert kept["slo"] == {"ttft_p95": 0.5, "itl_mean": pytest.approx(812e-6)}
    assert kept["engines"][2]["base_url"] == "https://host:1/v1"
    assert kept["engines"][0]["env"] == {"A": 1, "B": 0.5, "C": True, "D": "text"}
    assert [p.name for p in scenario.points()] == ["c1", "c4", "c4-burst", "poisson-2rps", "constant-2.5rps"]
    assert scenario.points()[2].duration_s == 60
    assert scenario.points()[3].rate_rps == 2


def test_the_hash_knows_what_is_measured_and_not_how_it_is_written(tmp_path: Path) -> None:
    plain = _load(tmp_path, BASE).hash()
    assert _load(tmp_path, "# words\n" + BASE + "seed: 42\nworkload: {}\n").hash() == plain
    assert _load(tmp_path, BASE + "seed: 43\n").hash() != plain
    assert _load(tmp_path, BASE.replace("model: m", "model: n")).hash() != plain


def test_a_file_of_prompts_counts_by_what_it_holds(tmp_path: Path) -> None:
    """Not by where it lies; and what was measured with another content cannot be gone on with."""
    text = BASE + "workload: {kind: jsonl, file: p.jsonl, output_tokens: 5}\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "p.jsonl").write_text('{"prompt": "hello"}\n')
    one, other = _load(tmp_path / "a", text), _load(tmp_path / "b", text)
    assert one.hash() == other.hash()
    kept = json.loads(json.dumps(one.resolved()))
    assert from_resolved(kept) == one
    (tmp_path / "b" / "p.jsonl").write_text('{"prompt": "hello there"}\n')
    assert _load(tmp_path / "b", text).hash() != one.hash()
    (tmp_path / "a" / "p.jsonl").write_text('{"prompt": "hello there"}\n')
    with pytest.raises(InputError, match=r"run\.json.*holds something else than was asked for"):
        from_resolved(kept)


def test_a_damaged_scenario_in_run_json(tmp_path: Path) -> None:
    kept = _load(tmp_path, BASE).resolved()
    kept["engines"][0]["port"] = "x"
    with pytest.raises(InputError, match=r"run\.json.*engines\.0\.sim\.port"):
        from_resolved(kept)


@pytest.mark.parametrize("name", shipped())
def test_shipped_scenarios_load(name: str) -> None:
    scenario = load_scenario(shipped()[name])
    assert scenario.name == name
    assert from_resolved(json.loads(json.dumps(scenario.resolved()))).hash() == scenario.hash()


def test_parts_are_final(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        _load(tmp_path, BASE).seed = 3  # type: ignore[misc]


def test_the_schema_takes_what_a_file_says() -> None:
    """Editors check files against it: a duration is text with a unit, though the model holds a number."""
    parts: dict[str, Any] = json_schema()["$defs"]
    duration = parts["ConcurrencyLoad"]["properties"]["duration"]
    assert {"string", "null"} == {option["type"] for option in duration["anyOf"]}
    assert parts["VllmSpec"]["properties"]["ready_timeout"]["type"] == "string"
    assert parts["RateLoad"]["properties"]["rate"]["type"] == ["number", "string"]
    assert set(parts["ConcurrencyLoad"]["properties"]) == set(ConcurrencyLoad.model_fields)
    lengths = parts["Workload"]["properties"]["input_tokens"]["oneOf"]
    assert [option.get("type", option.get("$ref", "").rpartition("/")[2]) for option in lengths] == [
        "integer", "Uniform", "Normal", "Lognormal", "Empirical",
    ]  # fmt: skip
    assert {"Workload", "ShareGptWorkload", "JsonlWorkload"} <= set(parts)


@pytest.mark.parametrize(
    ("price", "said"),
    [
        ("{machine: 2.50 EUR/h, energy: 0.3EUR/kWh}", None),
        ("{energy: 0.30 USD/kWh}", None),
        ("{machine: $2/h, energy: 0.30 USD/kWh}", None),
        ("{machine: €2/h, energy: 0.30 USD/kWh}", "two currencies: EUR and USD"),
        ("{machine: 2.50 EUR/h, energy: 0.30 USD/kWh}", "two currencies: EUR and USD"),
        ("{machine: 2.50}", "not a price per h: 2.5"),
        ("{machine: 2.50 EUR/kWh}", "write for example 2.50 EUR/h"),
        ("{}", "give `machine`"),
    ],
)
def test_prices_have_a_currency_and_a_unit(tmp_path: Path, price: str, said: str | None) -> None:
    text = "name: s\nengines: [{name: a, kind: sim, model: m}]\nload: [{kind: constant, rate: 1, requests: 5}]\n"
    (tmp_path / "without.yaml").write_text(text)
    (tmp_path / "s.yaml").write_text(text + f"price: {price}\n")
    if said is None:
        priced = load_scenario(tmp_path / "s.yaml")
        assert priced.hash() == load_scenario(tmp_path / "without.yaml").hash()  # a price changes nothing measured
        assert from_resolved(priced.stored()).price == priced.price
        return
    with pytest.raises(InputError, match=re.escape(said)):
        load_scenario(tmp_path / "s.yaml")
