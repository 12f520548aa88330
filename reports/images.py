"""The plots of a page as PNG or SVG files, drawn by an installed Chrome through kaleido, without the network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import InputError
from reports.plots import Chart

WIDTH, SCALE = 900, 2
INSTALL = "pip install 'enginebench[images]'"
CHROME = "install Chrome or Chromium (Debian: apt-get install chromium), or set BROWSER_PATH to one"
INK, GRID = "#1a1e23", "#e2e4e7"


def write(charts: list[Chart], kind: str, folder: Path) -> list[Path]:
    """One file a plot, named by the plot's key.

    Raises:
        InputError: kaleido or a Chrome is missing, Chrome does not work, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}", "give another --out") from None
    draw = _drawer()
    paths = []
    try:
        for chart in charts:
            path = folder / f"{re.sub('[^A-Za-z0-9_.-]', '-', chart.key)}.{kind}"
            path.write_bytes(draw(figure(chart), kind))
            paths.append(path)
    finally:
        _stop()
    return paths


def chosen(charts: list[Chart], name: str | None) -> list[Chart]:
    """All plots, or the one of this key.

    Raises:
        InputError: there is none of that key.
    """
    found = [chart for chart in charts if name in (None, chart.key)]
    if not found:
        keys = ", ".join(chart.key for chart in charts) or "none: nothing was measured"
        raise InputError(f"no plot '{name}' in this run", f"it has: {keys}")
    return found


def figure(chart: Chart) -> dict[str, Any]:
    """A plot on white, with its title; what a page leaves to its theme is set here."""
    found: dict[str, Any] = json.loads(chart.figure)
    layout = found["layout"]
    margin = layout.get("margin", {})
    layout |= {
        "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff",
        "font": {"color": INK, "size": 12, "family": "sans-serif"},
        "title": {"text": f"{chart.title}", "x": 0.01, "xanchor": "left", "font": {"size": 15}, "y": 0.98,
                  "yanchor": "top"},
        "margin": margin | {"t": margin.get("t", 10) + 70}, "height": layout.get("height", 330) + 70,
    }  # fmt: skip
    for key in ["xaxis", "yaxis", *layout]:
        if re.fullmatch(r"[xy]axis\d*", key):
            layout.setdefault(key, {}).update(gridcolor=GRID, linecolor=GRID, zerolinecolor=GRID)
    shown = next((point for point, _, first in chart.choices if first), None)
    if shown is not None:
        label = next(label for point, label, _ in chart.choices if point == shown)
        layout["title"]["text"] += f", {label}"
    return found


def _drawer() -> Callable[[dict[str, Any], str], bytes]:
    """What turns a figure into an image; its Chrome is started once."""
    try:
        import kaleido
    except ImportError:
        raise InputError("images need kaleido, which is not installed", INSTALL) from None
    # The page that Chrome draws in is told of no script from the network.
    kaleido.start_sync_server(n=1, silence_warnings=True, page_generator=kaleido.PageGenerator(mathjax=False))

    def draw(found: dict[str, Any], kind: str) -> bytes:
        opts = {
            "format": kind,
            "width": WIDTH,
            "height": found["layout"]["height"],
            "scale": SCALE if kind == "png" else 1,
        }
        try:
            drawn = kaleido.calc_fig_sync(found, opts=opts)
        except Exception as error:  # what Chrome and its pipe can raise is many and none of ours
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"no image could be drawn: {said}", CHROME) from error
        return bytes(drawn)

    return draw


def _stop() -> None:
    import kaleido

    kaleido.stop_sync_server(silence_warnings=True)
