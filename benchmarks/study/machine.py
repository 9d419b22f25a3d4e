"""What made a result: processor, versions, and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

__all__ = ["commit", "describe"]

_PACKAGES = ("torch", "mosaicml", "llm-foundry", "transformers", "tokenizers")


def describe() -> dict[str, str]:
    """Processor, Python, packages and commit, for a row of results."""
    packages = " ".join(f"{package}-{version(package)}" for package in _PACKAGES)
    return {
        "machine": _processor(),
        "versions": f"python-{platform.python_version()} {packages}",
        "commit": commit(),
    }


def commit() -> str:
    """The commit of the code, with ``+`` if files differ from it; from ``COMMIT`` in an exported tree."""
    root = Path(__file__).resolve().parents[2]
    if (root / "COMMIT").is_file():
        return (root / "COMMIT").read_text().strip()
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [
                "git",
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                "patch_algorithm",
                "benchmarks/study/*.py",
            ],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "unknown")
