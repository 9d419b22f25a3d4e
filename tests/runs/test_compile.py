"""torch.compile: the same losses as eager, and at most one recompilation for each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from transformers import LlamaConfig

from patch_algorithm import PatchLevel
from patch_algorithm.model_access.hooks import ModelHooks
from tests.model_access.batches import make_batch, tokens
from tests.model_access.test_embedding_calls import Flattened
from tests.runs.short import make_rows, make_trainer
from tests.support import VOCABULARY, config, metrics, train

pytestmark = pytest.mark.compile

STAGES = [{"k": 8, "until": "2ba"}, {"k": 4, "until": "4ba"}]


def tiny_llama(folder: Path, positions: int) -> dict[str, Any]:
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        use_cache=False,
    ).save_pretrained(folder / "llama")
    return {
        "name": "hf_causal_lm",
        "pretrained_model_name_or_path": str(folder / "llama"),
        "pretrained": False,
    }


def graphs_of_compiled(cfg: dict[str, Any], eager: Trainer, **compile_config: str) -> int:
    """How many graphs a compiled run has, whose losses have to be the eager one's."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = train(cfg | {"compile_config": compile_config})
    expected = metrics(eager, "loss/train/total")
    assert metrics(compiled, "loss/train/total") == pytest.approx(expected, rel=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_compiled_equals_eager(corpus: Path, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path, positions=8)
    cfg = config(corpus, model, algorithms={"patch_level": {"k": 4, "ratio": 0.5}})
    assert graphs_of_compiled(cfg, train(cfg)) == 2, "one graph for each stage"


def test_ids_that_are_flattened_under_compile() -> None:
    """As GPT-2 does. Compiled code compares tensors by identity, and microbatches are views of the batch."""
    losses: list[list[float]] = []
    for changes in ({}, {"compile_config": {"backend": "eager"}}):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        algorithm = PatchLevel(k=4, ratio="2ba", rehearse_switch=False)
        trainer = make_trainer(
            make_rows(16, 16),
            [algorithm],
            model=Flattened(),
            max_duration="4ba",
            device_train_microbatch_size=2,
            **changes,  # pyright: ignore[reportArgumentType]
        )
        trainer.fit()
        losses.append(metrics(trainer, "loss/train/total"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_compiled_forward_does_not_meet_the_ids_of_another_batch() -> None:
    torch._dynamo.reset()
    model: Any = Flattened().train()
    compiled = torch.compile(model, backend="eager")
    model.forward = compiled.dynamo_ctx(model.forward)
    ModelHooks(model).attach()
    patches, batch = make_batch(0), tokens(1)
    torch.testing.assert_close(
        model(patches)["logits"], model.head(model.embed.weight[patches["patch_ids"]].mean(2))
    )
    for call in (model, model.forward):
        assert torch.equal(call(batch)["logits"], Flattened()(batch)["logits"])


def test_compiled_stages_equal_eager_ones(corpus: Path, tmp_path: Path) -> None:
    """Rows of 32 tokens are 4, then 8, then 32 positions, which are rehearsed before the first step."""
    model = tiny_llama(tmp_path, positions=32)
    cfg = config(corpus, model, algorithms={"patch_level": {"stages": STAGES, "on_switch": "reset"}})
    eager = train(cfg)
    assert metrics(eager, "patch_level/positions_per_row") == [4, 4, 8, 8, 32, 32]
    # Generating code takes minutes; the test above does it.
    graphs = graphs_of_compiled(cfg, eager, backend="eager")
    assert graphs <= 1 + len(STAGES) + 1, "one for the rehearsal, and at most one for each stage"
