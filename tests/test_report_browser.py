"""The page in a real browser, from disk, with no network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.app import app
from reports.html import write_all
from tests.cli import until
from tests.runfolders import two_engines

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium: apt-get install chromium"),
]
WIDTHS = [(1440, "light"), (390, "dark")]
AXE = {
    "resultTypes": ["violations"],
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]},
}
ARTEFACTS = Path(__file__).parents[1] / ".artefacts"
SCREENSHOTS = "ENGINEBENCH_SCREENSHOTS" in os.environ  # for people to look at; drawing them takes a second or two each


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = two_engines(repeats=1, hostile=True, window_s=2.0)
    return write_all(built.write(tmp_path_factory.mktemp("page") / "run"))[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page as a reader has it: what it said on the console, and what it asked the network for."""

    page: Any
    width: int
    dark: bool
    said: list[str]
    asked: list[str]


@pytest.fixture(scope="module", params=WIDTHS, ids=lambda given: f"{given[0]}-{given[1]}")
def opened(request: pytest.FixtureRequest, browser: Any, page_file: Path) -> Iterator[Opened]:
    """The page in one width and scheme, loaded once for all tests of it."""
    with opening(browser, page_file, *request.param) as found:
        yield found


@contextmanager
def opening(browser: Any, page_file: Path, width: int, scheme: str) -> Iterator[Opened]:
    """A page in a browser without network; its screenshot is kept if it is asked for."""
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme, offline=True)
    page = context.new_page()
    found = Opened(page, width, scheme == "dark", [], [])
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("dialog", lambda dialog: found.said.append(f"a dialog opened: {dialog.message}"))
    page.on("request", lambda asked: found.asked.append(asked.url))
    page.goto(page_file.as_uri())
    if "data-plot" in page_file.read_text():
        page.wait_for_selector("html[data-drawn]")
    if SCREENSHOTS:
        ARTEFACTS.mkdir(exist_ok=True)
        page.screenshot(path=str(ARTEFACTS / f"{page_file.stem}-{width}-{scheme}.png"), full_page=True)
    try:
        yield found
    finally:
        context.close()


def assert_whole(opened: Opened, page_file: Path, plots: int) -> None:
    """It said nothing, asked for nothing, drew every plot, and fits its width."""
    assert opened.asked == [page_file.as_uri()]
    boxes = opened.page.evaluate(
        """[...document.querySelectorAll("[data-plot]")].map(box => {
             const svg = box.querySelector("svg.main-svg");
             const shown = svg ? svg.getBoundingClientRect() : {width: 0, height: 0};
             return [box.dataset.plot, shown.width, shown.height,
                     box.querySelectorAll(".trace path, .trace .point path, .bars path").length]; })"""
    )
    assert len(boxes) >= plots
    for name, width, height, marks in boxes:
        assert width > 200, name
        assert height > 100, name
        assert marks >= 1, name
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= opened.width
    assert opened.said == []


def test_opens_from_disk_without_network_and_draws_every_plot(opened: Opened, page_file: Path) -> None:
    assert_whole(opened, page_file, 14)


@pytest.mark.parametrize(
    ("name", "width", "scheme", "plots"), [("compare", 390, "dark", 12), ("index", 1440, "light", 5)]
)
def test_comparison_and_index_open_as_well(
    browser: Any, page_file: Path, name: str, width: int, scheme: str, plots: int
) -> None:
    results = page_file.parent.parent
    other, page = results / "other", results / f"{name}.html"
    if not other.exists():
        shutil.copytree(page_file.parent, other)
    compare = ["compare", str(page_file.parent), str(other), "--engine", "vllm-bf16", "--out", str(page)]
    words = compare if name == "compare" else ["list", str(results), "--index"]
    assert CliRunner().invoke(app, words).exit_code == 0
    with opening(browser, page, width, scheme) as found:
        assert_whole(found, page, plots)
        assert cut_off(found) == []
        assert inaccessible(found) == []


