"""One question answered: this model in this format on this hardware under this load. With intervals."""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Any

from sizing import rhythm
from sizing.catalog import Hardware, ModelShape, Quantization
from sizing.engine import Setup, memory_plan, policy, step_time
from sizing.estimate import Estimate, around, factors, missing, widened
from sizing.loads import Met, Offered, meet
from sizing.memory import GIB, MemoryPlan, kv_tokens
from sizing.memory_vllm import DEFAULT_VERSION
from sizing.speed import StepTime, StepWork
from sizing.together import OF_ALL, multiplied, share_of

MEMORY_KEYS = (
    "weights_bytes", "kv_bytes_per_token", "kv_capacity_bytes", "kv_capacity_tokens", "overhead_bytes",
    "max_concurrency", "fits",
)  # fmt: skip
SPEED_KEYS = (
    "prefill_tok_s", "decode_tok_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s", "output_tok_s",
    "request_s",
)  # fmt: skip
# How far computed weights are from loaded ones: tensor formats within 2 %, GGUF files of other models than the one
# whose bits were counted within 5 % (embeddings weigh differently).
WEIGHT_SHARE = {"tensor": 0.02, "gguf": 0.05}
# Non-weight, non-KV memory of a vLLM start: real logs are within about this of the formula.
OVERHEAD_OFF_BYTES = 0.5 * GIB
# llama.cpp's buffers are within these factors of the formula: what 9 starts of 3 models leave besides weights and KV.
# By the factors of the other two models 6 of the 9 are held (tests/benchmarks/accuracy_ollama.py): few, old versions.
LLAMA_BUFFER_ENDS = (0.47, 2.12)
# A hybrid's pages are padded to one size, and draft heads hold more states: its overhead is off by more.
HYBRID_WIDENING = 3.0
# Each doubt about the input makes the interval this much wider.
DOUBT_WIDENING = 1.6
# So does a row of the tables that nobody checked against its source: a figure of a data sheet is seldom far off.
UNVERIFIED_WIDENING = 1.2
# llama.cpp's prompts have one constant by family and no fit of their own. 161 rows of 14 GPUs: with the spread of the
# others' errors a GPU left out is within it in 79 % (tests/benchmarks/coverage.py).
PROMPT_ENDS = (0.52, 1.45)
CONSTANTS_SOURCE = "sizing/data/constants.json, fitted by tests/benchmarks/fit_speed.py"


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked."""

    hardware: Hardware
    model: ModelShape
    quantization: Quantization
    setup: Setup
    offered: Offered
    scale: float = 1.0
    """measured over predicted step time on this machine and engine, from receipts; 1 when there are none"""
    scale_sources: tuple[str, ...] = ()
    replicas: int = 1
    """of the engine, each on devices of its own; the load is dealt out to them"""
    rhythm: bool = False
    """whether intervals show what falling into step would do (`sizing.rhythm`): two simulations more"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer."""

    memory: dict[str, Estimate]
    speed: dict[str, Estimate]
    notes: tuple[str, ...]
    """what was assumed, and what the figures leave out"""
    plan: MemoryPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `bench predict --format json` prints it, without the query."""
        return {
            "memory": {key: value.to_dict() for key, value in self.memory.items()},
            "speed": {key: value.to_dict() for key, value in self.speed.items()},
            "notes": list(self.notes),
        }


def predict(query: Query) -> Prediction:
    """Never raises for what does not fit or cannot be known: those figures are None with the reason."""
    if query.replicas > 1:
        offered, times = share_of(query.offered, query.replicas)
        one = predict(dataclasses.replace(query, offered=offered, replicas=1))
        note = f"{query.replicas} replicas, each predicted for its share of the load; what the balancer adds is not"
        memory, speed = multiplied(one.memory, OF_ALL, query.replicas), multiplied(one.speed, ("output_tok_s",), times)
        return Prediction(memory, speed, (*one.notes, note), one.plan)
    notes = _notes(query)
    try:
        plan = memory_plan(query.hardware, query.model, query.quantization, query.setup)
    except ValueError as error:
        return Prediction(_needed(query, str(error)), _speed(query, None, notes), tuple(notes))
    return Prediction(_memory(query, plan), _speed(query, plan, notes), tuple(notes), plan)


# ------------------------------------------------------------------------------------------------------ memory


def _memory(query: Query, plan: MemoryPlan) -> dict[str, Estimate]:
    setup, model = query.setup, query.model
    sources = (model.source, query.quantization.source)
    exact = model.file_bytes is not None
    share = _weight_share(model, query.quantization)
    label = "measured" if exact else "derived"
    weights = around(plan.weight_bytes, (1 - share, 1 + share), label, sources)
    less, more = _overhead_off(model, setup, plan)
    overhead_label = "calibrated" if setup.calibrated else "derived"
    overhead = Estimate(
        plan.overhead_bytes,
        max(0.0, plan.overhead_bytes - less),
        plan.overhead_bytes + more,
        overhead_label,
        ("sizing/memory_vllm.py" if setup.vllm else "sizing/memory_llama.py",),
    )
    if not model.known_geometry:
        reason = f"only the size of {model.name} is known, not its layers and heads: give its config.json or file"
        unknown = {key: missing(reason) for key in ("kv_bytes_per_token", "kv_capacity_bytes", "kv_capacity_tokens")}
        fits: bool | None = False if plan.weight_bytes > plan.total_bytes else None
        return _ordered({
            "weights_bytes": weights, "overhead_bytes": overhead, **unknown, "max_concurrency": missing(reason),
            "fits": missing(reason) if fits is None else _fits(False, False, False, sources),
        })  # fmt: skip
    per_token = Estimate(
        plan.kv_bytes_per_token, plan.kv_bytes_per_token, plan.kv_bytes_per_token, "derived", (model.source,)
    )
    spare = _spare(model, query.quantization, setup, plan)
    low, high = _capacity_ends(setup, plan, spare)
    tokens = Estimate(
        plan.kv_capacity_tokens,
        kv_tokens(low, plan.kv_bytes_per_token) if setup.vllm else plan.kv_capacity_tokens,
        kv_tokens(high, plan.kv_bytes_per_token) if setup.vllm else plan.kv_capacity_tokens,
        overhead_label,
        sources,
    )
    return _ordered({
        "weights_bytes": weights,
        "kv_bytes_per_token": per_token,
        "kv_capacity_bytes": Estimate(plan.kv_capacity_bytes, low, high, overhead_label, sources),
        "kv_capacity_tokens": tokens,
        "overhead_bytes": overhead,
        "max_concurrency": Estimate(
            plan.max_concurrency, _number(tokens.low) / plan.context_tokens, _number(tokens.high) / plan.context_tokens,
            overhead_label, sources,
        ),
        "fits": _fits(plan.fits, *_fits_ends(setup, plan, spare), sources),
    })  # fmt: skip


def _needed(query: Query, reason: str) -> dict[str, Estimate]:
    """Memory on hardware of unknown size: what llama.cpp needs is known all the same, whether it fits is not."""
    if query.setup.vllm:
        return {key: missing(reason) for key in MEMORY_KEYS}
    endless = dataclasses.replace(query.hardware, usable_gib=1e6)
    plan = memory_plan(endless, query.model, query.quantization, query.setup)
    return _memory(query, plan) | {"fits": missing(reason)}


def _number(value: float | bool | None) -> float:
    return float(value or 0.0)


def _ordered(found: dict[str, Estimate]) -> dict[str, Estimate]:
    return {key: found[key] for key in MEMORY_KEYS}


def _capacity_ends(setup: Setup, plan: MemoryPlan, spare: tuple[float, float]) -> tuple[float, float]:
    """KV bytes at the ends: vLLM's is what is left over, Ollama's is what was asked for."""
    if not setup.vllm:
        return plan.kv_capacity_bytes, plan.kv_capacity_bytes
    less, more = spare
    return max(0.0, plan.kv_capacity_bytes - more), plan.kv_capacity_bytes + less


def _fits_ends(setup: Setup, plan: MemoryPlan, spare: tuple[float, float]) -> tuple[bool, bool]:
    """Whether it still fits at the worst end, and whether it fits at the best."""
    less, more = spare
    if setup.vllm:
        needed = plan.kv_bytes_per_token * plan.context_tokens
        return plan.kv_capacity_bytes - more >= needed, plan.kv_capacity_bytes + less >= needed
    needed = plan.weight_bytes + plan.overhead_bytes + plan.kv_capacity_bytes
    return needed + more <= plan.total_bytes, needed - less <= plan.total_bytes


def surely_fits(model: ModelShape, quantization: Quantization, setup: Setup, plan: MemoryPlan) -> bool:
    """Whether it fits at the worst end of the interval too: what a recommendation asks for."""
    return _fits_ends(setup, plan, _spare(model, quantization, setup, plan))[0]


def _spare(model: ModelShape, quantization: Quantization, setup: Setup, plan: MemoryPlan) -> tuple[float, float]:
    """Bytes by which weights and overhead together may be less, and more."""
    less, more = _overhead_off(model, setup, plan)
    weights = _weight_share(model, quantization) * plan.weight_bytes
    return weights + less, weights + more


def _overhead_off(model: ModelShape, setup: Setup, plan: MemoryPlan) -> tuple[float, float]:
    """Bytes by which the overhead may be less, and more."""
    if not setup.calibrated and not setup.vllm:
        low, high = LLAMA_BUFFER_ENDS
        return plan.overhead_bytes * (1 - low), plan.overhead_bytes * (high - 1)
    off = 0.1 * GIB if setup.calibrated else OVERHEAD_OFF_BYTES * (HYBRID_WIDENING if model.linear_layers else 1.0)
    return off, off


def _weight_share(model: ModelShape, quantization: Quantization) -> float:
    if model.file_bytes is not None:
        return 0.005
    return WEIGHT_SHARE[quantization.kind] * (2 if "params" in model.derived else 1)


def _fits(value: bool, low: bool, high: bool, sources: tuple[str, ...]) -> Estimate:
    return Estimate(value, low, high, "derived", sources)


# ------------------------------------------------------------------------------------------------------- speed


def _speed(query: Query, plan: MemoryPlan | None, notes: list[str]) -> dict[str, Estimate]:
    """What there is to say of them goes to `notes`."""
    times = _times(query, plan)
    found = {key: missing("") for key in SPEED_KEYS} | _alone(query, times)
    if plan is None:
        reason = f"{query.hardware.name} has no memory size of its own: state it (--memory 64GiB) to simulate a load"
        return found | {key: missing(reason) for key in SPEED_KEYS[2:]}
    if query.setup.vllm and not plan.fits:
        return {key: missing(f"does not fit: {plan.reason}") for key in SPEED_KEYS}
    try:
        rules, times = policy(query.hardware, plan, query.setup), _nameless(times)
        met = simulated(times, rules, query.offered)
        if query.rhythm and query.setup.vllm and rhythm.may_fall_into_step(query.offered):
            apart, together = rhythm.ends(times, rules, query.offered, met)
            notes.append(rhythm.note(apart, together))
            return found | rhythm.reaching(_loaded(query, met), apart, together)
    except ValueError as error:  # what the scheduler refuses, too
        return found | {key: missing(str(error)) for key in SPEED_KEYS[2:]}
    return found | _loaded(query, met)


simulated = functools.lru_cache(maxsize=256)(meet)
"""What was simulated is known: a catalogue holds many models of one shape, a base, its chat and its coding model."""


def _nameless(times: StepTime) -> StepTime:
    """The same of the shape alone, whatever model has it."""
    shape = dataclasses.replace(
        times.model, name="", source="", verified="", derived=(), max_context_tokens=None, file_format=""
    )
    return dataclasses.replace(times, model=shape)


def _times(query: Query, plan: MemoryPlan | None) -> StepTime:
    times = step_time(query.hardware, query.model, query.quantization, query.setup, plan)
    return dataclasses.replace(times, time_scale=query.scale)


def _alone(query: Query, times: StepTime) -> dict[str, Estimate]:
    """One request on an idle engine: what llama-bench calls pp and tg."""
    sent, made = query.offered.input_tokens, query.offered.output_tokens
    chunk = 512 if not query.setup.vllm else 8192
    prompt_s, done = 0.0, 0
    while done < sent:
        count = min(chunk, sent - done)
        prompt_s += times.seconds(StepWork(count, count * done + count * (count + 1) / 2, 0, 0, 1))
        done += count
    token_s = times.seconds(StepWork(0, 0, 1, sent + made / 2, 1))
    prompt_ends, token_ends = _ends(query, "ttft"), _ends(query, "tpot")
    label, sources = _label(query)
    return {
        "prefill_tok_s": around(sent / prompt_s, _inverse(prompt_ends), label, sources),
        "decode_tok_s": around(1 / token_s, _inverse(token_ends), label, sources),
    }


def _loaded(query: Query, met: Met) -> dict[str, Estimate]:
    label, sources = _label(query)
    ttft, tpot = _ends(query, "ttft"), _ends(query, "tpot")
    # A p95 may be later than its interval says by more, and is never sooner than a p50.
    late, slow, token = (ttft[0], widened(ttft, 1.3)[1]), (tpot[0], widened(tpot, 1.3)[1]), tpot
    if query.setup.vllm:
        late, slow, token = (_ends(query, figure) for figure in ("ttft_p95", "tpot_p95", "token"))
    one = "a request of one token has no time per token"
    return {
        "ttft_p50_s": around(met.ttft_p50_s, ttft, label, sources),
        "ttft_p95_s": around(met.ttft_p95_s, late, label, sources),
        "tpot_p50_s": around(met.tpot_p50_s, tpot, label, sources, one),
        "tpot_p95_s": around(met.tpot_p95_s, slow, label, sources, one),
        "output_tok_s": around(met.output_tok_s, _inverse(token), label, sources),
        "request_s": around(met.request_s, token, label, sources),
        "ttft_mean_s": around(met.ttft_mean_s, ttft, label, sources),
    }


def _inverse(ends: tuple[float, float]) -> tuple[float, float]:
    return 1 / ends[1], 1 / ends[0]


def _ends(query: Query, figure: str) -> tuple[float, float]:
    """The interval of a time, wider for each thing that is not known of the query."""
    family = "vllm" if query.setup.vllm else "llama"
    if (family, figure) == ("llama", "ttft"):
        ends = PROMPT_ENDS
    else:
        ends = factors("llama_tpot" if family == "llama" else f"vllm_{figure}")
    if query.scale_sources:
        ends = widened(ends, 0.4)
    unverified = sum(row.verified.startswith("UNVERIFIED") for row in (query.hardware, query.model))
    return widened(ends, DOUBT_WIDENING ** len(_doubts(query)) * UNVERIFIED_WIDENING**unverified)


def _label(query: Query) -> tuple[str, tuple[str, ...]]:
    if query.scale_sources:
        return "calibrated", (CONSTANTS_SOURCE, *query.scale_sources)
    return "derived", (CONSTANTS_SOURCE, query.hardware.source, query.model.source)


def _doubts(query: Query) -> list[str]:
    """What the fit never saw of such a query; each widens the interval of speed."""
    hardware, model, found = query.hardware, query.model, []
    if not model.known_geometry:
        found.append(f"only the size of {model.name} is known: a typical model of that size stands in")
    elif model.linear_layers and not model.linear_state_bytes:
        found.append(f"the states of {model.name}'s linear attention are of unknown size: counted by weights alone")
    if query.setup.vllm and hardware.kind != "hbm":
        found.append(f"vLLM's constants were fitted on data-centre GPUs, not on {hardware.name}")
    if not query.setup.vllm and hardware.core_ghz is None and hardware.kind != "cpu":
        found.append(f"cores and clock of {hardware.name} are not in the table")
    if hardware.kind == "cpu":
        found.append("CPUs have no fitted constants")
    if not query.setup.vllm and query.offered.concurrency > 1:
        found.append("llama.cpp under concurrent requests has no row to fit")
    return found


def _notes(query: Query) -> list[str]:
    notes = [text for text in (query.hardware.note,) if text]
    notes += _doubts(query)
    if query.hardware.verified.startswith("UNVERIFIED"):
        notes.append(f"figures of {query.hardware.name} are UNVERIFIED ({query.hardware.source})")
    if query.model.verified.startswith("UNVERIFIED"):
        notes.append(f"the shape of {query.model.name} is UNVERIFIED ({query.model.source})")
    longest, context = query.model.max_context_tokens, query.setup.max_model_len
    if not query.setup.vllm:
        context = query.setup.num_ctx
    if longest and context > longest:
        notes.append(f"{context} tokens of context are beyond the {longest} that {query.model.name} was made for")
    if query.setup.vllm and query.setup.version and not re.search(r"\d+\.\d|\bv0\b", query.setup.version.lower()):
        notes.append(f"engine version {query.setup.version!r} has no number: {DEFAULT_VERSION} is taken")
    if query.setup.vllm and query.setup.devices > 1:
        notes.append("memory figures are of each GPU, as vLLM logs them; tokens are of the engine")
    return notes
