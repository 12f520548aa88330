"""The house itself: arrows between packages point one way, every file says what it is, and `--help` answers at once."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.app import COMMANDS, app
from scenarios import shipped

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "sizing": set(),
    "scenarios": set(),
    "harness": {"sizing"},
    "reports": {"harness", "sizing"},
    "bench": {"reports", "harness", "sizing", "scenarios"},
}
OF_HARNESS = {"records", "metrics", "store", "units", "errors"}  # what reports may use of it
SLOW = {"numpy", "pandas", "pyarrow", "plotly", "aiohttp", "pydantic"}


def _files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def _imports(path: Path, text: str | None = None) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, at its top level and inside functions.

    `from harness import store` is `harness.store`, as `from harness.store import x` is `harness.store.x`.
    """
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(text or path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(filter(None, (here, node.module)))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield from ((node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant))


def _wrong(path: Path, text: str | None = None) -> list[str]:
    """The imports of a file that point the wrong way."""
    package = path.relative_to(ROOT).parts[0]
    wrong = []
    for line, name in _imports(path, text):
        top, _, rest = name.partition(".")
        back = top in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]
        inside = package == "reports" and top == "harness" and rest.split(".")[0] not in OF_HARNESS
        if back or inside or top == "tests":
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {package} must not import {name}")
    return wrong


def test_arrows_point_one_way() -> None:
    assert [fault for path in _files(*MAY_IMPORT) for fault in _wrong(path)] == []


@pytest.mark.parametrize(
    ("file", "text", "faults"),
    [
        ("harness/x.py", "import reports", 1),
        ("harness/x.py", "def f():\n    from bench.run import run", 1),
        ("harness/engines/x.py", "from ...reports import html", 1),
        ("harness/x.py", "import importlib\nimportlib.import_module('reports.html')", 1),
        ("sizing/x.py", "from harness.units import show", 1),
        ("reports/x.py", "from harness import run, store", 1),
        ("reports/x.py", "import harness.scenario", 1),
        ("reports/x.py", "from harness.store import RunFolder\nfrom sizing import memory", 0),
        ("reports/x.py", "if TYPE_CHECKING:\n    from harness.measured import Measured", 1),
        ("bench/x.py", "from harness.run import run\nfrom scenarios import shipped", 0),
        ("harness/x.py", "from . import records\nfrom .engines import base", 0),
    ],
)
def test_an_arrow_that_runs_back_is_found(file: str, text: str, faults: int) -> None:
    assert len(_wrong(ROOT / file, text)) == faults


def test_every_package_is_under_this_roof() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert set(packages) == set(MAY_IMPORT)
    assert all((ROOT / name / "__init__.py").is_file() for name in packages)


def test_every_file_says_what_it_is() -> None:
    for path in _files(*MAY_IMPORT, "tests"):
        text = path.read_text("utf-8")
        empty = path.name == "__init__.py" and "tests" in path.parts and not text.strip()
        assert empty or re.match(r'(#.*\n)*r?"""[^"\s]', text), f"{path.relative_to(ROOT)} has no docstring"


def test_console_scripts_resolve() -> None:
    scripts: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"bench", "enginebench"}
    for target in scripts.values():
        module, _, name = target.partition(":")
        main: Callable[[], None] = getattr(importlib.import_module(module), name)
        assert callable(main)


def _python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )


def test_every_shipped_scenario_passes_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(shipped()) >= 3
    for named in [*shipped(), str(next(iter(shipped().values())))]:  # by name, and one by path
        app(["scenario", "check", named], standalone_mode=False)
        assert f"{Path(named).stem}: good." in capsys.readouterr().out


def test_help_imports_nothing_slow() -> None:
    """`bench --help`, then each command's own help, in one process that tells what each has loaded."""
    code = """
import contextlib, io, json, sys
from bench.app import COMMANDS, app
known = set()
for words in ([], *([name] for name in COMMANDS), ["scenario", "check"]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app([*words, "--help"])
    print(json.dumps([words, out.getvalue(), sorted(set(sys.modules) - known)]))
    known |= set(sys.modules)
"""
    done = _python(code)
    assert done.returncode == 0, done.stderr
    first, *others = map(json.loads, done.stdout.splitlines())
    assert set(COMMANDS) <= set(first[1].split())
    assert _of_bench(first[2]) == {"bench", "bench.app", "bench.options"}  # the table, and no command
    assert others[0][0] == ["run"]
    assert _of_bench(others[0][2]) == {"bench.run"}
    for words, shown, modules in [first, *others]:
        assert "Usage:" in shown, words
        assert not (SLOW | {"typer", "rich"}) & {name.partition(".")[0] for name in modules}, words


def _of_bench(modules: list[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "bench"}
