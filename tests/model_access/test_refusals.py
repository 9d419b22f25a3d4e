"""Models and batches that cannot be trained in patches are refused before any weight changes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from composer import Trainer
from composer.algorithms.warnings import NoEffectWarning
from composer.models import ComposerModel, HuggingFaceModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from patch_algorithm.common.context import CONTEXT_NAMES
from patch_algorithm.model_access.reading import context_length
from tests.model_access.toys import D, Toy
from tests.runs.families import family, plain_model
from tests.runs.short import (
    make_llama,
    make_rows,
    run,
)
from tests.support import VOCABULARY, metrics, mpt

ROWS = [{"input_ids": (torch.arange(32) + 7 * row) % 94} for row in range(16)]


def batches(**extra: Any) -> DataLoader[Any]:
    """Four batches of four rows of 32 tokens."""
    rows = [row | {"labels": row["input_ids"]} | extra for row in ROWS]
    return DataLoader(rows, batch_size=4)  # pyright: ignore


def refused(model: ComposerModel, data: DataLoader[Any], *reasons: str, **changes: Any) -> None:
    """Trains, expects a ValueError that names the reasons, and unchanged weights."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(reasons[0])) as error:
        Trainer(
            model=model,
            train_dataloader=data,
            max_duration="4ba",
            optimizers=torch.optim.AdamW(model.parameters(), lr=1e-2),
            algorithms=[PatchLevel(k=4, ratio=0.5, **changes)],
            progress_bar=False,
        ).fit()
    for reason in reasons:
        assert reason in str(error.value)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_encoder_decoder() -> None:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    model = HuggingFaceModel(transformers.T5ForConditionalGeneration(config))
    refused(model, batches(), "encoder-decoder", "T5ForConditionalGeneration", "decoder-only")


class NoEmbedding(Toy):
    def __init__(self) -> None:
        super().__init__()
        del self.get_input_embeddings


class UnnamedEmbedding(Toy):
    def __init__(self) -> None:
        super().__init__()

        def unnamed() -> nn.Module:
            raise NotImplementedError  # as transformers' own does in models that do not say

        self.get_input_embeddings = unnamed


class PerLayerEmbedding(Toy):
    """As Gemma 3n's per-layer embeddings, or the value embeddings of speed runs."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Embedding(VOCABULARY, 16)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.values(ids)


class LooksTwice(Toy):
    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.embed(ids)


class LooksNever(Toy):
    def hidden(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.embed.weight)


class LooksElsewhere(Toy):
    """Puts a token of its own in front of every row."""

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(nn.functional.pad(ids, (1, 0)))[:, 1:]


class NamedByTheWrapper(Toy):
    """As most people write one: a network in ``self.model``, and Composer's methods around it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"wte": self.embed, "head": self.head})
        self.get_input_embeddings = lambda: self.model["wte"]


def test_the_embedding_may_be_named_by_the_composer_model() -> None:
    trained(NamedByTheWrapper())


def test_the_toy_itself_trains() -> None:
    """Or the refusals of its subclasses would show nothing."""
    model = Toy()
    before = model.embed.weight.detach().clone()
    trained(model)
    assert not torch.equal(model.embed.weight, before)


