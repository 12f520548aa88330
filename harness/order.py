"""In which order a session measures its load points. Pure.

Never simply rising: a machine that warms up, or throttles, over an hour would then favour the low loads of every
engine. The order is drawn from the scenario's seed, the same for every engine; each second repeat is the mirror of the
one before, so that what drifts evenly weighs on all points alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from harness.records import PointRun
from harness.scenario import Scenario


def in_order(scenario: Scenario, todo: list[PointRun]) -> list[PointRun]:
    """These points as they are measured, repeat by repeat: in the drawn order, or that of the file where asked for."""
    if scenario.order == "file":
        return todo
    names = [point.name for point in scenario.points()]
    found = []
    for repeat in sorted({point.repeat for point in todo}):
        places = {name: place for place, name in enumerate(seeded(names, scenario.seed, repeat))}
        mine = [point for point in todo if point.repeat == repeat]
        found += sorted(mine, key=lambda point: places.get(point.point, len(places)))  # a sweep's come last
    return found


def seeded(names: Sequence[str], seed: int, repeat: int) -> list[str]:
    """The points (in the order of the file) as one repeat measures them."""
    found = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/order/{repeat // 2}/{name}".encode()).digest())
    if found == list(names):  # chance: two points are in order half of the time
        found.reverse()
    return found if repeat % 2 == 0 else found[::-1]
