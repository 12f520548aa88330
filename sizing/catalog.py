"""Hardware, model shapes and quantizations by name, read from the tables in `sizing/data`.

Every row names its own source and keeps its mark (UNVERIFIED, DERIVED, CONFLICT) in `verified`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from sizing.shapes import ModelShape, model, model_names
from sizing.tables import closest, read_rows, to_float

__all__ = [
    "Hardware",
    "ModelShape",
    "Quantization",
    "hardware",
    "hardware_names",
    "model",
    "model_names",
    "quantization",
    "quantization_names",
]


# Words that name the maker, not the part: NVML says "NVIDIA GeForce RTX 4090", the table "RTX 4090 24GB".
_MAKER_WORDS = {"nvidia", "geforce", "amd", "radeon", "apple", "tesla", "intel", "gpu", "generation", "edition"}
# NVML calls the SXM boards by their memory or socket: "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB".
_BOARD_WORDS = {"hbm3": "sxm", "sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm"}
_BOARDS = {"sxm", "pcie"}
# Parts with stacked memory: their decode efficiency differs from that of GDDR cards (see sizing.speed).
_HBM_PARTS = {
    "a100",
    "a30",
    "h100",
    "h200",
    "b200",
    "b300",
    "gb200",
    "gb300",
    "v100",
    "mi300x",
    "mi325x",
    "mi350x",
    "mi355x",
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """One accelerator (or a CPU). Peaks are dense, without sparsity; None is "not published"."""

    name: str
    vendor: str
    kind: str
    """hbm | gddr | unified | apple | cpu: the class that sizing.speed keys its efficiencies by"""
    memory_gib: float | None
    """as sold; None for parts whose memory is the host's"""
    bandwidth_gbs: float
    """peak memory bandwidth, 10^9 bytes/s"""
    fp16_tflops: float | None
    fp8_tflops: float | None
    int8_tops: float | None
    tdp_w: float | None
    source: str
    verified: str


@dataclass(frozen=True, slots=True)
class Quantization:
    """A weight format. GGUF figures are of whole files, embeddings included; tensor figures of the quantized part."""

    name: str
    bits_per_weight: float
    kind: str
    """gguf | tensor"""
    compute: str
    """the number format that the matrix products run in: fp16 | fp8 | int8"""
    source: str

    @property
    def quantized(self) -> bool:
        """True below 16 bits a weight."""
        return self.bits_per_weight < 15.9


# ---------------------------------------------------------------------------------------------------- hardware


def _name_words(name: str) -> tuple[frozenset[str], float | None]:
    """A hardware name as (words of the part, memory size in GB when the name states one)."""
    words = re.findall(r"[a-z0-9+]+", re.sub(r"(\d)\s+gi?b\b", r"\1gb", name.lower()))
    words = [_BOARD_WORDS.get(word, word) for word in words if word not in _MAKER_WORDS]
    sizes = [word for word in words if re.fullmatch(r"\d+gi?b", word)]
    return frozenset(words) - set(sizes), float(re.findall(r"\d+", sizes[0])[0]) if sizes else None


def _hardware_kind(row: dict[str, str]) -> str:
    if row["vendor"] in ("apple", "cpu"):
        return row["vendor"]
    if row["unified"] == "1":
        return "unified"
    return "hbm" if _name_words(row["name"])[0] & _HBM_PARTS else "gddr"


@cache
def _hardware_table() -> dict[str, Hardware]:
    return {
        row["name"]: Hardware(
            name=row["name"],
            vendor=row["vendor"],
            kind=_hardware_kind(row),
            memory_gib=to_float(row["memory_gib"]),
            bandwidth_gbs=float(row["bandwidth_gbs"]),
            fp16_tflops=to_float(row["fp16_dense_tflops"]),
            fp8_tflops=to_float(row["fp8_tflops"]),
            int8_tops=to_float(row["int8_tops"]),
            tdp_w=to_float(row["tdp_w"]),
            source=row["source"],
            verified=row["verified"],
        )
        for row in read_rows("gpus.csv")
    }


def hardware_names() -> list[str]:
    """All names that `hardware` knows, in the table's order."""
    return list(_hardware_table())


