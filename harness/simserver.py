"""The embedded engine: a real HTTP server that answers at the speed the physics in `sizing` predicts.

    python -m harness.simserver --port 8000 --hardware "H100 SXM 80GB" --model meta-llama/Llama-3.1-8B-Instruct \\
        --quantization bf16 --policy vllm

It speaks OpenAI's and Ollama's protocols at once, whatever the policy. Nothing is computed: the tokens are fillers, and
their times the model's. Every response says so (`x-enginebench-simulated: 1`), and so does every line of its log.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import signal
import sys
from collections.abc import Coroutine
from typing import NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler

from harness.simulated import ollama, openai
from harness.simulated.engine import SimulatedEngine
from harness.simulated.http import ENGINE, SERVED, ApiError, Served, json_response
from sizing.catalog import hardware, model, quantization
from sizing.engine import Setup, memory_plan, step_time
from sizing.memory import GIB
from sizing.policy import ollama_policy, vllm_policy
from sizing.simulate import Scheduler

SIMULATED_HEADER = "x-enginebench-simulated"


class _Parser(argparse.ArgumentParser):
    """Reports wrong input in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"simserver: {message}\n")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value


def _scale(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = _Parser(prog="python -m harness.simserver", description=__doc__.splitlines()[0] if __doc__ else None)
    add = options.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True, help="0 takes a free one; the ready line names it")
    add("--hardware", required=True, help='such as "H100 SXM 80GB" or "RTX 4090"')
    add("--memory-gib", type=_scale, help="measured memory, where the table has none (Apple, CPU)")
    add("--model", required=True, help="Hugging Face id, or its last part")
    add("--served-model-name", help="the name that requests use (default: --model as given)")
    add("--quantization", default="bf16", help="bf16, fp8, int8, awq, gptq, or a GGUF name such as Q4_K_M")
    add("--policy", choices=("vllm", "ollama"), default="vllm")
    add("--gpu-memory-utilization", type=_share, default=0.9)
    add("--max-model-len", type=_positive, default=8192)
    add("--max-num-seqs", type=_positive, default=256)
    add("--max-num-batched-tokens", type=_positive, default=8192)
    add("--num-parallel", type=_positive, default=4)
    add("--num-ctx", type=_positive, default=4096)
    add("--max-queue", type=_positive, default=512)
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    add("--time-scale", type=_scale, default=1.0, help="wall seconds per modelled second; 0.1 is ten times as fast")
    return options


def build(options: argparse.Namespace) -> tuple[Served, Scheduler]:
    """The model served and its scheduler. Raises LookupError or ValueError for what cannot be, in one line."""
    device, shape, weights = hardware(options.hardware), model(options.model), quantization(options.quantization)
    if options.memory_gib is not None:
        device = dataclasses.replace(device, usable_gib=options.memory_gib)
    vllm = options.policy == "vllm"
    if vllm and shape.max_context_tokens and options.max_model_len > shape.max_context_tokens:
        raise ValueError(f"--max-model-len {options.max_model_len} exceeds {shape.max_context_tokens} of {shape.name}")
    setup = Setup(
        engine=options.policy,
        gpu_memory_utilization=options.gpu_memory_utilization,
        max_model_len=options.max_model_len,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_seqs=options.max_num_seqs,
        num_ctx=options.num_ctx,
        num_parallel=options.num_parallel,
    )
    plan = memory_plan(device, shape, weights, setup)
    if not plan.fits:
        raise ValueError(f"does not fit: {plan.reason}")
    caching = options.enable_prefix_caching
    if vllm:
        policy = vllm_policy(plan, options.max_num_seqs, options.max_num_batched_tokens, caching)
    else:
        policy = ollama_policy(plan, options.num_parallel, options.max_queue, caching)
    name = options.served_model_name or options.model
    served = Served(name, shape, weights, plan, options.gpu_memory_utilization)
    times = dataclasses.replace(step_time(device, shape, weights, setup, plan), time_scale=options.time_scale)
    return served, Scheduler(policy, times)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in the form of the protocol that was asked."""
    native = request.path.startswith("/api/")
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except ApiError as error:
        if native:
            return json_response({"error": error.message}, error.status)
        detail = {"message": error.message, "type": error.kind, "param": None, "code": error.status}
        return json_response({"error": detail}, error.status)
    except web.HTTPException as error:
        if native:
            return json_response({"error": f"{error.status} {error.reason}".lower()}, error.status)
        return json_response({"detail": error.reason}, error.status)


async def _mark(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[SIMULATED_HEADER] = "1"


def make_app(served: Served, engine: SimulatedEngine) -> web.Application:
    """All routes of both protocols."""
    app = web.Application(middlewares=[_errors], client_max_size=256 * 1024**2)
    app[SERVED], app[ENGINE] = served, engine
    app.on_response_prepare.append(_mark)
    app.add_routes([*openai.ROUTES, *ollama.ROUTES])
    return app


def _log(text: str) -> None:
    print(f"[simulated] {text}", flush=True)


def _log_start(served: Served) -> None:
    """The start's facts, in the words of vLLM's log."""
    plan = served.plan
    _log(f"Model loading took {plan.weight_bytes / GIB:.2f} GiB and 0.000000 seconds")
    _log(f"Available KV cache memory: {plan.kv_capacity_bytes / GIB:.2f} GiB")
    _log(f"GPU KV cache size: {plan.kv_capacity_tokens:,} tokens")
    _log(f"Maximum concurrency for {plan.context_tokens:,} tokens per request: {plan.max_concurrency:.2f}x")


async def serve(options: argparse.Namespace, served: Served, scheduler: Scheduler) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port cannot be had."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    engine = SimulatedEngine(scheduler)
    # A client that leaves cancels its handler, and with it its request.
    runner = web.AppRunner(make_app(served, engine), handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port, backlog=4096)
        await site.start()
        _log_start(served)
        port = runner.addresses[0][1]
        _log(f"simulated engine ready on http://{options.host}:{port}")
        gc.collect()
        gc.freeze()  # what lives from the start need not be walked in each collection: pauses are lateness
        await stop.wait()
    finally:
        engine.close()
        await runner.cleanup()


def _run(main: Coroutine[None, None, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def main(arguments: list[str] | None = None) -> int:
    """Run the server; exit code 0 after a signal, 1 when the port cannot be had, 2 for wrong input."""
    options = parser().parse_args(arguments)
    try:
        served, scheduler = build(options)
    except (LookupError, ValueError) as error:
        print(f"simserver: {error.args[0]}", file=sys.stderr)
        return 2
    try:
        _run(serve(options, served, scheduler))
    except OSError as error:
        print(f"simserver: cannot serve on {options.host}:{options.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
