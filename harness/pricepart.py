"""The `price:` part of a scenario: what an hour of the machine and a kilowatt-hour cost."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema, model_validator

from harness.parts import Part
from harness.units import parse_price


def _priced(unit: str) -> Any:
    def check(value: object) -> object:
        parse_price(value, unit)
        return value

    words: Any = {"type": "string", "examples": [f"2.50 EUR/{unit}"]}
    return Annotated[str, BeforeValidator(check), WithJsonSchema(words)]


class Price(Part):
    """One or both: `machine: 2.50 EUR/h` (rent, or what it is written off by) and `energy: 0.30 EUR/kWh`."""

    machine: _priced("h") | None = None  # type: ignore[valid-type]
    energy: _priced("kWh") | None = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _one_currency(self) -> Price:
        told = {parse_price(text, unit)[1] for text, unit in ((self.machine, "h"), (self.energy, "kWh")) if text}
        if not told:
            raise ValueError("give `machine` (per h) or `energy` (per kWh), or leave `price` out")
        if len(told) > 1:
            raise ValueError(f"two currencies: {' and '.join(sorted(told))}")
        return self
