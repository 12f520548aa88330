"""The page in a real browser, from disk, with no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.html import write_report
from tests.runfolders import two_engines

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium: apt-get install chromium"),
]
WIDTHS = [(1440, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = two_engines(repeats=1, hostile=True, window_s=2.0)
    return write_report(built.write(tmp_path_factory.mktemp("page") / "run"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_opens_from_disk_without_network(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme, offline=True)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"a dialog opened: {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-drawn]")
    assert said == []
    assert asked == [page_file.as_uri()]
    plots = page.locator("[data-plot]")
    assert plots.count() >= 10
    for index in range(plots.count()):
        box = plots.nth(index).locator("svg.main-svg").first.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 100
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Keyboard: the load can be chosen, and its curves are drawn.
    page.locator("select").focus()
    page.keyboard.press("Home")
    shown = page.evaluate("document.querySelector('[data-plot=cdf-ttft]').data.filter(t => t.visible).length")
    assert shown >= 1
    page.locator("details summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() >= 1
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelector('[data-plot]').layout.font.color") == "#5b636d", "paper is light"
    assert said == []
    context.close()
