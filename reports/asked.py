"""Asked against got: how long prompts and answers were to be, and how long they were."""

from __future__ import annotations

from dataclasses import dataclass

from harness.metrics import OFF
from harness.units import significant
from reports.rows import PointState, Row

MANY = 0.05  # of the requests: so many of another length are told, even if the mean is right
COLUMNS = ("load", "engine", "input asked", "got", "off", "output asked", "got", "off")
NOTE = (
    "Tokens a request, means over those whose length was asked for. Off: the share of them by more than 2 %. "
    "–: nobody can say (the later turns of a session, texts of a file without a tokenizer)."
)
KINDS = {"input": "prompt", "output": "output"}
Rows = dict[tuple[str, str, str], Row]


@dataclass(frozen=True, slots=True)
class Lengths:
    """One kind of length (`input` or `output`) at one point on one engine; tokens are means, None where not known."""

    kind: str
    state: PointState
    asked: float | None
    got: float | None
    off_ratio: float | None

    @property
    def apart(self) -> bool:
        """Whether what was got is something else than what was asked for."""
        if self.asked is None or self.got is None or not self.asked:
            return False
        return abs(self.got / self.asked - 1) > OFF or (self.off_ratio or 0.0) > MANY

    def cells(self) -> list[str]:
        shares = "–" if self.off_ratio is None else f"{significant(self.off_ratio * 100)} %"
        return ["–" if self.asked is None else _tokens(self.asked),
                "–" if self.got is None else _tokens(self.got), shares]  # fmt: skip


def lengths(points: list[PointState], rows: Rows) -> list[Lengths]:
    """Of every point that has figures, its prompts and its answers."""
    found = []
    for state in points:
        for kind in KINDS:
            values = [
                row.value if (row := rows.get((state.engine, state.point, key))) else None
                for key in (f"asked_{kind}_tokens_mean", f"{kind}_got_ratio", f"{kind}_off_ratio")
            ]
            asked, ratio, off = values
            got = asked * ratio if asked is not None and ratio is not None else None
            if state.repeats:
                found.append(Lengths(kind, state, asked, got, off))
    return found


def table(points: list[PointState], rows: Rows) -> list[list[str]]:
    """A row of COLUMNS for each point that has figures, like by like."""
    order = list(dict.fromkeys(state.point for state in points))
    found = lengths(sorted(points, key=lambda state: order.index(state.point)), rows)
    return [
        [prompts.state.label, prompts.state.engine, *prompts.cells(), *answers.cells()]
        for prompts, answers in zip(found[::2], found[1::2], strict=True)
    ]


def in_short(points: list[PointState], rows: Rows) -> str | None:
    """One line where all is as asked for; None where the table is to be read."""
    found = lengths(points, rows)
    if not found or any(each.apart for each in found):
        return None
    known = [each for each in found if each.asked is not None]
    said = {kind: [each.asked or 0.0 for each in known if each.kind == kind] for kind in KINDS}
    texts = [
        f"{KINDS[kind]} tokens {_tokens(min(values))}"
        + (f" to {_tokens(max(values))}" if _tokens(max(values)) != _tokens(min(values)) else "")
        for kind, values in said.items()
        if values
    ]
    return f"Lengths as asked for: {', '.join(texts)} a request on average." if texts else None


def warnings(points: list[PointState], rows: Rows) -> list[str]:
    """One line for each engine and kind of length that is something else than was asked for: its worst point, and the
    others in which it is so."""
    found: dict[tuple[str, str], list[Lengths]] = {}
    for each in lengths(points, rows):
        if each.apart:
            found.setdefault((each.state.engine, each.kind), []).append(each)
    return [_told(engine, kind, each) for (engine, kind), each in found.items()]


def _told(engine: str, kind: str, found: list[Lengths]) -> str:
    worst = max(found, key=lambda each: (abs((each.got or 0.0) / (each.asked or 1.0) - 1), each.off_ratio or 0.0))
    where = worst.state.label + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
    advice = "compare TPOT and tokens/s, not E2E or requests/s" if kind == "output" else "TTFT is that of other prompts"
    return (
        f"{engine}, {where}: {KINDS[kind]} tokens a request: {_tokens(worst.asked or 0.0)} asked for, "
        f"{_tokens(worst.got or 0.0)} got; {significant((worst.off_ratio or 0.0) * 100)} % of the requests are "
        f"off by more than 2 %: {advice}"
    )


def _tokens(value: float) -> str:
    """A mean number of tokens: `512`, `46.8`."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}".removesuffix(".0")
