"""What people call models and formats: `llama3.1:8b`, `Qwen3-14B-Q4_K_M.gguf`, `LLaMA 3 8B`, `hf.co/org/repo:Q4_K_M`.

A name is read into the words that tell one model from another, and a quantization when it states one. Words that do not
(instruct, gguf, the owner, the month of a release) are dropped on both sides, so that spellings meet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

# Formats as they are spelled inside names, most specific first, to the name that `catalog.quantization` knows.
_FORMATS: tuple[tuple[str, str], ...] = (
    (r"(?:ud-)?((?:iq|tq|q)\d_[a-z0-9]+(?:_(?:xxs|xs|xl|s|m|l))?)", r"\1"),
    (r"nvfp4", "nvfp4"),
    (r"mxfp4(?:[-_ ]moe)?", "mxfp4"),
    (r"mxfp8", "fp8"),
    (r"fp8[ _(-]*w8a8|w8a8[ _(-]*fp8", "fp8"),
    (r"bitsandbytes[-_ ]*int8|bnb[-_ ]*(?:8[-_ ]?bit|int8)|awq[-_ ]*(?:8[-_ ]?bit|int8)|mlx[-_ ]*8[-_ ]?bit", "w8a16"),
    (r"gptq[-_ ]?(?:marlin)?[-_ ]*(?:int8|8[-_ ]?bit)", "w8a16"),
    (r"w8a16", "w8a16"),
    (r"w8a8", "w8a8"),
    (r"w4a16", "w4a16"),
    (r"awq(?:[-_ ]?marlin)?(?:[-_ ]?int4|[-_ ]?4bit)?", "awq"),
    (r"gptq(?:[-_ ]?marlin)?(?:[-_ ]?int4|[-_ ]?4bit)?", "gptq"),
    (r"auto[-_ ]?round(?:[-_ ]?int4)?", "int4"),
    (r"bitsandbytes|bnb(?:[-_ ]?(?:4bit|nf4))?|nf4", "bitsandbytes"),
    (r"fp8(?:[-_ ]?(?:dynamic|static|block))?(?:-?pertensor)?(?:_e4m3)?", "fp8"),
    (r"fp4", "fp4"),
    (r"int8", "int8"),
    (r"int4|4[-_ ]?bit", "int4"),
    (r"8[-_ ]?bit", "w8a16"),
    (r"bfloat16|bf16", "bf16"),
    (r"float16|fp16|half", "fp16"),
    (r"float32|fp32|f32", "f32"),
    (r"f16", "f16"),
    (r"qat", "q4_0"),
    (r"q([4568])", r"q\1"),
)
_PATTERNS = tuple((re.compile(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])"), known) for pattern, known in _FORMATS)
_ANY_FORMAT = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(pattern for pattern, _ in _FORMATS)})(?![a-z0-9])")
_BARE = {"q4": "q4_k_m", "q5": "q5_k_m", "q6": "q6_k", "q8": "q8_0", "q4_k_xl": "q4_k_m", "q4_k": "q4_k_m"}
_BARE |= {"q5_k": "q5_k_m", "q3_k": "q3_k_m", "q5_k_xl": "q5_k_m", "q6_k_xl": "q6_k", "q8_k_xl": "q8_0"}
# Embeddings and head in more bits than the plain format has: the nearest that the table knows.
_BARE |= {"q2_k_l": "q2_k", "q2_k_xl": "q2_k", "q3_k_xl": "q3_k_l", "q4_k_l": "q4_k_m", "q5_k_l": "q5_k_m"}
_BARE |= {"q6_k_l": "q6_k", "q8_0_l": "q8_0", "q2_k_m": "q2_k"}
# llama-bench writes "Q4_K - Medium", "IQ4_XS - 4.25 bpw", "IQ3_S mix - 3.66 bpw", "(guessed)".
_BENCH_SIZES = re.compile(r"(q\d_k)\s*-\s*(small|medium|large)")
_BENCH_WORDS = re.compile(r"( mix)? - [\d.]+ bpw|\(guessed\)|\bmostly\b|\ball (?=f\d\d)")

# Words that tell nothing about the geometry.
_NOISE = frozenset((
    "meta", "instruct", "it", "chat", "hf", "gguf", "mlx", "base", "latest", "mtp", "quantized", "dynamic", "quants",
    "default", "checkpoint", "fast", "resharded", "calibrated", "nvidia", "microsoft", "modelopt", "via", "marlin",
    "the", "model", "preview", "text", "pt", "reasoning", "claude", "opus", "distilled", "thinking", "kv", "ct",
    "class", "ov", "unsloth", "imatrix", "gs", "post", "trained", "awq", "gptq",
))  # fmt: skip
# v0.3, FP4-v2: editions of one geometry. DeepSeek's V2 and V3 are not.
_EDITION = re.compile(r"(?<!deepseek)(?<!coder)(?<!mimo)(?<!athene)[-_ ]v\d+(?:[._]\d+)?(?![a-z0-9])")
_TOKEN = re.compile(
    r"a\d+(?:\.\d+)?b(?![a-z0-9])|e\d+b(?![a-z0-9])|\d+e(?![a-z0-9])|\d+x\d+b|\d+(?:\.\d+)?[bm](?![a-z0-9])"
    r"|v\d+(?:\.\d+)?(?![a-z0-9])|[a-z]+|\d+(?:\.\d+)?"
)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name as the words that identify a model."""

    words: tuple[str, ...]
    """sorted, without what does not identify"""
    dated: tuple[str, ...]
    """the same with the month of the release (`2409`), which tells some models apart"""
    quantization: str | None
    """as stated in the name, in a spelling that the catalogue knows"""
    params: float | None
    """total parameters that the name states ("8b"), None when it states none"""
    active_params: float | None
    """parameters that one token passes through, as the name states them: 3e9 of `30b-a3b`"""


