"""Every model, format and engine that a machine might run, screened in closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sizing.catalog import Hardware, ModelShape, Quantization, in_format, model, native_quantization, quantization
from sizing.engine import Setup, memory_plan, policy, step_time
from sizing.learnt import NOTHING, Learnt
from sizing.loads import Offered
from sizing.memory import GIB, MemoryPlan
from sizing.models import advised_names, shortest_names
from sizing.names import quantization_in
from sizing.policy import Policy
from sizing.predict import surely_fits
from sizing.quality import expected_nats
from sizing.speed import StepTime
from sizing.steady import Load, Steady, steady_state

VLLM_FORMATS = ("bf16", "fp8", "awq")
OLLAMA_FORMATS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
# A p95 above the mean of a steady loop, for screening alone; the simulation of the best replaces it.
P95_SHARE = 1.15


@dataclass(frozen=True, slots=True)
class Want:
    """What the user needs."""

    users: int = 1
    """requests in flight"""
    rate_rps: float | None = None
    input_tokens: int = 512
    output_tokens: int = 256
    context_tokens: int = 8192
    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    most_nats: float | None = None
    """the worst quality that will do: nats per token that the format may cost"""
    learnt: Learnt = NOTHING
    """what past starts and runs taught of the hardware"""

    @property
    def offered(self) -> Offered:
        """The load as the simulator takes it: a request of each user, of many users 256, is enough to compare by."""
        measured = max(12, min(self.users, 256))
        return Offered(self.input_tokens, self.output_tokens, self.users, self.rate_rps, measured=measured)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve, with what the closed form says of it."""

    model: ModelShape
    quantization: Quantization
    setup: Setup
    plan: MemoryPlan
    nats: float
    """expected nats per token, format included: lower is better"""
    steady: Steady | None
    reason: str
    """why it will not do, or empty"""

    @property
    def fits(self) -> bool:
        """Whether memory and targets hold."""
        return not self.reason


def catalogue(names: Iterable[str] = ()) -> list[ModelShape]:
    """The shapes of these names, or one of each geometry of the tables."""
    # Names that hold a format are copies of others in it.
    plain = [name for name in advised_names() if quantization_in(name.lower()) is None]
    chosen = list(names) or shortest_names(plain)
    return [model(name) for name in chosen]


def screen(hardware: Hardware, count: int, shapes: Iterable[ModelShape], want: Want) -> list[Candidate]:
    """Every candidate on up to `count` such devices, the best first: those that will do, by quality, then by speed."""
    found = [
        judge(hardware, in_format(shape, weights), weights, setup, want)
        for shape in shapes
        if not shape.max_context_tokens or shape.max_context_tokens >= want.context_tokens
        for weights, setup in options(hardware, count, shape, want)
    ]
    return sorted(found, key=_order)


def _order(candidate: Candidate) -> tuple[bool, float, float]:
    speed = candidate.steady.output_tok_s if candidate.steady else 0.0
    return not candidate.fits, round(candidate.nats, 3), -speed


def slots(want: Want) -> int:
    """Ollama's parallel slots: one a user, sixteen at most; at a rate eight, as how many are in flight is not known."""
    return 8 if want.rate_rps is not None else min(want.users, 16)


def options(hardware: Hardware, count: int, shape: ModelShape, want: Want) -> Iterator[tuple[Quantization, Setup]]:
    """Formats and settings worth trying: vLLM on GPUs in tensor formats, Ollama anywhere in GGUF."""
    native = shape.file_format or native_quantization(shape.name)
    if quantization(native).kind == "gguf":  # a file of the user's own: it is run as it is
        setup = Setup(engine="ollama", devices=count, num_ctx=want.context_tokens, num_parallel=slots(want))
        yield quantization(native), setup
        return
    if hardware.kind in ("hbm", "gddr") and hardware.vendor in ("nvidia", "amd", "own"):
        formats = (native,) if native not in VLLM_FORMATS else VLLM_FORMATS
        sizes = [n for n in (1, 2, 4, 8, 16) if n <= count]
        for name in formats:
            if name == "fp8" and not hardware.fp8_tflops and hardware.family not in ("ada", "blackwell"):
                continue
            weights = quantization(name)
            for devices in sizes:
                yield (
                    weights,
                    Setup(
                        engine="vllm",
                        devices=devices,
                        max_model_len=want.context_tokens,
                        max_num_seqs=max(want.users, 256),
                        overhead_extra_bytes=want.learnt.extra_bytes.get((shape.name, devices)),
                    ),
                )
    for name in ("mxfp4",) if native == "mxfp4" else OLLAMA_FORMATS:
        yield (
            quantization(name),
            Setup(engine="ollama", devices=count, num_ctx=want.context_tokens, num_parallel=slots(want)),
        )


