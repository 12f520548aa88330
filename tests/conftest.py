"""What all tests share: what this machine's user has taught the tool must not change their outcome."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

LONGEST = ("report_browser", "cli", "driver", "gate_run", "cluster", "outputs", "golden", "process", "gate", "gate_ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker that begins one when the others are done keeps them all waiting."""
    place = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True, scope="session")
def _a_home_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEBENCH_HOME", str(folder))
        yield folder
