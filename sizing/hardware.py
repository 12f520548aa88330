"""Hardware by any of the names that people and drivers give it, from `data/gpus.csv` and `data/gpus_more.csv`.

Every row names its own source and keeps its mark (UNVERIFIED, DERIVED, CONFLICT) in `verified`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache

from sizing.hardware_names import BOARDS, OTHER_PART, apple_cores, name_words, split_count
from sizing.tables import closest, read_rows, to_float

# Parts with stacked memory, for rows whose family is in no table.
_HBM_PARTS = {
    "a100", "a30", "h100", "h200", "b200", "b300", "gb200", "gb300", "v100", "p100", "mi300x", "mi325x", "mi350x",
    "mi50", "mi60", "vii",
}  # fmt: skip
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


def _kind(row: dict[str, str], family: str) -> str:
    if row["vendor"] in ("apple", "cpu"):
        return row["vendor"]
    if row["unified"] == "1":
        return "unified"
    return "hbm" if family in _HBM_FAMILIES or name_words(row["name"])[0] & _HBM_PARTS else "gddr"


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
    # 10 %: a "48 GB" L40S has 45 GiB to use, and both are written. Some chips come with memory of many sizes.
    if _any_size(known):
        return True
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
            return _with_cores(_match(candidate), text)
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
    part, stated_gb = name_words(name)
    if not part:
        raise LookupError("names no part")
    alias = _aliases().get(part)
    if alias and _memory_agrees(stated_gb, table[alias]):
        return _with_memory(table[alias], stated_gb)
    words = {known: name_words(known)[0] for known, row in table.items() if _memory_agrees(stated_gb, row)}
    fewest = min((len(row - part) for row in words.values() if part < row), default=0)
    tiers = (
        [known for known, row in words.items() if part <= row <= part | BOARDS],
        [known for known, row in words.items() if part < row and len(row - part) == fewest],
        [known for known, row in words.items() if row == part - BOARDS],
    )
    for matches in tiers:
        if not matches:
            continue
        plain = [known for known in matches if not (words[known] - part) & OTHER_PART]
        if not plain:
            raise LookupError(f"fits several: it may mean {' or '.join(matches)}; name the part in full")
        matches = plain
        rows = [table[known] for known in matches]
        first = next((row for row in rows if name_words(row.name)[0] == part), rows[0])
        if all(_alike(row, first) for row in rows):
            return _with_memory(first, stated_gb)
        boards = [row for row in rows if "sxm" in name_words(row.name)[0]]
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
    """The row with the memory that the name states, where the table has none or one size of many."""
    if stated_gb and (row.memory_gib is None or _any_size(row)):
        return dataclasses.replace(row, memory_gib=stated_gb)
    if row.memory_gib is not None and _any_size(row):
        note = f"{row.name}: its memory is taken as {row.memory_gib:.0f} GB, as none was stated"
        return dataclasses.replace(row, note=note)
    return row


def _any_size(row: Hardware) -> bool:
    return row.kind == "apple" or row.name.startswith("Ryzen AI Max")


def _with_cores(row: Hardware, name: str) -> Hardware:
    """An Apple chip with the GPU cores, and their bandwidth, that the name states."""
    fewer = apple_cores(row.name, name) if row.kind == "apple" else None
    if fewer is None:
        return row
    cores, bandwidth_gbs = fewer
    return dataclasses.replace(row, cores=cores, bandwidth_gbs=bandwidth_gbs)


@cache
def _aliases() -> dict[frozenset[str], str]:
    return {name_words(row["alias"])[0]: row["name"] for row in read_rows("gpu_aliases.csv")}
