"""torch.compile: the same losses as eager, and at most one recompilation for each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from transformers import LlamaConfig

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


def test_compiled_stages_equal_eager_ones(corpus: Path, tmp_path: Path) -> None:
    """Rows of 32 tokens are 4, then 8, then 32 positions, which are rehearsed before the first step."""
    model = tiny_llama(tmp_path, positions=32)
    cfg = config(corpus, model, algorithms={"patch_level": {"stages": STAGES, "on_switch": "reset"}})
    eager = train(cfg)
    assert metrics(eager, "patch_level/positions_per_row") == [4, 4, 8, 8, 32, 32]
    # Generating code takes minutes; the test above does it.
    graphs = graphs_of_compiled(cfg, eager, backend="eager")
    assert graphs <= 1 + len(STAGES) + 1, "one for the rehearsal, and at most one for each stage"
