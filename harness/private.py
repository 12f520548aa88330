"""What of texts and environments may stand in a run folder: no key, no home path, no user name."""

from __future__ import annotations

from harness.environment import MASK, masked, redact
from harness.errors import BenchError
from harness.scenario import SECRET_WORDS


def safe(text: str) -> str:
    """A text without them."""
    return masked(redact(text))


def value_shown(key: str, value: str) -> str:
    """The value of an environment variable; what looks like a secret by the variable's name is hidden."""
    return MASK if key.upper().endswith(SECRET_WORDS) else safe(value)


def failure_text(error: BenchError) -> str:
    """What happened to an engine, its log's last lines and the remedy, as a warning of the run."""
    tail = getattr(error, "log_tail", "")
    lines = [error.message, *([f"last lines of its log:\n{tail}"] if tail else []), f"remedy: {error.remedy}"]
    return safe("\n".join(lines))
