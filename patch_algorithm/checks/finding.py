"""What a check has found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "Severity", "by_severity"]


class Severity(str, Enum):
    """How bad a finding is."""

    error = "error"
    """The run will not start, will break off, or will not train what was asked for."""
    warning = "warning"
    """The run will work, and most likely be worse or dearer than it could be."""
    note = "note"
    """Worth knowing; nothing need be changed."""
    skipped = "skipped"
    """The check could not be made here, which is no failure."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        id: The check's name; ``docs/checks.md`` lists all.
        severity: How bad it is.
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


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with the worst first; those of one severity stay in their order."""
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))
