"""A tiny reader of the Prometheus text format, as far as engines use it, and the source that reads such a page.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from harness.http import get_text

PERIOD_S: Final = 1.0
TIMEOUT_S: Final = 3.0  # a server that streams hundreds of answers lets its page wait, and then it matters most

_LINE = re.compile(r"([A-Za-z_:][\w:]*)\s*(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass(frozen=True, slots=True)
class PrometheusSample:
    """One line of a page: `name{labels} value`. The value may be NaN or infinite, as the server wrote it."""

    name: str
    labels: dict[str, str]
    value: float


def parse(text: str, wanted: Collection[str] | None = None) -> Iterator[PrometheusSample]:
    """The samples of a page, those named in `wanted` alone if it is given (ten times cheaper on a page of vLLM).

    A line that is none (torn, or of another format) is passed over: telemetry is an extra, never a reason to fail.
    """
    for line in text.splitlines():
        if not line or line[0] == "#" or (wanted is not None and line.partition("{")[0].split(" ", 1)[0] not in wanted):
            continue
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            value = float(match.group(3))
        except ValueError:
            continue
        yield PrometheusSample(match.group(1), _labels(match.group(2) or ""), value)


def _labels(text: str) -> dict[str, str]:
    return {
        name: re.sub(r"\\.", lambda m: _ESCAPES.get(m.group(), m.group()), value) if "\\" in value else value
        for name, value in _LABEL.findall(text)
    }


class PageSource:
    """What a server says on its page of metrics; `values` makes them of its text.

    A read blocks for up to about `timeout_s`, so the sampler gives it a thread apart (`blocking`): a hanging server
    costs its own samples only.
    """

    period_s = PERIOD_S
    blocking = True

    def __init__(
        self, name: str, url: str, values: Callable[[str], dict[str, float]], timeout_s: float = TIMEOUT_S
    ) -> None:
        self.name, self.url, self.values, self.timeout_s = name, url, values, timeout_s

    def read(self) -> dict[str, float]:
        """Raises HttpError: the server is gone, hangs, or refuses."""
        return self.values(get_text(self.url, self.timeout_s))
