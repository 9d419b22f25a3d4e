"""Rows of several documents: what goes into a model, and what it should have computed from it."""

from __future__ import annotations

from typing import Any

import torch
from composer import Trainer
from composer.core import Event, State
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerModel
from llmfoundry.registry import algorithms
from torch import Tensor, nn
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from tests.runs.families import Witness

PADDING = -1
Documents = list[list[int]]
"""The document of each token of each row; -1 for padding."""


class Feed(Witness):
    """A witness that also keeps the batches that the model is given."""

    def __init__(self) -> None:
        super().__init__()
        self.fed: list[dict[str, Any]] = []

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        super().apply(event, state, logger)
        if event == Event.BEFORE_FORWARD:
            self.fed.append(dict(state.batch))


if "feed" not in algorithms:
    algorithms.register("feed", func=Feed)


def feed_of(trainer: Trainer) -> Feed:
    return next(a for a in trainer.state.algorithms if isinstance(a, Feed))


def fit(model: ComposerModel, rows: dict[str, Tensor], **changes: Any) -> tuple[Trainer, Feed]:
    """One step in patches and one of tokens on the same batch."""
    number = len(rows["input_ids"])
    data = [{key: value[row] for key, value in rows.items()} for row in range(number)] * 2
    feed = Feed()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data, batch_size=number),  # pyright: ignore
        max_duration="2ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=[PatchLevel(k=4, ratio=0.5, **changes), feed],
        loggers=[InMemoryLogger()],
        progress_bar=False,
    )
    trainer.fit()
    return trainer, feed


def dense(documents: list[int]) -> list[int]:
    """Numbers a row's documents 0, 1, 2..."""
    order = list(dict.fromkeys(number for number in documents if number != PADDING))
    return [PADDING if number == PADDING else order.index(number) for number in documents]


def counted(documents: list[int]) -> list[int]:
    """Each place's number within its document; 0 for padding."""
    return [
        0 if number == PADDING else documents[:place].count(number) for place, number in enumerate(documents)
    ]


def patch_owners(documents: list[int], k: int) -> list[int]:
    """The document of the last real token of each patch, as it is numbered in the row of tokens."""
    patches = [documents[start : start + k] for start in range(0, len(documents), k)]
    return [next((n for n in reversed(patch) if n != PADDING), PADDING) for patch in patches]


def patch_logits(model: nn.Module, ids: Tensor, documents: Documents, k: int, *given: str) -> Tensor:
    """Logits of patches of single documents, through the model's own ``inputs_embeds``.

    The model is told what is ``given`` besides: ``sequence_id``, ``position_ids``, ``attention_mask``.
    """
    inner: Any = model.model
    table = inner.get_input_embeddings()
    rows, told = [], {"sequence_id": [], "position_ids": [], "attention_mask": []}
    for row, numbers in zip(ids, documents, strict=True):
        owners = patch_owners(numbers, k)
        patches = []
        for place, owner in enumerate(owners):
            own = [t for t in range(place * k, place * k + k) if owner != PADDING and numbers[t] == owner]
            embeds = [table(row[t]) for t in own]
            patches.append(sum(embeds) / len(embeds) if embeds else torch.zeros_like(table(row[0])))
        rows.append(torch.stack(patches))
        told["sequence_id"].append(dense(owners))
        told["position_ids"].append(counted(owners))
        told["attention_mask"].append([int(owner != PADDING) for owner in owners])
    extra = {key: torch.tensor(told[key]) for key in given}
    return inner(inputs_embeds=torch.stack(rows), return_dict=True, **extra).logits


def patch_pairs(labels: Tensor, documents: Documents, k: int) -> list[tuple[int, int, int]]:
    """The valid (row, position, target) triples, whatever document the target is of."""
    pairs = []
    for row, numbers in enumerate(documents):
        owners = patch_owners(numbers, k)
        for position, owner in enumerate(owners[:-1]):
            following = labels[row, (position + 1) * k : (position + 2) * k].tolist()
            pairs += [(row, position, t) for t in following if owner != PADDING and t != -100]
    return pairs


def patch_loss(logits: Tensor, pairs: list[tuple[int, int, int]]) -> Tensor:
    """Mean cross-entropy over the pairs."""
    log_probs = torch.log_softmax(logits, dim=-1)
    return -torch.stack([log_probs[pair] for pair in pairs]).mean()


def pieces(values: Tensor | Documents, length: int) -> Any:
    """Cuts each row into pieces of a length."""
    if isinstance(values, Tensor):
        return values.reshape(-1, length)
    return [row[start : start + length] for row in values for start in range(0, len(row), length)]
