"""Low precision and microbatches of the trainer's own choice: by dtype on CPU, in full on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Event, State

from patch_algorithm import PatchLevel
from patch_algorithm.patching import mean_of_patch
from tests.runs.families import family
from tests.runs.short import Watch, make_model, make_padded_rows, make_trainer, run
from tests.support import config, metrics, mpt, train

PADDED = make_padded_rows(32, 16)
STAGES = [0, 0, 0, 1, 1, 1]


def test_autocast_on_cpu_keeps_losses_gradients_and_means_in_float32() -> None:
    """The trainer refuses amp on CPUs; here the model's forward runs under autocast, as under amp."""
    seen: dict[str, set[torch.dtype]] = {"logits": set(), "loss": set(), "gradients": set()}

    def after_forward(state: State) -> None:
        outputs: Any = state.outputs
        seen["logits"].add(outputs["logits"].dtype)

    def after_loss(state: State) -> None:
        # The token stage's is the model's own, which amp wraps in autocast, too.
        if state.timestamp.batch < 3:
            assert isinstance(state.loss, torch.Tensor)
            seen["loss"].add(state.loss.dtype)

    def after_backward(state: State) -> None:
        seen["gradients"] |= {p.grad.dtype for p in state.model.parameters() if p.grad is not None}

    watches = [
        Watch(Event.AFTER_FORWARD, after_forward),
        Watch(Event.AFTER_LOSS, after_loss),
        Watch(Event.AFTER_BACKWARD, after_backward),
    ]
    model: Any = make_model()
    forward = model.forward

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(*args, **kwargs)

    model.forward = under_autocast
    ours = run(PADDED, [PatchLevel(k=4, ratio="3ba")], model=model, max_duration="6ba", callbacks=watches)
    full = run(PADDED, [PatchLevel(k=4, ratio="3ba")], max_duration="6ba")
    assert seen == {"logits": {torch.bfloat16}, "loss": {torch.float32}, "gradients": {torch.float32}}
    assert metrics(ours, "patch_level/stage") == STAGES
    low, high = (metrics(trainer, "loss/train/total") for trainer in (ours, full))
    assert low != high
    assert low == pytest.approx(high, rel=2e-2)


def test_weights_in_bfloat16_meet_means_made_in_float32() -> None:
    """As under FSDP with ``mixed_precision: PURE``, whose units hold their weights in low precision."""
    outputs: list[torch.Tensor] = []
    ids: list[torch.Tensor] = []
    model: Any = make_model().to(torch.bfloat16)
    embedding = model.model.get_input_embeddings()

    def look(module: Any, args: Any, output: torch.Tensor) -> None:
        if args[0].dim() == 3 and not args[0].is_floating_point():
            ids.append(args[0].clone())
            outputs.append(output.detach().clone())

    trainer = make_trainer(PADDED, [PatchLevel(k=4, ratio="1ba")], model=model, max_duration="2ba")
    watch = Watch(Event.FIT_START, lambda _: embedding.register_forward_hook(look))
    trainer.state.callbacks.append(watch)  # after patch_level, whose hooks come first
    weight = embedding.weight.detach().clone()
    batch: dict[str, Any] = {}
    trainer.state.callbacks.append(
        Watch(Event.BEFORE_FORWARD, lambda state: batch.update(batch or state.batch))
    )
    trainer.fit()
    (ids_BPK,), (means_BPD,) = ids, outputs
    rows_BPKD = weight[ids_BPK].double() * batch["patch_mask"][..., None]
    exact_BPD = rows_BPKD.sum(dim=2) / batch["patch_mask"].sum(dim=2, keepdim=True).clamp(min=1)
    assert means_BPD.dtype is torch.bfloat16
    assert torch.equal(means_BPD, exact_BPD.float().to(torch.bfloat16))
    # In bfloat16 throughout, some of them would come out otherwise.
    rough_BPD = mean_in_bfloat16(weight[ids_BPK], batch["patch_mask"])
    assert not torch.equal(means_BPD, rough_BPD)
    assert torch.equal(means_BPD, mean_of_patch(weight[ids_BPK], batch["patch_mask"]))


