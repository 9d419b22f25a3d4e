"""Paired timings: the median ratio, its 95 % interval, and what that decides."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

__all__ = ["Comparison", "write_report"]

_PACKAGES = ("patch-algorithm", "torch", "mosaicml", "llm-foundry", "transformers")
_HEAD = (
    "| ratio | pairs | numerator ms | denominator ms | median ratio | 95 % interval | limit | verdict |",
    "|---|--:|--:|--:|--:|--:|--:|---|",
)


@dataclass
class Comparison:
    """Two things timed in turn.

    Attributes:
        name: What was divided by what.
        limit: The ratio that must not be exceeded; ``None`` where the question is whether the two differ.
        left: Seconds of the numerator, one entry per pair.
        right: Seconds of the denominator, pair by pair.
    """

    name: str
    limit: float | None
    left: list[float]
    right: list[float]

    def ratios(self) -> np.ndarray:
        """One ratio per pair."""
        return np.asarray(self.left) / np.asarray(self.right)

    def interval(self, draws: int = 10_000) -> tuple[float, float]:
        """95 % bootstrap interval of the median ratio."""
        ratios = self.ratios()
        picks = np.random.default_rng(0).integers(0, len(ratios), size=(draws, len(ratios)))
        low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
        return float(low), float(high)

    def verdict(self) -> str:
        """Whether the limit holds; undecided where the interval straddles it."""
        low, high = self.interval()
        if self.limit is None:
            return "no difference found" if low <= 1 <= high else "they differ"
        if high <= self.limit:
            return "holds"
        return "does not hold" if low > self.limit else "not decided on this machine"

    def row(self) -> str:
        """A line of a Markdown table."""
        low, high = self.interval()
        left, right = np.median(self.left), np.median(self.right)
        return (
            f"| {self.name} | {len(self.left)} | {left * 1e3:.1f} | {right * 1e3:.1f} | "
            f"{np.median(self.ratios()):.3f} | {low:.3f} to {high:.3f} | "
            f"{self.limit or '-'} | {self.verdict()} |"
        )


def write_report(name: str, comparisons: list[Comparison], notes: list[str], folder: Path | None) -> None:
    """Prints a dated Markdown report, and writes it to ``folder`` if one is given."""
    today = datetime.date.today().isoformat()
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    lines = [
        f"# {name}, {today}",
        "",
        f"Command: `python {' '.join(sys.argv)}`",
        "",
        f"Machine: {_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}; "
        f"Python {platform.python_version()}, {versions}.",
        "",
        *(_HEAD if comparisons else ()),
        *(comparison.row() for comparison in comparisons),
        *([""] if comparisons else ()),
        *(f"- {note}" for note in notes),
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{today}-{name}.md"
        number = 2
        while path.exists():
            path = folder / f"{today}-{name}-{number}.md"
            number += 1
        path.write_text(text)
        sys.stdout.write(f"Written to {path}\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "unknown")
