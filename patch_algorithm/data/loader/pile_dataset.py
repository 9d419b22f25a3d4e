"""Rows of tokens as the shards hold them: checked, whole, and for evaluation cut into shorter ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llmfoundry.data.text_data import StreamingTextDataset
from streaming.base.format import Reader
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from patch_algorithm.data.dataset.row_lengths import is_train, pieces_of_row
from patch_algorithm.data.loader.rows import row_ids, row_tokens
from patch_algorithm.data.loader.streams import VerifiedStream
from patch_algorithm.data.tokens.identity import largest_id

__all__ = ["PileDataset"]


class PileDataset(StreamingTextDataset):
    """llm-foundry's text dataset, with errors where that drops or ignores something silently.

    Rows have the length that is asked for or are cut to it, ids are checked against the tokenizer, and a
    fault in a shard is raised when its rows are read.

    Args:
        tokenizer: The run's tokenizer.
        streams: Where the rows come from.
        max_seq_len: Tokens in a row.
        cut: Whether longer rows are cut into rows of ``max_seq_len``; otherwise they are refused.
        batch_size: Rows in a batch of one device.
        key: The configuration key of the dataset, for messages.
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
        self._token_dtype = np.dtype(options.get("token_encoding_type") or "int64")
        if cut:
            for stream in streams:
                stream.cut_rows(max_seq_len, self._token_dtype)
        super().__init__(
            tokenizer=tokenizer, streams=streams, max_seq_len=max_seq_len, batch_size=batch_size, **options
        )
        self.key = key
        self._piece_tokens = max_seq_len
        self._largest_id = largest_id(tokenizer)
        # Unknown where the index does not say and no shard is here yet: every row is checked as it is read.
        self.row_tokens = self._length_of_rows() or max_seq_len
        self.pieces = pieces_of_row(self.row_tokens, max_seq_len, cut, key)

    def resample_streams(self, epoch: int, stream_id: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The rows of an epoch in order, before shuffling; for evaluation the streams take turns.

        Composer evaluates the first batches alone where ``eval_subset_num_batches`` is set: they should hold
        something of every component.
        """
        units, sample_ids = super().resample_streams(epoch, stream_id)
        if not self.shuffle and stream_id is None and not any(is_train(s.split) for s in self.streams):
            starts = np.asarray(self.sample_offset_per_stream)
            sample_ids = sample_ids[_turns(np.searchsorted(starts, sample_ids, side="right") - 1)]
        return units, sample_ids

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Reads a row, and checks its length and ids.

        Raises:
            ShardError: If its shard is not available as the index describes it.
            ValueError: If its length is not that of the others, or an id is not one of the tokenizer's.
        """
        try:
            sample: dict[str, Any] = super().get_item(sample_id, retry)
        except RuntimeError:
            stream, shard = self._origin(sample_id)
            stream.raise_failure(shard)
            raise
        ids = row_ids(sample, self._token_dtype)
        if len(ids) != self._piece_tokens:
            stream, _ = self._origin(sample_id)
            raise ValueError(
                f"{stream.key}: a row of {stream.place} has {len(ids)} tokens, but {self.key}.max_seq_len "
                f"asks for {self._piece_tokens}. Set it to the length of the rows. If rows differ in length, "
                "or have to be cut and the index does not give their length, convert the data again, with "
                "rows of one length."
            )
        if ids.max() > self._largest_id or (ids.dtype.kind == "i" and ids.min() < 0):
            stream, _ = self._origin(sample_id)
            raise ValueError(
                f"{stream.key}: a row of {stream.place} has ids from {ids.min()} to {ids.max()}, but the "
                f"largest id of the tokenizer is {self._largest_id}. Use the tokenizer that the data was "
                f"written with, and the right {self.key}.token_encoding_type if the ids are stored as bytes."
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
            length = row_tokens(shard, self._token_dtype, f"{stream.key}: {stream.place}", look=first)
            if length is not None:
                places.setdefault(length, stream.place)
        if len(places) > 1:
            found = ", ".join(f"{length} in {place}" for length, place in places.items())
            raise ValueError(
                f"{self.key} has rows of several lengths: {found} tokens. Use a loader for each length, or "
                "convert them to one length."
            )
        return next(iter(places), None)


def _turns(stream_of_row: np.ndarray) -> np.ndarray:
    """The order in which streams take turns: first a row of each, then each as often as it has rows."""
    counts = np.bincount(stream_of_row)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    begun = (np.arange(len(stream_of_row)) - starts[stream_of_row]) / counts[stream_of_row]
    return np.lexsort((stream_of_row, begun))