def mean_in_bfloat16(embeds_BPKD: torch.Tensor, mask_BPK: torch.Tensor) -> torch.Tensor:
    total_BPD = torch.zeros_like(embeds_BPKD[:, :, 0])
    for place in range(embeds_BPKD.shape[2]):
        total_BPD = total_BPD + embeds_BPKD[:, :, place] * mask_BPK[:, :, place, None].to(embeds_BPKD.dtype)
    return total_BPD / mask_BPK.sum(dim=2, keepdim=True).clamp(min=1).to(embeds_BPKD.dtype)


@pytest.mark.parametrize("at", ["forward", "backward"])
def test_a_step_tried_again_in_smaller_microbatches_is_the_same_step(at: str) -> None:
    """What ``device_train_microbatch_size: auto`` does where a step runs out of memory, planted on a CPU."""
    planted = {0: 4, 3: 2}  # at these batches, what does not fit: the first step and the switch
    tries: list[int] = []

    def plant(state: State) -> None:
        batch, rows = int(state.timestamp.batch.value), state.batch["input_ids"].shape[0]
        tries.append(rows)
        if rows == planted.get(batch):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def losses(automatic: bool) -> list[float]:
        event = Event.AFTER_FORWARD if at == "forward" else Event.AFTER_BACKWARD
        trainer = make_trainer(
            PADDED,
            [PatchLevel(k=4, ratio="3ba")],
            max_duration="6ba",
            optimizer=torch.optim.SGD,
            callbacks=[Watch(event, plant)] if automatic else [],
        )
        trainer.state.auto_microbatching = automatic
        trainer.fit()
        assert metrics(trainer, "patch_level/stage") == STAGES
        logged = metrics(trainer, "loss/train/total") + metrics(trainer, "patch_level/loss")
        return logged

    again = losses(True)
    assert tries[:3] == [4, 2, 2]
    assert tries[-4:] == [1] * 4
    assert again == pytest.approx(losses(False), rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["mpt", "llama"])
@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
def test_amp_trains_both_stages(kind: str, precision: str, corpus: Path, tmp_path: Path) -> None:
    """amp_fp16 comes with Composer's gradient scaler."""
    algorithms = {"patch_level": {"k": 4, "ratio": 0.5}}
    model = mpt() if kind == "mpt" else family("llama", tmp_path)
    cfg = config(corpus, model, algorithms=algorithms, device_train_microbatch_size=2)
    low, full = train(cfg | {"precision": precision}), train(cfg)
    assert metrics(low, "patch_level/stage") == STAGES
    expected = metrics(full, "loss/train/total")
    assert metrics(low, "loss/train/total") == pytest.approx(expected, rel=2e-2)
    assert {p.dtype for p in low.state.model.parameters()} == {torch.float32}


@pytest.mark.gpu
def test_automatic_microbatches_train_both_stages(corpus: Path) -> None:
    algorithms = {"patch_level": {"k": 4, "ratio": 0.5, "scale_microbatch": True}}
    cfg = config(corpus, mpt(max_seq_len=32), algorithms=algorithms)
    automatic = train(cfg | {"device_train_microbatch_size": "auto"})
    assert metrics(automatic, "patch_level/stage") == STAGES
    assert metrics(automatic, "loss/train/total") == pytest.approx(
        metrics(train(cfg), "loss/train/total"), rel=1e-5
    )
    assert automatic.state.auto_microbatching


@pytest.mark.gpu
def test_low_precision_layernorm_under_amp(corpus: Path, tmp_path: Path) -> None:
    algorithms = {"patch_level": {"k": 4, "ratio": 0.5}, "low_precision_layernorm": {}}
    cfg = config(corpus, family("gpt2", tmp_path), algorithms=algorithms, precision="amp_bf16")
    trainer = train(cfg)
    assert metrics(trainer, "patch_level/stage") == STAGES
    assert any(type(module).__name__ == "LPLayerNorm" for module in trainer.state.model.modules())
