"""Trace files: the published forms read as they are, every fault with its file and line, the one that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.scenario import Scenario, from_resolved
from harness.scenariofile import load_scenario
from harness.traces import Row, detect, read_trace
from scenarios import shipped

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.6805900,374,44
2023-11-17 00:00:00.0000001,4808,0
2023-11-17 00:00:00.0000001,3180,8
"""
ZONED = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 02:00:00.509930+02:00,2399,6
2024-05-10 00:00:01Z,76,15
"""
MOONCAKE = """\
{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47, 2366]}
"""
OWN = {"csv": "output_tokens,timestamp_s,input_tokens,user\n3,1.5,10,a\n4,1.75,20,b\n",
       "jsonl": '{"timestamp_s": 1.5, "input_tokens": 10, "output_tokens": 3}\n\n'
                '{"timestamp_s": 1.75, "input_tokens": 20, "output_tokens": 4, "hash_ids": [1]}\n'}  # fmt: skip


def write(folder: Path, text: str, name: str = "trace") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_azures_form(tmp_path: Path) -> None:
    file = write(tmp_path, AZURE)
    assert detect(file) == "azure"
    rows = read_trace(file, "azure").rows
    assert [row.time_s for row in rows] == pytest.approx([0.0, 0.3194101, 0.3194101], abs=1e-7)
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [(374, 44), (4808, 1), (3180, 8)]


def test_azures_form_with_time_zones(tmp_path: Path) -> None:
    file = write(tmp_path, ZONED)
    assert [row.time_s for row in read_trace(file, detect(file)).rows] == pytest.approx([0, 0.5, 0.99007], abs=1e-6)


def test_mooncakes_form(tmp_path: Path) -> None:
    file = write(tmp_path, MOONCAKE)
    assert detect(file) == "mooncake"
    assert read_trace(file, "mooncake").rows == [
        Row(0.0, 6955, 52, (46, 47, 2353)), Row(pytest.approx(3.053), 6472, 26, (46, 47, 2366)),
    ]  # fmt: skip


@pytest.mark.parametrize("form", OWN)
def test_plain_forms(tmp_path: Path, form: str) -> None:
    file = write(tmp_path, "\ufeff" + OWN[form])
    assert detect(file) == form
    assert [(r.time_s, r.input_tokens, r.output_tokens) for r in read_trace(file, form).rows] == [
        (0.0, 10, 3), (0.25, 20, 4)
    ]  # fmt: skip


HEAD = "timestamp_s,input_tokens,output_tokens\n"
FAULTS = {
    "no form": ("a,b\n1,2\n", 1, "none of the known forms of a trace: azure (TIMESTAMP"),
    "empty": ("", 1, "none of the known forms"),
    "no row": (HEAD, None, "no request in it"),
    "no number": (HEAD + "0,1,x\n", 2, "output_tokens is not a whole number of tokens: 'x'"),
    "negative": (HEAD + "0,-1,2\n", 2, "input_tokens is not a whole number of tokens: '-1'"),
    "part of a token": (HEAD + "0,1.5,2\n", 2, "not a whole number"),
    "a short row": (HEAD + "0,1\n", 2, "output_tokens is not a whole number of tokens: None"),
    "no time": (HEAD + "0,1,1\nsoon,1,1\n", 3, "not a time in seconds: 'soon'"),
    "endless": (HEAD + "inf,1,1\n", 2, "not a time in seconds"),
    "back in time": (HEAD + "5,1,1\n4,1,1\n", 3, "its timestamp_s lies before that of the request above it"),
    "an odd date": (AZURE + "tomorrow,1,1\n", 5, "TIMESTAMP is no time such as"),
    "no such day": (AZURE + "2023-11-31 00:00:00,1,1\n", 5, "day"),
    "not JSON": (MOONCAKE + "{\n", 3, "not JSON"),
    "a key that lacks": (MOONCAKE + '{"timestamp": 1}\n', 3, "no 'input_length'"),
    "no object": (MOONCAKE + "[1]\n", 3, "not an object"),
    "a block that is none": (MOONCAKE.replace("2366", '"x"'), 2, "not a whole number: 'x'"),
    "true": (MOONCAKE.replace("6472", "true"), 2, "input_length is not a whole number of tokens: True"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_file_and_line(tmp_path: Path, name: str) -> None:
    text, line, said = FAULTS[name]
    file = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_trace(file, detect(file))
    assert str(caught.value).startswith(f"{file}:{line}: " if line else f"{file}: ")
    assert said in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(HEAD.encode() + b"0,1,1\n\xff\n")
    with pytest.raises(InputError, match=r"x:3: not a text"):
        read_trace(str(tmp_path / "x"), "csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(str(tmp_path), "csv")


# --- in a scenario ---

SCENARIO = """\
name: test
engines: [{name: a, kind: sim, model: m}]
load:
  - {kind: trace, file: traces/t.csv}
"""


def scenario(folder: Path, text: str = SCENARIO, rows: str = "0,1,1\n2,3,4\n") -> Scenario:
    (folder / "traces").mkdir(exist_ok=True)
    (folder / "traces/t.csv").write_text(HEAD + rows)
    (folder / "s.yaml").write_text(text)
    return load_scenario(folder / "s.yaml")


def test_a_trace_lies_beside_its_scenario_and_counts_by_its_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    first, second = scenario(a), scenario(b)
    assert first.hash() == second.hash()
    assert first.hash() != scenario(b, rows="0,1,1\n2,3,5\n").hash()
    again = from_resolved(first.resolved())
    assert again.hash() == first.hash()
    assert again.points() == first.points()
    (a / "traces/t.csv").write_text(HEAD + "0,1,1\n")
    with pytest.raises(InputError, match="not the trace that was asked for"):
        from_resolved(first.resolved())


def test_wrong_values_name_the_scenarios_line(tmp_path: Path) -> None:
    for key, said in {
        "requests: 3": "the trace has 2 requests, `requests` is 3",
        "duration: 3s": "the trace lasts 2 s at this speed, less than the `duration`",
        "duration: 2s, requests: 1": "give `requests` or `duration`, not both",
        "speed: 2, rate: 3/s": "give `speed` or `rate`, not both",
        "start: 3s": "`start` lies behind the trace's last request, which comes after 2 s",
        "format: mooncake": "traces/t.csv:1: not JSON",
        f"sha256: {'f' * 64}": "not the trace that was asked for",
        "format: excel": "input should be 'auto', 'azure'",
    }.items():
        with pytest.raises(InputError) as caught:
            scenario(tmp_path, SCENARIO.replace("t.csv}", f"t.csv, {key}}}"))
        assert str(caught.value).startswith(f"{tmp_path}/s.yaml:4: load.0"), key
        assert said in str(caught.value), key
    with pytest.raises(InputError, match=r"s\.yaml:4: load\.0\.file: no such file: .*/no\.csv"):
        scenario(tmp_path, SCENARIO.replace("traces/t", "no"))


def test_the_trace_that_ships() -> None:
    (point,) = load_scenario(shipped()["trace"]).points()
    trace = read_trace(point.shape["file"], point.shape["format"], point.shape["sha256"])
    assert point.shape["format"] == "mooncake"
    assert len(trace.rows) == 16
    assert all(len(row.blocks) == -(-row.input_tokens // 512) for row in trace.rows), "a block is 512 tokens"
