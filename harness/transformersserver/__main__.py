"""Starts the server.

    python -P harness/transformersserver/__main__.py --port 8000 --model FOLDER --batch 8 --batch-wait 0.05 --load dummy

It takes up to `--batch` waiting requests (`--batch-wait` seconds after the first of them it waits no longer), pads
their prompts on the left to the longest, and runs `generate` until the longest answer is done; then comes the next.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

# Ours is looked for last, and not at all once it is here: this interpreter's own packages must not meet ours.
_ROOT = str(Path(__file__).parents[2])
sys.path.append(_ROOT)
from harness.transformersserver.batches import Batcher, Model  # noqa: E402
from harness.transformersserver.model import load  # noqa: E402
from harness.transformersserver.wire import Connection, Served  # noqa: E402

sys.path.remove(_ROOT)

SWITCH_S = 0.001  # between the thread that generates and the one that writes; the default of 5 ms would be lateness
REMEDY = 'install them: pip install "enginebench[transformers]", or name an interpreter that has them: `python:`'


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="transformersserver", description="Hugging Face generate over HTTP")
    add = options.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True)
    add("--model", required=True, help="a folder, or a name of the hub")
    add("--served-model-name", help="the name that requests use (default: --model)")
    add("--batch", type=int, default=1, help="requests at once; 1: one at a time")
    add("--batch-wait", type=float, default=0.05, help="seconds to wait for more after the first of a batch")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    add("--device", default="auto", choices=("auto", "cuda", "cpu"))
    add("--attn", default="sdpa", help="sdpa (torch's, without cuDNN's), cudnn, eager or flash_attention_2")
    add("--load", default="weights", choices=("weights", "dummy"), help="dummy: random weights, config.json alone")
    return options


async def serve(options: argparse.Namespace, model: Model) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port cannot be had."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    batcher = Batcher(model, loop, options.batch, options.batch_wait)
    served = Served(options.served_model_name or options.model, model, batcher)
    server = await loop.create_server(lambda: Connection(served), options.host, options.port, backlog=4096)
    batcher.start()
    print(f"transformersserver: ready on http://{options.host}:{options.port}", flush=True)
    await stop.wait()
    server.close()


def main(arguments: list[str] | None = None) -> int:
    """Load and serve; 0 after a signal, 1 with a line that says why."""
    options = parser().parse_args(arguments)
    sys.setswitchinterval(SWITCH_S)
    try:
        model = load(options)
    except ImportError as error:
        print(f"transformersserver: torch or transformers is missing: {error}\nremedy: {REMEDY}", flush=True)
        return 1
    except (OSError, ValueError, RuntimeError) as error:
        print(f"transformersserver: {options.model} cannot be loaded: {error}", flush=True)
        return 1
    try:
        asyncio.run(serve(options, model))
    except OSError as error:
        print(f"transformersserver: cannot serve on {options.host}:{options.port}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # at once: torch's threads may be in the middle of a batch
