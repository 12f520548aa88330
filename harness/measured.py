"""The records of one load point as arrays: what the formulas in `metrics` are computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.records import Fact, PointRun
from harness.series import Floats, Series, of_used_gpus, series_within

LIVE_MOMENTS = 100  # of a window, at which the tokens held are kept


@dataclass(frozen=True, slots=True)
class Rates:
    """What joules and seconds are set against: the idle power of each device in watts, and prices (of an hour of the
    machine, of a kilowatt-hour) in `currency`; None where the scenario states none."""

    idle_w: dict[str, float] = field(default_factory=dict)
    machine_hour: float | None = None
    energy_kwh: float | None = None
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One repeat (or several pooled) of one load point on one engine. Times in seconds, NaN where not measured.

    The arrays hold the requests of phase `measure`, one element a request: `ok`, `scheduled`, `sent`,
    `first`, `last`, `tpot`, `input_tokens`, `output_tokens`, `mean_gap`. `gaps` pools the gaps between chunks of
    those that succeeded (in the file's single precision), `gaps_token` the same divided by the tokens in the chunk:
    the same array where each chunk is a token. `window_tokens` counts the output
    tokens that arrived inside the window, whichever request they belong to, and `window_input_tokens` the prompts
    whose first token did; `live_tokens_peak` is the largest number of tokens (prompt and output) that running
    requests held. Both are NaN where the server counted no prompt. `live`: how many they held at `LIVE_MOMENTS`
    evenly spaced times (of one repeat; None where not known). `telemetry` has one series a repeat, `statuses`
    the number of measured requests of each status.
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
    live: Series | None = None
    telemetry: dict[tuple[str, str], list[Series]] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    slo: dict[str, float] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    rates: Rates = field(default_factory=Rates)
    sorted_: dict[str, Floats] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def ok(self) -> Any:
        """Which requests succeeded."""
        return self.requests["ok"]

    def ordered(self, name: str, samples: Callable[[Measured], Floats]) -> Floats:
        """These samples from the least to the most: sorted once, as every quantile of them wants it."""
        if name not in self.sorted_:
            self.sorted_[name] = np.sort(samples(self))
        return self.sorted_[name]

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
    table: pa.Table,
    point: PointRun,
    telemetry: pa.Table,
    facts: list[Fact],
    slo: dict[str, float],
    live: bool = True,
    rates: Rates | None = None,
) -> Measured:
    """The arrays of one repeat. `table` holds its requests of all phases, `telemetry` the samples of its engine.
    Without `live` the peak of tokens held is not looked for: it takes as long as all the rest."""
    open_s = point.open_s if point.open_s is not None else float("nan")
    close_s = point.close_s if point.close_s is not None else float("nan")
    chunks = _Chunks(table)
    first, ended = _floats(table, "first_token_s"), _floats(table, "end_s")
    prompts = _floats(table, "input_tokens")
    keep, ok = _is(table, "phase", "measure"), _is(table, "status", "ok")
    gaps, gaps_token = chunks.of(keep & ok)
    peak, held = _live(table, chunks, open_s, close_s) if live else (float("nan"), None)
    finished = (ended >= open_s) & (ended < close_s) & ok
    return Measured(
        open_loop=point.load.get("kind") != "concurrency",
        concurrency=point.load.get("concurrency"),
        window_s=close_s - open_s,
        requests=_request_arrays(table, keep, chunks),
        gaps=gaps,
        gaps_token=gaps_token,
        window_tokens=chunks.tokens_within(open_s, close_s),
        window_input_tokens=_known_sum(prompts[(first >= open_s) & (first < close_s)]),
        window_finished=int(finished.sum()),
        live_tokens_peak=peak,
        live=held,
        telemetry=series_within(of_used_gpus(telemetry), open_s, close_s),
        facts={fact.name: fact for fact in facts},
        slo=slo,
        statuses=_counted(table["status"].filter(pa.array(keep))),
        rates=rates or Rates(),
    )


def pooled(parts: list[Measured]) -> Measured:
    """Several repeats as one: requests and gaps together, windows and counts added, the larger peak."""
    first = parts[0]
    if len(parts) == 1:
        return first
    keys = {key for part in parts for key in part.telemetry}
    gaps = np.concatenate([part.gaps for part in parts])
    alike = all(part.gaps_token is part.gaps for part in parts)
    return Measured(
        open_loop=first.open_loop,
        concurrency=first.concurrency,
        window_s=sum(part.window_s for part in parts),
        requests={key: np.concatenate([part.requests[key] for part in parts]) for key in first.requests},
        gaps=gaps,
        gaps_token=gaps if alike else np.concatenate([part.gaps_token for part in parts]),
        window_tokens=sum(part.window_tokens for part in parts),
        window_input_tokens=sum(part.window_input_tokens for part in parts),
        window_finished=sum(part.window_finished for part in parts),
        live_tokens_peak=float(np.max([part.live_tokens_peak for part in parts])),
        telemetry={key: [series for part in parts for series in part.telemetry.get(key, [])] for key in keys},
        facts=first.facts,
        slo=first.slo,
        rates=first.rates,
    )


def present(values: Floats) -> Floats:
    """The values that were measured."""
    return values[~np.isnan(values)]


class _Chunks:
    """Every chunk of a table of requests, flat: when it arrived and how many tokens it stands for.

    The first chunk has its own count where the server told it (else 1); the rest of a request's tokens are
    spread evenly over its other chunks, which is exact where a chunk is a token. There may be 100 million of them:
    what is the same for all chunks of a request stays one number a request (`later_tokens`).
    """

    def __init__(self, table: pa.Table) -> None:
        lists = table["gaps_s"].combine_chunks()
        self.lengths = lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
        self.gaps = np.asarray(pc.list_flatten(lists))
        total = np.empty(len(self.gaps) + 1)
        total[0] = 0.0
        np.cumsum(self.gaps, dtype=np.float64, out=total[1:])
        ends = np.cumsum(lengths)
        begun, done = total[ends - lengths], total[ends]
        self.first = first = _floats(table, "first_token_s")
        output = np.where(np.isnan(o := _floats(table, "output_tokens")), lengths + 1, o)
        first_tokens = np.where(np.isnan(f := _floats(table, "first_chunk_tokens")), 1.0, f)
        self.later_tokens = np.where(lengths > 0, np.maximum(output - first_tokens, 0) / np.maximum(lengths, 1), 0.0)
        self.first_tokens = np.where(lengths > 0, np.minimum(first_tokens, output), output)
        self.times = total[1:]  # of the later chunks
        self.times += np.repeat(first - begun, lengths)
        self.mean_gap = np.where(lengths > 0, (done - begun) / np.maximum(lengths, 1), np.nan)

    def of(self, wanted: Any) -> tuple[Floats, Floats]:
        """The gaps of these requests, and the same by token; a chunk of no token has no time per token."""
        gaps = self.gaps if wanted.all() else self.gaps[np.repeat(wanted, self.lengths)]
        tokens, lengths = self.later_tokens[wanted], self.lengths[wanted]
        if np.all((tokens == 1.0) | (lengths == 0)):
            return gaps, gaps
        weights = np.repeat(tokens, lengths)
        return gaps, gaps[weights > 0] / weights[weights > 0]

    def tokens_within(self, open_s: float, close_s: float) -> float:
        """Tokens that arrived inside the window."""
        inside = (self.first >= open_s) & (self.first < close_s)
        later = (self.times >= open_s) & (self.times < close_s)
        total = np.concatenate([[0], np.cumsum(later)])
        ends = np.cumsum(self.lengths)
        counts = total[ends] - total[ends - self.lengths]
        return float(self.first_tokens[inside].sum() + (counts * self.later_tokens).sum())

    def before(self, moments: Floats) -> Floats:
        """Tokens that had arrived by each of these moments, which must be in order."""
        known = ~np.isnan(self.first)
        counts = _counts(self.first[known], self.first_tokens[known], moments)
        if np.all((self.later_tokens == 1.0) | (self.lengths == 0)):
            # Sorting them all and then looking up the moments is five times as fast as the other way round.
            return counts + np.searchsorted(np.sort(self.times), moments, side="right")
        return counts + _counts(self.times, np.repeat(self.later_tokens, self.lengths), moments)


def _counts(times: Floats, weights: Floats, moments: Floats) -> Floats:
    """How much of what happens at `times` has happened by each moment, in order."""
    slots = np.searchsorted(moments, times)
    counts: Floats = np.cumsum(np.bincount(slots, weights=weights, minlength=len(moments) + 1)[: len(moments)])
    return counts


def _known_sum(values: Floats) -> float:
    """The sum of what is known: NaN, not 0, where nothing of it is."""
    known = present(values)
    return float("nan") if len(values) and not len(known) else float(known.sum())


def _request_arrays(table: pa.Table, keep: Any, chunks: _Chunks) -> dict[str, Any]:
    names = {
        "scheduled": "scheduled_s", "sent": "sent_s", "first": "first_token_s", "last": "last_token_s",
        "end": "end_s", "tpot": "tpot_s", "input_tokens": "input_tokens", "output_tokens": "output_tokens",
        "asked_input_tokens": "asked_input_tokens", "asked_output_tokens": "asked_output_tokens",
    }  # fmt: skip
    arrays: dict[str, Any] = {key: _floats(table, column)[keep] for key, column in names.items()}
    arrays["ok"] = _is(table, "status", "ok")[keep]
    arrays["mean_gap"] = chunks.mean_gap[keep]
    return arrays


def _live(table: pa.Table, chunks: _Chunks, open_s: float, close_s: float) -> tuple[float, Series | None]:
    """Tokens held by running requests inside the window, at most and over its time: a prompt from its first token on,
    each output token as it arrives, all given back at the request's end. NaN where the server counted no prompt.

    They only grow between two ends, so that the peak is just before one of them, or before the window closes.
    """
    ended, started = _floats(table, "end_s"), ~np.isnan(chunks.first)
    if not started.any() or not open_s < close_s:
        return 0.0, None
    prompts = _floats(table, "input_tokens")
    if np.isnan(prompts[started]).all():
        return float("nan"), None
    prompts = np.nan_to_num(prompts)
    held = prompts + chunks.first_tokens + chunks.later_tokens * chunks.lengths
    over = started & ~np.isnan(ended)
    order = np.argsort(ended[over])
    ends, given_back = ended[over][order], held[over][order]
    last = np.nextafter(close_s, -np.inf)
    looks = np.linspace(open_s, last, LIVE_MOMENTS)
    moments = np.sort(np.concatenate([ends[(ends >= open_s) & (ends < close_s)], looks]))
    gone = np.concatenate([[0.0], np.cumsum(given_back)])[np.searchsorted(ends, moments)]
    gone[-1] = given_back[ends < close_s].sum()
    taken = chunks.before(moments) + _counts(chunks.first[started], prompts[started], moments)
    live = taken - gone
    return float(live.max()), (looks, live[np.searchsorted(moments, looks)])


def _floats(table: pa.Table, column: str) -> Floats:
    values: Floats = np.asarray(pc.fill_null(pc.cast(table[column], pa.float64()), float("nan")), dtype=np.float64)
    return values


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}


def _is(table: pa.Table, column: str, text: str) -> Any:
    return np.asarray(pc.fill_null(pc.equal(table[column], text), False))
