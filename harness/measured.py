"""The records of one load point as arrays: what the formulas in `metrics` are computed from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.records import Fact, PointRun

Floats = np.ndarray[Any, np.dtype[np.float64]]
Series = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class Measured:
    """One repeat (or several pooled) of one load point on one engine. Times in seconds, NaN where not measured.

    The arrays hold the requests of phase `measure`, one element a request: `status`, `scheduled`, `sent`,
    `first`, `last`, `tpot`, `input_tokens`, `output_tokens`, `mean_gap`. `gaps` pools the gaps between chunks of
    those that succeeded, `gaps_token` the same divided by the tokens in the chunk. `window_tokens` counts the output
    tokens that arrived inside the window, whichever request they belong to, and `window_input_tokens` the prompts
    whose first token did; `live_tokens_peak` is the largest number of tokens (prompt and output) that running
    requests held. Both are NaN where the server counted no prompt. `telemetry` has one series a repeat.
    """

    open_loop: bool
    concurrency: int | None
    window_s: float
    requests: dict[str, Any]
    gaps: Floats
    gaps_token: Floats
    window_tokens: float
    window_input_tokens: float
    window_finished: int
    live_tokens_peak: float
    telemetry: dict[tuple[str, str], list[Series]] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    slo: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> Any:
        """Which requests succeeded."""
        return self.requests["status"] == "ok"

    def latency(self, what: str, clock: str = "reported") -> Floats:
        """`ttft` or `e2e` of the requests that succeeded, from `due` or `sent`; an open loop reports `due`."""
        due = clock == "due" or (clock == "reported" and self.open_loop)
        start = self.requests["scheduled" if due else "sent"]
        end = self.requests["first" if what == "ttft" else "last"]
        return present((end - start)[self.ok])

    def within_slo(self) -> Any:
        """Per request: succeeded, and within every number of the SLO. A value that a request cannot have
        (TPOT and gaps of one token) does not count against it."""
        good = np.array(self.ok, dtype=bool)
        start = self.requests["scheduled" if self.open_loop else "sent"]
        values = {
            "ttft": self.requests["first"] - start,
            "e2e": self.requests["last"] - start,
            "tpot": self.requests["tpot"],
            "itl": self.requests["mean_gap"],
        }
        for key, limit in self.slo.items():
            what = key.split("_")[0]
            good &= (values[what] <= limit) | (np.isnan(values[what]) & (what in ("tpot", "itl")))
        return good


def measured(
    table: pa.Table, point: PointRun, telemetry: pa.Table, facts: list[Fact], slo: dict[str, float], live: bool = True
) -> Measured:
    """The arrays of one repeat. `table` holds its requests of all phases, `telemetry` the samples of its engine.
    Without `live` the peak of tokens held is not looked for: it takes as long as all the rest."""
    open_s = point.open_s if point.open_s is not None else float("nan")
    close_s = point.close_s if point.close_s is not None else float("nan")
    chunks = _Chunks(table)
    inside = (chunks.times >= open_s) & (chunks.times < close_s)
    first, ended = _floats(table, "first_token_s"), _floats(table, "end_s")
    prompts = _floats(table, "input_tokens")
    keep, ok = _strings(table, "phase") == "measure", _strings(table, "status") == "ok"
    of_ok = (keep & ok)[chunks.gap_rows]
    of_tokens = of_ok & (chunks.weight_of_gap > 0)  # a chunk of no token has no time per token
    finished = (ended >= open_s) & (ended < close_s) & ok
    return Measured(
        open_loop=point.load.get("kind") != "concurrency",
        concurrency=point.load.get("concurrency"),
        window_s=close_s - open_s,
        requests=_request_arrays(table, keep, chunks),
        gaps=chunks.gaps[of_ok],
        gaps_token=chunks.gaps[of_tokens] / chunks.weight_of_gap[of_tokens],
        window_tokens=float(chunks.weights[inside].sum()),
        window_input_tokens=_known_sum(prompts[(first >= open_s) & (first < close_s)]),
        window_finished=int(finished.sum()),
        live_tokens_peak=_live_peak(table, chunks, open_s, close_s) if live else float("nan"),
        telemetry=_series(telemetry, open_s, close_s),
        facts={fact.name: fact for fact in facts},
        slo=slo,
    )


def pooled(parts: list[Measured]) -> Measured:
    """Several repeats as one: requests and gaps together, windows and counts added, the larger peak."""
    first = parts[0]
    if len(parts) == 1:
        return first
    keys = {key for part in parts for key in part.telemetry}
    return Measured(
        open_loop=first.open_loop,
        concurrency=first.concurrency,
        window_s=sum(part.window_s for part in parts),
        requests={key: np.concatenate([part.requests[key] for part in parts]) for key in first.requests},
        gaps=np.concatenate([part.gaps for part in parts]),
        gaps_token=np.concatenate([part.gaps_token for part in parts]),
        window_tokens=sum(part.window_tokens for part in parts),
        window_input_tokens=sum(part.window_input_tokens for part in parts),
        window_finished=sum(part.window_finished for part in parts),
        live_tokens_peak=float(np.max([part.live_tokens_peak for part in parts])),
        telemetry={key: [series for part in parts for series in part.telemetry.get(key, [])] for key in keys},
        facts=first.facts,
        slo=first.slo,
    )


def present(values: Floats) -> Floats:
    """The values that were measured."""
    return values[~np.isnan(values)]


class _Chunks:
    """Every chunk of a table of requests, flat: when it arrived and how many tokens it stands for.

    The first chunk has its own count where the server told it (else 1); the rest of a request's tokens are
    spread evenly over its other chunks, which is exact where a chunk is a token.
    """

    def __init__(self, table: pa.Table) -> None:
        gaps = table["gaps_s"].combine_chunks()
        lengths = np.asarray(pc.fill_null(pc.list_value_length(gaps), 0))
        self.gaps = np.asarray(pc.list_flatten(gaps), dtype=np.float64)
        self.gap_rows = np.repeat(np.arange(table.num_rows), lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        total = np.concatenate([[0.0], np.cumsum(self.gaps)])
        first = _floats(table, "first_token_s")
        chunk_count = lengths + 1
        output = np.where(np.isnan(o := _floats(table, "output_tokens")), chunk_count, o)
        first_tokens = np.where(np.isnan(f := _floats(table, "first_chunk_tokens")), 1.0, f)
        rest = np.where(lengths > 0, np.maximum(output - first_tokens, 0) / np.maximum(lengths, 1), 0.0)
        self.weight_of_gap = rest[self.gap_rows]
        later = first[self.gap_rows] + total[1:] - total[starts][self.gap_rows]
        has_first = ~np.isnan(first)
        alone = np.where(lengths > 0, np.minimum(first_tokens, output), output)
        self.times = np.concatenate([first[has_first], later])
        self.weights = np.concatenate([alone[has_first], self.weight_of_gap])
        self.mean_gap = np.where(lengths > 0, _sums(self.gaps, self.gap_rows, table.num_rows), np.nan)
        self.mean_gap = self.mean_gap / np.maximum(lengths, 1)


def _known_sum(values: Floats) -> float:
    """The sum of what is known: NaN, not 0, where nothing of it is."""
    known = present(values)
    return float("nan") if len(values) and not len(known) else float(known.sum())


def _sums(values: Floats, rows: Any, count: int) -> Floats:
    return np.bincount(rows, weights=values, minlength=count)[:count].astype(np.float64)


def _request_arrays(table: pa.Table, keep: Any, chunks: _Chunks) -> dict[str, Any]:
    names = {
        "scheduled": "scheduled_s", "sent": "sent_s", "first": "first_token_s", "last": "last_token_s",
        "end": "end_s", "tpot": "tpot_s", "input_tokens": "input_tokens", "output_tokens": "output_tokens",
        "asked_input_tokens": "asked_input_tokens", "asked_output_tokens": "asked_output_tokens",
    }  # fmt: skip
    arrays: dict[str, Any] = {key: _floats(table, column)[keep] for key, column in names.items()}
    arrays["status"] = _strings(table, "status")[keep]
    arrays["mean_gap"] = chunks.mean_gap[keep]
    return arrays


def _live_peak(table: pa.Table, chunks: _Chunks, open_s: float, close_s: float) -> float:
    """Tokens held at most by running requests inside the window: a prompt from its first token on, each output
    token as it arrives, all given back at the request's end. NaN where the server counted no prompt."""
    first, ended = _floats(table, "first_token_s"), _floats(table, "end_s")
    started = ~np.isnan(first)
    if not started.any() or not open_s < close_s:
        return 0.0
    prompts = _floats(table, "input_tokens")[started]
    if np.isnan(prompts).all():
        return float("nan")
    prompts = np.nan_to_num(prompts)
    output = np.zeros(table.num_rows)
    rows = np.concatenate([np.flatnonzero(started), chunks.gap_rows])
    np.add.at(output, rows, chunks.weights)
    ends = np.where(np.isnan(ended), np.inf, ended)[started]
    times = np.concatenate([chunks.times, first[started], ends])
    steps = np.concatenate([chunks.weights, prompts, -(prompts + output[started])])
    order = np.argsort(times, kind="stable")
    held = np.concatenate([[0.0], np.cumsum(steps[order])])  # held[i]: before event i
    begin, end = np.searchsorted(times[order], [open_s, close_s])
    return float(held[begin : end + 1].max())


def _series(telemetry: pa.Table, open_s: float, close_s: float) -> dict[tuple[str, str], list[Series]]:
    if telemetry.num_rows == 0:
        return {}
    inside = telemetry.filter((pc.field("time_s") >= open_s) & (pc.field("time_s") < close_s))
    frame = inside.select(["time_s", "source", "metric", "value"]).to_pandas().dropna()
    return {
        (str(key[0]), str(key[1])): [(group["time_s"].to_numpy(), group["value"].to_numpy())]
        for key, group in frame.groupby(["source", "metric"], sort=False)
    }


def _floats(table: pa.Table, column: str) -> Floats:
    values: Floats = np.asarray(pc.fill_null(pc.cast(table[column], pa.float64()), float("nan")), dtype=np.float64)
    return values


def _strings(table: pa.Table, column: str) -> Any:
    return np.asarray(table[column].to_pylist(), dtype=object)
