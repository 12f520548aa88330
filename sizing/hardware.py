"""Hardware by any of the names that people and drivers give it, from `data/gpus.csv` and `data/gpus_more.csv`.

Every row names its own source and keeps its mark (UNVERIFIED, DERIVED, CONFLICT) in `verified`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache

from sizing.tables import closest, read_rows, to_float

# Words that name the maker or the box, not the part: NVML says "NVIDIA GeForce RTX 4090", the table "RTX 4090 24GB".
_NOISE = frozenset((
    "nvidia", "geforce", "amd", "radeon", "apple", "tesla", "intel", "gpu", "generation", "edition", "graphics",
    "integrated", "gt2", "core", "cores", "mac", "studio", "mini", "macbook", "chip", "raspberry", "sup", "1",
))  # fmt: skip
# NVML calls the SXM boards by their memory or socket: "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB".
_BOARD_WORDS = {"hbm3": "sxm", "hbm3e": "sxm", "sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm", "gb10": "spark"}
_BOARDS = {"sxm", "pcie"}
# Parts with stacked memory, for rows whose family is in no table.
_HBM_PARTS = {"a100", "a30", "h100", "h200", "b200", "b300", "gb200", "gb300", "v100", "mi300x", "mi325x", "mi350x"}
_HBM_FAMILIES = {"ampere-hbm", "volta", "hopper", "blackwell-hbm", "cdna"}


@dataclass(frozen=True, slots=True)
class Hardware:
    """One accelerator (or a CPU). Peaks are dense, without sparsity; None is "not published"."""

    name: str
    vendor: str
    kind: str
    """hbm | gddr | unified | apple | cpu: the class that memory and efficiency go by"""
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
    fp4_tflops: float | None = None
    family: str = ""
    """the architecture: ampere, ada, hopper, rdna, apple, ...; empty when unknown"""
    cores: int | None = None
    """SMs, compute units or GPU cores"""
    clock_ghz: float | None = None
    """boost clock"""
    usable_gib: float | None = None
    """what a process sees, as measured on the machine itself; None: the table's size less what the driver keeps"""
    note: str = ""
    """what was assumed when the name left it open"""

    @property
    def core_ghz(self) -> float | None:
        """Cores x clock: what instructions per second go by. None when unknown."""
        return self.cores * self.clock_ghz if self.cores and self.clock_ghz else None


def _name_words(name: str) -> tuple[frozenset[str], float | None]:
    """A hardware name as (words of the part, memory size in GB when the name states one)."""
    text = re.sub(r"<[^>]*>", " ", name.lower().replace("‑", "-"))
    text = re.sub(r"\b\d+[- ]core\b", " ", re.sub(r"(\d)[- ]gi?b\b", r"\1gb", text))
    words = [_BOARD_WORDS.get(word, word) for word in re.findall(r"[a-z0-9+]+(?:\.\d+gi?b)?", text)]
    words = [word for word in words if word not in _NOISE]
    sizes = [word for word in words if re.fullmatch(r"[\d.]+gi?b", word)]
    return frozenset(words) - set(sizes), float(re.findall(r"[\d.]+", sizes[0])[0]) if sizes else None


def split_count(name: str) -> tuple[int, str]:
    """("4x A100 80GB") to (4, "A100 80GB"); also "RTX 3090 (8x, ...)". One when no number is stated."""
    match = re.match(r"\s*(\d{1,3})\s*[x×]\s+(.*)", name, re.I) or re.match(r"\s*(\d{1,3})[x×](?=[A-Za-z])(.*)", name)
    if match:
        return int(match[1]), match[2]
    inner = re.search(r"\((\d{1,3})[x×]\b[^)]*\)", name, re.I)
    return (int(inner[1]), name.replace(inner[0], " ")) if inner else (1, name)


def _kind(row: dict[str, str], family: str) -> str:
    if row["vendor"] in ("apple", "cpu"):
        return row["vendor"]
    if row["unified"] == "1":
        return "unified"
    return "hbm" if family in _HBM_FAMILIES or _name_words(row["name"])[0] & _HBM_PARTS else "gddr"


