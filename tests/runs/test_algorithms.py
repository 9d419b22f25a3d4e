"""Composer's and llm-foundry's own algorithms beside patch_level: they work, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.algorithms import (
    EMA,
    Alibi,
    GatedLinearUnits,
    GradientClipping,
    LabelSmoothing,
    LowPrecisionLayerNorm,
)
from composer.algorithms.low_precision_layernorm.low_precision_layernorm import LPLayerNorm
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Event, State
from composer.models import ComposerModel
from transformers import GPT2Config

from patch_algorithm import PatchLevel
from tests.runs.families import plain_model
from tests.runs.short import (
    Watch,
    make_padded_rows,
    make_rows,
    make_trainer,
    optimizer_tensors,
    run,
    same,
    saving,
)
from tests.support import VOCABULARY, metrics, weights

ROWS = make_rows(32, 16)
PADDED = make_padded_rows(32, 16)
STAGES = [0, 0, 0, 1, 1, 1]


def patch_level() -> PatchLevel:
    return PatchLevel(k=4, ratio="3ba", on_switch="reset")


def gpt2(corpus: Path, folder: Path) -> ComposerModel:
    """A tiny GPT-2 with a context of 16, the only decoder that Composer's alibi knows."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 94, "eos_token_id": 94}
    GPT2Config(**sizes, **drops, **ids).save_pretrained(folder / "gpt2")  # pyright: ignore
    torch.manual_seed(0)
    return plain_model(
        {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(folder / "gpt2"), "pretrained": False},
        corpus,
    )


@pytest.mark.parametrize(
    ("kind", "first"), [("norm", True), ("norm", False), ("value", True), ("adaptive", True)]
)
def test_gradient_clipping_clips_in_both_stages(kind: str, first: bool) -> None:
    sizes: list[float] = []

    def measure(state: State) -> None:
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        if kind == "value":
            sizes.append(float(max(g.abs().max() for g in gradients)))
        else:
            sizes.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    def clipped(threshold: float) -> Any:
        sizes.clear()
        algorithms = [GradientClipping(clipping_type=kind, clipping_threshold=threshold)]
        algorithms.insert(1 if first else 0, patch_level())  # pyright: ignore[reportArgumentType]
        watch = Watch(Event.BATCH_END, measure)
        trainer = run(
            PADDED,
            algorithms,
            max_duration="6ba",
            callbacks=[watch],
            optimizer=torch.optim.SGD,
            device_train_microbatch_size=2,
        )
        assert metrics(trainer, "patch_level/stage") == STAGES
        return metrics(trainer, "loss/train/total"), list(sizes)

    losses, free = clipped(1e6)
    plain = run(
        PADDED,
        [patch_level()],
        max_duration="6ba",
        optimizer=torch.optim.SGD,
        device_train_microbatch_size=2,
    )
    if kind != "adaptive":  # that one holds weights of zero, as biases are at first, whatever its threshold
        assert losses == metrics(plain, "loss/train/total"), "nothing reaches the threshold"
    threshold = 0.01
    assert min(free) > 2 * threshold, "or nothing below is clipped"
    losses, held = clipped(threshold)
    assert losses[1:] != metrics(plain, "loss/train/total")[1:]
    if kind == "adaptive":
        assert held[0] < free[0]  # of the same weights
    else:
        assert max(held) <= threshold * 1.001


def test_alibi_with_rows_of_their_own_length(corpus: Path, tmp_path: Path) -> None:
    runs = []
    for order in (1, -1):
        alibi = Alibi(max_sequence_length=16, train_sequence_length_scaling=1.0)
        model: Any = gpt2(corpus, tmp_path)
        trainer = run(ROWS, [alibi, patch_level()][::order], model=model, max_duration="6ba")
        assert metrics(trainer, "patch_level/stage") == STAGES
        assert not model.model.transformer.wpe.weight.requires_grad, "alibi takes the place of positions"
        runs.append(metrics(trainer, "loss/train/total"))
    assert runs[0] == runs[1], "whatever their order"


def test_alibi_that_shortens_rows_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = gpt2(corpus, tmp_path)
    with pytest.raises(ValueError, match=r"Alibi.*train_sequence_length_scaling.*1"):
        make_trainer(ROWS, [patch_level(), Alibi(max_sequence_length=16)], model=model)


