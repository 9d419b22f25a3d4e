"""Rows of tokens as the shards hold them: checked, whole, and for evaluation cut into shorter ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from llmfoundry.data.text_data import StreamingTextDataset
from streaming.base.format import Reader
from streaming.base.format.mds.reader import MDSReader
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from patch_algorithm.data.loader.streams import VerifiedStream

__all__ = ["PileDataset"]


class PileDataset(StreamingTextDataset):
    """llm-foundry's text data set, without its silences.

    Rows have the length that is asked for, or are cut into several that have it; ids are those of the
    tokenizer; and what is wrong with a shard is raised where its rows are wanted.

    Args:
        tokenizer: The run's tokenizer.
        streams: Where the rows come from.
        max_seq_len: Tokens in a row.
        cut: Whether longer rows are cut into rows of ``max_seq_len``; otherwise they are refused.
        batch_size: Rows in a batch of one device.
        key: The configuration key of the data set, for messages.
        **options: As for :class:`llmfoundry.data.text_data.StreamingTextDataset`.

    Attributes:
        row_tokens: Tokens in a row as the shards hold it.
        pieces: Rows that each of those is cut into.

    Raises:
        ValueError: If the rows have another length and cannot be cut without losing tokens, differ in
            length, or are not tokens.
    """

    streams: Sequence[VerifiedStream]

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        streams: Sequence[VerifiedStream],
        max_seq_len: int,
        cut: bool,
        batch_size: int,
        key: str,
        **options: Any,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer, streams=streams, max_seq_len=max_seq_len, batch_size=batch_size, **options
        )
        self.key = key
        self._vocabulary = len(tokenizer)
        self._token_dtype = np.dtype(self.token_encoding_type)
        self._piece_tokens = max_seq_len
        # Unknown where the index does not say and no shard is here yet: every row is checked as it is read.
        self.row_tokens = self._length_of_rows() or max_seq_len
        self.pieces = _pieces(self.row_tokens, max_seq_len, cut, key)
        # What llm-foundry would cut rows to as it reads them.
        self.max_seq_len = self.row_tokens

    def __len__(self) -> int:
        """Rows of an epoch on this device, after cutting."""
        return super().__len__() * self.pieces

    def __iter__(self) -> Iterator[Any]:
        """The rows of this device and worker, each ``[T]`` of int64, after cutting."""
        for row in super().__iter__():
            if self.pieces > 1 and isinstance(row, Tensor):
                yield from row.split(self._piece_tokens)
            else:
                yield row

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """What resumes an epoch after ``num_samples`` rows, counted after cutting, of all devices.

        A row of which some pieces have been used is read again.
        """
        return super().state_dict(num_samples // self.pieces, from_beginning)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Reads a row, and checks its length and ids.

        Raises:
            ShardError: If its shard cannot be had as the index describes it.
            ValueError: If its length is not that of the others, or an id is none of the tokenizer's.
        """
        try:
            sample: dict[str, Any] = super().get_item(sample_id, retry)
        except RuntimeError:
            stream, shard = self._origin(sample_id)
            stream.raise_failure(shard)
            raise
        ids = _ids(sample, self._token_dtype)
        if len(ids) != self.row_tokens:
            stream, _ = self._origin(sample_id)
            raise ValueError(
                f"{stream.key}: a row of {stream.place} has {len(ids)} tokens, and {self.key}.max_seq_len "
                f"asks for {self.row_tokens}. Set it to the length of the rows; rows of several lengths, and "
                "rows to be cut whose length the index does not say, want to be converted anew."
            )
        if ids.max() >= self._vocabulary or (ids.dtype.kind == "i" and ids.min() < 0):
            stream, _ = self._origin(sample_id)
            raise ValueError(
                f"{stream.key}: a row of {stream.place} has ids from {ids.min()} to {ids.max()}, and the "
                f"tokenizer has {self._vocabulary} entries. Use the tokenizer that the data was written "
                f"with, and for a column of bytes the right {self.key}.token_encoding_type."
            )
        return sample

    def _origin(self, sample_id: int) -> tuple[VerifiedStream, Reader]:
        shard_id = self.spanner[sample_id][0]
        return self.streams[self.stream_per_shard[shard_id]], self.shards[shard_id]

    def _length_of_rows(self) -> int | None:
        places: dict[int, str] = {}
        for shard_id, shard in enumerate(self.shards):
            stream = self.streams[int(self.stream_per_shard[shard_id])]
            first = shard_id == self.shard_offset_per_stream[self.stream_per_shard[shard_id]]
            length = _row_tokens(shard, stream, self._token_dtype, look=first)
            if length is not None:
                places.setdefault(length, stream.place)
        if len(places) > 1:
            found = ", ".join(f"{length} in {place}" for length, place in places.items())
            raise ValueError(
                f"{self.key} has rows of several lengths: {found} tokens. Use a loader for each, or convert "
                "them to one length."
            )
        return next(iter(places), None)


def _row_tokens(shard: Reader, stream: VerifiedStream, dtype: np.dtype[Any], look: bool) -> int | None:
    """Tokens in a row, from the index; if that does not say and ``look`` is set, from the first row."""
    if not isinstance(shard, MDSReader) or "tokens" not in shard.column_names:
        raise ValueError(
            f"{stream.key}: {stream.place} is no MDS data set with a column 'tokens'. Text is tokenised "
            "once, before training: `patch-level data convert`."
        )
    column = shard.column_names.index("tokens")
    size = shard.column_sizes[column]
    if size is not None:
        encoding = shard.column_encodings[column].split(":")
        return size // (np.dtype(encoding[1]) if encoding[0] == "ndarray" else dtype).itemsize
    try:
        return len(_ids(shard[0], dtype)) if look else None
    except FileNotFoundError:
        return None


def _ids(sample: dict[str, Any], dtype: np.dtype[Any]) -> np.ndarray:
    tokens = sample["tokens"]
    return tokens if isinstance(tokens, np.ndarray) else np.frombuffer(tokens, dtype)


def _pieces(row: int, asked: int, cut: bool, key: str) -> int:
    """Rows of the length that is asked for in one row of the data set."""
    if row == asked:
        return 1
    if row < asked:
        raise ValueError(
            f"{key}.max_seq_len is {asked}, and the rows have {row} tokens. Set it to {row}, or convert the "
            f"data to longer rows (`patch-level data convert`, --row-tokens, --val-row-tokens)."
        )
    if not cut:
        raise ValueError(
            f"{key}.max_seq_len is {asked}, and the rows have {row} tokens, of which llm-foundry would drop "
            f"the last {row - asked}. Set it to {row}: it is the length of a row, and patch_level cuts rows "
            f"itself, for every k and seq_len whose product divides {row}. For evaluation set "
            f"{key}.long_rows: cut."
        )
    if row % asked:
        divisor = next(n for n in range(asked, 0, -1) if row % n == 0)
        raise ValueError(
            f"{key}.max_seq_len is {asked}, and the rows have {row} tokens, no multiple of it: they cannot "
            f"be cut without losing tokens. Set it to a divisor of {row} such as {divisor}, or convert the "
            f"data with --val-row-tokens {asked}."
        )
    return row // asked
