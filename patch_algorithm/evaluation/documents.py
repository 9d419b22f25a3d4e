"""Documents of an evaluation set: text files, lines of JSON, Parquet, or a folder of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patch_algorithm.data.readers import Position, Reading, Source, SourceDamage, find_sources
from patch_algorithm.data.readers.folders import listed, sources_below

__all__ = ["Documents", "read_documents"]

_FIELD = "text"
_LONGEST = 1_000_000_000  # bytes of one line


@dataclass(frozen=True)
class Documents:
    """Texts, in the order of their files.

    Attributes:
        path: Where they were read from.
        texts: One string a document; none is empty.
    """

    path: str
    texts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A hash of all texts, by which results on the same data are known."""
        whole = hashlib.sha256()
        for text in self.texts:
            whole.update(f"{len(text)}:{text}".encode())
        return whole.hexdigest()


def read_documents(path: str) -> Documents:
    """Reads a file or a folder.

    Args:
        path: ``*.txt`` (one document), ``*.jsonl``, ``*.json`` with an object a line, also compressed, or
            ``*.parquet``, with a field ``text``; or a folder of such files.

    Raises:
        ValueError: If there is nothing to read, a file is not what its name says, or a folder holds text
            files and others: a licence beside the data is no document of it.
    """
    place = Path(path)
    if not place.exists():
        raise ValueError(f"There is no evaluation data at {path}. Give a file or a folder with --data.")
    plain = sorted(place.glob("*.txt")) if place.is_dir() else [place] if place.suffix == ".txt" else []
    if plain:
        _refuse_mixture(place, plain)
        texts = [_plain(file) for file in plain]
    else:
        try:
            sources = find_sources([path], splits="all-train")
        except ValueError as error:
            raise ValueError(str(error).replace("--source", "--data")) from error
        texts = [text for source in sources for text in _texts(source)]
    kept = tuple(text for text in texts if text)
    if not kept:
        raise ValueError(f"{path} holds no text.")
    return Documents(path, kept)


def _refuse_mixture(folder: Path, plain: Sequence[Path]) -> None:
    others = sources_below(folder)[0] if folder.is_dir() else []
    if others:
        raise ValueError(
            f"--data {folder} holds text files ({listed(plain, folder)}) and other data "
            f"({listed(others, folder)}). Expected files of one kind: name the file to evaluate, or move the "
            "others away."
        )


def _plain(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file in UTF-8 ({error}).") from error


def _texts(source: Source) -> Iterator[str]:
    try:
        for block in source.blocks(Position(), Reading(text_field=_FIELD, longest_line=_LONGEST)):
            lines = block.data
            if isinstance(lines, bytes):
                yield from _of_lines(lines.split(b"\n"), source.name, block.start.number)
                continue
            for number, row in enumerate(lines, start=block.start.number + 1):
                content = row.text
                text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
                if not isinstance(text, str):
                    raise ValueError(f"{source.name}, row {number}: expected text in the column {_FIELD!r}.")
                yield text
    except SourceDamage as error:
        raise ValueError(f"{source.name} cannot be read: {error.reason}, {error.detail}") from error


def _of_lines(lines: Sequence[bytes], name: str, before: int) -> Iterator[str]:
    for number, line in enumerate(lines, start=before + 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[_FIELD]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{name}, line {number}: expected a JSON object with a field {_FIELD!r} "
                f"({type(error).__name__}: {error})."
            ) from error
        if not isinstance(text, str):
            raise ValueError(f"{name}, line {number}: the field {_FIELD!r} is not a string.")
        yield text
