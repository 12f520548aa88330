"""Advice as one self-contained page, with the Pareto plot of all that fit. It loads and runs nothing."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup, escape

from harness.units import significant
from reports.advice import TITLES, commands, facts, headline, rows
from reports.html import resource, template
from sizing.advise import Advice, memory_bar

COLOURS = {"weights": "#0072B2", "KV": "#E69F00", "activations": "#009E73", "graphs": "#CC79A7", "other": "#56B4E9",
           "free": "transparent"}  # fmt: skip
IN_THE_BAR = ("memory", "")  # facts that the terminal draws with letters
WIDTH, HEIGHT, LEFT, EDGE = 900.0, 440.0, 70.0, 34.0


def page(advice: Advice, notes: tuple[str, ...] = ()) -> str:
    """The whole page."""
    best = advice.best
    devices = f"{advice.count} × " if advice.count > 1 else ""
    load = f"{advice.want.rate_rps:g} requests/s" if advice.want.rate_rps else _users(advice.want.users)
    text: str = template("advise.html.j2").render(
        headline=headline(advice), asked=f"{devices}{advice.hardware.name}, {load}", notes=notes,
        titles=TITLES, rows=rows(advice), memory=_memory(advice),
        facts=[(title, text) for title, text in facts(advice) if title not in IN_THE_BAR and text],
        commands="\n".join(commands(best)) if best else "", plot=pareto(advice) if advice.scatter else "",
        css=Markup(resource("templates/report.css")),
    )  # fmt: skip
    return text


def _users(count: int) -> str:
    return "one user" if count == 1 else f"{count} users"


def _memory(advice: Advice) -> list[dict[str, Any]]:
    """The parts of the memory bar: width in percent, size as text."""
    parts = memory_bar(advice.best) if advice.best else []
    total = sum(size for _, size in parts) or 1.0
    return [
        {"name": name, "share": round(100 * size / total, 2), "size": f"{size:.2f} GiB", "colour": COLOURS[name]}
        for name, size in parts
        if size >= 0.005
    ]


def pareto(advice: Advice) -> Markup:
    """Quality against speed as an SVG, with both axes; the speed on a logarithmic axis."""
    points = [(name, max(speed, 0.1), nats, front) for name, speed, nats, front in advice.scatter]
    slow, fast = min(p[1] for p in points), max(p[1] for p in points)
    low, high = min(p[2] for p in points), max(p[2] for p in points)
    across, down = math.log(fast / slow) or 1.0, (high - low) or 1.0

    def place(speed: float, nats: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - EDGE) * math.log(speed / slow) / across
        return round(x, 1), round(EDGE + (HEIGHT - 2 * EDGE - 26) * (nats - low) / down, 1)

    drawn = []
    foot = HEIGHT - EDGE - 20
    for speed in _ticks(slow, fast):
        x, _ = place(speed, low)
        drawn.append(f'<line x1="{x}" y1="{EDGE - 12}" x2="{x}" y2="{foot}"/>')
        drawn.append(f'<text x="{x}" y="{foot + 18}" text-anchor="middle">{significant(speed, 2)}</text>')
    for step in range(5):
        nats = low + down * step / 4
        _, y = place(slow, nats)
        drawn.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - EDGE + 12}" y2="{y}"/>')
        drawn.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{nats:.2f}</text>')
    best = advice.best
    same = [point for point in points if best and abs(point[2] - best.candidate.nats) < 1e-9]
    chosen = max(same, key=lambda point: point[1], default=None)
    for name, speed, nats, front in sorted(points, key=lambda p: p[3]):
        x, y = place(speed, nats)
        title = f"{escape(name)}: {speed:.0f} tokens/s, {nats:.3f} nats"
        kind = ' class="front"' if front else ""
        drawn.append(f'<circle cx="{x}" cy="{y}" r="4"{kind}><title>{title}</title></circle>')
    if chosen:
        x, y = place(chosen[1], chosen[2])
        drawn.append(f'<circle cx="{x}" cy="{y}" r="7" class="best"><title>the recommendation</title></circle>')
    labels = (
        f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">Output tokens/s</text>'
        f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        "Expected loss, nats a token</text>"
    )
    head = f'<svg class="pareto" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="Quality against speed">'
    return Markup(f"{head}{''.join(drawn)}{labels}</svg>")


def _ticks(slow: float, fast: float) -> list[float]:
    """1, 2, 5, 10, 20, ... within the range."""
    ticks = [step * 10.0**power for power in range(-1, 6) for step in (1, 2, 5)]
    return [tick for tick in ticks if slow <= tick <= fast]
