"""The recommendation: the best that holds the targets, why the next one lost, what binds and what would loosen it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from sizing.candidates import Candidate, Want, bar, judge, screen, slots, users_within
from sizing.catalog import Hardware, ModelShape
from sizing.engine import Setup
from sizing.estimate import Estimate
from sizing.loads import Offered, window_requests
from sizing.predict import Prediction, Query, predict

SIMULATED = 20
# So many are ranked: what is worse than the tenth that holds needs no simulation.
RANKED = 10
# Power while serving, in shares of the board's limit: median and the middle 80 % of the 47 points of vLLM that were
# measured on an H100 of 700 W (results/reference, `gpu_power_w`): 0.35 for one stream of a 1B, 1.0 for 256 of an 8B.
POWER_SHARES = (0.73, 0.42, 0.97)


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate with its prediction."""

    candidate: Candidate
    prediction: Prediction
    users: int | None
    """the most within the targets; None without targets"""
    joule_per_token: Estimate
    cost_per_million: Estimate


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer of `bench advise`."""

    hardware: Hardware
    count: int
    want: Want
    ranked: tuple[Choice, ...]
    """the best first; empty when nothing fits"""
    screened: int
    why_runner_up: str
    binding: str
    relax: str
    scatter: tuple[tuple[str, float, float, bool], ...]
    """(name, tokens/s, nats, on the front) of all that fit: the Pareto plot"""
    currency: str = ""
    """of the price, where one was told"""

    @property
    def best(self) -> Choice | None:
        """The recommendation, None when nothing holds."""
        return self.ranked[0] if self.ranked else None


def advise(
    hardware: Hardware, count: int, shapes: Sequence[ModelShape], want: Want, price_per_hour: float | None = None
) -> Advice:
    """Screen everything, simulate the best twenty, rank. Raises ValueError for hardware without a memory size."""
    found = screen(hardware, count, shapes, want)
    good = [candidate for candidate in found if candidate.fits and _good_enough(candidate, want)]
    ranked = _Ranking(hardware, want, price_per_hour).of(good[:SIMULATED])
    better = [c for c in found if not c.fits and (not ranked or c.nats < ranked[0].candidate.nats - 1e-3)]
    return Advice(
        hardware=hardware,
        count=count,
        want=want,
        ranked=tuple(ranked),
        screened=len(found),
        why_runner_up=_why(ranked),
        binding=_binding(better),
        relax=_relax(hardware, count, better, want),
        scatter=_front(good),
    )


def _good_enough(candidate: Candidate, want: Want) -> bool:
    if want.most_nats is None:
        return True
    from sizing.quality import loss_nats

    return float(loss_nats(candidate.model, candidate.quantization).value or 0.0) <= want.most_nats


class _Ranking:
    """Simulates and ranks. Ranks are made by one request of each user; what comes first is then predicted as `bench
    predict` does, by three of each, and must hold so, too."""

    def __init__(self, hardware: Hardware, want: Want, price: float | None) -> None:
        self.hardware, self.want, self.price = hardware, want, price
        self._short: dict[int, Choice] = {}

    def of(self, good: Sequence[Candidate]) -> list[Choice]:
        """What holds, the best first; of one model the best way on each engine alone."""
        lost: set[int] = set()
        while ranked := _one_of_each(self._held(good, lost)):
            first = self._whole(ranked[0].candidate)
            if first is None or _holds(first, self.want):
                ranked[0] = first or ranked[0]
                break
            lost.add(id(ranked[0].candidate))
        within = (users_within(self.hardware, choice.candidate, self.want) for choice in ranked)
        return [dataclasses.replace(choice, users=users) for choice, users in zip(ranked, within, strict=True)]

    def _held(self, good: Sequence[Candidate], lost: set[int]) -> list[Choice]:
        """Those of which the short simulation holds. `good` comes by quality: a worse format of what holds already
        cannot rank, and isn't simulated."""
        best: dict[tuple[str, str], float] = {}
        held: list[Choice] = []
        for candidate in good:
            key, nats = (candidate.model.name, candidate.setup.engine), round(candidate.nats, 3)
            if len(best) >= RANKED and nats > max(best.values()):
                break
            if id(candidate) in lost or best.get(key, nats) < nats:
                continue
            if id(candidate) not in self._short:
                self._short[id(candidate)] = self._simulate(candidate, self._short_load())
            choice = self._short[id(candidate)]
            if _holds(choice, self.want):
                best.setdefault(key, nats)
                held.append(choice)
        return held

    def _short_load(self) -> Offered:
        want = self.want
        return dataclasses.replace(want.offered, most_ttft_p95_s=want.ttft_p95_s, most_tpot_p95_s=want.tpot_p95_s)

    def _whole(self, candidate: Candidate) -> Choice | None:
        """By as many requests as a prediction takes; None where ranking took as many."""
        whole = dataclasses.replace(self.want.offered, measured=None)
        if self.want.rate_rps is not None or window_requests(whole) == window_requests(self.want.offered):
            return None
        return self._simulate(candidate, whole)

    def _simulate(self, candidate: Candidate, offered: Offered) -> Choice:
        weights, setup = candidate.quantization, candidate.setup
        scale, sources = self.want.learnt.scale(setup.engine, weights.name)
        query = Query(self.hardware, candidate.model, weights, setup, offered, scale, sources)
        answer = predict(query)
        speed = answer.speed["output_tok_s"]
        power = self.hardware.tdp_w * setup.devices if self.hardware.tdp_w else None
        return Choice(candidate, answer, None, _per_token(power, speed), _cost(self.price, speed))


