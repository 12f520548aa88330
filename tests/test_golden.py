"""What a page shows is what its records say: recomputed apart, and a page that lies is caught."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.app import app
from tests import golden
from tests.runfolders import two_engines

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "run"
    two_engines(window_s=4.0).write(path)
    assert CliRunner().invoke(app, ["report", str(path)]).exit_code == 0
    return path


def test_the_check_shares_no_code_with_what_it_checks() -> None:
    tree = ast.parse(Path(golden.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & {"reports", "harness", "sizing", "bench", "tests"}


def test_every_figure_on_the_page_is_what_the_records_say(folder: Path) -> None:
    found = golden.check(folder)
    assert found.wrong == []
    assert found.figures >= 300


def test_the_page_of_a_real_engine_on_a_gpu(tmp_path: Path) -> None:
    for name in ("run.json", "requests.parquet", "telemetry.parquet"):
        shutil.copy(REFERENCE / "8b-fp8" / name, tmp_path)
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 0
    found = golden.check(tmp_path)
    assert found.wrong == []
    assert found.figures >= 150


def test_a_page_that_lies_is_caught(folder: Path, tmp_path: Path) -> None:
    for name in ("run.json", "requests.parquet"):
        shutil.copy(folder / name, tmp_path)
    page = (folder / "report.html").read_text()
    begin = page.index('<table class="summary">')
    shown = re.search(r'<span class="value">([\d.]+)<span class="unit"> ms', page[begin:])
    assert shown is not None
    lie = page[:begin] + page[begin:].replace(shown[0], shown[0].replace(shown[1], f"{float(shown[1]) * 1.02:.3g}"), 1)
    (tmp_path / "report.html").write_text(lie)
    assert len(golden.check(tmp_path).wrong) == 1
