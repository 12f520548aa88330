"""Asked against got: figures, the line or table in each report, and the warning where lengths are others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from reports import asked, markdown, text
from reports.html import write_all
from reports.rows import Summary
from reports.summary import summarize
from reports.verdict import judge
from tests.runfolders import Built, Speed, new


def shown(summary: Summary) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(text.render(summary))
    return " ".join(capture.get().split())


def built(change: Any = lambda record: record) -> Built:
    made = new(repeats=1).engine("v").engine("o")
    for name in ("v", "o"):
        for level in (2, 4):
            made.point(name, level, Speed(0.05, 0.01, 100), repeat=0)
    made.requests = [change(record) if record.engine == "o" else record for record in made.requests]
    return made


def test_lengths_as_asked_are_one_line(tmp_path: Path) -> None:
    summary = summarize(built().write(tmp_path / "run"))
    assert "Lengths as asked for: prompt tokens 32, output tokens 100 a request on average." in shown(summary)
    assert not [line for line in summary.warnings if "asked for" in line]
    row = summary.row("o", "c4", "output_got_ratio")
    assert (row.value, summary.row("o", "c4", "output_off_ratio").value) == (1.0, 0.0)
    assert summary.row("o", "c4", "asked_output_tokens_mean").value == 100


def test_answers_that_end_early_are_told_everywhere(tmp_path: Path) -> None:
    folder = built(lambda r: replace(r, output_tokens=90 if r.request_id % 2 else 100)).write(tmp_path / "run")
    summary = summarize(folder)
    (warning,) = [line for line in summary.warnings if "asked for" in line]
    assert warning.startswith("o, ")
    assert "(and 1 more)" in warning
    assert "output tokens a request: 100 asked for, 9" in warning
    assert warning.endswith("compare TPOT and tokens/s, not E2E or requests/s")
    off = summary.row("o", "c4", "output_off_ratio").value
    assert off is not None
    assert 0.4 < off < 0.6
    assert "input asked got off output asked got off" in shown(summary)
    assert "| load | engine | input asked | got | off | output asked | got | off |" in markdown.render(summary)
    page = write_all(folder)[1].read_text()
    assert "Asked against got" in page
    assert any("output tokens a request" in line for line in judge(summary).differences)


def test_what_nobody_can_say_is_no_difference(tmp_path: Path) -> None:
    """The later turns of a session: their prompts hold answers, which the server reads anew."""

    def later(record: Any) -> Any:
        turn = record.request_id % 3
        return replace(record, turn=turn, asked_input_tokens=None if turn else 32, input_tokens=32 + 100 * turn)

    summary = summarize(built(later).write(tmp_path / "run"))
    assert summary.row("o", "c4", "input_got_ratio").value == 1.0
    assert not [line for line in summary.warnings if "asked for" in line]
    unknown = summarize(built(lambda r: replace(r, asked_input_tokens=None)).write(tmp_path / "other"))
    row = unknown.row("o", "c4", "asked_input_tokens_mean")
    assert (row.value, row.reason) == (None, "no request with a known and a counted number of prompt tokens")
    cells = {line[1]: line[2:5] for line in asked.table(unknown.points, unknown.rows)}
    assert cells["o"] == ["–", "–", "–"]
