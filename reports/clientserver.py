"""Client against server: what the client recorded of each load point beside what the engine counted itself. Pure.

vLLM's counters and histograms are read just before a point begins and just after it ends; their growth holds all of its
requests: ramp, window, and what was cut off at the end. The client's side is made of the same requests. The mean of a
histogram is exact (its sum over its count); its percentiles would be the bounds of buckets, and are not compared.
Ollama says of each answer how long it took in all, and for loading, prompt and answer.
"""

from __future__ import annotations

import pyarrow as pa

from harness.records import PointRun, RunRecord
from harness.units import show_duration
from reports.bothsides import added, clients_of, servers_of
from reports.rows import Compared, Pair, load_label

APART_RATIO, APART_S = 0.10, 0.010  # a mean may differ by the larger of both: more is a warning
STEP_RATIO, STEP_S = 0.05, 0.0005  # the same for the time per token
COUNTERS = {"requests": "finished_total", "prompt tokens": "prompt_tokens_total",
            "output tokens": "generation_tokens_total"}  # fmt: skip
LATENCIES = {"TTFT": "ttft", "time per token": "itl", "E2E": "e2e"}
RUNNERS = ("llama-server",)
EXTRA = ("preemptions_total", "prefix_cache_hits_total", "running")
PARTS = ("queue", "prefill", "decode")
COLUMNS = ("load", "engine", "what", "client", "server", "difference")
WHERE = ("load", "engine", "queue", "prefill", "decode", "rest of the server", "network and client")
NOTE = (
    "Means over all requests of a load, ramp and drain included: not the figures of the window above. A server's mean "
    "is its sum over its count, and exact. In vLLM the rest is its HTTP process (reading, making text, writing); what "
    "the client sees beyond the server's own E2E is network and client. Output tokens may differ by what was under way "
    "when the client cut off its last requests."
)


def compare(run: RunRecord, requests: pa.Table, telemetry: pa.Table) -> list[Compared]:
    """Every engine and load of which the server said something."""
    points: dict[tuple[str, str], list[PointRun]] = {}
    for point in run.points:
        if point.status in ("done", "client-limited") and point.start_s is not None and point.end_s is not None:
            points.setdefault((point.engine, point.point), []).append(point)
    if not points:
        return []
    clients, servers, runners = clients_of(requests), servers_of(telemetry), servers_of(telemetry, RUNNERS)
    found = []
    for (engine, name), repeats in points.items():
        mine = added(clients[engine, name, p.repeat] for p in repeats if (engine, name, p.repeat) in clients)
        if not mine:
            continue
        each = [servers[engine].grown(p) if engine in servers else {} for p in repeats]
        theirs = added(each) if all(each) else {}
        if theirs:
            found.append(_of_vllm(repeats, mine, theirs))
        elif mine["timed"]:
            ran = [runners[engine].grown(p) if engine in runners else {} for p in repeats]
            found.append(_of_ollama(repeats, mine, added(ran) if all(ran) else {}))
    return found


def rows(found: list[Compared]) -> list[list[str]]:
    """One row of COLUMNS for each pair."""
    return [
        [c.label, c.engine, pair.what, _shown(pair.client, pair.unit), _shown(pair.server, pair.unit), _apart(pair)]
        for c in found
        for pair in c.pairs
        if pair.server is not None
    ]


def where(found: list[Compared]) -> list[list[str]]:
    """One row of WHERE for each load: where the mean request's time went."""
    return [
        [c.label, c.engine, *(_shown(c.parts_s.get(part), "s") for part in WHERE[2:])]
        for c in found
        if any(value is not None for value in c.parts_s.values())
    ]


def warnings(found: list[Compared]) -> list[str]:
    """What disagrees beyond the tolerance: of each engine and quantity the load where it is most, and how many more."""
    groups: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for c in found:
        sizes = {pair.what: abs(pair.apart or 0.0) / (pair.server or 1.0) for pair in c.pairs}
        for text in c.warnings:
            what = text.partition(":")[0]
            groups.setdefault((c.engine, what), []).append((sizes[what], c.label, text))
    lines = []
    for (engine, _), each in groups.items():
        _, label, text = max(each)
        more = f" (and at {len(each) - 1} more)" if len(each) > 1 else ""
        lines.append(f"{engine}, {label}{more}: {text}")
    return lines


def _of_vllm(repeats: list[PointRun], mine: dict[str, float], theirs: dict[str, float]) -> Compared:
    def mean_s(name: str) -> float | None:
        count = theirs.get(f"{name}_count")
        return theirs[f"{name}_sum_s"] / count if count and f"{name}_sum_s" in theirs else None

    e2e, own = mean_s("e2e"), _mean(mine, "e2e_s", "finished")
    parts = {part: mean_s(part) for part in PARTS}
    known = [value for value in parts.values() if value is not None]
    parts["rest of the server"] = e2e - sum(known) if e2e is not None and len(known) == len(PARTS) else None
    parts["network and client"] = own - e2e if own is not None and e2e is not None else None
    prompt = None if mine["unknown"] else mine["prompt"]
    client = {"requests": mine["finished"], "prompt tokens": prompt, "output tokens": mine["output"]}
    pairs = [Pair(what, "", client[what], theirs.get(metric)) for what, metric in COUNTERS.items()]
    latencies = (_mean(mine, "ttft_s", "began"), _mean(mine, "spent_s", "later"), own)
    pairs += [Pair(what, "s", value, mean_s(name))
              for (what, name), value in zip(LATENCIES.items(), latencies, strict=True)]  # fmt: skip
    return _judged("the server's /metrics", repeats, pairs, parts, mine, theirs)