def _memory_agrees(stated_gb: float | None, known: Hardware) -> bool:
    # 10 %: a "48 GB" L40S has 45 GiB to use, and both are written.
    return not stated_gb or not known.memory_gib or abs(known.memory_gib - stated_gb) <= 0.1 * stated_gb


def hardware(name: str) -> Hardware:
    """The hardware of that name: the table's, NVML's ("NVIDIA H100 80GB HBM3"), or one without maker and memory size.

    Raises LookupError for a name that fits no row, or several ("A100"): never a guess between boards.
    """
    table = _hardware_table()
    for known, row in table.items():
        if known.lower() == name.strip().lower():
            return row
    part, stated_gb = _name_words(name)
    words = {known: _name_words(known)[0] for known, row in table.items() if _memory_agrees(stated_gb, row)}
    boards = [known for known, row_part in words.items() if part and part <= row_part <= part | _BOARDS]
    others = [known for known, row_part in words.items() if part and part < row_part]
    boardless = [known for known, row_part in words.items() if part and row_part == part - _BOARDS]
    for matches in (boards, others, boardless):
        # Two sources list some parts twice: rows of like memory and bandwidth are one part, and the first is richer.
        unlike = {(table[known].memory_gib, table[known].bandwidth_gbs) for known in matches}
        if len(unlike) == 1:
            return table[matches[0]]
        if matches:
            raise LookupError(f"hardware {name!r} fits several: {', '.join(matches)}")
    raise LookupError(f"unknown hardware {name!r}; {closest(name, list(table))}")


# ----------------------------------------------------------------------------------------------- quantizations

# The names people type, to (row of quant_bpw.csv, format of the matrix products). Weight-only formats compute in fp16.
_TENSOR_FORMATS = {
    "bf16": ("BF16", "fp16"),
    "bfloat16": ("BF16", "fp16"),
    "fp16": ("F16", "fp16"),
    "float16": ("F16", "fp16"),
    "fp8": ("FP8 (per-channel/tensor)", "fp8"),
    "int8": ("INT8 w8a8 per-channel", "int8"),
    "w8a8": ("INT8 w8a8 per-channel", "int8"),
    "awq": ("AWQ int4 g128 (fp16 scale + 4-bit zero)", "fp16"),
    "gptq": ("AWQ/GPTQ int4 g128 (sym, fp16 scale)", "fp16"),
    "int4": ("AWQ/GPTQ int4 g128 (sym, fp16 scale)", "fp16"),
    "w4a16": ("AWQ/GPTQ int4 g128 (sym, fp16 scale)", "fp16"),
    "nvfp4": ("NVFP4", "fp16"),
    "mxfp4": ("MXFP4", "fp16"),
}
# Whole files first: their embeddings and output head are in the figure. A bare tensor type is the last resort.
_GGUF_PREFERENCE = ("gguf file, measured", "gguf file, derived", "ggml tensor type")


@cache
def _quantization_table() -> dict[str, Quantization]:
    rows = read_rows("quant_bpw.csv")
    table: dict[str, Quantization] = {}
    for wanted in _GGUF_PREFERENCE:
        for row in rows:
            name = row["quant"].lower()
            if row["kind"].startswith(wanted) and name not in table and name not in _TENSOR_FORMATS:
                table[name] = Quantization(
                    row["quant"], float(row["bits_per_weight"]), "gguf", "fp16", f"{row['source']} ({row['kind']})"
                )
    by_name = {row["quant"]: row for row in rows if "ASSUMPTION" not in row["kind"] and row["bits_per_weight"]}
    for name, (row_name, compute) in _TENSOR_FORMATS.items():
        row = by_name[row_name]
        source = f"{row['source']} ({row['kind']})"
        table[name] = Quantization(name, float(row["bits_per_weight"]), "tensor", compute, source)
    return table


def quantization_names() -> list[str]:
    """All names that `quantization` knows, in lower case."""
    return list(_quantization_table())


def quantization(name: str) -> Quantization:
    """The weight format of that name (`bf16`, `fp8`, `awq`, `Q4_K_M`, `q8_0`, ...); upper and lower case are alike.

    Raises LookupError naming the close matches.
    """
    table = _quantization_table()
    found = table.get(name.strip().lower().replace("-", "_"))
    if found is None:
        raise LookupError(f"unknown quantization {name!r}; {closest(name, list(table))}")
    return found
