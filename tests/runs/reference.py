"""An independent, slow and obvious statement of what a training step computes, on a plain model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Step(NamedTuple):
    """What a step should have computed."""

    language: Tensor
    router: Tensor
    logits: Tensor


def patch_step(model: nn.Module, ids: Tensor, labels: Tensor, k: int, mask: Tensor | None = None) -> Step:
    """The paper's equations, token by token, through the model's own ``inputs_embeds``."""
    inner: Any = model.model
    table = inner.get_input_embeddings()
    real = torch.ones_like(ids) if mask is None else mask
    patches, patch_mask = [], []
    for start in range(0, ids.shape[1], k):
        weights = real[:, start : start + k]
        embeds = [table(ids[:, start + j]) * weights[:, j, None] for j in range(k)]
        patches.append(sum(embeds) / weights.sum(dim=1).clamp(min=1)[:, None])
        patch_mask.append((weights.sum(dim=1) > 0).long())
    masked = {} if mask is None else {"attention_mask": torch.stack(patch_mask, dim=1)}
    outputs = inner(inputs_embeds=torch.stack(patches, dim=1), return_dict=True, **masked)
    log_probs = torch.log_softmax(outputs.logits, dim=-1)
    picked = []
    for row in range(ids.shape[0]):
        for position in range(len(patches) - 1):
            for j in range(k):
                label = int(labels[row, (position + 1) * k + j])
                if label != -100 and patch_mask[position][row]:
                    picked.append(log_probs[row, position, label])
    return Step(-torch.stack(picked).mean(), router_loss(inner, outputs), outputs.logits)


def token_step(model: nn.Module, ids: Tensor, labels: Tensor) -> Step:
    """Ordinary next-token training."""
    outputs = model.model(input_ids=ids, return_dict=True)  # pyright: ignore
    log_probs = torch.log_softmax(outputs.logits[:, :-1], dim=-1)
    targets = labels[:, 1:]
    valid = targets != -100
    chosen = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return Step(-chosen[valid].mean(), router_loss(model.model, outputs), outputs.logits)  # pyright: ignore


def router_loss(inner: Any, outputs: Any) -> Tensor:
    """The weighted load-balancing loss of Switch Transformers (arXiv 2101.03961, equation 4).

    Over all layers' tokens together and the first top-k choices, as Hugging Face's models have it.
    """
    router_logits = outputs.get("router_logits")
    if router_logits is None:
        return torch.zeros(())
    config = inner.config
    probabilities = torch.cat(tuple(router_logits)).softmax(dim=-1)
    experts = probabilities.shape[-1]
    chosen = probabilities.topk(config.num_experts_per_tok, dim=-1).indices
    loss = torch.zeros(())
    for expert in range(experts):
        share = (chosen == expert).float().sum(dim=-1).mean()
        loss = loss + share * probabilities[:, expert].mean()
    return config.router_aux_loss_coef * experts * loss
