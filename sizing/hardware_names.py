"""What people and drivers call hardware: `NVIDIA A100-SXM4-80GB`, `2x3090`, `RTX4090`, `M2 Ultra (60-core)`.

A name is read into the words of the part, the memory it states, how many of it, and the GPU cores of an Apple chip.
"""

from __future__ import annotations

import re
from functools import cache

# Words that name the maker or the box, not the part: NVML says "NVIDIA GeForce RTX 4090", the table "RTX 4090 24GB".
_NOISE = frozenset((
    "nvidia", "geforce", "amd", "radeon", "instinct", "apple", "tesla", "intel", "gpu", "gpus", "generation", "edition",
    "graphics", "integrated", "gt2", "core", "cores", "mac", "studio", "mini", "imac", "chip", "raspberry", "sup", "1",
    "processor", "cpu", "with", "nvl72", "aws", "hgx", "tensor", "tm",
))  # fmt: skip
# "CPU dual-channel DDR4-3200" is a part of its own: there the word stays.
_CHANNELS = re.compile(r"\bcpu\b.*\bchannel\b|^\s*cpu\s*$")
# NVML calls the SXM boards by their memory or socket: "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB".
_BOARD_WORDS = {
    "hbm3": "sxm", "hbm3e": "sxm", "sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm", "gb10": "spark", "mobile": "laptop",
}  # fmt: skip
BOARDS = frozenset(("sxm", "pcie"))
# Words that make another part of it: an RTX 3060 is no RTX 3060 Ti, and "RTX 6000" may be three of them.
OTHER_PART = frozenset(("ti", "super", "xt", "xtx", "gre", "d", "laptop", "ada", "quadro", "sff", "q", "nano", "nx"))
# Boxes of eight.
_EIGHT = re.compile(r"\b[dh]gx[- ](?=(?:[ah][12]00|[ah]800|b[23]00))")
_COUNT_WORDS = {"dual": 2, "quad": 4, "octa": 8, "eight": 8, "four": 4, "two": 2}
_COUNT_FIRST = re.compile(r"\s*(\d{1,3})\s*[x×*]\s*(?:(?<=[\sx×*])|(?=\d{4}))(?=[a-z\d])(?!\d{1,3}\b)(.*)", re.I)
_COUNT_LAST = re.compile(r"(?:(?<=[\s\d)])|(?<=gb)|(?<=sxm)|(?<=pcie))[x×*]\s*(\d{1,2})\s*$", re.I)
_COUNT_INSIDE = re.compile(r"\((?:(\d{1,3})\s*[x×]|[x×]\s*(\d{1,3}))(?![a-z\d])[^)]*\)", re.I)
# Chips whose smaller variant has less bandwidth: GPU cores of both, and the smaller one's GB/s. (The others lose cores
# alone, which the rows of such machines do not show.)
_APPLE_CORES: dict[str, tuple[tuple[int, int], float]] = {
    "m3 max": ((30, 40), 300.0), "m4 max": ((32, 40), 410.0), "m5 max": ((32, 40), 460.0),
}  # fmt: skip


@cache
def name_words(name: str) -> tuple[frozenset[str], float | None]:
    """A hardware name as (words of the part, memory size in GB when the name states one)."""
    text = re.sub(r"<[^>]*>", " ", name.lower().replace("‑", "-")).replace("_", " ")
    text = re.sub(r"\bmacbook( air| pro)?\b", " ", text)
    text = re.sub(r"\b\d+[- ]cores?\b", " ", re.sub(r"(\d)[- ]?(?:gi?b|g)\b", r"\1gb", text))
    text = re.sub(r"\b(rtx|gtx|rx|arc|gaudi)(?=[a-z]?\d)", r"\1 ", text)
    text = re.sub(r"(?<=\d{4})(tisuper|ti|super|xtx|xt|gre|d)(?![a-z])", r" \1", text)
    text = re.sub(r"\bti(?=super\b)", "ti ", text)
    text = text.replace("gh200 480gb", "gh200 96gb")  # NVML counts the CPU's memory in that name
    keep_cpu = _CHANNELS.search(text) is not None
    words = [_BOARD_WORDS.get(word, word) for word in re.findall(r"[a-z0-9+]+(?:\.\d+gi?b)?", text)]
    words = [word for word in words if word not in _NOISE or (word == "cpu" and keep_cpu)]
    if "dgx" in words and "spark" not in words:
        words.remove("dgx")
    sizes = [word for word in words if re.fullmatch(r"[\d.]+gi?b", word)]
    return frozenset(words) - set(sizes), float(re.findall(r"[\d.]+", sizes[0])[0]) if sizes else None


def split_count(name: str) -> tuple[int, str]:
    """("4x A100 80GB") to (4, "A100 80GB"); also "2x3090", "RTX 3090 x2", "dual 3090", "H100 (8x)". One by default."""
    if box := _EIGHT.search(name.lower()):
        boxes, rest = split_count(name[: box.start()] + name[box.end() :])
        return 8 * boxes, rest
    words = name.split(None, 1)
    if len(words) == 2 and words[0].lower() in _COUNT_WORDS:
        return _COUNT_WORDS[words[0].lower()], words[1]
    if match := _COUNT_FIRST.match(name):
        return int(match[1]), match[2]
    if inner := _COUNT_INSIDE.search(name):
        return int(inner[1] or inner[2]), name.replace(inner[0], " ")
    if last := _COUNT_LAST.search(name):
        return int(last[1]), name[: last.start()].rstrip()
    return 1, name


def apple_cores(chip: str, name: str) -> tuple[int, float] | None:
    """(GPU cores, bandwidth in GB/s) of the smaller chip of that name, if the name says so.

    A number of CPU cores ("10 core") is none that the chip's GPU comes with.
    """
    words = " ".join(word for word in re.findall(r"[a-z0-9]+", chip.lower()) if word in ("pro", "max", "ultra"))
    made = re.search(r"\bm\d\b", chip.lower())
    known = _APPLE_CORES.get(f"{made[0]} {words}".strip()) if made else None
    stated = {int(a or b) for a, b in re.findall(r"(\d+)[-\s‑]*(?:gpu[- ])?core|(\d+) gpu core", name.lower())}
    if known is None or known[0][0] not in stated or known[0][1] in stated:
        return None
    return known[0][0], known[1]
