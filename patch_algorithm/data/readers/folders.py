"""Which files of a folder are sources, and which are passed over."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["KINDS", "is_source", "is_table", "listed", "sources_below"]

KINDS = ".jsonl, .ndjson or .json, also with .gz, .zst, .xz or .bz2, or in .parquet"
"""What the name of a source ends in, for messages."""

_SOURCE = re.compile(r"\.(?:(?:jsonl|ndjson|json)(?:\.(?:gz|zst|xz|bz2))?|parquet)$", re.IGNORECASE)
# What comes with data and holds none.
_BESIDE_DATA = re.compile(
    r"(?:readme|licen[cs]e|notice|citation|changelog|dataset_infos?\.json|_success|(?:md5|sha\d+)sums)"
    r"|.*\.(?:md|rst|cff|md5|sha1|sha256|sha512)$",
    re.IGNORECASE,
)
_MOST_NAMED = 10


def is_source(name: str) -> bool:
    """Whether a file is one that can be read, by the end of its name."""
    return _SOURCE.search(name) is not None


def is_table(name: str) -> bool:
    """Whether a file is a Parquet file, by the end of its name."""
    return name.lower().endswith(".parquet")


def sources_below(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Looks through a folder and those in it, also through links to folders; hidden ones aside.

    Returns:
        The files that can be read, by name; those that cannot; and those that hold no data beside them, such
        as ``README.md`` and hidden files.

    Raises:
        ValueError: If a link leads nowhere.
        OSError: If a folder cannot be read.
    """
    taken: list[Path] = []
    unknown: list[Path] = []
    beside: list[Path] = []
    for path in _files(folder):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"--source {folder}: {path} is a link to {os.readlink(path)}, which does not exist."
            )
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            beside.append(path)
        elif _BESIDE_DATA.match(path.name):
            beside.append(path)
        elif is_source(path.name) and path.is_file():
            taken.append(path)
        else:
            unknown.append(path)
    return sorted(taken, key=Path.as_posix), sorted(unknown), sorted(beside)


def _files(folder: Path) -> list[Path]:
    def unreadable(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(here, name) for name in names]
    return found


def listed(paths: Sequence[Path], folder: Path) -> str:
    """Names of files within a folder, the first ten of them."""
    names = ", ".join(path.relative_to(folder).as_posix() for path in paths[:_MOST_NAMED])
    further = len(paths) - _MOST_NAMED
    return f"{names} and {further:,} more" if further > 0 else names
