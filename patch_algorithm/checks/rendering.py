"""Findings as text for people and as JSON for scripts; secrets are taken out of both."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from patch_algorithm.checks.catalogue import Severity
from patch_algorithm.checks.finding import Finding
from patch_algorithm.common.redaction import redact, redact_values

__all__ = ["as_block", "as_json", "as_report", "summary"]

_INDENT = " " * 9


def summary(findings: Sequence[Finding]) -> str:
    """How many findings there are of each severity, such as ``1 error, 2 notes``."""
    counts = Counter(one.severity for one in findings)
    parts = [
        f"{count} {severity.value}{'s' if count > 1 and severity is not Severity.skipped else ''}"
        for severity in Severity
        if (count := counts[severity])
    ]
    return ", ".join(parts) or "nothing found"


def as_report(findings: Sequence[Finding], width: int = 100) -> str:
    """Every finding with its reason and its fix."""
    blocks = [_in_full(one, width) for one in findings]
    return "\n".join([*blocks, f"{'' if not blocks else chr(10)}{summary(findings).capitalize()}."])


def as_block(findings: Sequence[Finding], title: str, width: int = 110) -> str:
    """Errors, warnings and notes in few lines, for the start of a run; empty where there are none."""
    shown = [one for one in findings if one.severity is not Severity.skipped]
    if not shown:
        return ""
    lines = [redact(f"{title}: {summary(shown)}")]
    for one in shown:
        lines += _wrapped(f"{one.severity.value:8} {one.id}: {one.found} {one.fix}".rstrip(), width, "  ")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding], **facts: Any) -> dict[str, Any]:
    """Findings and other facts in primitives, strings without secrets."""
    counts = Counter(one.severity.value for one in findings)
    report = {
        **facts,
        "counts": {severity.value: counts[severity.value] for severity in Severity},
        "findings": [one.to_json() for one in findings],
    }
    return redact_values(report)


def _in_full(one: Finding, width: int) -> str:
    lines = [f"{one.severity.value:8} {one.id}", *_wrapped(one.found, width, _INDENT)]
    lines += _wrapped(f"why: {one.why}", width, _INDENT) if one.why else []
    lines += _wrapped(f"fix: {one.fix}", width, _INDENT) if one.fix else []
    return "\n".join(lines)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    # Secrets are taken out first: behind a line break they might not be known for one.
    return textwrap.wrap(
        redact(text),
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