@cache
def _table() -> dict[str, Hardware]:
    cores = {row["name"]: row for row in read_rows("gpu_cores.csv")}
    found: dict[str, Hardware] = {}
    for row in read_rows("gpus.csv") + read_rows("gpus_more.csv"):
        more = cores.get(row["name"])
        family = more["family"] if more else ""
        found[row["name"]] = Hardware(
            name=row["name"],
            vendor=row["vendor"],
            kind=_kind(row, family),
            memory_gib=to_float(row["memory_gib"]),
            bandwidth_gbs=float(row["bandwidth_gbs"]),
            fp16_tflops=to_float(row["fp16_dense_tflops"]),
            fp8_tflops=to_float(row["fp8_tflops"]),
            int8_tops=to_float(row["int8_tops"]),
            tdp_w=to_float(row["tdp_w"]),
            source=row["source"],
            verified=row["verified"],
            fp4_tflops=to_float(row["fp4_tflops"]),
            family=family,
            cores=int(more["cores"]) if more else None,
            clock_ghz=float(more["clock_ghz"]) if more else None,
        )
    return found


def hardware_names() -> list[str]:
    """All names that `hardware` knows, in the tables' order."""
    return list(_table())


def _memory_agrees(stated_gb: float | None, known: Hardware) -> bool:
    # 10 %: a "48 GB" L40S has 45 GiB to use, and both are written.
    return not stated_gb or not known.memory_gib or abs(known.memory_gib - stated_gb) <= 0.1 * stated_gb


def hardware(name: str) -> Hardware:
    """The hardware of that name: the tables', NVML's ("NVIDIA H100 80GB HBM3"), or one without maker and memory size.

    "H100" alone is taken as the SXM board, as both boards hold the same memory, and `note` says so.
    Raises LookupError for a name that fits no row, or several of unlike memory ("A100").
    """
    for known, row in _table().items():
        if known.lower() == name.strip().lower():
            return row
    text = split_count(re.sub(r"\]\(https?:.*", "", name))[1]
    # A computer may be named before its GPU: "Intel 13900K (Nvidia 4090)".
    inner = re.findall(r"\(([^)]*)\)?", text)
    failure: LookupError | None = None
    for candidate in (*inner, re.sub(r"\([^)]*\)?", " ", text), text):
        try:
            return _match(candidate)
        except LookupError as error:
            if failure is None or "fits several" in str(error):
                failure = error
    known_names = list(_table())
    if failure is not None and "fits several" in str(failure):
        raise LookupError(f"hardware {name!r} {failure}")
    raise LookupError(f"unknown hardware {name!r}; {closest(name, known_names)}")


def _match(name: str) -> Hardware:
    """The one row that a name without computer and count means. Raises LookupError."""
    table = _table()
    part, stated_gb = _name_words(name)
    if not part:
        raise LookupError("names no part")
    words = {known: _name_words(known)[0] for known, row in table.items() if _memory_agrees(stated_gb, row)}
    fewest = min((len(row - part) for row in words.values() if part < row), default=0)
    tiers = (
        [known for known, row in words.items() if part <= row <= part | _BOARDS],
        [known for known, row in words.items() if part < row and len(row - part) == fewest],
        [known for known, row in words.items() if row == part - _BOARDS],
    )
    for matches in tiers:
        if not matches:
            continue
        rows = [table[known] for known in matches]
        first = next((row for row in rows if _name_words(row.name)[0] == part), rows[0])
        if all(_alike(row, first) for row in rows):
            return _with_memory(first, stated_gb)
        boards = [row for row in rows if "sxm" in _name_words(row.name)[0]]
        if boards and len({row.memory_gib for row in rows}) == 1:
            return dataclasses.replace(boards[0], note=f"{name.strip()!r} is taken as {boards[0].name}")
        raise LookupError(f"fits several: {', '.join(matches)}")
    raise LookupError("fits no row")


def _alike(one: Hardware, other: Hardware) -> bool:
    """Two sources list some parts twice: rows of like memory and bandwidth are one part."""
    a, b = one.memory_gib, other.memory_gib
    memory = a is None or b is None or abs(a - b) <= 0.02 * b
    return memory and abs(one.bandwidth_gbs - other.bandwidth_gbs) <= 0.01 * other.bandwidth_gbs


def _with_memory(row: Hardware, stated_gb: float | None) -> Hardware:
    """The row with the memory that the name states, where the table has none."""
    return dataclasses.replace(row, memory_gib=stated_gb) if row.memory_gib is None and stated_gb else row
