"""What is installed, against what the tests run with."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from patch_algorithm.checks import Finding, Severity
from patch_algorithm.checks.environment import TESTED, EnvironmentFacts, check_environment

GOOD = EnvironmentFacts(
    python="3.11.7",
    versions={**TESTED, "flash-attn": "2.7.4.post1", "ray": "2.60.0"},
    ranges={"torch": "<2.8,>=2.7"},
    gpus=("NVIDIA H100",),
)


def found(**changes: object) -> list[Finding]:
    return check_environment(dataclasses.replace(GOOD, **changes))  # pyright: ignore[reportArgumentType]


def test_a_sound_installation_has_only_advisories() -> None:
    assert [one.id for one in found()] == ["advisory", "advisory"]
    assert {one.severity for one in found()} == {Severity.note}
    assert [one.found.split()[0] for one in found()] == ["mosaicml", "torch"]
    assert "CVE-2026-24747" in found()[1].found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"versions": {**GOOD.versions, "torch": "2.7.0+cpu"}}, []),
        ({"versions": {**GOOD.versions, "torch": "2.7.1"}}, ["not-the-tested-version"]),
        ({"versions": {**GOOD.versions, "llm-foundry": None}}, ["package-missing"]),
        (
            {"versions": {**GOOD.versions, "torch": "2.13.0"}, "out_of_range": ("torch",)},
            ["untested-version"],
        ),
        ({"not_registered": ("llmfoundry_algorithms: patch_level",)}, ["not-registered"]),
        ({"gpus": ()}, ["no-gpu"]),
        ({"versions": {**GOOD.versions, "flash-attn": None}}, ["no-flash-attention"]),
        ({"unwritable": {"TMPDIR": "/tmp"}}, ["not-writable"]),
    ],
)
def test_each_check(changes: dict[str, object], expected: list[str]) -> None:
    assert [one.id for one in found(**changes) if one.id != "advisory"] == expected


def test_advisories_are_of_versions() -> None:
    assert not [one for one in found(versions={"torch": "2.10.0"}) if "CVE" in one.found]
    assert [one for one in found(versions={"ray": "2.53.0"}) if one.found.startswith("ray 2.53.0")]


def test_the_tested_versions_are_those_of_the_lock() -> None:
    lock = (Path(__file__).parents[2] / "uv.lock").read_text("utf-8")
    locked = dict(re.findall(r'^name = "(.+)"\nversion = "(.+)"$', lock, re.MULTILINE))
    assert {name: locked[name] for name in TESTED} == TESTED
