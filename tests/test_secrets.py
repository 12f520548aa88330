"""No key reaches a run folder: not from the scenario, not from the environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.engines.openai import OpenAIEngine
from harness.errors import InputError
from harness.plan import new_record, resume
from harness.records import RunRecord
from harness.scenario import Scenario
from harness.scenariofile import load_scenario
from harness.store import RunFolder

SECRET = "sk-abcdef0123456789abcdef"


def loaded(tmp_path: Path, engine: str) -> Scenario:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: x\nengines: [{engine}]\nload: [{{kind: concurrency, levels: [1], requests: 2}}]\n")
    return load_scenario(path)


def attached(headers: str) -> str:
    return f"{{name: a, kind: openai, model: m, base_url: 'http://h/v1', headers: {headers}}}"


def stored(tmp_path: Path, scenario: Scenario) -> tuple[RunFolder, str]:
    folder = RunFolder.create(tmp_path / "run")
    record: RunRecord = new_record(scenario)
    folder.write_run(record)
    return folder, (tmp_path / "run" / "run.json").read_text()


@pytest.mark.parametrize(
    "engine",
    [
        attached(f"{{Authorization: 'Bearer {SECRET}'}}"),
        f"{{name: a, kind: vllm, model: m, env: {{HF_TOKEN: {SECRET}}}}}",
    ],
)
def test_a_literal_secret_is_not_stored_and_such_a_run_is_not_resumed(tmp_path: Path, engine: str) -> None:
    folder, text = stored(tmp_path, loaded(tmp_path, engine))
    assert SECRET not in text
    assert "***" in text
    with pytest.raises(InputError, match="secrets are not stored"):
        resume(folder)


def test_a_named_secret_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    scenario = loaded(tmp_path, attached("{x-api-key: '${MY_KEY}'}"))
    headers = OpenAIEngine(scenario.engines[0]).target().headers  # type: ignore[arg-type]
    assert headers == {"Authorization": f"Bearer {SECRET}", "x-api-key": SECRET}
    folder, text = stored(tmp_path, scenario)
    assert SECRET not in text
    assert "${MY_KEY}" in json.loads(text)["scenario"]["engines"][0]["headers"].values()
    resume(folder)


def test_ordinary_settings_are_stored_as_they_are(tmp_path: Path) -> None:
    _, text = stored(tmp_path, loaded(tmp_path, "{name: a, kind: ollama, model: m, env: {OLLAMA_NUM_PARALLEL: 8}}"))
    assert json.loads(text)["scenario"]["engines"][0]["env"] == {"OLLAMA_NUM_PARALLEL": 8}


def test_a_password_in_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a password"):
        loaded(tmp_path, "{name: a, kind: openai, model: m, base_url: 'http://u:p@h/v1'}")
