"""Warnings where a closed loop measured its own rhythm: requests that were sent in step, and a window too short to hold
whole waves of them."""

from __future__ import annotations

from harness.units import show, significant
from reports.rows import PointState, Row

LIMIT = 0.2
FEW_WAVES = 4.0  # windows of more requests' times than that average over whatever part of a wave they cut off
WAVE_SHARE = 0.15  # by which throughput may differ from streams / time of a request before it is told
FAILED_MAX = 0.05
Rows = dict[tuple[str, str, str], Row]


def warnings(points: list[PointState], rows: Rows) -> list[str]:
    """One line for each engine of which some point fell into step. A burst is in step because it was asked to be."""
    found: dict[str, list[tuple[float, PointState]]] = {}
    for state in points:
        row = rows.get((state.engine, state.point, "in_step_ratio"))
        if row is not None and row.value is not None and row.value >= LIMIT and state.load.get("start") != "burst":
            found.setdefault(state.engine, []).append((row.value, state))
    return [_told(engine, each) for engine, each in found.items()]


def _told(engine: str, found: list[tuple[float, PointState]]) -> str:
    value, worst = max(found, key=lambda each: each[0])
    where = worst.label + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
    return (
        f"{engine}, {where}: requests of like length fell into step ({significant(value)} of 1): TTFT is that of a "
        "burst. Let lengths vary (output_tokens: {kind: uniform, min: ..., max: ...}) or use an open loop"
    )


def short_windows(points: list[PointState], rows: Rows) -> list[str]:
    """One line for each engine whose throughput tells where its window lay. In a closed loop without pauses, streams x
    tokens / time of a request is what comes in the long run (Little's law); a window of less than a few such times can
    hold the prompts of a wave and not its answers, or the other way round."""
    found: dict[str, list[tuple[float, str]]] = {}
    for state in points:
        window_s, streams = state.load.get("duration_s"), state.load.get("concurrency")
        told_s, tokens, time_s = (
            row.value if (row := rows.get((state.engine, state.point, name))) is not None else None
            for name in ("output_tok_s", "output_tokens_mean", "e2e_mean_s")
        )
        closed = state.load.get("kind") == "concurrency" and state.load.get("start") != "burst"
        failed = rows.get((state.engine, state.point, "error_ratio"))
        if failed is not None and (failed.value or 0.0) > FAILED_MAX:  # those that failed held streams, too
            continue
        if not closed or state.load.get("shape") or not (window_s and streams and told_s and tokens and time_s):
            continue
        lasting = streams * tokens / time_s
        off = told_s / lasting - 1
        if window_s < FEW_WAVES * time_s and abs(off) > WAVE_SHARE:
            text = (
                f"{state.label}: the window of {show(window_s, 's')} holds {significant(window_s / time_s)} times what "
                f"a request takes, so {show(told_s, 'tok/s')} is of the part of a wave that lay in it; streams x "
                f"tokens / time of a request gives {show(lasting, 'tok/s')}"
            )
            found.setdefault(state.engine, []).append((abs(off), text))
    return [
        f"{engine}, {max(each)[1]}{f' (and {len(each) - 1} more)' if len(each) > 1 else ''}. Measure for longer"
        for engine, each in found.items()
    ]
