"""FLOPs of a step against torch's own counter on the real model, and against counts made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.models import ComposerModel, HuggingFaceModel
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from patch_algorithm.model_access.flops import FlopCounter, flop_counter
from tests.runs.families import FAMILIES, family, plain_model, traces
from tests.runs.short import make_model
from tests.support import VOCABULARY as V

D, HIDDEN, LAYERS, CONTEXT = 16, 32, 2, 32
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "attn_implementation": "eager",  # torch's counter does not know sdpa on CPUs
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Queries and outputs, keys and values of half the heads.
ATTENTION = 2 * D * D + 2 * D * D // 2
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 2, "qk_nope_head_dim": 6, "v_head_dim": 5}
GROUPS = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 8}


def batch(B: int, P: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.zeros(B, P, dtype=torch.long)}


def counter(model: ComposerModel) -> FlopCounter:
    found = flop_counter(model)
    assert found is not None
    return found


def llama(**changes: Any) -> HuggingFaceModel:
    return HuggingFaceModel(LlamaForCausalLM(LlamaConfig(**SHAPE | changes)))


def adapted(**changes: Any) -> HuggingFaceModel:
    base = LlamaForCausalLM(LlamaConfig(**SHAPE))
    return HuggingFaceModel(get_peft_model(base, LoraConfig(r=2, **changes)))  # pyright: ignore


def frozen_below() -> HuggingFaceModel:
    model = llama(num_hidden_layers=4)
    model.model.get_input_embeddings().requires_grad_(False)  # pyright: ignore
    model.model.model.layers[:3].requires_grad_(False)  # pyright: ignore
    return model


def granite_moe() -> HuggingFaceModel:
    config = GraniteMoeConfig(**SHAPE, num_local_experts=8, num_experts_per_tok=2)
    return HuggingFaceModel(GraniteMoeForCausalLM(config))


def deepseek_v3() -> HuggingFaceModel:
    shape = SHAPE | {"num_key_value_heads": 4}
    config = DeepseekV3Config(**shape, **LATENT, **GROUPS, n_routed_experts=8, num_experts_per_tok=2)
    return HuggingFaceModel(DeepseekV3ForCausalLM(config))


OTHERS: dict[str, Callable[[], ComposerModel]] = {
    "granite-moe": granite_moe,
    "deepseek-v3": deepseek_v3,
    "sdpa": lambda: llama(attn_implementation="sdpa"),
    "lora": lambda: adapted(target_modules=["q_proj", "v_proj"]),
    "lora-of-the-last-layer": lambda: adapted(target_modules=["q_proj", "v_proj"], layers_to_transform=[1]),
    "lora-of-the-feed-forward": lambda: adapted(target_modules=["down_proj"]),
    "frozen-below": frozen_below,
}


def counted(model: ComposerModel, B: int, P: int) -> float:
    """What torch counts in a forward and backward of the real weights."""
    if isinstance(model.model, LlamaForCausalLM):
        model.model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        model(batch(B, P))["logits"].sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_every_architecture_within_two_percent(name: str, corpus: Path, tmp_path: Path) -> None:
    model = plain_model(family(name, tmp_path), corpus) if name in FAMILIES else OTHERS[name]()
    ours = counter(model)(batch(3, 7))
    assert ours == pytest.approx(counted(model, 3, 7), rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_llama_by_hand(tied: bool) -> None:
    # The head multiplies, whether or not the embedding is looked up in the same table.
    weights = LAYERS * (ATTENTION + 3 * D * HIDDEN) + D * V
    count = counter(llama(tie_word_embeddings=tied))
    for B, P in ((3, 8), (1, 32), (2, 2000)):
        assert count(batch(B, P)) == pytest.approx(B * P * (6 * weights + 12 * LAYERS * D * P), rel=1e-3)


def test_heads_wider_than_the_model_by_hand() -> None:
    wide = 4 * 8
    weights = LAYERS * (2 * D * wide + 2 * D * wide // 2 + 3 * D * HIDDEN) + D * V
    expected = 8 * (6 * weights + 12 * LAYERS * wide * 8)
    assert counter(llama(head_dim=8))(batch(1, 8)) == pytest.approx(expected, rel=1e-3)


def test_experts_that_a_position_is_sent_to_by_hand() -> None:
    config = MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)
    weights = LAYERS * (ATTENTION + D * 4 + 2 * 3 * D * HIDDEN) + D * V
    expected = 8 * (6 * weights + 12 * LAYERS * D * 8)
    count = counter(HuggingFaceModel(MixtralForCausalLM(config)))
    assert count(batch(1, 8)) == pytest.approx(expected, rel=1e-3)


def test_frozen_weights_have_no_backward_of_their_own() -> None:
    full, lora = (counter(model)(batch(2, 32)) for model in (llama(), adapted(target_modules=["q_proj"])))
    assert 0.6 < lora / full < 0.75, "forward, and the gradients of activations: two thirds"


def test_patches_cost_what_their_positions_cost() -> None:
    count = counter(make_model())
    assert count(batch(4, 8)) * 4 == count(batch(16, 8))


def test_mpt_counts_itself_alike() -> None:
    model = make_model(d_model=128, n_heads=4, n_layers=4, tie_word_embeddings=False)
    assert counter(model)(batch(3, 8)) == pytest.approx(model.flops_per_batch(batch(3, 8)), rel=0.02)


def test_other_batches_count_nothing() -> None:
    count = counter(make_model())
    assert count((torch.zeros(2, 3), torch.zeros(2))) == 0
    assert count({"pixels": torch.zeros(2, 3)}) == 0


def test_weights_that_no_machine_could_hold_are_counted() -> None:
    huge = {"hidden_size": 1 << 17, "intermediate_size": 1 << 17, "num_hidden_layers": 1}  # 0.5 TB
    with torch.device("meta"):
        model = llama(**huge)
    weights = 3 * (1 << 34) + 3 * (1 << 34) + (1 << 17) * V
    expected = 8 * (6 * weights + 12 * (1 << 17) * 8)
    assert counter(model)(batch(1, 8)) == pytest.approx(expected, rel=1e-3)


class Counting(nn.SiLU):
    """Writes to a buffer in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(input)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = llama(attention_dropout=0.5)
    called: list[Any] = []
    model.model.register_forward_hook(lambda *_: called.append(_))
    model.model.model.layers[0].mlp.act_fn = Counting()  # pyright: ignore
    before, random_state = traces(model), torch.get_rng_state()
    flop_counter(model)
    assert traces(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert model.model.model.layers[0].mlp.act_fn.calls == 0  # pyright: ignore
    assert not called, "a hook of the user's ran"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_forward_that_copies_share_leaves_no_gradients() -> None:
    """Such as a wrapper's that was put in place of the method."""
    model = llama()
    usual = counter(model)({"input_ids": torch.zeros(1, 32, dtype=torch.long)})
    inner, embedding = model.model.forward, model.model.get_input_embeddings().weight  # pyright: ignore
    model.model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    embedding.grad = kept = torch.ones_like(embedding)
    assert counter(model)({"input_ids": torch.zeros(1, 32, dtype=torch.long)}) == usual
    left = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(left) == 1
    assert left[0] is kept
    assert bool((kept == 1).all())


class Unwilling(nn.Module):
    """Stands for GPU kernels."""

    def forward(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no GPU here")


def unwilling() -> Any:
    model = make_model()
    model.model.transformer.blocks[0].ffn = Unwilling()  # pyright: ignore
    return model


def test_what_does_not_run_on_a_cpu_is_counted_by_the_model_itself() -> None:
    model = unwilling()
    count = counter(model)
    assert "n_active_params" in vars(model), "counted before the model is sharded"
    assert count(batch(3, 8)) == model.flops_per_batch(batch(3, 8)) > 0


def test_no_figure_where_nobody_can_tell(capsys: pytest.CaptureFixture[str]) -> None:
    frozen = unwilling()
    frozen.model.transformer.wte.requires_grad_(False)
    silent = llama()
    silent.model.model.layers[0].mlp = Unwilling()  # pyright: ignore
    for model in (frozen, silent):  # MPT's own count takes all weights to be trained
        assert flop_counter(model) is None
        assert "cannot be counted (RuntimeError: no GPU here)" in capsys.readouterr().err


class InSteps(nn.Module):
    """A layer whose cost rises in steps of 32 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(D, D)

    def forward(self, embeds_BPD: torch.Tensor) -> torch.Tensor:
        return embeds_BPD + self.project(embeds_BPD[:, : embeds_BPD.shape[1] // 32]).sum()


def test_no_figure_where_the_cost_follows_another_law(capsys: pytest.CaptureFixture[str]) -> None:
    model = llama()
    for layer in model.model.model.layers:  # pyright: ignore
        layer.mlp = nn.Sequential(*(InSteps() for _ in range(50)))
    assert flop_counter(model) is None
    assert "do not follow a P + b P^2" in capsys.readouterr().err