def test_the_pages_of_a_gate_and_of_advice_open_as_well(browser: Any, page_file: Path) -> None:
    results = page_file.parent.parent
    gate, advice = results / "gate.html", results / "advice.html"
    sides = ["--baseline", str(page_file.parent), "--candidate", str(page_file.parent), "--engine", "vllm-bf16"]
    CliRunner().invoke(app, ["gate", *sides, "--limit", "ttft_p50: 5%", "--write", str(gate)])
    said = CliRunner().invoke(app, ["advise", "--hardware", "RTX 4090", "--users", "4", "--format", "html"])
    advice.write_text(said.stdout)
    for page, width, scheme in ((gate, 390, "dark"), (advice, 390, "light"), (advice, 1440, "dark")):
        with opening(browser, page, width, scheme) as found:
            assert_whole(found, page, 0)
            assert inaccessible(found) == []


def test_no_text_is_cut_off_or_runs_over_its_box(opened: Opened) -> None:
    """Nothing sticks out of the page, and no label of a plot out of its plot."""
    assert cut_off(opened) == []


def cut_off(opened: Opened) -> Any:
    """The labels of plots that stick out of their plot."""
    return opened.page.evaluate(
        """[...document.querySelectorAll("svg.main-svg text")].filter(text => {
             const box = text.closest(".plot").getBoundingClientRect(), here = text.getBoundingClientRect();
             return here.width && (here.right > box.right + 3 || here.left < box.left - 3 || here.top < box.top - 3
                                   || here.bottom > box.bottom + 3);
           }).map(text => text.closest(".plot").dataset.plot + ": " + text.textContent)"""
    )


def test_tooltips_toggles_and_keyboard(opened: Opened) -> None:
    page = opened.page
    plot = page.locator("[data-plot=throughput-concurrency]")
    plot.scroll_into_view_if_needed()
    if opened.width > 1000:
        page.locator("[data-plot=throughput-concurrency] .points path").first.hover(force=True)
        page.wait_for_selector("[data-plot=throughput-concurrency] .hoverlayer text")
        assert "tok/s" in page.locator("[data-plot=throughput-concurrency] .hoverlayer").text_content()
    page.locator("[data-plot=throughput-concurrency] .legendtoggle").first.click()
    visible = "document.querySelector('[data-plot=throughput-concurrency]').data[0].visible"
    assert until(lambda: page.evaluate(visible) == "legendonly"), "plotly waits whether a second click follows"
    page.locator("#choose-cdf").focus()
    page.keyboard.press("Home")
    shown = page.evaluate("document.querySelector('[data-plot=cdf-ttft]').data.filter(t => t.visible).length")
    assert shown >= 1
    page.locator("details summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() >= 1
    if opened.dark:  # only then has paper another colour
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("document.querySelector('[data-plot]').layout.font.color") == "#5b636d", "paper is light"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.said == []


def test_axe_finds_no_serious_accessibility_fault(opened: Opened) -> None:
    assert inaccessible(opened) == []


# What plotly draws is one group to a screen reader, and has its table: axe would spend most of its time on thousands of
# nodes, and find nothing. So it is away meanwhile.
AWAY = """window.drawn = [...document.querySelectorAll(".plot")].map(plot => [plot, [...plot.childNodes]]);
          window.drawn.forEach(([plot]) => plot.replaceChildren());
          [...document.querySelectorAll("details")].slice(0, 4).forEach(box => { box.open = true; });"""
BACK = "window.drawn.forEach(([plot, nodes]) => plot.append(...nodes));"


def inaccessible(opened: Opened) -> list[Any]:
    """The serious accessibility faults that axe-core finds on a page."""
    from axe_playwright_python.sync_playwright import Axe

    opened.page.evaluate(AWAY)
    skipped = [["tbody tr:not([class]):nth-child(n+9)"]]  # of rows that are all alike, a few
    if opened.width < 1000:
        skipped += [[".definitions"], [".s-facts tbody"], [".s-environment"], [".s-client"]]
    found = Axe().run(opened.page, context={"exclude": skipped}, options=AXE).response["violations"]
    opened.page.evaluate(BACK)
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [(f["id"], f["impact"], [n["html"][:200] for n in f["nodes"][:3]]) for f in serious]
