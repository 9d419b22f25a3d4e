"""FLOPs of a step against counts made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from composer.models import HuggingFaceModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from patch_algorithm.model_access.flops import attention_width, flop_counter, matmul_parameters
from tests.runs.short import make_model
from tests.support import VOCABULARY as V

D, HIDDEN, LAYERS = 16, 32, 2
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
# Queries and outputs, keys and values of half the heads, and the two norms of a layer.
ATTENTION = 2 * D * D + 2 * D * D // 2 + 2 * D
LLAMA = LAYERS * (ATTENTION + 3 * D * HIDDEN) + D + D * V


def batch(B: int, P: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.zeros(B, P, dtype=torch.long)}


@pytest.mark.parametrize("tied", [False, True])
def test_llama(tied: bool) -> None:
    model = HuggingFaceModel(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied)))
    # The head multiplies, whether or not the embedding is looked up in the same table.
    assert matmul_parameters(model) == LLAMA
    assert attention_width(model) == LAYERS * D
    assert flop_counter(model)(batch(3, 8)) == 3 * 8 * (6 * LLAMA + 12 * LAYERS * D * 8)


def test_heads_wider_than_the_model() -> None:
    model = HuggingFaceModel(LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=8)))
    assert attention_width(model) == LAYERS * 4 * 8


def test_experts_that_a_position_is_sent_to() -> None:
    config = MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)
    router = D * 4
    expected = LAYERS * (ATTENTION + router + 2 * 3 * D * HIDDEN) + D + D * V
    assert matmul_parameters(HuggingFaceModel(MixtralForCausalLM(config))) == expected


def test_mpt_counts_itself_and_agrees_with_the_estimate() -> None:
    model = make_model(tie_word_embeddings=False)
    ours = 3 * 8 * (6 * matmul_parameters(model) + 12 * attention_width(model) * 8)
    assert flop_counter(model)(batch(3, 8)) == model.flops_per_batch(batch(3, 8)) == ours
    assert "n_active_params" in vars(model), "counted before the model is sharded"


def test_patches_cost_what_their_positions_cost() -> None:
    count = flop_counter(make_model())
    assert count(batch(4, 8)) * 4 == count(batch(16, 8))


def test_other_batches_count_nothing() -> None:
    count = flop_counter(make_model())
    assert count((torch.zeros(2, 3), torch.zeros(2))) == 0
    assert count({"pixels": torch.zeros(2, 3)}) == 0


def test_models_that_name_nothing() -> None:
    model = HuggingFaceModel(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    model.model.config = model.config = nn.Module()  # pyright: ignore
    assert attention_width(model) == 0
    assert matmul_parameters(model) == LLAMA
