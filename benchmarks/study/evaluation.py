"""Held-out loss at token level, document by document.

Shapes: B rows, P positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.study.data import Corpus
from benchmarks.study.settings import CONTEXT

__all__ = ["document_nats", "token_nats"]

_ROWS = 32


@torch.no_grad()
def token_nats(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of every token but the first, in nats.

    The stream is read in windows of the context; each token is predicted once, from what precedes it in
    its window, as in training.

    Args:
        model: A causal Hugging Face model.
        tokens: The stream, 1-D.

    Returns:
        float32, one shorter than ``tokens``.
    """
    model.eval()
    stream = torch.from_numpy(tokens.astype(np.int64))
    whole = (len(stream) - 1) // CONTEXT * CONTEXT
    inputs_BP, targets_BP = stream[:whole].view(-1, CONTEXT), stream[1 : whole + 1].view(-1, CONTEXT)
    windows = list(zip(inputs_BP.split(_ROWS), targets_BP.split(_ROWS), strict=True))
    if whole < len(stream) - 1:
        windows.append((stream[whole:-1][None], stream[whole + 1 :][None]))
    losses: list[torch.Tensor] = []
    for ids_BP, wanted_BP in windows:
        logits_BPV = model(input_ids=ids_BP).logits
        losses.append(
            F.cross_entropy(logits_BPV.flatten(0, 1).float(), wanted_BP.flatten(), reduction="none")
        )
    return torch.cat(losses).numpy()


def document_nats(model: Any, corpus: Corpus) -> np.ndarray:
    """Nats of each held-out document, its end-of-text token included.

    Args:
        model: A causal Hugging Face model.
        corpus: The corpus whose documents are scored.

    Returns:
        float64, one entry per document.
    """
    nats = token_nats(model, corpus.held_out).astype(np.float64)
    starts = np.cumsum([0, *corpus.documents["tokens"][:-1]])
    return np.add.reduceat(nats, starts)
