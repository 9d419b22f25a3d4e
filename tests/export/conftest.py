"""What loading an export leaves behind is put back."""

from __future__ import annotations

from collections.abc import Iterator

import catalogue
import pytest


@pytest.fixture(autouse=True)
def registries_put_back() -> Iterator[None]:
    """The exported MPT's own code registers its layers under the names of llm-foundry's."""
    entries = dict(catalogue.REGISTRY)
    yield
    catalogue.REGISTRY.clear()
    catalogue.REGISTRY.update(entries)
