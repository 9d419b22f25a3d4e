"""Findings: their catalogue, how they are written, and what has been shown already."""

from __future__ import annotations

import pytest

from patch_algorithm.checks import CATALOGUE, Severity, by_severity, finding, skipped
from patch_algorithm.checks.rendering import as_block, as_json, as_report
from patch_algorithm.checks.shown import already_shown, not_yet_shown


def test_a_finding_takes_its_severity_from_the_catalogue() -> None:
    one = finding("k-high", "k=16", "why", "fix")
    assert one.to_json() == {
        "id": "k-high",
        "severity": "warning",
        "found": "k=16",
        "why": "why",
        "fix": "fix",
    }
    assert skipped("needs-gpu", "no GPU").severity == Severity.skipped
    with pytest.raises(KeyError):
        finding("no-such-check", "")


def test_the_worst_come_first() -> None:
    mixed = [
        skipped("needs-gpu", ""),
        finding("passes-over-data", ""),
        finding("k-high", ""),
        finding("bad-value", ""),
    ]
    assert [one.severity.value for one in by_severity(mixed)] == ["error", "warning", "note", "skipped"]


def test_the_catalogue_is_keyed_by_its_ids() -> None:
    assert all(key == check.id and check.summary.endswith(".") for key, check in CATALOGUE.items())


def test_what_was_shown_is_not_shown_again() -> None:
    both = [finding("k-high", ""), finding("ratio-high", "")]
    with already_shown(["k-high"]):
        assert [one.id for one in not_yet_shown(both)] == ["ratio-high"]
        with already_shown(["ratio-high"]):
            assert not_yet_shown(both) == []
    assert not_yet_shown(both) == both, "it ends with the block"


SECRET = "a-secret-0123456789"


@pytest.mark.parametrize("width", range(40, 100, 7))
def test_no_rendering_shows_a_secret_wherever_its_lines_break(width: int) -> None:
    header = f"callbacks.mine is {{'Authorization': 'Bearer {SECRET}'}}"
    findings = [finding("bad-value", header, f"the password = {SECRET}", f"Unset HF_TOKEN={SECRET} here.")]
    texts = [
        as_report(findings, width),
        as_block(findings, f"run password={SECRET}", width),
        str(as_json(findings, file=f"s3://me:{SECRET}@bucket/run.yaml", api_key=SECRET)),
    ]
    for text in texts:
        assert SECRET not in text
        assert "***" in text
