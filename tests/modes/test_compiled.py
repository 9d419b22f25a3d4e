"""torch.compile over a list of stages, the switch rehearsed: losses as eager, a graph for each length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.support import VOCABULARY, config, metrics, train

pytestmark = pytest.mark.compile

STAGES = [{"k": 8, "until": "2ba"}, {"k": 4, "until": "4ba"}]


def test_compiled_stages_equal_eager_ones(corpus: Path, tmp_path: Path) -> None:
    """Rows of 32 tokens are 4, then 8, then 32 positions, which are rehearsed before the first step."""
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        use_cache=False,
    ).save_pretrained(tmp_path / "llama")
    model = {
        "name": "hf_causal_lm",
        "pretrained_model_name_or_path": str(tmp_path / "llama"),
        "pretrained": False,
    }
    cfg = config(corpus, model, algorithms={"patch_level": {"stages": STAGES, "on_switch": "reset"}})
    eager = train(cfg)
    assert metrics(eager, "patch_level/positions_per_row") == [4, 4, 8, 8, 32, 32]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # Generating code takes minutes; tests/trainer/test_compile.py does it for a single stage.
    compiled = train(cfg | {"compile_config": {"backend": "eager"}})
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    expected = metrics(eager, "loss/train/total")
    assert metrics(compiled, "loss/train/total") == pytest.approx(expected, rel=1e-5)
    assert graphs <= 1 + len(STAGES) + 1, "one for the rehearsal, and at most one for each stage"
    assert not torch._dynamo.utils.counters["graph_break"]
