"""From tokens to rows in MDS shards, by streaming's own writer."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["TOKENIZER", "UNLABELLED", "RowFormat", "component_folder", "stream_path", "write_shards"]

TOKENIZER = "tokenizer"
"""The folder of the tokenizer within a dataset, which no component may take."""

UNLABELLED = "unlabelled"
"""The component of documents that name none."""

_PILE = frozenset(
    "Pile-CC|PubMed Central|Books3|OpenWebText2|ArXiv|Github|FreeLaw|StackExchange|USPTO Backgrounds|"
    "PubMed Abstracts|Gutenberg (PG-19)|OpenSubtitles|Wikipedia (en)|DM Mathematics|Ubuntu IRC|BookCorpus2|"
    "EuroParl|HackerNews|YoutubeSubtitles|PhilPapers|NIH ExPorter|Enron Emails".split("|")
)
_LONGEST_SLUG = 40
# More than the bytes of a shard beside its rows and their offsets.
_SHARD_HEADER = 400


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a stream are written.

    Attributes:
        row_tokens: Tokens in a row.
        dtype: ``uint16`` or ``uint32``.
        compression: ``None`` or ``zstd``.
        shard_bytes: Most bytes of a shard before compression.

    Raises:
        ValueError: If a row does not fit into a shard.
    """

    row_tokens: int
    dtype: str
    compression: str | None
    shard_bytes: int

    def __post_init__(self) -> None:
        if self.row_bytes + _SHARD_HEADER > self.shard_bytes:
            raise ValueError(
                f"a row of {self.row_tokens:,} tokens ({self.dtype}) does not fit into a shard of "
                f"{self.shard_bytes:,} bytes."
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.row_tokens * np.dtype(self.dtype).itemsize


def write_shards(
    pieces: Iterable[np.ndarray], tokens: int, stream: Path, name: str, form: RowFormat, smallest: int = 0
) -> list[dict[str, Any]]:
    """Writes the rows of a run of tokens as shards, without those that would make a small shard.

    Args:
        pieces: The tokens in order, in arrays of any length.
        tokens: How many there are.
        stream: The stream's folder.
        name: The folder within it for the shards; made if there is a row to write, and not there yet.
        form: How they are written.
        smallest: The last shard is left out, with its rows, if it would hold fewer bytes of rows. With 0,
            only tokens that do not fill a row are.

    Returns:
        The shards as the stream's ``index.json`` lists them. Their rows are the first of the run.
    """
    rows = tokens // form.row_tokens
    if not rows or rows * form.row_bytes < smallest:
        return []
    # Imported here: it takes seconds, and pulls in torch.
    from streaming import MDSWriter

    writer = MDSWriter(
        columns={"tokens": f"ndarray:{form.dtype}:{form.row_tokens}"},
        out=str((stream / name).absolute()),
        compression=form.compression,
        hashes=["sha1"],
        size_limit=form.shard_bytes,
    )
    room = form.shard_bytes - writer.extra_bytes_per_shard
    last = rows % (room // (form.row_bytes + writer.extra_bytes_per_sample))
    if last * form.row_bytes < smallest:
        rows -= last
    try:
        for row in islice(_rows(pieces, form.row_tokens), rows):
            writer.write({"tokens": row})
        # In place of `finish`, which also writes an index that nothing reads, and waits whole seconds.
        writer.flush_shard()
    finally:
        writer.executor.shutdown()
    for path in (stream / name).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for shard in writer.shards:
        for file in filter(None, (shard["raw_data"], shard["zip_data"])):
            file["basename"] = f"{name}/{file['basename']}"
    return writer.shards


def _rows(pieces: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    held: np.ndarray | None = None
    for piece in pieces:
        held = np.concatenate([held, piece]) if held is not None and len(held) else piece
        whole = len(held) // length * length
        yield from held[:whole].reshape(-1, length)
        held = held[whole:]


def component_folder(component: str) -> str:
    """The folder of a component: ``pile-cc`` for the Pile's ``Pile-CC``, ``c-c2a1ec46`` for ``C++``.

    It depends on the name alone, so that every worker knows it at once, and differs for any two names:
    all but the Pile's own and those that are fit to be a folder end in a hash.
    """
    slug = _slug(component)
    taken = {TOKENIZER, *(_slug(name) for name in _PILE)}
    if component in _PILE or component == UNLABELLED:
        return slug
    if component == slug and slug not in taken and len(slug) <= _LONGEST_SLUG:
        return slug
    digest = hashlib.sha256(component.encode()).hexdigest()[:8]
    return f"{slug[:_LONGEST_SLUG] or 'component'}-{digest}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def stream_path(component: str | None, split: str) -> str:
    """The folder of a stream within the dataset."""
    return split if component is None else f"{component_folder(component)}/{split}"
