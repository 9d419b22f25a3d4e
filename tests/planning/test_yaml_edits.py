"""Numbers that are written into a YAML."""

from __future__ import annotations

import doctest
import math

import pytest
import yaml
from omegaconf import OmegaConf

from patch_algorithm.planning import yaml_edits
from patch_algorithm.planning.yaml_edits import Document


@pytest.mark.parametrize("value", [0.1 * 3e-4, 0.1 + 0.2, 6e-5, 1e-30, 1e22, 2.0, 0.25, -7.5e-9, 123456.789])
def test_numbers_are_short_and_read_alike_by_every_reader(value: float) -> None:
    document = Document("a: 6.0e-4  # kept\n")
    document.set(("b",), value, "")
    document.set(("c",), [value, {"d": value}], "")
    text = document.text
    assert text.startswith("a: 6.0e-4  # kept\n")
    assert max(len(line) for line in text.splitlines()[1:]) <= len("  - d: 123456.789") + 2
    for read in (yaml.safe_load(text), OmegaConf.to_container(OmegaConf.create(text))):
        assert isinstance(read, dict)
        assert read["b"] == pytest.approx(value, rel=1e-12)
        assert read["c"] == [read["b"], {"d": read["b"]}]


def test_numbers_that_are_none() -> None:
    document = Document("a: 1\n")
    document.set(("b",), [math.inf, -math.inf, math.nan], "")
    assert str(yaml.safe_load(document.text)["b"]) == "[inf, -inf, nan]"


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(yaml_edits).failed == 0
