"""What is installed on this machine, for the checks of the environment."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from patch_algorithm.checks.environment import TESTED, EnvironmentFacts

__all__ = ["can_write", "gpus", "is_installed", "read_environment", "versions"]

_OTHERS = ("flash-attn", "ray", "tokenizers", "datasets", "triton")
_GROUP = "llmfoundry_"


def versions() -> dict[str, str | None]:
    """Versions of the packages that a run stands on; ``None`` where one is not installed."""
    return {name: _version(name) for name in (*TESTED, *_OTHERS)}


def is_installed(package: str) -> bool:
    """Whether a package is installed, by its distribution's name."""
    return _version(package) is not None


def gpus() -> tuple[str, ...]:
    """Names of the GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def read_environment() -> EnvironmentFacts:
    """Reads what is installed; imports llm-foundry, to see what it finds."""
    found = versions()
    ranges = _ranges()
    return EnvironmentFacts(
        python=".".join(map(str, sys.version_info[:3])),
        versions=found,
        ranges=ranges,
        out_of_range=tuple(name for name in TESTED if not _within(found[name], ranges.get(name))),
        not_registered=_not_registered() if found["llm-foundry"] else (),
        gpus=gpus(),
        unwritable=_unwritable(),
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _ranges() -> dict[str, str]:
    """What this package declares, by its own metadata."""
    from packaging.requirements import Requirement

    try:
        declared = metadata.requires("patch-algorithm") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in declared]
    return {one.name: str(one.specifier) for one in requirements if one.marker is None and one.name in TESTED}


def _within(version: str | None, declared: str | None) -> bool:
    from packaging.specifiers import SpecifierSet

    return version is None or declared is None or SpecifierSet(declared).contains(version, prereleases=True)


def _not_registered() -> tuple[str, ...]:
    from patch_algorithm.planning.known_names import registered

    try:
        own = metadata.distribution("patch-algorithm").entry_points
    except metadata.PackageNotFoundError:
        return ("all of this package's names",)
    entries = [entry for entry in own if entry.group.startswith(_GROUP)]
    return tuple(
        f"{entry.group}: {entry.name}"
        for entry in entries
        if entry.name not in registered(entry.group.removeprefix(_GROUP))
    )


def _unwritable() -> dict[str, str]:
    folders = {
        "temporary files (TMPDIR)": tempfile.gettempdir(),
        "Hugging Face's cache (HF_HOME)": os.environ.get("HF_HOME", str(Path.home() / ".cache/huggingface")),
        "the current folder": str(Path.cwd()),
    }
    if sys.platform == "linux":
        folders["shared memory, for streaming"] = "/dev/shm"
    return {purpose: folder for purpose, folder in folders.items() if not can_write(Path(folder))}


def can_write(folder: Path) -> bool:
    """Whether a folder can be written, or be made where it does not exist yet."""
    # Path.exists raises where a folder above may not be searched.
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
