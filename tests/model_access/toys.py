"""The smallest language models that Composer trains, and runs of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.support import VOCABULARY

D = 16


class Toy(ComposerModel):
    """An embedding and a head; subclasses change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, D)
        self.head = nn.Linear(D, VOCABULARY)
        self.get_input_embeddings: Callable[[], nn.Module] = lambda: self.embed

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids)

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return CausalLMOutputWithPast(logits=self.head(self.hidden(batch["input_ids"])))

    def loss(self, outputs: Any, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        return next_token_loss(outputs["logits"], batch)


def next_token_loss(logits_BPV: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """What most people write: NaN where all labels are ignored."""
    return nn.functional.cross_entropy(logits_BPV[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