@pytest.mark.parametrize(
    ("toy", "reasons"),
    [
        (NoEmbedding, ("no input embedding", "get_input_embeddings")),
        (UnnamedEmbedding, ("no input embedding", "get_input_embeddings")),
        (PerLayerEmbedding, ("second embedding", "values", str(VOCABULARY))),
        (LooksTwice, ("looked up 2 times", "exactly one")),
        (LooksNever, ("looked up 0 times", "exactly one")),
        (LooksElsewhere, ("changes its input ids",)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_unsuitable_models(toy: type[Toy], reasons: tuple[str, ...]) -> None:
    refused(toy(), batches(), *reasons)


def test_a_table_of_positions_is_no_second_embedding(corpus: Path, tmp_path: Path) -> None:
    """Though it has as many rows as the vocabulary."""
    cfg = mpt(max_seq_len=VOCABULARY, learned_pos_emb=True, attn_config={"rope": False})
    trainer = Trainer(model=plain_model(cfg, corpus), algorithms=[PatchLevel()], progress_bar=False)
    assert trainer.state.algorithms


def test_a_second_embedding_behind_an_adapter_of_the_first() -> None:
    model = PerLayerEmbedding()
    inject_adapter_in_model(LoraConfig(target_modules=["embed"]), model)
    assert type(model.embed).__module__.startswith("peft")
    refused(model, batches(), "second embedding", "values", str(VOCABULARY))


class Characters(Toy):
    """As a character model of nanoGPT: a table of positions larger than the vocabulary."""

    positions = 2 * VOCABULARY

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config
        self.places = nn.Embedding(self.positions, D)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.places(torch.arange(ids.shape[1]))


@pytest.mark.parametrize("name", CONTEXT_NAMES)
def test_a_table_of_positions_is_known_by_its_name(name: str) -> None:
    for config in (SimpleNamespace(**{name: Characters.positions}), {name: Characters.positions}):
        model = Characters(config)
        assert context_length(model) == Characters.positions
        trained(model)


def test_where_the_context_is_found() -> None:
    """Of the model itself, of the model inside it, or of its part that reads text."""
    model: Any = Toy()
    assert context_length(model) is None
    model.model = SimpleNamespace(config=SimpleNamespace(text_config=SimpleNamespace(n_positions=7)))
    assert context_length(model) == 7
    model.config = SimpleNamespace(block_size=5, n_ctx=6)
    assert context_length(model) == 5


def test_a_guess_says_so_and_how_to_get_past_it() -> None:
    refused(
        Characters(),
        batches(),
        "seems to",
        "This is a guess",
        "set seq_len of patch_level (at most 192)",
        "block_size",
    )
    trained(Characters(), seq_len=8)
    refused(Characters({"block_size": 64}), batches(), "This is a guess", "which gives 64 positions")


def test_a_second_embedding_shows_however_the_guess_was_passed() -> None:
    refused(PerLayerEmbedding(), batches(), f"a second embedding (of {VOCABULARY} rows)", seq_len=8)


def trained(model: ComposerModel, **changes: Any) -> None:
    trainer = Trainer(
        model=model,
        train_dataloader=batches(),
        max_duration="4ba",
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-2),
        algorithms=[PatchLevel(k=4, ratio=0.5, **changes)],
        progress_bar=False,
    )
    trainer.fit()
    assert trainer.state.timestamp.batch == 4


def test_labels_that_are_already_shifted(corpus: Path) -> None:
    model: Any = plain_model(mpt(), corpus)
    model.shift_labels = False
    refused(model, batches(), "shift_labels", "aligned")


def test_tuples_for_outputs(corpus: Path, tmp_path: Path) -> None:
    model: Any = plain_model(family("llama", tmp_path), corpus)
    model.config.return_dict = False
    refused(model, batches(), "return_dict")


@pytest.mark.parametrize("changes", [{"ratio": 0}, {"k": 1, "ratio": 0.5}])
def test_training_at_token_level_refuses_no_model(changes: dict[str, Any]) -> None:
    model = PerLayerEmbedding()
    with pytest.warns(NoEffectWarning, match="no effect"):
        Trainer(
            model=model,
            train_dataloader=batches(),
            max_duration="1ba",
            optimizers=torch.optim.AdamW(model.parameters(), lr=1e-2),
            algorithms=[PatchLevel(**changes)],
            progress_bar=False,
        ).fit()


def test_a_second_embedding_is_not_the_wrapped_first() -> None:
    """FSDP1 may put a module of its own around the embedding."""

    class Wrapped(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.module(ids)

    model = make_llama(context=16)
    inner: Any = model.model
    inner.set_input_embeddings(Wrapped(inner.get_input_embeddings()))
    trainer = run(make_rows(8, 16), [PatchLevel(k=2, ratio=0.5)], model=model, max_duration="2ba")
    assert metrics(trainer, "patch_level/stage") == [0, 1]