def _per_token(power_w: float | None, speed: Estimate) -> Estimate:
    if not power_w or not speed.value or not speed.low or not speed.high:
        return Estimate(None, None, None, "derived", (), "no power limit is known of this hardware")
    middle, low, high = (share * power_w for share in POWER_SHARES)
    source = ("the board's power limit times 0.42 to 0.97, as an H100 took under vLLM",)
    return Estimate(middle / speed.value, low / speed.high, high / speed.low, "derived", source)


def _cost(price: float | None, speed: Estimate) -> Estimate:
    if price is None or not speed.value or not speed.low or not speed.high:
        return Estimate(None, None, None, "derived", (), "no --price was given")
    each = price / 3600 * 1e6
    return Estimate(each / speed.value, each / speed.high, each / speed.low, "derived", ("--price",))


def _holds(choice: Choice, want: Want) -> bool:
    """Whether the simulated p95 hold, where targets are set."""
    for key, most in (("ttft_p95_s", want.ttft_p95_s), ("tpot_p95_s", want.tpot_p95_s)):
        value = choice.prediction.speed[key].value
        if most is not None and (value is None or value > most):
            return False
    return choice.prediction.speed["output_tok_s"].value is not None


def _one_of_each(choices: Sequence[Choice]) -> list[Choice]:
    """By quality, then speed; of one model the best way on each engine alone."""
    ordered = sorted(
        choices, key=lambda c: (round(c.candidate.nats, 3), -float(c.prediction.speed["output_tok_s"].value or 0))
    )
    seen: set[tuple[str, str]] = set()
    kept = []
    for choice in ordered:
        key = (choice.candidate.model.name, choice.candidate.setup.engine)
        if key not in seen:
            seen.add(key)
            kept.append(choice)
    return kept


def _why(ranked: Sequence[Choice]) -> str:
    if len(ranked) < 2:
        return "nothing else holds the targets" if ranked else ""
    first, second = ranked[0], ranked[1]
    name = f"{second.candidate.model.name} {second.candidate.quantization.name} on {second.candidate.setup.engine}"
    worse = second.candidate.nats - first.candidate.nats
    speeds = [float(c.prediction.speed["output_tok_s"].value or 0) for c in (first, second)]
    if worse > 5e-4:
        gain = f", though {speeds[1] / speeds[0]:.1f} times as fast" if speeds[1] > 1.05 * speeds[0] else ""
        return f"{name} is expected to be {worse:.3f} nats per token worse{gain}"
    return f"{name} is as good but serves {speeds[1]:.0f} tokens/s, not {speeds[0]:.0f}"


