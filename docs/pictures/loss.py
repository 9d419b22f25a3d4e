"""The loss of one position: one softmax, k targets, with the number that the package's loss returns."""

from __future__ import annotations

import torch
from drawing import Drawing
from fold import WORDS, K

from patch_algorithm.loss import patch_cross_entropy
from patch_algorithm.patching import next_patch_targets

__all__ = ["HEIGHT", "WIDTH", "draw_loss"]

WIDTH, HEIGHT = 640, 282
_OTHERS = ("a", "dog", "ran", "to", "in", "red", "he", "it")
_BOTTOM, _TOP = 206.0, 62.0


def draw_loss(drawing: Drawing) -> None:
    """Draws the probabilities of the first position and what its loss is made of."""
    vocabulary = [*dict.fromkeys(WORDS), *_OTHERS]
    ids_BT = torch.tensor([[vocabulary.index(word) for word in WORDS]])
    targets_BPK = next_patch_targets(ids_BT, K)
    logits_BPV = torch.randn(1, len(WORDS) // K, len(vocabulary), generator=torch.Generator().manual_seed(1))
    scored = set(targets_BPK[0, 0].tolist())
    logits_BPV = 0.7 * logits_BPV
    logits_BPV[0, 0, sorted(scored)] += 1.6
    loss = patch_cross_entropy(logits_BPV, targets_BPK)
    probabilities = logits_BPV[0, 0].softmax(-1).tolist()
    nats = [-logits_BPV[0, 0].log_softmax(-1)[target].item() for target in targets_BPK[0, 0].tolist()]
    if abs(sum(nats) / K - loss.mean.item()) > 1e-5:
        raise ValueError("the loss is not the mean of its targets")

    read = " ".join(WORDS[:K])
    muted, width = drawing.palette.muted, WIDTH / len(vocabulary)
    drawing.text(0, 14, "One softmax, k targets", 15, bold=True)
    drawing.text(
        0, 34, f"The position that has read “{read}” gives one distribution over the vocabulary.", color=muted
    )
    highest = max(probabilities)
    for token, (word, share) in enumerate(zip(vocabulary, probabilities, strict=True)):
        tall = (_BOTTOM - _TOP) * share / highest
        fill = drawing.palette.theme.lines[1] if token in scored else drawing.palette.model
        drawing.box(token * width + 4, _BOTTOM - tall, width - 8, tall, fill, radius=2)
        weight = token in scored
        drawing.text(
            token * width + width / 2, _BOTTOM + 18, word, 12, anchor="middle", mono=True, bold=weight
        )
        if token in scored:
            drawing.text(token * width + width / 2, _BOTTOM - tall - 6, f"{share:.2f}", 12, anchor="middle")
    drawing.path([(0, _BOTTOM), (WIDTH, _BOTTOM)], drawing.palette.theme.ink, 1)
    spelled = " + ".join(f"{value:.2f}" for value in nats)
    drawing.text(0, 252, f"loss = mean of -ln p over the {K} tokens of the next patch, in any order")
    drawing.text(0, 274, f"= ({spelled}) / {K} = {loss.mean.item():.2f} nats", mono=True)
