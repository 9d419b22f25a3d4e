"""Which sources are meant by what a user names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from patch_algorithm.data.readers.hub import HUB_PREFIX, HubSource
from patch_algorithm.data.readers.lines import LineSource
from patch_algorithm.data.readers.source import FileSource, Source
from patch_algorithm.data.readers.tables import TableSource

__all__ = ["BUILTIN", "SUFFIXES", "find_sources"]

BUILTIN = "builtin"
SUFFIXES: tuple[str, ...] = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")


def find_sources(
    names: Sequence[str | Source],
    *,
    hub_config: str | None = None,
    hub_split: str = "train",
    builtin: Callable[[], Source] | None = None,
) -> list[Source]:
    """Finds out what is meant by each name, in the order given; folders and globs by name.

    Args:
        names: Files, folders, globs, ``builtin``, ``hf://NAME``, a dataset ``OWNER/NAME`` of the hub, or
            sources as they are.
        hub_config: The configuration of Hugging Face datasets.
        hub_split: The split of Hugging Face datasets.
        builtin: Makes the source that ``builtin`` stands for.

    Raises:
        ValueError: If one is missing, of no known kind, empty of files, or named twice.
    """
    found: list[Source] = []
    for name in names:
        if isinstance(name, Source):
            found.append(name)
        elif name == BUILTIN and builtin is not None:
            found.append(builtin())
        elif name.startswith(HUB_PREFIX):
            found.append(HubSource(name.removeprefix(HUB_PREFIX), hub_config, hub_split))
        elif files := _files(name):
            found.extend(map(_file_source, files))
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith(SUFFIXES):
            found.append(HubSource(name, hub_config, hub_split))
        else:
            raise ValueError(
                f"--source {name}: there is no such file or folder, and nothing matches it as a pattern. "
                f"(A Hugging Face dataset is named OWNER/NAME or {HUB_PREFIX}NAME.)"
            )
    seen: set[str | Path] = set()
    for source in found:
        if isinstance(source, HubSource):
            source.open()
        identity = source.path.resolve() if isinstance(source, FileSource) else source.name
        if identity in seen:
            raise ValueError(f"--source: {source.name} is named twice; its documents would count double.")
        seen.add(identity)
    return found


def _files(name: str) -> list[str]:
    path = Path(name)
    if path.is_dir():
        inside = sorted(
            file.as_posix()
            for file in path.rglob("*")
            if file.name.endswith(SUFFIXES) and file.is_file() and not _is_hidden(file.relative_to(path))
        )
        if not inside:
            raise ValueError(f"--source {name}: the folder holds no file ending in {', '.join(SUFFIXES)}.")
        return inside
    if path.exists():
        return [name]
    return sorted(file for file in glob.glob(name, recursive=True) if os.path.isfile(file))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_source(file: str) -> Source:
    if file.endswith(".parquet"):
        return TableSource(Path(file), file)
    if file.endswith(SUFFIXES):
        return LineSource(Path(file), file)
    raise ValueError(f"--source {file}: expected a file ending in {', '.join(SUFFIXES)}.")
