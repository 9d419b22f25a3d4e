"""Facts of a run in, findings out. Nothing is built or read here."""

from __future__ import annotations

from patch_algorithm.checks.finding import Finding, Severity, by_severity

__all__ = ["Finding", "Severity", "by_severity"]
