"""The METRICS table: what each figure means, its unit, which way is better, and its formula over records.

All figures are recomputed from records. A value that cannot be had is None with the reason, never 0.
Definitions: `docs/metrics.md` is written from this table.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.energy import energy, money, per, rates_of
from harness.instep import STREAMS_MIN, in_step
from harness.measured import Measured, Rates, measured, pooled, present
from harness.sampled import THROTTLED, gpus, sampled, throttled, time_weighted_mean
from harness.series import Floats
from harness.statistics import QUANTILES, Stat, between_repeats, interval, quantile_of, statistic

__all__ = ["METRICS", "THROTTLED", "Measured", "Metric", "Rates", "Stat", "between_repeats", "evaluate", "family_of",
           "measured", "metric_key", "pooled", "present", "quantile_of", "rates_of", "statistic",
           "time_weighted_mean"]  # fmt: skip

OFF = 0.02  # a length further than this from the asked one is another length


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `formula` gives the figure of one `Measured`; `samples` (for a statistic over requests
    or gaps) the values it is taken of, and `stat` which one: `mean` or a quantile such as `p95`."""

    key: str
    title: str
    unit: str
    better: str | None
    help: str
    formula: Callable[[Measured], Stat]
    samples: Callable[[Measured], Floats] | None = None
    stat: str | None = None


def evaluate(metric: Metric, repeats: list[Measured]) -> Stat:
    """The figure over all repeats. Its interval comes from the repeats (the run is the unit), else from requests."""
    if not repeats:
        return Stat(None, reason="no repeat of this point was finished")
    whole = metric.formula(pooled(repeats))
    if whole.value is None:
        return whole
    if len(repeats) > 1:
        values = [stat.value for stat in map(metric.formula, repeats) if stat.value is not None]
        if len(values) == len(repeats):
            return between_repeats(whole, values)
    if metric.samples is None or metric.stat is None:
        return whole
    part = pooled(repeats)
    in_time, ordered = metric.samples(part), part.ordered(family_of(metric), metric.samples)
    low, high = interval(in_time, ordered, metric.stat, whole.n)
    return Stat(whole.value, low, high, whole.n)


def family_of(metric: Metric) -> str:
    """What all statistics of one quantity share: `ttft` of `ttft_p95_s`."""
    return metric.key.removesuffix(f"_{metric.stat}_s") if metric.stat else metric.key


def _latency(name: str, title: str, help_: str, samples: Callable[[Measured], Floats]) -> list[Metric]:
    def row(stat: str) -> Metric:
        of = "gaps" if name.startswith("itl") else "requests"

        def formula(m: Measured) -> Stat:
            independent = int(m.ok.sum()) if of == "gaps" else None
            return statistic(m.ordered(name, samples), stat, of, independent)

        return Metric(f"{name}_{stat}_s", f"{title} {stat}", "s", "lower", help_, formula, samples, stat)

    return [row(stat) for stat in ("mean", *QUANTILES)]


def _rate(of: Callable[[Measured], float]) -> Callable[[Measured], Stat]:
    def formula(m: Measured) -> Stat:
        value, count = of(m), len(m.ok)
        if not m.window_s > 0:
            return Stat(None, reason="the measured window never opened, or never closed")
        if count == 0 and not value > 0:
            return Stat(None, reason="no request was measured")
        if math.isnan(value):
            return Stat(None, reason="the server did not count the tokens")
        return Stat(value / m.window_s, n=count)

    return formula


def _share(of: Callable[[Measured], Any]) -> Callable[[Measured], Stat]:
    def formula(m: Measured) -> Stat:
        flags = of(m)
        return Stat(float(flags.mean()), n=len(flags)) if len(flags) else Stat(None, reason="no requests")

    return formula


def _in_step(m: Measured) -> Stat:
    if m.concurrency is None:
        return Stat(None, reason="an open loop sends when its schedule says")
    latencies = m.latency("e2e", "sent")
    value = in_step(present(m.requests["sent"]), float(latencies.mean()) if len(latencies) else 0.0, m.concurrency)
    if value is None:
        return Stat(None, reason=f"needs {STREAMS_MIN} streams, and sendings over more than the time of a request")
    return Stat(value, n=len(latencies))


