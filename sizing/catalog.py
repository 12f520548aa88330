"""The three tables by name: hardware, models and quantizations. Each row names its own source and keeps its mark."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from functools import cache

from sizing.hardware import Hardware, hardware, hardware_names
from sizing.models import model, model_names
from sizing.names import quantization_in
from sizing.shapes import ModelShape
from sizing.tables import read_rows

__all__ = [
    "Hardware",
    "ModelShape",
    "Quantization",
    "hardware",
    "hardware_names",
    "in_format",
    "model",
    "model_names",
    "quantization",
    "quantization_names",
    "stated_quantization",
]


@dataclass(frozen=True, slots=True)
class Quantization:
    """A weight format. GGUF figures are of whole files, embeddings included; tensor figures of the quantized part."""

    name: str
    bits_per_weight: float
    kind: str
    """gguf | tensor"""
    compute: str
    """the number format that the matrix products run in: fp16 | fp8 | int8 | fp4"""
    source: str
    experts_only: bool = False
    """in a mixture of experts, only the routed experts are in this format: MXFP4, NVFP4 and native int4 files"""
    rest_bits: float = 16.0
    """of a tensor format: bits of what is not in it, such as the embeddings"""

    @property
    def quantized(self) -> bool:
        """True below 16 bits a weight."""
        return self.bits_per_weight < 15.9

    @property
    def weight_only(self) -> bool:
        """Whether the weights are unpacked to 16 bits before the products."""
        return self.quantized and self.compute == "fp16"


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
    "w8a16": ("INT8 w8a8 per-channel", "fp16"),
    "bitsandbytes": ("AWQ/GPTQ int4 g128 (sym, fp16 scale)", "fp16"),
    "nvfp4": ("NVFP4", "fp4"),
    "mxfp4": ("MXFP4", "fp16"),
}
_EXPERTS_ONLY = {"int4", "w4a16", "nvfp4", "mxfp4"}
MXFP4_GGUF = "mxfp4_gguf"
_USUAL = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "bf16", "fp8", "int8", "awq", "gptq", "nvfp4", "mxfp4")
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
        table[name] = Quantization(
            name, float(row["bits_per_weight"]), "tensor", compute, source, name in _EXPERTS_ONLY
        )
    # ggml-org's files keep the rest of gpt-oss in Q8_0: 12.1 GB of the 20B, where Ollama's own has 13.8.
    table[MXFP4_GGUF] = dataclasses.replace(table["mxfp4"], rest_bits=8.5)
    return table


def quantization_names() -> list[str]:
    """All names that `quantization` knows, in lower case."""
    return list(_quantization_table())


def quantization(name: str) -> Quantization:
    """The weight format of that name (`bf16`, `fp8`, `awq`, `Q4_K_M`, ...), or the one that a longer text names.

    "AutoRound int4 g128" and "gptq_marlin int8" are read. Raises LookupError naming the close ones.
    """
    table = _quantization_table()
    text = name.strip().lower()
    found = table.get(text.replace("-", "_"))
    if found is None and (stated := quantization_in(text)):
        # fp4 alone is NVFP4: the other four-bit floats are asked for by name.
        found = table.get({"fp4": "nvfp4"}.get(stated, stated))
    if found is None:
        raise LookupError(f"unknown quantization {name!r}; {_meant(text, list(table))}")
    return found


def _meant(text: str, known: list[str]) -> str:
    """A clause for an error message. As codes are short, spelling alone makes `awq` of "q9": the letters before the
    first digit count first, then the nearest digit."""
    code = re.match(r"([a-z]+)(\d)", text)
    alike = [k for k in known if code and re.match(rf"{code[1]}\d", k)]
    if code and alike:
        near = min(abs(int(k[len(code[1])]) - int(code[2])) for k in alike)
        alike = [k for k in alike if abs(int(k[len(code[1])]) - int(code[2])) == near]
    close = difflib.get_close_matches(text, alike or known, n=4, cutoff=0.0 if alike else 0.6)
    close.sort(key=[name.lower() for name in _USUAL].__contains__, reverse=True)  # q8_0 before q8_k, which no file is
    return (f"close: {', '.join(close)}; " if close else "") + f"usual ones: {', '.join(_USUAL)}"


# Families whose own files are not in 16 bits.
_NATIVE = (
    (r"gpt[-_]oss", "mxfp4"),
    (r"kimi-k2\.[56]|kimi-k2-thinking", "int4"),
    (
        r"kimi-k2|minimax-m2|deepseek[-_:]?v3|deepseek[-_:]?r1(?!.*(?:distill|qwen|llama|:\d|\b\d+\.?\d*b))|\bdsr1",
        "fp8",
    ),
    (r"ministral-3.*2512(?!.*bf16)", "fp8"),
)
# What `ollama pull` brings of a bare tag where that is not Q4_K_M: the sizes on its library pages say so
# (llama2:7b 3.8 GB, llama3:8b 4.7, gemma2:9b 5.4, mixtral 26, qwen2:7b 4.4: 4.5 bits; llama3.2:1b 1.3: 8.5 bits).
# UNVERIFIED: from general knowledge.
_TAGS = (
    (r"llama3\.2:1b|smollm2:1\.7b", "q8_0"),
    (
        r"(?:llama2|llama3|gemma|gemma2|codellama|mixtral|tinyllama|qwen2|phi3|yi|vicuna|deepseek-coder|starcoder2)",
        "q4_0",
    ),
)


def native_quantization(model_name: str) -> str:
    """The format that a model's own files come in, as its name and its family tell: bf16 unless they say otherwise."""
    if stated := quantization_in(model_name):
        return {"fp4": "nvfp4"}.get(stated, stated)
    words = model_name.lower()
    return next((name for pattern, name in _NATIVE if re.search(pattern, words)), "bf16")


