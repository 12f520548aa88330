"""What a gate leaves behind: Markdown, annotations, JUnit, code quality, badge, page. Nothing foreign gets through."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from harness.errors import InputError
from reports.gate import Check, Verdict, judge
from reports.gatefiles import KINDS, write
from reports.gatetext import github, markdown, render
from reports.gatewords import headline
from reports.limits import Rules, parse_limits
from reports.sides import read_sides
from tests.gatefolders import pair, run

HOSTILE = "<script>alert(1)</script>]]>|`*_&\"'%\n::error::x\x00"
CHECK = Check(
    "vllm", "c8", "8 concurrent", "ttft_p95_s", 0.05, False, "fail", "the whole interval is past the limit", 0.1, 0.12,
    0.2, 0.1, 0.3, (5, 5), "interleaved", 0.02, 0, 0.09,
)  # fmt: skip


def verdict(*checks: Check, state: str = "fail", outcome: str | None = None) -> Verdict:
    return Verdict(
        state, outcome or state, list(checks), ["model: a before, b now"], ["mind the noise"], "a", "b", False
    )


UNSURE = replace(
    CHECK, metric="output_tok_s", state="inconclusive", reason="the interval reaches over the limit", more=3
)
BAD = replace(CHECK, engine=HOSTILE, label=HOSTILE, reason=HOSTILE, state="inconclusive", change=None)


def text_of(found: Verdict) -> str:
    console = Console(width=80, file=StringIO())
    console.print(render(found))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_terminal_says_why_and_what_next() -> None:
    shown = text_of(verdict(CHECK, UNSURE))
    assert "Fail: TTFT p95 at 8 concurrent changed by +20.0 %, limit 5 %." in " ".join(shown.split())
    assert "about 3 more repeats a side would decide" in " ".join(shown.split())
    assert "Warning: mind the noise" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_markdown_is_a_table_under_a_headline() -> None:
    text = markdown(verdict(CHECK))
    assert text.startswith("<!-- enginebench gate -->\n\n## Fail")
    assert "| **FAIL** | TTFT p95 | 8 concurrent | 100 ms | 120 ms | +20.0 % | +10.0 to +30.0 | 5 % |" in text


def test_annotations_and_their_counts() -> None:
    lines = github(verdict(CHECK, UNSURE)).splitlines()
    assert [line.split(" ")[0].split("::")[1] for line in lines] == ["error", "warning", "notice"]
    strict = github(verdict(UNSURE, state="inconclusive", outcome="fail"))
    assert strict.startswith("::error ")


def test_junit_counts_failures_and_skips() -> None:
    suite = ElementTree.fromstring(KINDS[".xml"](verdict(CHECK, UNSURE)).encode())
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")
    assert len(suite.findall(".//failure")) == 1
    strict = ElementTree.fromstring(KINDS[".xml"](verdict(UNSURE, state="inconclusive", outcome="fail")).encode())
    assert strict.get("failures") == "1"


def test_code_quality_is_what_gitlab_reads() -> None:
    rows = json.loads(KINDS[".codequality.json"](verdict(CHECK, UNSURE)))
    assert [row["severity"] for row in rows] == ["major", "info"]
    assert all(row["fingerprint"] and row["location"]["path"] and row["location"]["lines"]["begin"] for row in rows)
    assert len({row["fingerprint"] for row in rows}) == 2


@pytest.mark.parametrize("state", ["pass", "fail", "inconclusive"])
def test_the_badge_is_a_picture(state: str) -> None:
    picture = ElementTree.fromstring(KINDS[".svg"](verdict(CHECK, state=state)))
    assert picture.tag.endswith("svg")
    assert f"bench gate: {state}" in (picture.get("aria-label") or "")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_nothing_from_outside_gets_through() -> None:
    bad = verdict(BAD, replace(BAD, state="fail", change=0.1), state="inconclusive")
    page, tags = KINDS[".html"](bad), _Tags()
    tags.feed(page)
    assert "script" not in tags.tags
    assert "<script>" not in markdown(bad)
    ElementTree.fromstring(KINDS[".xml"](bad).encode())
    json.loads(KINDS[".codequality.json"](bad))
    json.loads(KINDS[".json"](bad))
    for line in github(bad).splitlines():
        assert line.startswith(("::error title=", "::warning title=", "::notice title="))
    assert "script" in text_of(bad)  # shown as it is


def test_a_page_stands_alone() -> None:
    page = KINDS[".html"](verdict(CHECK, UNSURE))
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert page.count('class="strip"') == 2


def test_files_are_written_by_their_ending(tmp_path: Path) -> None:
    for ending in KINDS:
        write(verdict(CHECK), tmp_path / "deep" / f"gate{ending}")
        assert (tmp_path / "deep" / f"gate{ending}").stat().st_size > 100
    with pytest.raises(InputError, match="no kind of file"):
        write(verdict(CHECK), tmp_path / "gate.pdf")


def test_an_empty_gate_says_so() -> None:
    assert headline(verdict(state="inconclusive")) == "Inconclusive: there was nothing to judge."


def test_a_real_verdict_goes_through_every_output(tmp_path: Path) -> None:
    rules = Rules(parse_limits(["ttft_p95: 5%", "output_tok_s: 5%", "error_ratio: 2%"]))
    a, b = pair(tmp_path, run(), run(day=3, slower=1.2, error_ratio=0.01))
    found = judge([(read_sides(a, rules.keys)["vllm"], read_sides(b, rules.keys)["vllm"])], rules)
    for kind in KINDS.values():
        assert kind(found)
    assert "points" in markdown(found)
