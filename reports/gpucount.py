"""Of how many GPUs a figure is that is added over them: nothing is said of one."""

from __future__ import annotations

from reports.rows import Summary

ADDED = ("gpu_util_ratio", "gpu_memory_bytes", "gpu_power_w", "gpu_energy_j")


def counts(summary: Summary, engines: list[str]) -> list[int | None]:
    """The GPUs of each engine, at the point where it used most of them; None where none was sampled."""
    found = []
    for name in engines:
        known = [summary.row(name, state.point, "gpus").value for state in summary.points if state.engine == name]
        found.append(max((round(value) for value in known if value is not None), default=None))
    return found


def of_gpus(count: int | None) -> str:
    """` of 2 GPUs`, to stand behind a figure or its name."""
    return f" of {count} GPUs" if count is not None and count > 1 else ""
