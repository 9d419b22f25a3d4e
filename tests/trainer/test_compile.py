"""torch.compile: the same losses as eager, and one recompilation, at the switch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.support import VOCABULARY, config, metrics, train

pytestmark = pytest.mark.compile


def test_compiled_equals_eager(corpus: Path, tmp_path: Path) -> None:
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        use_cache=False,
    ).save_pretrained(tmp_path / "llama")
    model = {
        "name": "hf_causal_lm",
        "pretrained_model_name_or_path": str(tmp_path / "llama"),
        "pretrained": False,
    }
    cfg = config(corpus, model, algorithms={"patch_level": {"k": 4, "ratio": 0.5}})
    eager = metrics(train(cfg), "loss/train/total")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = metrics(train(cfg | {"compile_config": {}}), "loss/train/total")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert graphs == 2, "one graph for each stage"
    assert not torch._dynamo.utils.counters["graph_break"]