def gguf_default(model_name: str, native: str) -> str:
    """What llama.cpp or Ollama would run of a model that states no GGUF format: a tag's own, else Q4_K_M."""
    tag = model_name.lower().strip()
    if native == "bf16" and "/" not in tag:
        tag = tag.removesuffix(":latest")
        for pattern, name in _TAGS:
            if re.fullmatch(pattern + r"(?::[\w.]+)?", tag):
                return name
    if quantization_in(model_name) in ("fp16", "f16"):
        return "f16"
    return native if re.match(r"i?q\d|tq\d|f16|f32|mxfp4", native) else "q4_k_m"


def stated_quantization(stated: str | None, model_name: str, native: str, engine: str) -> Quantization:
    """The format of a model's weights from what was stated, in whatever words, else its own or the engine's default.

    "auto", "default ..." and "(in model name)" state nothing. The experts of gpt-oss are MXFP4 in every GGUF and
    checkpoint that is called otherwise, but for those upcast to bf16. Raises LookupError for an unknown format.
    """
    text = (stated or "").strip().lower()
    unstated = text in _UNSTATED or text.startswith(("default", "(in "))
    if re.search(r"gpt[-_ ]?oss", model_name.lower()) and "bf16" not in model_name.lower():
        upcast = None if unstated else quantization(text)
        if upcast is not None and upcast.bits_per_weight >= 16:
            return upcast
        return quantization(MXFP4_GGUF if engine == "llama.cpp" else "mxfp4")
    if unstated:
        text = native if engine == "vllm" else gguf_default(model_name, native)
    elif engine != "vllm" and text in ("int4", "int8", "4bit", "4-bit", "8bit", "8-bit"):
        text = "q8_0" if "8" in text else "q4_k_m"
    return quantization(text)


def in_format(shape: ModelShape, weights: Quantization) -> ModelShape:
    """The shape of a model in that format: bytes that were read from its own files count in their format alone."""
    if shape.file_bytes is None or not shape.file_format:
        return shape
    own = quantization(shape.file_format)
    same = own.name.lower() == weights.name.lower() or (own.bits_per_weight, own.kind) == (
        weights.bits_per_weight,
        weights.kind,
    )
    return shape if same else dataclasses.replace(shape, file_bytes=None)


_UNSTATED = frozenset(("", "auto", "none", "null", "native", "gguf", "modelopt", "compressed-tensors"))
