"""Which sources are meant by what a user names."""

from __future__ import annotations

import difflib
import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from patch_algorithm.data.readers.folders import KINDS, is_source, is_table, listed, sources_below
from patch_algorithm.data.readers.hub import HUB_PREFIX, HubSource
from patch_algorithm.data.readers.lines import LineSource
from patch_algorithm.data.readers.source import FileSource, Source
from patch_algorithm.data.readers.splits import SPLITS, Splits, named_split
from patch_algorithm.data.readers.tables import TableSource

__all__ = ["BUILTIN", "find_sources"]

log = logging.getLogger(__name__)

BUILTIN = "builtin"
"""The name of the text that every installation has."""


class _Found(NamedTuple):
    """A source, the split that it was given, and the one that its name says, if any."""

    source: Source
    given: str | None = None
    named: str | None = None


def find_sources(
    names: Sequence[str | Source],
    *,
    hub_config: str | None = None,
    hub_split: str = "train",
    splits: Splits | None = None,
    on_error: Literal["stop", "skip"] = "stop",
) -> list[Source]:
    """Finds the sources that each name means, in the order given; those of folders and globs by name.

    Args:
        names: Files, folders, globs, ``hf://NAME``, a dataset ``OWNER/NAME`` of the hub, or
            sources as they are. With ``val=``, ``test=`` or ``train=`` before it, all documents of it belong
            to that split.
        hub_config: The configuration of Hugging Face datasets.
        hub_split: The split of Hugging Face datasets; those that are named with ``val=`` or ``test=`` are
            read from ``validation`` and ``test``.
        splits: ``by-name`` puts files and folders that are named for validation or test into splits of their
            own, ``all-train`` treats them like any other. ``None`` is ``by-name`` where others are named for
            training, and otherwise refuses such names.
        on_error: ``stop`` refuses folders with files that cannot be read; ``skip`` logs which they are.

    Raises:
        ValueError: If one is missing, of an unknown kind, an empty folder, named twice, a broken link, or it
            is not clear which split it belongs to.
    """
    found: list[_Found] = []
    for name in names:
        if isinstance(name, Source):
            found.append(_Found(name))
            continue
        given, path = _given_split(name)
        if path.startswith(HUB_PREFIX):
            found.append(_hub(path.removeprefix(HUB_PREFIX), hub_config, hub_split, given))
        elif files := list(_files(path, on_error)):
            found += [_Found(_file_source(file), given, named_split(parts)) for file, parts in files]
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not is_source(path) and not _is_local(path):
            found.append(_hub(path, hub_config, hub_split, given, guessed=True))
        else:
            raise ValueError(_missing(path))
    _check_once([one.source for one in found])
    return _with_splits(found, splits)


def _given_split(name: str) -> tuple[str | None, str]:
    split, equals, path = name.partition("=")
    return (split, path) if equals and split in SPLITS and not os.path.exists(name) else (None, name)


def _hub(path: str, config: str | None, split: str, given: str | None, guessed: bool = False) -> _Found:
    source = HubSource(path, config, SPLITS[given] if given in ("val", "test") else split)
    try:
        source.open()
    except ValueError as error:
        if guessed:
            raise ValueError(f"--source {path}: there is no such file or folder here, and {error}") from error
        raise
    return _Found(source, given)


def _files(name: str, on_error: str) -> Iterator[tuple[str, Sequence[str]]]:
    """The files that a name means, each with the names that lead to it from what was named on."""
    path = Path(name)
    if path.is_dir():
        for file in _folder(path, on_error):
            yield file.as_posix(), (path.absolute().name, *file.relative_to(path).parts)
    elif path.exists():
        yield name, (path.absolute().parent.name, path.name)
    elif path.is_symlink():
        raise ValueError(f"--source {name} is a link to {os.readlink(path)}, which does not exist.")
    else:
        matches = sorted(glob.glob(name, recursive=True))
        for match in matches:
            # A folder that others of the matches are in, as with `**`, is there by way of those.
            if not os.path.isdir(match) or not any(m.startswith(os.path.join(match, "")) for m in matches):
                yield from _files(match, on_error)


def _folder(folder: Path, on_error: str) -> list[Path]:
    taken, unknown, beside = sources_below(folder)
    if unknown and on_error == "stop":
        raise ValueError(
            f"--source {folder}: the folder holds files that would be skipped ({len(unknown):,}): "
            f"{listed(unknown, folder)}. A source ends in {KINDS}. Move them away, name the files to read "
            "with a pattern, or skip them with --on-error skip."
        )
    if not taken:
        raise ValueError(f"--source {folder}: the folder holds no file that ends in {KINDS}.")
    log.info("%s: %s files", folder, f"{len(taken):,}")
    if unknown or beside:
        log.info("%s: skipped: %s", folder, listed([*unknown, *beside], folder))
    return taken


def _file_source(file: str) -> Source:
    if not is_source(file):
        raise ValueError(f"--source {file}: expected a file that ends in {KINDS}.")
    return TableSource(Path(file), file) if is_table(file) else LineSource(Path(file), file)


def _is_local(name: str) -> bool:
    return os.path.isdir(os.path.dirname(name))


def _missing(name: str) -> str:
    folder, wanted = os.path.split(name)
    there = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    close = difflib.get_close_matches(wanted, there, 3)
    hint = f" Did you mean {' or '.join(os.path.join(folder, one) for one in close)}?" if close else ""
    return (
        f"--source {name}: there is no such file or folder, and nothing matches it as a pattern.{hint} "
        f"(A Hugging Face dataset is named OWNER/NAME or {HUB_PREFIX}NAME.)"
    )


def _check_once(sources: Sequence[Source]) -> None:
    seen: set[str | Path] = set()
    for source in sources:
        identity = source.path.resolve() if isinstance(source, FileSource) else source.name
        if identity in seen:
            raise ValueError(f"--source: {source.name} is named twice; its documents would be read twice.")
        seen.add(identity)


def _with_splits(found: Sequence[_Found], splits: Splits | None) -> list[Source]:
    held = [one for one in found if one.given is None and one.named in ("val", "test")]
    if held and splits is None:
        if not any("train" in (one.given, one.named) for one in found):
            raise ValueError(
                f"--source: {len(held):,} of {len(found):,} files are named for validation or test, such as "
                f"{held[0].source.name}. Put them into splits of their own with --splits by-name, name them "
                "as such with --source val=PATH or test=PATH, or train on them with --splits all-train."
            )
        splits = "by-name"
    made: list[Source] = []
    for source, given, named in found:
        split = given or (named if splits == "by-name" else None)
        made.append(replace(source, split=split) if split in ("val", "test") else source)  # pyright: ignore
    for split in ("val", "test"):
        own = [source.name for source in made if source.split == split]
        if own:
            log.info("into the split %s: %s files, such as %s", split, f"{len(own):,}", own[0])
    return made
