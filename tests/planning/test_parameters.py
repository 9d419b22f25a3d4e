"""Parameters counted without weights, against models that have them."""

from __future__ import annotations

from typing import Any

import pytest
from llmfoundry.models.mpt import ComposerMPTCausalLM

from patch_algorithm.planning.config import Values
from patch_algorithm.planning.model_section import ModelSection, read_model
from patch_algorithm.planning.parameters import parameter_count
from tests.runs.short import make_llama
from tests.support import mpt


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learned_pos_emb": True, "attn_config": {"rope": False}},
        {"no_bias": True, "tie_word_embeddings": False},
        {"ffn_config": {"ffn_type": "mptglu"}},
        {"attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 1}, "n_heads": 4},
    ],
    ids=str,
)
def test_mpt(changes: dict[str, Any]) -> None:
    arguments = mpt(d_model=64, n_layers=3, **changes)
    counted = parameter_count(read_model(Values(arguments)))
    built = {key: value for key, value in arguments.items() if key not in ("name", "init_device")}
    model = ComposerMPTCausalLM(**built)
    assert counted == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)


def test_hugging_face() -> None:
    llama: Any = make_llama()
    section = ModelSection("hf_causal_lm", {}, 8, "", 96, llama.model.config.to_dict())
    assert parameter_count(section) == sum(p.numel() for p in llama.parameters())


def test_what_is_not_known() -> None:
    assert parameter_count(ModelSection("mine", {}, None, "", None)) is None
    for unknown in ({"ffn_config": {"ffn_type": "mptmoe"}}, {"head_dim": "x"}, {"vocab_size": None}):
        assert parameter_count(read_model(Values({"name": "mpt_causal_lm"} | unknown))) is None
    assert parameter_count(ModelSection("hf_causal_lm", {}, None, "", None, {"model_type": "none"})) is None
