"""Paired timings: the median ratio, its 95 % interval, and what that decides."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["HEAD", "Comparison", "command", "free_path", "hardware", "versions", "write_report"]

_PACKAGES = ("patch-algorithm", "torch", "mosaicml", "llm-foundry", "transformers")
HEAD = (
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
            return "met"
        return "missed" if low > self.limit else "not decided on this machine"

    def to_dict(self) -> dict[str, Any]:
        """What is written as JSON: the summary, and the seconds of every pair."""
        return {
            "name": self.name,
            "limit": self.limit,
            "pairs": len(self.left),
            "left_ms": float(np.median(self.left)) * 1e3,
            "right_ms": float(np.median(self.right)) * 1e3,
            "median": float(np.median(self.ratios())),
            "interval": list(self.interval()),
            "verdict": self.verdict(),
            "left": [round(seconds, 6) for seconds in self.left],
            "right": [round(seconds, 6) for seconds in self.right],
        }

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
    lines = [
        f"# {name}, {today}",
        "",
        f"Command: `{command()}`",
        "",
        f"Machine: {hardware()}; {versions()}.",
        "",
        *(HEAD if comparisons else ()),
        *(comparison.row() for comparison in comparisons),
        *([""] if comparisons else ()),
        *(f"- {note}" for note in notes),
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if folder is not None:
        path = free_path(folder, f"{today}-{name}", ".md")
        path.write_text(text)
        sys.stdout.write(f"Written to {path}\n")


def command() -> str:
    """The command line of this process."""
    module = Path(sys.argv[0]).stem
    name = "benchmarks" if module == "__main__" else f"benchmarks.{module}"
    return " ".join(["python -m", name, *sys.argv[1:]])


def versions() -> str:
    """Python's and the packages' versions."""
    packages = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return f"Python {platform.python_version()}, {packages}"


def hardware() -> str:
    """Processor, cores, load and threads."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    )


def free_path(folder: Path, stem: str, suffix: str) -> Path:
    """A path in a folder that is not taken; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}{suffix}", number + 1
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "unknown")