def test_label_smoothing_is_refused() -> None:
    with pytest.raises(ValueError, match="LabelSmoothing"):
        make_trainer(ROWS, [patch_level(), LabelSmoothing(target_key="labels")])


def test_second_derivatives_are_refused() -> None:
    class SecondOrder(GradientClipping):
        backwards_create_graph = True

    with pytest.raises(ValueError, match=r"SecondOrder: it needs second derivatives"):
        make_trainer(ROWS, [patch_level(), SecondOrder("norm", 1.0)])


def test_gated_linear_units_refuse_decoders_themselves() -> None:
    with pytest.raises(TypeError, match="BertPreTrainedModel"):
        make_trainer(ROWS, [patch_level(), GatedLinearUnits()])


def test_low_precision_layernorm_in_fp32_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    def losses(*algorithms: Any) -> list[float]:
        model = gpt2(corpus, tmp_path)
        return metrics(
            run(ROWS, [patch_level(), *algorithms], model=model, max_duration="6ba"), "loss/train/total"
        )

    with pytest.warns(NoEffectWarning, match="Low Precision LayerNorm only applies"):
        low = losses(LowPrecisionLayerNorm())
    assert low == losses()


def test_low_precision_layernorms_meet_patches(corpus: Path, tmp_path: Path) -> None:
    """The layers that the algorithm puts in under amp; their low precision itself needs a GPU."""
    replaced: Any = gpt2(corpus, tmp_path)
    for block in replaced.model.transformer.h:
        low = LPLayerNorm(16)
        low.load_state_dict(block.ln_1.state_dict())
        block.ln_1 = low
    ours = run(ROWS, [patch_level()], model=replaced, max_duration="6ba")
    plain = run(ROWS, [patch_level()], model=gpt2(corpus, tmp_path), max_duration="6ba")
    assert metrics(ours, "loss/train/total") == metrics(plain, "loss/train/total")


def ema() -> EMA:
    return EMA(half_life="2ba", update_interval="1ba")


def test_ema_averages_over_the_switch_and_leaves_training_alone() -> None:
    seen: list[dict[str, torch.Tensor]] = []
    watch = Watch(
        Event.BATCH_END,
        lambda state: seen.append({n: p.detach().clone() for n, p in state.model.named_parameters()}),
    )
    average = ema()
    trainer = run(PADDED, [patch_level(), average], max_duration="6ba", callbacks=[watch])
    plain = run(PADDED, [patch_level()], max_duration="6ba")
    assert metrics(trainer, "loss/train/total") == metrics(plain, "loss/train/total")
    assert same(weights(trainer).values(), weights(plain).values())
    expected, smoothing = seen[0], 2**-0.5
    for step in seen[1:]:
        expected = {n: smoothing * expected[n] + (1 - smoothing) * p for n, p in step.items()}
    held: Any = average.ema_model
    for name, parameter in expected.items():
        torch.testing.assert_close(held.named_parameters_dict[name], parameter, rtol=1e-5, atol=1e-7)


def test_ema_is_resumed_at_the_switch(tmp_path: Path) -> None:
    """The checkpoint of the switch holds the average as the model, as all of EMA's checkpoints do."""
    whole = run(PADDED, [patch_level(), ema()], max_duration="6ba", **saving(tmp_path))
    for batch in (2, 3, 4):
        path = str(tmp_path / f"ba{batch}.pt")
        again = run(PADDED, [patch_level(), average := ema()], max_duration="6ba", load_path=path)
        assert metrics(again, "loss/train/total") == metrics(whole, "loss/train/total")[batch:], batch
        assert same(optimizer_tensors(again), optimizer_tensors(whole))
        assert average.ema_started


def test_ema_saves_where_only_the_switch_asks_for_it(tmp_path: Path) -> None:
    average = ema()
    folder = {"save_folder": str(tmp_path), "save_interval": "6ba", "save_filename": "ba{batch}.pt"}
    run(PADDED, [patch_level(), average], max_duration="6ba", **folder)
    saved = torch.load(tmp_path / "ba3.pt", weights_only=False)["state"]
    assert dict(saved["algorithms"])["EMA"]["ema_weights_active"], "EMA saw that a checkpoint was due"