@cache
def quantization_in(text: str) -> str | None:
    """The weight format that a text names, None when it names none: "AutoRound int4 g128" is int4."""
    return _cut_quantization(text.lower())[1]


def _cut_quantization(text: str) -> tuple[str, str | None]:
    """The text without its format, and the format."""
    found: str | None = None
    text = _BENCH_WORDS.sub(" ", _BENCH_SIZES.sub(lambda m: f"{m[1]}_{m[2][0]}", text))
    if _ANY_FORMAT.search(text) is None:  # most names state none
        return text, None
    for pattern, known in _PATTERNS:
        match = pattern.search(text)
        if match is None:
            continue
        if found is None:
            name = match.expand(known) if "\\" in known else known
            found = _BARE.get(name, name)
        text = text[: match.start()] + " " + text[match.end() :]
    return text, found


@cache
def parse_model(name: str) -> ModelName:
    """Reads any spelling; never fails, an empty `words` means that nothing identifies a model."""
    text = name.strip().lower().replace("‑", "-")
    text = re.sub(r"\.(gguf|safetensors)$", "", text).rstrip("/")
    # The owner or folder, also of `hf.co/owner/repo:tag`; the tag stays.
    text = text.rpartition("/")[2]
    text, found = _cut_quantization(text)
    inner = re.findall(r"\(([^)]*)\)", text)
    text = re.sub(r"\([^)]*\)?", " ", text)
    if found is None:
        found = next((q for part in inner if (q := quantization_in(part))), None)
    text = re.sub(r"^[a-z0-9.-]+_(?=[a-z])", "", text)  # `microsoft_Phi-4`: files name their owner so
    dated = [w for w in _TOKEN.findall(_EDITION.sub(" ", text)) if w not in _NOISE]
    words = [w for w in dated if not re.fullmatch(r"[0-3]\d{3}", w)]
    sizes = [float(w[:-1]) * (1e9 if w[-1] == "b" else 1e6) for w in words if re.fullmatch(r"\d+(\.\d+)?[bm]", w)]
    active = [float(w[1:-1]) * 1e9 for w in words if re.fullmatch(r"a\d+(\.\d+)?b", w)]
    return ModelName(
        tuple(sorted(words)), tuple(sorted(dated)), found, max(sizes, default=None), active[0] if active else None
    )
