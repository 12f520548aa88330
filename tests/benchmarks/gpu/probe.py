"""How the GPUs of a host reach each other: links, copies, memory shared between processes, NCCL's all-reduce.

    python3 tests/benchmarks/gpu/probe.py OUT.json      # with the host's own torch; under a minute, all of it timed out

`p2p` in the file says whether vLLM's own all-reduce (memory shared between the GPUs' processes) can be used at all.
NVLink multicast stays off here as everywhere on these hosts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SAFE = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1",
        "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
PART_S = 60.0
MIB = 2**20
SIZES = (8 * 2**10, 128 * 2**10, MIB, 8 * MIB, 64 * MIB, 512 * MIB)
# NVML's fields: data sent and received over all links of a GPU, KiB since the driver was loaded.
TX, RX, ALL_LINKS = 138, 139, 0xFFFFFFFF


def main() -> None:
    out, part = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    if part:
        print("RESULT " + json.dumps(PARTS[part]()), flush=True)
        return
    found: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    for command in ("nvidia-smi topo -m", "nvidia-smi nvlink -s", "nvidia-smi nvlink -c"):
        try:
            said = subprocess.run(command.split(), capture_output=True, text=True, check=False, timeout=30)
            found[command] = (said.stdout + said.stderr)[-3000:]
        except (OSError, subprocess.TimeoutExpired) as error:
            found[command] = repr(error)
    found["links_before"] = links()
    for name in PARTS:
        found |= in_time(out, name)
    found["links_after"] = links()
    found["p2p"] = bool(found.get("copies_right") and found.get("shared_right"))
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in found.items() if not key.startswith("nvidia-smi")}))


def in_time(out: Path, name: str) -> dict[str, Any]:
    """One part in a process of its own; what it failed of, where it did."""
    command = [sys.executable, __file__, str(out), name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PART_S, env=os.environ | SAFE
        )
    except subprocess.TimeoutExpired:
        return {f"{name}_error": f"not done after {PART_S:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1][7:]) if lines else {f"{name}_error": (done.stderr or done.stdout)[-1500:]}


def links() -> list[dict[str, Any]]:
    """The data counters of each GPU's NVLinks as NVML gives them."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            fields = nvml.nvmlDeviceGetFieldValues(gpu, [(TX, ALL_LINKS), (RX, ALL_LINKS)])
            found.append({"gpu": index, "fields": [[f.nvmlReturn, f.valueType, f.value.ullVal] for f in fields]})
        return found
    except Exception as error:
        return [{"error": repr(error)}]


def copies() -> dict[str, Any]:
    """GPU to GPU by plain copies: whether what arrives is what was sent, and how fast."""
    import torch

    found: dict[str, Any] = {"gpus": torch.cuda.device_count(), "torch": torch.__version__,
                             "nccl": list(torch.cuda.nccl.version())}  # fmt: skip
    source = torch.empty(2048 * MIB, dtype=torch.uint8, device="cuda:0").random_()
    own = timed(lambda: torch.empty_like(source).copy_(source), 0)
    found["copy_within_gb_s"] = 2 * source.numel() / own / 1e9
    if found["gpus"] < 2:
        return found | {"copies_right": None}
    found["peer_access"] = [torch.cuda.can_device_access_peer(a, b) for a, b in ((0, 1), (1, 0))]
    target = torch.empty_like(source, device="cuda:1")
    found["copy_0_to_1_gb_s"] = source.numel() / timed(lambda: target.copy_(source), 0) / 1e9
    # By way of the host: torch compares on one device alone, and a copy between the GPUs is what is in doubt.
    piece = slice(0, 64 * MIB)
    alike = torch.equal(target[piece].cpu(), source[piece].cpu()) and target.sum().item() == source.sum().item()
    found["copies_right"] = alike and all(found["peer_access"])
    found["copy_1_to_0_gb_s"] = source.numel() / timed(lambda: source.copy_(target), 1) / 1e9
    return found


def timed(call: Any, gpu: int, times: int = 8) -> float:
    """Seconds of one call, on the device's clock."""
    import torch

    with torch.cuda.device(gpu):
        call()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / times


def shared() -> dict[str, Any]:
    """Memory of GPU 0 that a process of GPU 1 reads and writes (CUDA IPC): what vLLM's own all-reduce lives on."""
    import torch
    import torch.multiprocessing as mp

    if torch.cuda.device_count() < 2:
        return {"shared_right": None}
    context = mp.get_context("spawn")
    there, back = context.Queue(), context.Queue()
    other = context.Process(target=reader, args=(there, back))
    other.start()
    mine = torch.full((MIB,), 3.0, device="cuda:0")
    there.put(mine)
    total = back.get(timeout=PART_S / 2)
    torch.cuda.synchronize()
    seen = float(mine[0].item())
    there.put(None)
    other.join(10)
    return {"shared_right": total == 3.0 * MIB and seen == 5.0, "shared_read": total, "shared_written": seen}


def reader(there: Any, back: Any) -> None:
    import torch

    torch.cuda.set_device(1)
    theirs = there.get()
    total = float(theirs.to("cuda:1").sum().item())
    theirs.fill_(5.0)
    torch.cuda.synchronize(0)
    back.put(total)
    there.get()


def nccl() -> dict[str, Any]:
    """All-reduce of bf16 over all GPUs by NCCL: right, and its time by size (the middle of the ranks' means)."""
    import torch
    import torch.multiprocessing as mp

    count = torch.cuda.device_count()
    if count < 2:
        return {"nccl_right": None}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    told = context.Queue()
    ranks = [context.Process(target=rank, args=(number, count, port, told)) for number in range(count)]
    for each in ranks:
        each.start()
    found = [told.get(timeout=PART_S - 5) for _ in ranks]
    for each in ranks:
        each.join(10)
    times = {str(size): sorted(one["us"][size] for one in found)[count // 2] for size in SIZES}
    return {"nccl_right": all(one["right"] for one in found), "nccl_allreduce_us": times}


def rank(number: int, count: int, port: int, told: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(number)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=count)
    right, us = True, {}
    for size in SIZES:
        data = torch.ones(size // 2, dtype=torch.bfloat16, device="cuda")
        dist.all_reduce(data)
        right = right and bool((data == count).all().item())
        data.zero_()
        us[size] = 1e6 * timed(lambda data=data: dist.all_reduce(data), number, 40)
    told.put({"right": right, "us": us})
    dist.barrier()
    dist.destroy_process_group()


PARTS = {"copies": copies, "shared": shared, "nccl": nccl}

if __name__ == "__main__":
    main()
