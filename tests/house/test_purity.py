"""What importing the package costs, seen in fresh interpreters."""

from __future__ import annotations

import doctest
import subprocess
import sys
from types import ModuleType

import pytest

from patch_algorithm.loss import cross_entropy
from patch_algorithm.patching import rows

FRAMEWORKS = "composer", "llmfoundry", "streaming", "transformers", "omegaconf", "typer"


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that runs ``statement``."""
    script = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_pure_core_needs_torch_alone() -> None:
    loaded = modules_after("import patch_algorithm.loss, patch_algorithm.patching")
    assert "torch" in loaded
    assert loaded.isdisjoint(FRAMEWORKS)


@pytest.mark.parametrize("module", ["patch_algorithm", "patch_algorithm.registry"])
def test_importing_the_package_or_the_entry_point_loads_nothing_else(module: str) -> None:
    standard = modules_after("import typing, importlib, __future__")
    assert modules_after(f"import {module}") - standard == {"patch_algorithm"}


def test_reading_a_history_needs_nothing_else() -> None:
    loaded = modules_after("import patch_algorithm.monitoring.history_file")
    assert loaded.isdisjoint({"torch", "numpy", *FRAMEWORKS})


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import patch_algorithm

    with pytest.raises(AttributeError, match="no attribute 'Patchlevel'"):
        _ = patch_algorithm.Patchlevel


@pytest.mark.parametrize("module", [cross_entropy, rows], ids=["loss", "patching"])
def test_the_examples_in_the_docstrings_run(module: ModuleType) -> None:
    import torch

    outcome = doctest.testmod(module, extraglobs={"torch": torch})
    assert outcome.attempted > 0
    assert outcome.failed == 0