def _of_ollama(repeats: list[PointRun], mine: dict[str, float], ran: dict[str, float]) -> Compared:
    """Its clock starts with the request and ends with the answer, waiting included; prompt and answer are the runner's.

    The answer's time counts from its first token on, so that the rest is the time to the first token. `ran` is what its
    llama-server counted meanwhile (tokens that its cache knew included); else the answers' own counts stand beside the
    chunks that arrived.
    """
    timed = mine["timed"]
    total, load, prefill, decode = (
        mine[f"server_{name}_s"] / timed for name in ("total", "load", "prompt_eval", "eval")
    )
    later, own = mine["timed_output"] - timed, mine["timed_e2e_s"] / timed
    parts: dict[str, float | None] = {
        "queue": total - load - prefill - decode, "prefill": load + prefill, "decode": decode,
        "rest of the server": None, "network and client": own - total,
    }  # fmt: skip
    read, made = ran.get("prompt_tokens_total"), ran.get("generation_tokens_total")
    if read is not None:
        read += ran.get("prompt_tokens_cached_total", 0.0)
    pairs = [
        Pair("requests", "", mine["finished"], timed),
        Pair("prompt tokens", "", None if mine["unknown"] else mine["prompt"], read),
        Pair("output tokens", "", mine["output"], made)
        if made is not None
        else Pair("output tokens", "", mine["chunks"], mine["timed_output"]),
        Pair("TTFT", "s", mine["timed_ttft_s"] / timed, total - decode),
        Pair("time per token", "s", _mean(mine, "spent_s", "later"), decode * timed / later if later > 0 else None),
        Pair("E2E", "s", own, total),
    ]
    return _judged("Ollama's answers", repeats, pairs, parts, mine, ran)


def _judged(
    source: str, repeats: list[PointRun], pairs: list[Pair], parts: dict[str, float | None],
    mine: dict[str, float], theirs: dict[str, float],
) -> Compared:  # fmt: skip
    first = repeats[0]
    cut = int(mine["cut"])
    extra = {str(name): theirs[name] for name in EXTRA if name in theirs}
    # The counts in Ollama's answers are what the client's are made of: without its runner's, only times can disagree.
    counted = pairs[: len(COUNTERS)] if theirs else []
    said = [text for pair in counted if (text := _miscounted(pair, mine, extra.get("running", 0.0)))]
    if not said:  # else the server's means are those of other requests, too
        said = [text for pair in pairs if pair.unit == "s" and (text := _apart_text(pair, parts, repeats))]
    label = load_label(first.load, first.point)
    return Compared(first.engine, first.point, label, source, pairs, parts, cut, extra, said)


def _miscounted(pair: Pair, mine: dict[str, float], running: float) -> str | None:
    """A count that the requests which were cut off at the end do not explain: of each of them the server may have seen
    a whole prompt and a whole answer more than the client did."""
    if pair.apart is None:
        return None
    each = {"requests": 1.0, "prompt tokens": mine["largest"], "output tokens": mine["longest"]}[pair.what]
    more = -pair.apart
    if 0 <= more <= mine["cut"] * each:
        return None
    why = "another client uses it, or requests of the load before were still running" if more > 0 else (
        "it restarted, or its counters were read too early")  # fmt: skip
    if running and more > 0:
        why = f"{running:.0f} requests of the load before were still running when this one began"
    return f"{pair.what}: the client counted {pair.client:,.0f}, the server {pair.server:,.0f}: {why}"


def _apart_text(pair: Pair, parts: dict[str, float | None], repeats: list[PointRun]) -> str | None:
    """A mean time that differs by more than the tolerance, and where the difference lies."""
    if pair.client is None or pair.server is None:
        return None
    ratio, least_s = (STEP_RATIO, STEP_S) if pair.what == "time per token" else (APART_RATIO, APART_S)
    apart_s = pair.client - pair.server
    if abs(apart_s) <= max(ratio * pair.server, least_s):
        return None
    both = f"{pair.what}: the client saw {show_duration(pair.client)}, the server says {show_duration(pair.server)}"
    if apart_s < 0 and pair.what == "time per token":
        return f"{both}: its first tokens reached the client late, and the others came close behind them"
    if apart_s < 0:
        return f"{both}: its own figure holds requests that this load did not send, or it counts from an earlier moment"
    if any(p.status == "client-limited" for p in repeats):
        return f"{both}: the client was itself the limit (client-limited), and its figures are not to be used"
    lag_s = max((p.client.get("loop_lag_p50_s") or 0.0 for p in repeats), default=0.0)
    if lag_s > apart_s / 2:
        return f"{both}: the time went in the client, whose loop was late by {show_duration(lag_s)} half of the time"
    rest_s = parts.get("rest of the server")
    if rest_s is not None and rest_s > apart_s / 2:
        return (
            f"{both}: the time went in the server's HTTP process rather than in queue, prefill or decode "
            f"({show_duration(rest_s)} of its own E2E is neither of them); the client was not late"
        )
    return f"{both}: the time went on the way, in the server's HTTP process or the network; the client was not late"


def _mean(sums: dict[str, float], what: str, count: str) -> float | None:
    return sums[what] / sums[count] if sums[count] else None


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return show_duration(value) if unit == "s" else f"{value:,.0f}"


def _apart(pair: Pair) -> str:
    if pair.apart is None or pair.server is None:
        return "–"
    if pair.unit != "s":
        return "0" if pair.apart == 0 else f"{pair.apart:+,.0f}"
    share = f" ({pair.apart / pair.server * 100:+.1f} %)" if pair.server else ""
    return f"{'+' if pair.apart >= 0 else ''}{show_duration(pair.apart)}{share}"