def _binding(better: Sequence[Candidate]) -> str:
    if not better:
        return "nothing better is known of in the catalogue"
    first = min(better, key=lambda c: c.nats)
    kinds = {c.reason.partition(":")[0] for c in better}
    nearest, verb = _nearest(better), "binds" if len(kinds) == 1 else "bind"
    return (
        f"{' and '.join(sorted(kinds))} {verb}; the best that fails is {first.model.name} {first.quantization.name}; "
        f"the nearest miss is {nearest.model.name} {nearest.quantization.name} on {nearest.setup.engine}: "
        f"{nearest.reason}"
    )


def _nearest(better: Sequence[Candidate]) -> Candidate:
    """The failed candidate that lacks the least memory, or that fails by a target."""
    return min(better, key=lambda c: _short_bytes(c))


def _short_bytes(candidate: Candidate) -> float:
    plan = candidate.plan
    if plan.fits:
        return 0.0
    if candidate.setup.vllm:
        return (
            plan.weight_bytes + plan.overhead_bytes + plan.kv_bytes_per_token * plan.context_tokens - plan.total_bytes
        )
    return float(plan.weight_bytes + plan.overhead_bytes + plan.kv_capacity_bytes - plan.total_bytes)


def _relax(hardware: Hardware, count: int, better: Sequence[Candidate], want: Want) -> str:
    """The cheapest single change that makes a better candidate hold, tried on the nearest misses."""
    near = sorted(better, key=_short_bytes)[:60]
    half = dataclasses.replace(
        want, context_tokens=max(want.input_tokens + want.output_tokens, want.context_tokens // 2)
    )
    fewer = dataclasses.replace(want, users=max(1, want.users // 2))
    slower = dataclasses.replace(
        want,
        ttft_p95_s=want.ttft_p95_s * 2 if want.ttft_p95_s else None,
        tpot_p95_s=want.tpot_p95_s * 2 if want.tpot_p95_s else None,
    )
    for what, changed, kv, more in (
        ("an 8-bit KV cache", want, True, 1),
        (f"a context of {half.context_tokens}", half, False, 1),
        (f"{fewer.users} users", fewer, False, 1),
        ("targets twice as long", slower, False, 1),
        (f"{2 * count} devices", want, False, 2),
    ):
        if (what.endswith("users") and fewer.users == want.users) or (what.startswith("targets") and slower == want):
            continue
        won = [c for c in (_retry(hardware, c, changed, kv, more) for c in near) if c.fits]
        if won:
            best = min(won, key=lambda c: c.nats)
            return f"{what} would allow {best.model.name} {best.quantization.name} on {best.setup.engine}"
    return "no single step (8-bit KV, half the context, half the users, twice the targets, twice the devices) is enough"


def _retry(hardware: Hardware, candidate: Candidate, want: Want, kv: bool, more: int) -> Candidate:
    setup: Setup = candidate.setup
    kind = ("fp8" if setup.vllm else "q8_0") if kv else setup.kv_cache_type
    setup = dataclasses.replace(
        setup, kv_cache_type=kind, devices=setup.devices * more, max_model_len=want.context_tokens,
        num_ctx=want.context_tokens, num_parallel=slots(want),
    )  # fmt: skip
    return judge(hardware, candidate.model, candidate.quantization, setup, want)


def _front(good: Sequence[Candidate]) -> tuple[tuple[str, float, float, bool], ...]:
    """All that fit as points of speed and quality, marked where nothing is both faster and better."""
    points = [
        (f"{c.model.name} {c.quantization.name} ({c.setup.engine})", c.steady.output_tok_s if c.steady else 0.0, c.nats)
        for c in good
    ]
    ordered = sorted(points, key=lambda p: (p[2], -p[1]))
    found, fastest = [], 0.0
    for name, speed, nats in ordered:
        found.append((name, speed, nats, speed > fastest))
        fastest = max(fastest, speed)
    return tuple(found)


def memory_bar(choice: Choice) -> list[tuple[str, float]]:
    """The recommendation's memory plan as (part, GiB)."""
    return bar(choice.candidate.plan, choice.candidate.setup.vllm)
