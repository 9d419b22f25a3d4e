"""Loss, perplexity and bits per byte of a model on documents, and on rows of a converted dataset."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_algorithm.common.progress_bar import progress_bar
from patch_algorithm.data.dataset.description import DatasetInfo, StreamInfo
from patch_algorithm.data.loader.tokenizers import tokenizer_differences
from patch_algorithm.evaluation.documents import Documents
from patch_algorithm.evaluation.models import Evaluated
from patch_algorithm.evaluation.scoring import nats_of

__all__ = ["Measure", "Unit", "measure_components", "measure_documents"]


@dataclass(frozen=True)
class Unit:
    """A document, or a row: what bootstrap draws.

    Attributes:
        nats: Of its scored tokens.
        scored: Tokens that were scored.
        tokens: All its tokens.
        bytes: UTF-8 bytes of its text; of a row the share that its tokens have of its component's.
    """

    nats: float
    scored: int
    tokens: int
    bytes: float


@dataclass(frozen=True)
class Measure:
    """What was measured on one text in one way.

    Tokens without anything before them are not scored. Per word and per byte, their nats are taken to be
    the mean of the others.

    Attributes:
        name: ``rows``, ``documents``, or a component.
        units: What it was measured on.
        words: Words between white space; ``None`` where only tokens are known.
    """

    name: str
    units: tuple[Unit, ...] = field(repr=False)
    words: int | None = None

    @property
    def loss(self) -> float:
        """Nats per token."""
        return sum(unit.nats for unit in self.units) / sum(unit.scored for unit in self.units)

    @property
    def nats(self) -> float:
        """Nats of all tokens."""
        return self.loss * sum(unit.tokens for unit in self.units)

    @property
    def token_perplexity(self) -> float:
        """``exp`` of nats per token."""
        return _exp(self.loss)

    @property
    def word_perplexity(self) -> float | None:
        """``exp`` of nats per word."""
        return None if not self.words else _exp(self.nats / self.words)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return self.nats / math.log(2) / sum(unit.bytes for unit in self.units)

    def to_json(self) -> dict[str, Any]:
        """Primitives."""
        return {
            "name": self.name,
            "loss": self.loss,
            "token_perplexity": self.token_perplexity,
            "word_perplexity": self.word_perplexity,
            "bits_per_byte": self.bits_per_byte,
            "scored_tokens": sum(unit.scored for unit in self.units),
            "tokens": sum(unit.tokens for unit in self.units),
            "words": self.words,
            "units": [[one.nats, one.scored, one.tokens, one.bytes] for one in self.units],
        }


def measure_documents(
    subject: Evaluated, documents: Documents, *, context: int, stride: int, batch: int = 4
) -> tuple[Measure, Measure]:
    """Measures in windows over all documents joined, and in each document by itself.

    Each document is preceded by a beginning-of-text token, or by the end-of-text token if the tokenizer has
    no other. It is read and never scored.

    Args:
        subject: The model.
        documents: The text.
        context: Tokens of a window.
        stride: Tokens from one window to the next.
        batch: Windows at once.
    """
    tokenizer = subject.tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    before = 0 if start is None else 1
    pieces = [
        np.array(
            [start] * before + tokenizer.encode(text, add_special_tokens=False, verbose=False), dtype=np.int64
        )
        for text in documents.texts
    ]
    sizes = [len(text.encode()) for text in documents.texts]
    words = sum(len(text.split()) for text in documents.texts)
    options = {"context": context, "stride": stride, "batch": batch}
    with progress_bar("Evaluation", 2 * sum(map(len, pieces)), " tokens") as bar:
        (joined,) = nats_of(subject.model, [np.concatenate(pieces)], bar=bar, **options)
        in_rows = np.split(joined, np.cumsum([len(piece) for piece in pieces])[:-1])
        alone = nats_of(subject.model, pieces, bar=bar, **options)
    if all(np.isnan(one).all() for one in alone):
        raise ValueError(f"{documents.path} holds too little text: no token has one before it.")
    return (
        Measure("rows", _units(in_rows, before, sizes), words),
        Measure("documents", _units(alone, before, sizes), words),
    )


def measure_components(
    subject: Evaluated, folder: str, split: str, *, context: int, stride: int, batch: int = 4
) -> list[Measure]:
    """Measures on the rows of each component of a converted dataset, in windows over each row.

    Args:
        subject: The model.
        folder: What `patch-level data convert --split-by-component` has written.
        split: Which of its splits.
        context: Tokens of a window.
        stride: Tokens from one window to the next.
        batch: Windows at once.

    Raises:
        ValueError: If there is no such data, or it was written with another tokenizer.
    """
    info = DatasetInfo.read(folder)
    if differing := tokenizer_differences(info, folder, subject.tokenizer):
        raise ValueError(
            f"The data in {folder} was written with another tokenizer ({info.tokenizer.name}) than "
            f"{subject.path}: {'; '.join(differing)}."
        )
    measures = []
    for stream, component in _streams(info, folder, split):
        counts = info.components[component][split]
        rows = list(_rows(folder, stream, info.dtype))
        with progress_bar(component, stream.tokens, " tokens") as bar:
            nats = nats_of(subject.model, rows, context=context, stride=stride, batch=batch, bar=bar)
        sizes = [len(row) * counts.bytes / counts.tokens for row in rows]
        measures.append(Measure(component, _units(nats, 0, sizes)))
    return measures


def _streams(info: DatasetInfo, folder: str, split: str) -> list[tuple[StreamInfo, str]]:
    splits = sorted({stream.split for stream in info.streams if stream.rows})
    if split not in splits:
        raise ValueError(f"{folder} has no rows in a split {split!r}; it has {', '.join(splits)}.")
    streams = [stream for stream in info.streams if stream.split == split and stream.rows]
    known = [name for name, counts in info.components.items() if split in counts]
    if any(stream.component is None for stream in streams) and len(known) != 1:
        raise ValueError(
            f"The rows in {folder} mix several components ({', '.join(known) or 'unknown ones'}). "
            "Convert the data with --split-by-component."
        )
    return [(stream, stream.component or known[0]) for stream in streams]


def _rows(folder: str, stream: StreamInfo, dtype: str) -> Iterator[NDArray[np.int64]]:
    from streaming import StreamingDataset

    from patch_algorithm.data.loader.rows import row_ids

    remote = folder.rstrip("/") + "/" + stream.path
    with tempfile.TemporaryDirectory() as aside:
        data = StreamingDataset(
            remote=remote,
            local=str(Path(aside) / "rows"),
            shuffle=False,
            batch_size=1,
            allow_unsafe_types=False,
        )
        for index in range(stream.rows):
            yield row_ids(data[index], np.dtype(dtype)).astype(np.int64)


def _units(nats: Sequence[NDArray[np.float64]], before: int, sizes: Sequence[float]) -> tuple[Unit, ...]:
    units = []
    for one, size in zip(nats, sizes, strict=True):
        text = one[before:]
        scored = ~np.isnan(text)
        units.append(Unit(float(text[scored].sum()), int(scored.sum()), len(text), size))
    return tuple(units)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
