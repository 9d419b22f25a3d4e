"""The length of the rows of a shard, and long rows read as several short ones.

Rows are cut beneath streaming, in the reader of a shard, so that all that counts rows (batches, workers,
shuffling, ``epoch_size``, the place in an epoch that a checkpoint records) counts rows after cutting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from streaming.base.format import Reader
from streaming.base.format.mds.reader import MDSReader

__all__ = ["CutReader", "cut_shards", "row_ids", "row_tokens"]


def row_ids(sample: dict[str, Any], dtype: np.dtype[Any]) -> np.ndarray:
    """The ids ``[T]`` of a row; ``dtype`` is that of a column of bytes."""
    tokens = sample["tokens"]
    return tokens if isinstance(tokens, np.ndarray) else np.frombuffer(tokens, dtype)


class CutReader(MDSReader):
    """A shard whose rows are read as ``pieces`` rows each.

    Args:
        shard: The shard.
        row_tokens: Tokens in a row of it, a multiple of ``pieces``.
        pieces: Rows that each of those is cut into.
        dtype: The type of the ids in a column of bytes.
        place: Where it comes from, for messages.
    """

    def __init__(
        self, shard: MDSReader, row_tokens: int, pieces: int, dtype: np.dtype[Any], place: str
    ) -> None:
        super().__init__(
            shard.dirname,
            shard.split,
            shard.column_encodings,
            shard.column_names,
            shard.column_sizes,
            shard.compression,
            shard.hashes,
            shard.raw_data,
            shard.samples * pieces,
            shard.size_limit,
            shard.zip_data,
        )
        self.row_tokens = row_tokens
        self._pieces = pieces
        self._dtype = dtype
        self._place = place

    def get_item(self, idx: int) -> dict[str, Any]:
        """Reads a piece of a row.

        Raises:
            ValueError: If the row has another length than the others.
        """
        row, piece = divmod(idx, self._pieces)
        sample = super().get_item(row)
        ids = row_ids(sample, self._dtype)
        if len(ids) != self.row_tokens:
            raise ValueError(
                f"a row of {self._place} has {len(ids)} tokens, but the others have {self.row_tokens}. Rows "
                "of several lengths cannot be cut: convert the data again, with rows of one length."
            )
        length = self.row_tokens // self._pieces
        return {**sample, "tokens": ids[piece * length : (piece + 1) * length]}


def row_tokens(shard: Reader, dtype: np.dtype[Any], place: str, look: bool) -> int | None:
    """Tokens in a row of a shard, before cutting.

    Args:
        shard: The shard.
        dtype: The type of the ids in a column of bytes.
        place: Where it comes from, for messages.
        look: Whether to look at the first row where the index does not say.

    Returns:
        The length; ``None`` where it is not known, or the shard is not here yet.

    Raises:
        ValueError: If the shard holds no tokens.
    """
    if isinstance(shard, CutReader):
        return shard.row_tokens
    if not isinstance(shard, MDSReader) or "tokens" not in shard.column_names:
        raise ValueError(
            f"{place} is not an MDS dataset with a column 'tokens'. Tokenise text once, before training, "
            "with `patch-level data convert`."
        )
    column = shard.column_names.index("tokens")
    size = shard.column_sizes[column]
    if size is not None:
        encoding = shard.column_encodings[column].split(":")
        return size // (np.dtype(encoding[1]) if encoding[0] == "ndarray" else dtype).itemsize
    try:
        return len(row_ids(shard[0], dtype)) if look else None
    except FileNotFoundError:
        return None


def cut_shards(shards: Sequence[Reader], length: int, dtype: np.dtype[Any], place: str) -> list[Reader]:
    """The shards of a stream, with rows cut to ``length`` tokens where that loses none; else as they are."""
    lengths = [row_tokens(shard, dtype, place, look=not index) for index, shard in enumerate(shards)]
    usual = next((row for row in lengths if row is not None), length)
    cut: list[Reader] = []
    for shard, row in zip(shards, lengths, strict=True):
        row = row or usual
        if isinstance(shard, MDSReader) and row > length and row % length == 0:
            shard = CutReader(shard, row, row // length, dtype, place)
        cut.append(shard)
    return cut
