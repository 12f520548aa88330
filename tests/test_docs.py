"""Docs are tests: commands, metrics, scenario keys and shipped scenarios are documented, and the examples are real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from bench.app import COMMANDS, load
from harness.engines import ENGINES
from harness.enginespec import EngineSpec
from harness.loads import LoadSpec
from harness.metrics import METRICS
from harness.parts import by_kind
from harness.scenario import Scenario
from harness.scenariofile import load_scenario
from scenarios import shipped

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def commands() -> dict[str, click.Command]:
    """All commands by their words, `scenario check` among them."""
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = load(name)
        inner = getattr(command, "commands", None)
        found |= {f"{name} {n}": c for n, c in inner.items()} if inner else {name: command}
        if getattr(command, "invoke_without_command", False):
            found[name] = command  # `bench gate` is a command itself, and has others
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_is_in_the_readme_and_its_help_has_an_example(name: str) -> None:
    word, _, rest = name.partition(" ")
    assert f"bench {word}" in README
    assert rest in README
    assert f"Example: bench {name}" in (commands()[name].help or "")


def test_no_command_takes_a_format_that_it_does_not_know() -> None:
    """What is not refused is printed as something else, and breaks the program that reads it."""
    types = {name: p.type for name, c in commands().items() for p in c.params if p.name == "format"}
    assert len(types) >= 10
    assert [name for name, kind in types.items() if not isinstance(kind, click.Choice)] == []


@pytest.mark.parametrize("key", sorted(METRICS))
def test_every_metric_is_documented(key: str) -> None:
    family = re.sub(r"_(p50|p90|p95|p99)_s$", "_mean_s", key)
    assert f"`{family}`" in DOCS["metrics.md"]


@pytest.mark.parametrize("key", sorted(Scenario.model_fields))
def test_every_scenario_key_is_documented(key: str) -> None:
    assert f"`{key}" in DOCS["scenario.md"]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_scenario_is_documented_and_valid(name: str) -> None:
    assert f"`{name}`" in DOCS["scenario.md"]
    assert load_scenario(shipped()[name]).name == name


def test_scenarios_in_the_readme_are_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        assert yaml.safe_load(block)
        (tmp_path / "scenario.yaml").write_text(block)
        load_scenario(tmp_path / "scenario.yaml")


def test_commands_in_the_readme_exist() -> None:
    known, blocks = set(commands()), re.findall(r"```bash\n(.*?)```", README, re.S)
    assert sum(block.count("bench ") for block in blocks) > 3
    for block in blocks:
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if words[0].endswith("bench"):
                assert words[1] in known or " ".join(words[1:3]) in known, line
            else:
                assert (ROOT / words[0]).exists(), line


def test_no_merge_was_left_half_done() -> None:
    for name, text in {"README.md": README, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(), **DOCS}.items():
        assert not re.search(r"^(<{7}|={7}|>{7})( |$)", text, re.M), name


def test_links_lead_somewhere() -> None:
    for name, text in {"README.md": README, **{f"docs/{n}": t for n, t in DOCS.items()}}.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_every_engine_of_a_scenario_is_made_and_documented() -> None:
    kinds = set(by_kind(EngineSpec))
    assert kinds == set(ENGINES)
    assert {kind for kind in kinds if f"`{kind}`" in DOCS["engines.md"]} == kinds


def test_every_load_kind_is_documented_and_the_examples_are_valid(tmp_path: Path) -> None:
    kinds = set(by_kind(LoadSpec))
    assert {kind for kind in kinds if f"kind: {kind}" in DOCS["loads.md"]} == kinds
    assert {kind for kind in kinds if f"kind: {kind}" in DOCS["scenario.md"]} == kinds
    (tmp_path / "AzureLLMInferenceTrace_conv.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(
            f"2023-11-16 18:{minute:02}:{second:02}.6805900,374,44\n"
            for minute in range(59)
            for second in range(0, 60, 2)
        )
    )
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS["loads.md"], re.S)
    assert blocks
    for block in blocks:
        (tmp_path / "s.yaml").write_text("name: s\nengines: [{name: a, kind: sim, model: m}]\n" + block)
        load_scenario(tmp_path / "s.yaml")
