"""What a plan counts: FLOPs against torch's counter, stages by hand, and the paper's own run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, MixtralConfig, OlmoeConfig

from patch_algorithm.model_access.flops import flop_counter
from patch_algorithm.planning.costs import run_costs, step_shape
from patch_algorithm.planning.costs_model import ModelFacts, read_model_facts
from patch_algorithm.planning.run_file import RunFile
from tests.planning.runs import MPT, PAPER, PAPER_SHAPE, hugging_face, run_of

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
NO_MODEL = ModelFacts("none")


def section(name: str, folder: Path) -> dict[str, Any]:
    """The section ``model`` of a family."""
    configs = {
        "llama-gqa": LlamaConfig(**SHAPE),
        "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
        "olmoe": OlmoeConfig(**SHAPE, num_experts=8, num_experts_per_tok=2),
    }
    return dict(MPT) if name == "mpt" else hugging_face(configs[name], folder)


def counted(model: dict[str, Any], P: int) -> float:
    """What torch counts in a forward and backward of a row by the real weights."""
    from llmfoundry.utils.builders import build_composer_model

    arguments = {key: value for key, value in model.items() if key != "name"}
    if model["name"] == "mpt_causal_lm":
        arguments |= {"attn_config": {"attn_impl": "torch"}, "loss_fn": "torch_crossentropy"}
    built = build_composer_model(model["name"], arguments, tokenizer=None)  # pyright: ignore[reportArgumentType]
    with FlopCounterMode(display=False) as counter:
        built({"input_ids": torch.zeros(1, P, dtype=torch.long)})["logits"].sum().backward()
    count = flop_counter(built)
    assert count is not None
    assert count({"input_ids": torch.zeros(1, P, dtype=torch.long)}) > 0
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["mpt", "llama-gqa", "mixtral", "olmoe"])
def test_flops_are_torchs_within_one_percent(name: str, tmp_path: Path) -> None:
    model = section(name, tmp_path)
    facts = read_model_facts(run_of(model=model))
    assert facts.row_flops is not None
    for P in (6, 16):
        assert facts.row_flops(P) == pytest.approx(counted(model, P), rel=0.01)


def test_the_parameters_are_those_of_the_real_model() -> None:
    facts = read_model_facts(run_of())
    d, layers, V, L = 32, 2, 64, 16
    per_layer = 4 * d * d + 4 * d + 2 * d * 2 * d + 3 * d + 4 * d  # with biases and norms
    assert facts.parameters == layers * per_layer + V * d + L * d + 2 * d
    assert (facts.vocabulary, facts.context) == (V, L)


def test_a_run_by_hand() -> None:
    run = run_of()
    shape = step_shape(run, NO_MODEL, devices=2)
    token, this, longer = run_costs(shape, NO_MODEL)
    patch, after = this.stages
    assert (patch.steps, after.steps, patch.raw_tokens, after.raw_tokens) == (8, 4, 8 * 512, 4 * 512)
    assert (patch.rows_per_step, patch.positions_per_row) == (8, 16)
    assert (after.rows_per_step, after.positions_per_row) == (32, 16)
    # Of two devices, in microbatches of 4 rows.
    assert (patch.microbatches, after.microbatches) == (1, 4)
    assert token.positions == 12 * 512
    assert this.positions == 8 * 128 + 4 * 512 == token.positions // 2
    assert this.patch_share_of_compute == pytest.approx(1 / 3)
    assert (longer.steps, longer.positions) == (24, token.positions)


def test_passes_over_the_data() -> None:
    shape = replace(step_shape(run_of(), NO_MODEL), data_tokens=12 * 512 // 3)
    assert [cost.passes for cost in run_costs(shape, NO_MODEL)] == [3, 3, 6]
    assert run_costs(step_shape(run_of(), NO_MODEL), NO_MODEL)[0].passes is None


def test_rows_of_the_context_fold_to_fewer_positions() -> None:
    run = run_of(
        train_loader={"name": "pile", "dataset": {"split": "train", "max_seq_len": 16}},
        algorithms={"patch_level": {"k": 4, "ratio": 0.5, "scale_microbatch": True}},
    )
    patch, token = run_costs(step_shape(run, NO_MODEL), NO_MODEL)[1].stages
    assert (patch.rows_per_step, patch.positions_per_row, patch.rows_per_forward) == (8, 4, 8)
    assert (token.rows_per_step, token.positions_per_row, token.rows_per_forward) == (8, 16, 4)


def test_stages_in_tokens_and_patches_on_one_side() -> None:
    stages = [{"k": 4, "until": "1024tok"}, {"k": 2, "until": "3000tok"}]
    run = run_of(algorithms={"patch_level": {"stages": stages, "seq_len": 16, "patch_inputs": False}})
    first, second, token = run_costs(step_shape(run, NO_MODEL), NO_MODEL)[1].stages
    # A stage ends with the step that reaches its end: 3,000 tokens are in the sixth of 512.
    assert (first.steps, second.steps, token.steps) == (2, 4, 6)
    assert (first.tokens_per_position, first.targets_per_position) == (1, 4)
    assert first.positions_per_step == 512


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_duration": None}, "max_duration is missing"),
        ({"global_train_batch_size": None}, "global_train_batch_size"),
        ({"train_loader": {"name": "pile", "dataset": {}}}, "train_loader.dataset.max_seq_len"),
        ({"max_duration": "2ep"}, "cannot be counted in steps"),
    ],
)
def test_what_a_plan_cannot_do_without(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        step_shape(run_of(**changes), NO_MODEL)


def test_models_that_cannot_be_built() -> None:
    with pytest.raises(ValueError, match=r"model\.name='mtp_causal_lm' is not a model"):
        read_model_facts(run_of(model=MPT | {"name": "mtp_causal_lm"}))
    with pytest.raises(ValueError, match="mpt_causal_lm cannot be built"):
        read_model_facts(run_of(model=MPT | {"n_heads": 5}))
    away = {"name": "hf_causal_lm", "pretrained_model_name_or_path": "nobody/nothing", "pretrained": False}
    facts = read_model_facts(run_of(model=away))
    assert facts.parameters is None
    assert "nobody/nothing" in facts.fault


def test_the_papers_run_costs_half(tmp_path: Path) -> None:
    LlamaConfig(**PAPER_SHAPE).save_pretrained(tmp_path)
    (tmp_path / "paper.yaml").write_text(PAPER.format(folder=tmp_path))
    run = RunFile.read(str(tmp_path / "paper.yaml"))
    model = read_model_facts(run)
    token, this, longer = run_costs(step_shape(run, model, 8), model)
    patch, after = this.stages
    assert (patch.steps, after.steps) == (120_000, 60_000)
    assert this.raw_tokens == 180_000 * 2_097_152
    assert (patch.rows_per_step, after.rows_per_step, after.positions_per_row) == (256, 1024, 2048)
    # The paper's accumulation on 8 GPUs.
    assert (patch.microbatches, after.microbatches) == (8, 32)
    assert model.parameters == pytest.approx(370e6, rel=0.01)
    assert this.flops is not None
    assert token.flops is not None
    assert this.flops / token.flops == pytest.approx(0.5, rel=1e-6)
    assert (longer.steps, longer.flops) == (360_000, pytest.approx(token.flops))
    dense = 24 * (4 * 1024**2 + 3 * 1024 * 2752) + 32000 * 1024
    by_hand = token.raw_tokens * (6 * dense + 12 * 24 * 1024 * 2048)
    assert token.flops == pytest.approx(by_hand, rel=0.01)


def test_mpt_1b() -> None:
    run = RunFile.read(str(ROOT / "yamls" / "mpt-1b-patch.yaml"))
    model = ModelFacts("MPT", vocabulary=50304)
    patch, token = run_costs(step_shape(run, model, 8), model)[1].stages
    assert (patch.steps, token.steps) == (16_534, 8_266)  # as the YAML's own table says
    assert token.logits_bytes == 2 * 50304 * 8 * 2048
    assert (patch.microbatches, token.microbatches) == (2, 8)
