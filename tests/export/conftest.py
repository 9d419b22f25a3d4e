"""The runs whose exports are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import catalogue
import pytest

from tests.export.runs import make_run


@pytest.fixture(autouse=True)
def registries_put_back() -> Iterator[None]:
    """The exported MPT's own code registers its layers under the names of llm-foundry's."""
    entries = dict(catalogue.REGISTRY)
    yield
    catalogue.REGISTRY.clear()
    catalogue.REGISTRY.update(entries)


@pytest.fixture(scope="session")
def run_of(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a run when a test first asks for it; nobody may change its folder."""
    made: dict[tuple[str, str], Path] = {}

    def run(name: str, precision: str = "float32") -> Path:
        if (name, precision) not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name, precision] = make_run(name, corpus, folder, precision)
        return made[name, precision]

    return run