def _goodput(of: Callable[[Measured, Any], float]) -> Callable[[Measured], Stat]:
    def formula(m: Measured) -> Stat:
        if not m.slo:
            return Stat(None, reason="the scenario states no SLO")
        return _rate(lambda x: of(x, x.within_slo()))(m)

    return formula


def _fact(name: str) -> Callable[[Measured], Stat]:
    def formula(m: Measured) -> Stat:
        fact = m.facts.get(name)
        value = fact.value if fact else None
        if not isinstance(value, int | float):
            return Stat(None, reason="the engine did not say it")
        return Stat(float(value), n=1)

    return formula


def _kv_live(m: Measured) -> Stat:
    per_token = _fact("kv_bytes_per_token")(m)
    if per_token.value is None:
        return Stat(None, reason="bytes per token are not known")
    if not m.live_tokens_peak > 0:
        unknown = math.isnan(m.live_tokens_peak)
        return Stat(None, reason="the server did not count the prompts" if unknown else "no token arrived")
    return Stat(m.live_tokens_peak * per_token.value, n=1)


def _kv_efficiency(m: Measured) -> Stat:
    live, capacity = _kv_live(m), _fact("kv_capacity_bytes")(m)
    if live.value is None or not capacity.value:
        return Stat(None, reason=live.reason or "the engine did not say its KV capacity")
    return Stat(live.value / capacity.value, n=1)


def _asked(which: str, what: str, note: str) -> list[Metric]:
    """Asked against got, of the requests that ended well and of which both are known."""

    def pairs(m: Measured) -> tuple[Floats, Floats]:
        asked, got = m.requests[f"asked_{which}_tokens"][m.ok], m.requests[f"{which}_tokens"][m.ok]
        known = ~np.isnan(asked) & ~np.isnan(got)
        return asked[known], got[known]

    def formula(of: Callable[[Floats, Floats], Any]) -> Callable[[Measured], Stat]:
        def stat(m: Measured) -> Stat:
            asked, got = pairs(m)
            if not len(asked):
                return Stat(None, reason=f"no request with a known and a counted number of {what}")
            return Stat(float(of(asked, got)), n=len(asked))

        return stat

    return [
        Metric(f"asked_{which}_tokens_mean", f"{what} asked for", "tok", None, f"Mean {what} asked for of a request "
               f"where they are known. {note}", formula(lambda asked, got: asked.mean())),
        Metric(f"{which}_got_ratio", f"{what}, got over asked", "ratio", None, f"{what.capitalize()} that the server "
               "counted, over those asked for.", formula(lambda asked, got: got.sum() / asked.sum())),
        Metric(f"{which}_off_ratio", f"off in {what}", "ratio", "lower", f"Share of the requests whose {what} are more "
               "than 2 % off from what was asked for.", formula(lambda a, b: (abs(b / a - 1) > OFF).mean())),
    ]  # fmt: skip


