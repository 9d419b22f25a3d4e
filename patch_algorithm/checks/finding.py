"""What a check has found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from patch_algorithm.checks.catalogue import CATALOGUE, Severity

__all__ = ["Finding", "by_severity", "finding", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        id: The check's name; one of :data:`.CATALOGUE`.
        severity: How severe it is.
        found: What was found, with the full key of the configuration.
        why: Why it matters, with the figure and its source.
        fix: What to do about it.
    """

    id: str
    severity: Severity
    found: str
    why: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """The finding in primitives."""
        return {
            "id": self.id,
            "severity": self.severity.value,
            "found": self.found,
            "why": self.why,
            "fix": self.fix,
        }


def finding(check: str, found: str, why: str = "", fix: str = "") -> Finding:
    """A finding of a check of the catalogue, which says how severe it is.

    Raises:
        KeyError: If the catalogue does not know the check.
    """
    return Finding(check, CATALOGUE[check].severity, found, why, fix)


def skipped(check: str, reason: str) -> Finding:
    """Says that a check of the catalogue could not be made here.

    Raises:
        KeyError: If the catalogue does not know the check.
    """
    return Finding(CATALOGUE[check].id, Severity.skipped, reason)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with the worst first; those of one severity stay in their order."""
    order = list(Severity)
    return sorted(findings, key=lambda one: order.index(one.severity))
