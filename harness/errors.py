"""Every error that a user may meet. Foreign errors are translated into these at one boundary each.

A failed request is no error: it is a record. A failed engine is one.
"""

from __future__ import annotations


class BenchError(Exception):
    """Something the user can act on: `message` says what happened and where, `remedy` what to do next."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class InputError(BenchError):
    """Wrong input: a scenario, an option, a folder. Exit code 2."""

    exit_code = 2


class RunError(BenchError):
    """The run could not be made or finished. Exit code 1."""


class EngineError(RunError):
    """An engine did not start, or died. `log_tail` holds the last lines of its log."""

    def __init__(self, message: str, remedy: str = "", log_tail: str = "") -> None:
        super().__init__(message, remedy)
        self.log_tail = log_tail