def _energy() -> list[Metric]:
    rows: list[Metric] = []
    devices = ("nvidia", "rapl")
    for key, words, idle in (("", "", False), ("_above_idle", " above idle", True)):
        joules = energy(*devices, above_idle=idle)
        what = "what the idle machine takes is subtracted" if idle else "idle power included"
        rows += [
            Metric(f"energy{key}_j", f"energy{words}", "J", None, "Energy of GPUs and processors inside the window, as "
                   f"far as they can be read; {what}.", joules),
            Metric(f"energy_per_token{key}_j", f"energy per token{words}", "J/tok", "lower", "The same per output "
                   f"token that arrived inside the window; {what}.", per(joules, lambda m: m.window_tokens)),
            Metric(f"tok_s_per_w{key}", f"tokens/s/W{words}", "tok/s/W", "higher", f"Output tokens per joule; {what}.",
                   per(joules, lambda m: m.window_tokens, inverse=True)),
        ]  # fmt: skip
    return [
        *rows,
        Metric("gpu_energy_j", "GPU energy", "J", None, "Of all GPUs inside the window: by NVML's energy counter, else "
               "the integral of the sampled power.", energy("nvidia")),
        Metric("cpu_energy_j", "processor energy", "J", None, "Of all processor packages and their memory inside the "
               "window, by RAPL's counters.", energy("rapl")),
        Metric("cost_per_m_output_tokens", "cost of 1M output tokens", "/1M tok", "lower", "What the window cost by "
               "the scenario's `price`, per million output tokens.", per(money, lambda m: m.window_tokens / 1e6)),
        Metric("cost_per_m_tokens", "cost of 1M tokens", "/1M tok", "lower", "The same per million tokens of prompts "
               "and answers.", per(money, lambda m: (m.window_tokens + m.window_input_tokens) / 1e6)),
    ]  # fmt: skip


_TTFT = "First chunk that carries text, minus start. An empty or role-only chunk is not a token."
_START = " Start is when the request was due in an open loop, when it was sent in a closed loop."

