"""Facts of a run in, findings out. Nothing is built or read here."""

from __future__ import annotations

from patch_algorithm.checks.catalogue import CATALOGUE, Check, Severity
from patch_algorithm.checks.finding import Finding, by_severity, finding, skipped

__all__ = ["CATALOGUE", "Check", "Finding", "Severity", "by_severity", "finding", "skipped"]
