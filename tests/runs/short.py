"""Short runs of Composer's own trainer on rows held in memory: a tenth of a second each."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from composer import Algorithm, DataSpec, Trainer
from composer.core import Callback, Event, State
from composer.loggers import InMemoryLogger, Logger
from composer.models import HuggingFaceModel
from composer.utils import dist
from llmfoundry.data.utils import LossGeneratingTokensCollatorWrapper, get_tokens_per_batch_func
from llmfoundry.models.mpt import ComposerMPTCausalLM
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support import VOCABULARY, mpt

Row = dict[str, Tensor]


def make_rows(number: int, T: int, seed: int = 0) -> list[Row]:
    """Random rows of ``T`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, VOCABULARY, (number, T), generator=generator)
    return [{"input_ids": ids_T, "labels": ids_T.clone()} for ids_T in ids_BT]


def make_padded_rows(number: int, T: int, seed: int = 0, ignore: float = 0.2) -> list[Row]:
    """Rows of ``T`` tokens, padded on the right from random places on, some labels ignored."""
    generator = torch.Generator().manual_seed(seed)
    rows = make_rows(number, T, seed)
    for row in rows:
        real = int(torch.randint(T // 3, T + 1, (), generator=generator))
        row["attention_mask"] = (torch.arange(T) < real).long()
        ignored = torch.rand(T, generator=generator) < ignore
        row["labels"] = row["labels"].masked_fill(ignored | (torch.arange(T) >= real), -100)
    return rows


def make_model(seed: int = 0, **changes: Any) -> ComposerMPTCausalLM:
    """A tiny MPT with a context of 32 positions; always the same weights for the same arguments."""
    torch.manual_seed(seed)
    config = mpt(**({"max_seq_len": 32, "n_layers": 1} | changes))
    del config["name"], config["init_device"]
    return ComposerMPTCausalLM(**config)


def collate(rows: Sequence[Row]) -> dict[str, Any]:
    """Stacks rows and counts their tokens as llm-foundry's collators do."""
    count = LossGeneratingTokensCollatorWrapper(torch.utils.data.default_collate, get_tokens_per_batch_func())
    return count(list(rows))


class Stream(IterableDataset[Row]):
    """Rows in a dataset that does not know its length."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def make_trainer(
    rows: Sequence[Row],
    algorithms: Iterable[Algorithm] = (),
    *,
    max_duration: str = "8ba",
    batch: int = 4,
    model: Any = None,
    known_length: bool = True,
    counts: bool = True,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-2,
    collate_fn: Callable[[Sequence[Row]], Any] = collate,
    callbacks: Iterable[Callback] = (),
    **arguments: Any,
) -> Trainer:
    """A trainer that has not started. Rows come in their order; ``batch`` is that of one rank."""
    model = make_model() if model is None else model
    torch.manual_seed(1)
    data = list(rows) if known_length else Stream(rows)
    defaults: dict[str, Any] = {
        "device_train_microbatch_size": batch,
        "accumulate_train_batch_on_tokens": True,
        "loggers": [InMemoryLogger()],
    }
    sampler = dist.get_sampler(data, shuffle=False) if dist.get_world_size() > 1 else None  # pyright: ignore
    return Trainer(
        model=model,
        train_dataloader=DataSpec(
            DataLoader(data, batch_size=batch, sampler=sampler, collate_fn=collate_fn),  # pyright: ignore
            get_num_tokens_in_batch=get_tokens_per_batch_func() if counts else None,
        ),
        max_duration=max_duration,
        optimizers=optimizer(model.parameters(), lr=lr),  # pyright: ignore
        algorithms=list(algorithms),
        callbacks=list(callbacks),
        progress_bar=False,
        device="cpu",
        seed=17,
        **(defaults | arguments),
    )


def run(*args: Any, **kwargs: Any) -> Trainer:
    """Builds a trainer, fits it and returns it."""
    trainer = make_trainer(*args, **kwargs)
    trainer.fit()
    return trainer


def saving(folder: Path) -> dict[str, Any]:
    """Trainer arguments that save every batch into ``folder`` as ``ba{batch}.pt``."""
    return {"save_folder": str(folder), "save_interval": "1ba", "save_filename": "ba{batch}.pt"}


def optimizer_tensors(trainer: Trainer) -> list[Tensor]:
    """The optimizer's state, parameter by parameter."""
    (optimizer,) = trainer.state.optimizers
    state = optimizer.state_dict()["state"]
    return [value.detach().clone() for entry in state.values() for value in entry.values()]


def same(left: Iterable[Tensor], right: Iterable[Tensor]) -> bool:
    """Whether two series of tensors are equal bit for bit."""
    left, right = list(left), list(right)
    return len(left) == len(right) > 0 and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


def relative_difference(left: Iterable[float], right: Iterable[float]) -> float:
    """The largest difference of two series, relative to the right one."""
    return max(abs(a - b) / abs(b) for a, b in zip(left, right, strict=True))


@contextmanager
def warned(match: str, category: type[Warning] = UserWarning) -> Iterator[list[str]]:
    """Expects one warning of ours in a run; yields the list that it will be in.

    ``pytest.warns`` would raise again what upstream code warns of, under a name that no filter knows.
    """
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    ours = [w for w in caught if "patch_algorithm" in w.filename and issubclass(w.category, category)]
    messages += [str(w.message) for w in ours if re.search(match, str(w.message))]
    assert len(messages) == 1, [str(w.message) for w in caught]


class Watch(Callback):
    """Calls a function at one event."""

    def __init__(self, event: Event, action: Callable[[State], None]) -> None:
        self.event, self.action = event, action

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event == self.event:
            self.action(state)


def make_llama(context: int = 8) -> HuggingFaceModel:
    """A tiny Llama; always the same weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
    )
    return HuggingFaceModel(LlamaForCausalLM(config), shift_labels=True)
