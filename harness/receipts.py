"""What past runs and starts taught about this hardware and engine: small JSON lines in the user's own folder.

A receipt holds no prompt, no answer and no name of a person or a host. `bench calibrate hardware` and each `bench run`
may add some; predictions read them. Deleting the file forgets everything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.home import data_folder
from sizing.learnt import Learnt

# Runs of this machine older than the newest so many say nothing new.
_MOST = 50


def add(kind: str, values: dict[str, Any]) -> Path:
    """Append one receipt and return the file. Raises OSError when it cannot be written."""
    path = data_folder() / "receipts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind} | values, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read(kind: str) -> list[dict[str, Any]]:
    """The newest receipts of a kind, the oldest first; a damaged line is passed over."""
    try:
        lines = (data_folder() / "receipts.jsonl").read_text("utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and value.get("kind") == kind:
            found.append(value)
    return found[-_MOST:]


def vllm_extra_bytes(hardware: str, model: str, version: str | None, devices: int = 1) -> int | None:
    """What a start of this engine version, GPU and model, on so many GPUs, needed of each beyond the formula; None when
    none was seen."""
    for receipt in reversed(read("vllm_start")):
        same = (receipt.get("hardware"), receipt.get("model"), receipt.get("devices", 1)) == (hardware, model, devices)
        if same and version in (None, receipt.get("version")) and isinstance(receipt.get("extra_bytes"), int):
            return int(receipt["extra_bytes"])
    return None


def step_scale(hardware: str, engine: str, quantization: str) -> tuple[float, tuple[str, ...]]:
    """(median of measured over predicted time per token, sources) of past runs; (1, ()) when there are none."""
    return learnt(hardware).scale(engine, quantization)


def learnt(hardware: str) -> Learnt:
    """All that starts and runs taught of that hardware, whatever the version of the engine."""
    starts = [
        ((str(receipt.get("model")), int(receipt.get("devices", 1))), int(receipt["extra_bytes"]))
        for receipt in read("vllm_start")
        if receipt.get("hardware") == hardware and isinstance(receipt.get("extra_bytes"), int)
    ]
    ratios = tuple(
        (str(receipt.get("engine")), receipt.get("quantization"), float(receipt["measured_over_predicted"]))
        for receipt in read("speed")
        if receipt.get("hardware") == hardware and receipt.get("measured_over_predicted")
    )
    return Learnt(dict(starts), ratios, str(data_folder() / "receipts.jsonl"))