def judge(hardware: Hardware, shape: ModelShape, weights: Quantization, setup: Setup, want: Want) -> Candidate:
    """Memory, then the targets, in closed form."""
    plan = memory_plan(hardware, shape, weights, setup)
    nats = expected_nats(shape, weights)
    value = float(nats.value or 0.0)
    if not plan.fits:
        return Candidate(shape, weights, setup, plan, value, None, f"memory: {plan.reason}")
    if not surely_fits(shape, weights, setup, plan):
        return Candidate(shape, weights, setup, plan, value, None, f"memory: too close to call, {plan.reason}")
    times, rules = parts(hardware, shape, weights, setup, plan)
    scale, _ = want.learnt.scale(setup.engine, weights.name)
    if scale != 1.0:
        times = dataclasses.replace(times, time_scale=scale)
    state = steady_state(times, Load(want.input_tokens, want.output_tokens, _in_flight(want, times, rules)), rules)
    return Candidate(shape, weights, setup, plan, value, state, _missed(state, want))


def parts(
    hardware: Hardware, shape: ModelShape, weights: Quantization, setup: Setup, plan: MemoryPlan
) -> tuple[StepTime, Policy]:
    """What the simulator needs."""
    return step_time(hardware, shape, weights, setup, plan), policy(hardware, plan, setup)


def _in_flight(want: Want, times: StepTime, rules: Policy) -> int:
    """Users, or what Little's law makes of a rate: a request's time hangs on how many there are, so twice."""
    if want.rate_rps is None:
        return want.users
    count = 1
    for _ in range(6):
        state = steady_state(times, Load(want.input_tokens, want.output_tokens, count), rules)
        count = max(1, min(1024, round(want.rate_rps * state.request_s)))
    return count


def _missed(state: Steady, want: Want) -> str:
    """The target that is not met, with the figures; empty when all are."""
    if want.rate_rps is not None and state.output_tok_s < want.rate_rps * want.output_tokens * 0.9:
        return f"rate: serves about {state.output_tok_s / want.output_tokens:.2f} requests/s of {want.rate_rps:g}"
    for name, value, most in (
        ("TTFT", state.ttft_s * P95_SHARE, want.ttft_p95_s),
        ("TPOT", state.tpot_s * P95_SHARE, want.tpot_p95_s),
    ):
        if most is not None and value > most:
            return f"{name}: p95 about {value * 1e3:.0f} ms, above {most * 1e3:.0f} ms"
    return ""


def users_within(hardware: Hardware, candidate: Candidate, want: Want) -> int | None:
    """The most users that the targets hold for, by doubling and halving; None without targets."""
    if want.ttft_p95_s is None and want.tpot_p95_s is None:
        return None

    def holds(users: int) -> bool:
        more = dataclasses.replace(want, users=users, rate_rps=None)
        setup = candidate.setup
        if setup.engine == "vllm":
            setup = dataclasses.replace(setup, max_num_seqs=max(users, setup.max_num_seqs or 256))
        else:
            setup = dataclasses.replace(setup, num_parallel=max(setup.num_parallel, min(users, 16)))
        return judge(hardware, candidate.model, candidate.quantization, setup, more).fits

    if not holds(1):
        return 0
    low, high = 1, 2
    while high <= 2048 and holds(high):
        low, high = high, high * 2
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def bar(plan: MemoryPlan, vllm: bool) -> list[tuple[str, float]]:
    """The memory plan as (part, GiB): weights, KV, activations, graphs, other, free."""
    parts = [
        ("weights", plan.weight_bytes), ("KV", plan.kv_capacity_bytes), ("activations", plan.activation_bytes),
        ("graphs", plan.graph_bytes),
        ("other", max(0, plan.overhead_bytes - plan.activation_bytes - plan.graph_bytes) if vllm else 0),
    ]  # fmt: skip
    used = sum(size for _, size in parts)
    return [(name, size / GIB) for name, size in (*parts, ("free", max(0, plan.total_bytes - used)))]
