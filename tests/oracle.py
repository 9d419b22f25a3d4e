"""An independent implementation of patch-level training, written from the paper's equations.

Everything is float64 and a plain loop over rows, patches and tokens, so that it can be compared
with arXiv 2407.12665 line by line. It shares no code with the package; both sides only share the
weights of a tiny causal model.

Shapes: T tokens, K patch size, P patches, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IGNORED = -100


class TinyModel(nn.Module):
    """Embedding, one layer of causal attention, and a head that may be tied to the embedding."""

    def __init__(self, V: int, D: int, tied: bool, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=draw, dtype=torch.float64))

        self.embedding_VD = weight(V, D)
        self.query_DD, self.key_DD, self.value_DD = weight(D, D), weight(D, D), weight(D, D)
        self.head_VD = self.embedding_VD if tied else weight(V, D)

    def logits(self, embeds_BPD: Tensor, mask_BP: Tensor | None = None) -> Tensor:
        """Logits of positions that see themselves and what is real before them."""
        P = embeds_BPD.shape[-2]
        scores = (embeds_BPD @ self.query_DD) @ (embeds_BPD @ self.key_DD).transpose(-1, -2)
        seen = torch.ones(P, P, dtype=torch.bool).tril()
        if mask_BP is not None:
            # A position always sees itself, so that no row of the softmax is empty.
            seen = (seen & mask_BP.bool()[..., None, :]) | torch.eye(P, dtype=torch.bool)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        hidden_BPD = torch.tanh(embeds_BPD + weights @ (embeds_BPD @ self.value_DD))
        return hidden_BPD @ self.head_VD.T


def patches(row: Sequence[int], k: int) -> list[Sequence[int]]:
    """Cuts a row into patches of ``k`` tokens; the last one may be shorter."""
    return [row[start : start + k] for start in range(0, len(row), k)]


def paper_loss(
    model: TinyModel,
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    k: int,
    masks: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, int]:
    """Equations 1 and 2, token by token: the summed loss and the number of its terms."""
    total, terms = torch.zeros((), dtype=torch.float64), 0
    for index, row in enumerate(rows):
        real = list(masks[index]) if masks is not None else [1] * len(row)
        embedded, present = [], []
        for tokens, kept in zip(patches(row, k), patches(real, k), strict=True):
            embedding_D = torch.zeros(model.embedding_VD.shape[1], dtype=torch.float64)
            for token, keep in zip(tokens, kept, strict=True):
                if keep:
                    embedding_D = embedding_D + model.embedding_VD[token]
            embedded.append(embedding_D / max(1, sum(kept)))
            present.append(sum(kept) > 0)
        logits_PV = model.logits(torch.stack(embedded), torch.tensor(present))
        following = patches(labels[index], k)[1:]
        for position, next_patch in enumerate(following):
            if not present[position]:
                continue
            log_probability_V = torch.log_softmax(logits_PV[position], dim=-1)
            for token in next_patch:
                if token != IGNORED:
                    total = total - log_probability_V[token]
                    terms += 1
    return total, terms


def naive_loss(logits_NV: Tensor, targets_NK: Tensor) -> tuple[Tensor, int, int]:
    """Equation 2 on given logits, in float64: the sum, the number of terms, the number of hits."""
    total, terms, hits = torch.zeros((), dtype=torch.float64), 0, 0
    for logits_V, targets_K in zip(logits_NV.double(), targets_NK.tolist(), strict=True):
        for target in targets_K:
            if target != IGNORED:
                total = total - torch.log_softmax(logits_V, dim=-1)[target]
                terms += 1
                hits += int(logits_V.argmax()) == target
    return total, terms, hits


def random_labels(seed: int, shape: tuple[int, ...], V: int, ignored: float) -> Tensor:
    """Token ids below V, each replaced by the ignored label with probability ``ignored``."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, shape, generator=draw)
    return ids.masked_fill(torch.rand(shape, generator=draw) < ignored, IGNORED)


def random_logits(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Leaf logits that require a gradient."""
    draw = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(*shape, generator=draw, dtype=torch.float64)
    return values.to(dtype).requires_grad_()


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the largest expected value."""
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((actual.double() - expected.double()).abs().max() / scale)
