"""Nats of every token of a text, in windows of the model's context.

Letters: B windows, L tokens in a window, N tokens in a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_utils import PreTrainedModel

__all__ = ["Window", "nats_of", "windows"]


class Window(NamedTuple):
    """What the model reads at once, and which tokens are scored there.

    Attributes:
        start: The first token that is read.
        end: The one after the last.
        first: The first token that is scored, by what is read before it.
    """

    start: int
    end: int
    first: int


def windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """Windows over a sequence, each ``stride`` tokens after the one before; the last may be shorter.

    Every token is scored once, except those with nothing before them in their window: the first of each
    window if ``stride`` equals ``context``, otherwise only the first of the sequence.

    Examples:
        >>> [tuple(one) for one in windows(10, 4, 4)]
        [(0, 4, 1), (4, 8, 5), (8, 10, 9)]
        >>> [tuple(one) for one in windows(7, 4, 2)]
        [(0, 4, 1), (2, 6, 4), (4, 7, 6)]
    """
    done = 0
    for start in range(0, length, stride):
        end = min(start + context, length)
        first = max(start + 1, done)
        if first < end:
            yield Window(start, end, first)
        done = end
        if end == length:
            return


@torch.no_grad()
def nats_of(
    model: PreTrainedModel,
    sequences: Sequence[NDArray[np.int64]],
    *,
    context: int,
    stride: int,
    batch: int = 4,
    bar: tqdm | None = None,
) -> list[NDArray[np.float64]]:
    """The negative log-likelihood of every token, ``-log p(token | what is read before it)``.

    Args:
        model: The model, in evaluation mode.
        sequences: Token ids, each ``[N]``.
        context: L, the longest window.
        stride: Tokens from one window to the next, at most L.
        batch: Windows at once.
        bar: Is told of scored tokens.

    Returns:
        For each sequence ``[N]`` nats, float64; NaN where a token is not scored.
    """
    nats = [np.full(len(ids), np.nan) for ids in sequences]
    places = ((i, w) for i, ids in enumerate(sequences) for w in windows(len(ids), context, stride))
    for _, group in groupby(places, key=lambda place: place[1].end - place[1].start):
        while some := list(islice(group, batch)):
            ids_BL = torch.from_numpy(np.stack([sequences[i][w.start : w.end] for i, w in some]))
            nats_BL = _window_nats(model, ids_BL.to(model.device)).cpu().numpy()
            for (i, window), row in zip(some, nats_BL, strict=True):
                nats[i][window.first : window.end] = row[window.first - window.start - 1 :]
                if bar is not None:
                    bar.update(window.end - window.first)
    return nats


def _window_nats(model: PreTrainedModel, ids_BL: Tensor) -> Tensor:
    logits_BLV = model(input_ids=ids_BL).logits[:, :-1].float()
    gold_BL1 = logits_BLV.gather(-1, ids_BL[:, 1:, None])
    return (logits_BLV.logsumexp(-1) - gold_BL1[..., 0]).double()