_ROWS: list[Metric] = [
    Metric("output_tok_s", "output tokens/s", "tok/s", "higher", "Output tokens that arrived inside the measured "
           "window, over the window.", _rate(lambda m: m.window_tokens)),
    Metric("request_s", "requests/s", "1/s", "higher", "Requests that ended well inside the measured window, over "
           "the window.", _rate(lambda m: m.window_finished)),
    Metric("input_tok_s", "input tokens/s", "tok/s", "higher", "Prompt tokens of the requests whose first token "
           "arrived inside the window, over the window.", _rate(lambda m: m.window_input_tokens)),
    Metric("total_tok_s", "total tokens/s", "tok/s", "higher", "Input and output tokens/s together.",
           _rate(lambda m: m.window_tokens + m.window_input_tokens)),
    *_latency("ttft", "TTFT", _TTFT + _START, lambda m: m.latency("ttft")),
    *_latency("ttft_sent", "TTFT from sent", _TTFT + " From the first byte sent.", lambda m: m.latency("ttft", "sent")),
    *_latency("ttft_due", "TTFT from due", _TTFT + " From when the schedule wanted it, so that a queue in front "
              "of the server shows.", lambda m: m.latency("ttft", "due")),
    *_latency("tpot", "TPOT", "(Last token - first token) / (output tokens - tokens in the first chunk); undefined for "
              "one token.", lambda m: present(m.requests["tpot"][m.ok])),
    *_latency("itl", "ITL", "Gaps between chunks, pooled over the requests that ended well.", lambda m: m.gaps),
    *_latency("itl_token", "ITL per token", "Gaps between chunks, each divided by the tokens in the chunk, pooled.",
              lambda m: m.gaps_token),
    *_latency("e2e", "E2E", "Last token minus start: not the usage block, not [DONE]." + _START,
              lambda m: m.latency("e2e")),
    Metric("goodput_request_s", "goodput", "1/s", "higher", "Requests within every number of the SLO, over the window; "
           "a failed request is a miss.", _goodput(lambda m, good: float(good.sum()))),
    Metric("goodput_tok_s", "goodput tokens/s", "tok/s", "higher", "Output tokens of the requests within the SLO, over "
           "the window.", _goodput(lambda m, good: float(np.nansum(m.requests["output_tokens"][good])))),
    Metric("slo_ratio", "within the SLO", "ratio", "higher", "Share of the measured requests within every number of "
           "the SLO.", lambda m: _share(lambda x: x.within_slo())(m) if m.slo else Stat(None, reason="no SLO stated")),
    Metric("error_ratio", "failed", "ratio", "lower", "Share of the measured requests that did not end well.",
           _share(lambda m: ~m.ok)),
    Metric("in_step_ratio", "in step", "ratio", "lower", "Whether the streams of a closed loop fell into step: 0 where "
           "they send as evenly as by chance or more so, 1 where all send at once (dispersion of the sendings in each "
           "twentieth of the mean latency).", _in_step),
    Metric("output_tokens_mean", "output tokens a request", "tok", None, "Mean output tokens of requests that ended "
           "well.", lambda m: statistic(present(m.requests["output_tokens"][m.ok]), "mean")),
    Metric("input_tokens_mean", "input tokens a request", "tok", None, "Mean prompt tokens, as the server counted.",
           lambda m: statistic(present(m.requests["input_tokens"][m.ok]), "mean")),
    *_asked("input", "prompt tokens", "A later turn of a session counts in none of these: it holds answers, and what "
            "they count in a prompt is the server's to say."),
    *_asked("output", "output tokens", "vLLM is told to hold the length (`ignore_eos`); Ollama can only cap it."),
    Metric("kv_capacity_bytes", "KV capacity", "bytes", None, "Bytes that the engine reserves for the KV cache.",
           _fact("kv_capacity_bytes")),
    Metric("kv_live_bytes", "KV live at the peak", "bytes", None, "Bytes that hold tokens of running requests, at the "
           "peak inside the window; derived from the records.", _kv_live),
    Metric("kv_efficiency_ratio", "KV efficiency", "ratio", "higher", "Live over reserved KV bytes, at the peak.",
           _kv_efficiency),
    Metric("weights_bytes", "weights", "bytes", None, "Bytes of the model's weights, as the engine says.",
           _fact("weights_bytes")),
    Metric("engine_cpu_cores", "engine CPU", "cores", None, "CPU of the engine's whole process family, in cores; "
           "time-weighted mean.", sampled("process", "cpu_cores", "mean")),
    Metric("engine_rss_bytes", "engine memory", "bytes", "lower", "Resident memory of the engine's process family, "
           "peak (shared pages are counted once a process).", sampled("process", "rss_bytes", "peak")),
    Metric("gpus", "GPUs", "GPUs", None, "How many GPUs the other figures are added over: those of the engine's "
           "processes, where that was told, else all.", gpus),
    Metric("gpu_util_ratio", "GPU busy", "ratio", None, "NVML utilisation, time-weighted mean, added over GPUs.",
           sampled("nvidia", "utilization_ratio", "mean")),
    Metric("gpu_memory_bytes", "GPU memory", "bytes", "lower", "Memory in use on the GPU, peak, added over GPUs.",
           sampled("nvidia", "memory_used_bytes", "peak")),
    Metric("gpu_power_w", "GPU power", "W", "lower", "Time-weighted mean power, added over GPUs.",
           sampled("nvidia", "power_w", "mean")),
    Metric("engine_pss_bytes", "engine memory, shared once", "bytes", "lower", "Memory of the engine's process family, "
           "peak, with pages that several share counted once (PSS).", sampled("process", "pss_bytes", "peak")),
    Metric("gpu_throttled_ratio", "GPU throttled", "ratio", "lower", "Share of the window in which a GPU's clocks were "
           "held down by its power cap, by heat or by its hardware; of the GPU that was it most often.", throttled),
    *_energy(),
]  # fmt: skip

METRICS: dict[str, Metric] = {row.key: row for row in _ROWS}
_UNIT_ENDINGS = ("_s", "_bytes", "_ratio", "_w", "_j", "_cores")


def metric_key(name: str) -> str:
    """A metric's key from its name with or without the unit: `ttft_p95` is `ttft_p95_s`.

    Raises:
        ValueError: there is no such metric; names the nearest.
    """
    names = {key: key for key in METRICS}
    for key in METRICS:
        ending = next((end for end in _UNIT_ENDINGS if key.endswith(end)), "")
        names.setdefault(key.removesuffix(ending), key)
    if (found := names.get(name.strip())) is None:
        close = difflib.get_close_matches(name, names, n=3)
        raise ValueError(f"no metric '{name.strip()}'" + (f"; did you mean {' or '.join(close)}?" if close else ""))
    return found
