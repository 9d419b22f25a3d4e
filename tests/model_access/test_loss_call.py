"""The patch loss takes the place of any loss that Composer trains; terms of one's own are added."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Event
from composer.models import ComposerModel
from llmfoundry.layers_registry import ffns_with_megablocks
from torch import Tensor

from patch_algorithm import PatchLevel
from patch_algorithm.loss import patch_cross_entropy
from patch_algorithm.model_access.hooks import ModelHooks
from patch_algorithm.model_access.loss_call import has_own_loss
from patch_algorithm.model_access.reading import router_loss_weight
from tests.model_access.batches import armed, make_batch, tokens
from tests.model_access.toys import Toy, next_token_loss
from tests.runs.families import family, plain_model
from tests.runs.short import Watch, make_model, make_rows, make_trainer, run
from tests.support import metrics

T, K = 16, 4
SAID = "patch_loss_terms(outputs, batch)"


def z_loss(outputs: Any) -> Tensor:
    return 0.1 * outputs["logits"].logsumexp(dim=-1).square().mean()


class WithZLoss(Toy):
    """Its own loss is not known to have two terms."""

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return next_token_loss(outputs["logits"], batch) + z_loss(outputs)


class WithTerms(WithZLoss):
    def patch_loss_terms(self, outputs: Any, batch: Any) -> Any:
        assert batch["patch_targets"].dim() == 3
        return z_loss(outputs)


class WithNamedTerms(WithZLoss):
    def patch_loss_terms(self, outputs: Any, batch: Any) -> Any:
        return {"z": z_loss(outputs), "nothing": outputs["logits"].sum() * 0}


class NamedParts(Toy):
    """A dict without a total, whose parts the trainer adds up."""

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return {"language": next_token_loss(outputs["logits"], batch), "z": z_loss(outputs)}


class Parts(NamedParts):
    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return tuple(super().loss(outputs, batch).values())


class AnotherKey(Toy):
    """Reads what only the token stage's batches hold."""

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        kept = batch["labels"].masked_fill(batch["domain"][:, None] < 0, -100)
        return next_token_loss(outputs["logits"], {"labels": kept})


class BareLogits(Toy):
    def forward(self, batch: Any) -> Any:
        return super().forward(batch)["logits"]

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return next_token_loss(outputs, batch)


def rows() -> list[dict[str, Tensor]]:
    return [row | {"domain": torch.tensor(1)} for row in make_rows(16, T)]


def train(model: ComposerModel, **changes: Any) -> dict[str, Any]:
    """Two patch steps and two token steps; what the first step should have been and was."""
    seen: dict[str, Any] = {}

    def expect(state: Any) -> None:
        if "logits" not in seen:
            outputs = state.outputs
            seen["logits"] = outputs if isinstance(outputs, Tensor) else outputs.get("logits")
            if seen["logits"] is None:
                return
            seen["patch"] = patch_cross_entropy(seen["logits"], state.batch["patch_targets"]).mean
            seen["z"] = z_loss({"logits": seen["logits"]})
            (seen["gradient of z"],) = torch.autograd.grad(seen["z"], model.head.bias, retain_graph=True)  # pyright: ignore
            (seen["gradient"],) = torch.autograd.grad(seen["patch"], model.head.bias, retain_graph=True)  # pyright: ignore

    def keep(state: Any) -> None:
        seen.setdefault("got", model.head.bias.grad.clone())  # pyright: ignore

    trainer = make_trainer(
        rows(),
        [PatchLevel(k=K, ratio="2ba", **changes)],
        model=model,
        max_duration="4ba",
        callbacks=[Watch(Event.AFTER_FORWARD, expect), Watch(Event.AFTER_BACKWARD, keep)],
        optimizer=torch.optim.SGD,
        accumulate_train_batch_on_tokens=False,
    )
    trainer.fit()
    assert metrics(trainer, "patch_level/stage") == [0, 0, 1, 1]
    losses = metrics(trainer, "loss/train/total")
    assert torch.isfinite(torch.tensor(losses)).all()
    return seen | {"losses": losses, "trainer": trainer}


@pytest.mark.parametrize("kind", [Toy, WithZLoss, NamedParts, Parts, AnotherKey, BareLogits])
def test_losses_of_every_kind_train_in_both_stages(
    kind: type[Toy], capfd: pytest.CaptureFixture[str]
) -> None:
    seen = train(kind())
    assert seen["losses"][0] == pytest.approx(float(seen["patch"]), rel=1e-6)
    torch.testing.assert_close(seen["got"], seen["gradient"])
    assert capfd.readouterr().err.count(f"instead of {kind.__name__}.loss") == 1, "said once"


@pytest.mark.parametrize("kind", [WithTerms, WithNamedTerms])
def test_terms_of_ones_own(kind: type[Toy], capfd: pytest.CaptureFixture[str]) -> None:
    seen = train(kind())
    patch, z = float(seen["patch"]), float(seen["z"])
    assert z > 0.1
    assert seen["losses"][0] == pytest.approx(patch + z, rel=1e-6)
    torch.testing.assert_close(seen["got"], seen["gradient"] + seen["gradient of z"])
    assert SAID not in capfd.readouterr().err
    named = kind is WithNamedTerms
    assert metrics(seen["trainer"], "loss/train/z")[:1] == ([pytest.approx(z, rel=1e-6)] if named else [])
    assert metrics(seen["trainer"], "loss/train/loss")[:1] == (
        [pytest.approx(patch, rel=1e-6)] if named else []
    )


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (1.0, r"returned float; expected a scalar tensor or a mapping"),
        (torch.ones(2), r"returned a tensor of shape \(2,\)"),
        ({"z": None}, r"returned \{'z': NoneType\}"),
        ({"total": torch.ones(())}, r"names a term 'total'"),
    ],
    ids=str,
)
def test_terms_that_are_none(terms: Any, reason: str) -> None:
    model: Any = WithZLoss()
    model.patch_loss_terms = lambda outputs, batch: terms
    with pytest.raises(ValueError, match=reason):
        train(model)
    assert "loss" not in vars(model)


def test_the_loss_of_an_instance_is_one_of_its_own() -> None:
    model: Any = make_model()
    assert not has_own_loss(model)
    model.loss = lambda outputs, batch: model.loss_fn(outputs, batch)
    assert has_own_loss(model)


@pytest.mark.parametrize("name", ["mpt-tied-rope", "llama", "mixtral"])
def test_nothing_is_said_of_known_losses(
    name: str, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = plain_model(family(name, tmp_path), corpus)
    make_trainer(make_rows(4, 32), [PatchLevel(k=4, ratio="1ba")], model=model, max_duration="2ba").fit()
    assert SAID not in capfd.readouterr().err


def test_outputs_without_logits_are_refused() -> None:
    model: Any = Toy()
    forward = model.forward
    model.forward = lambda batch: {"scores": forward(batch)["logits"]}
    with pytest.raises(ValueError, match=r"returned dict of \['scores'\]\. .*needs the logits"):
        train(model, rehearse_switch=False)


def test_the_models_own_loss_is_not_called_in_patch_steps() -> None:
    """On MPT it waits for the device at every microbatch."""
    model: Any = make_model()
    own, calls = type(model).loss, []
    model.loss_fn.register_forward_hook(lambda *_: calls.append(1))
    trainer = make_trainer(
        make_rows(16, T),
        [PatchLevel(k=K, ratio="2ba", rehearse_switch=False)],
        model=model,
        max_duration="3ba",
        device_train_microbatch_size=2,
    )
    trainer.fit()
    assert len(calls) == 2, "the microbatches of the token step"
    assert type(model).loss is own


@pytest.mark.parametrize(
    ("name", "weight"),
    [("router_aux_loss_coef", 0.5), ("aux_loss_coef", 0.25), ("moe_loss_weight", 0.125)],
)
def test_weights_of_router_losses(name: str, weight: float) -> None:
    """As Mixtral, JetMoE and DBRX call them."""
    model: Any = Toy()
    with pytest.raises(ValueError, match=r"gives its weight \(router_aux_loss_coef"):
        router_loss_weight(model)
    model.model = types.SimpleNamespace(**{name: weight})
    assert router_loss_weight(model) == weight


def test_megablocks_router_loss_of_mpt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own loss is asked for it, with labels that are all ignored; MegaBlocks itself needs a GPU."""
    model: Any = make_model()
    calls: list[Any] = []
    moe: Any = types.ModuleType("megablocks.layers.moe")
    moe.clear_load_balancing_loss = lambda: None
    weight = model.model.transformer.wte.weight
    moe.batched_load_balancing_loss = lambda args: calls.append(args) or 0.5 * weight.square().mean()
    layers: Any = types.ModuleType("megablocks.layers")
    layers.moe = moe
    for name, module in {
        "megablocks": layers,
        "megablocks.layers": layers,
        "megablocks.layers.moe": moe,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    if "toy_moe" not in ffns_with_megablocks:
        ffns_with_megablocks.register("toy_moe", func=lambda: None)
    monkeypatch.setitem(model.config.ffn_config, "ffn_type", "toy_moe")
    model.model.transformer.mb_args = "arguments"
    trainer = make_trainer(
        make_rows(4, T),
        [PatchLevel(k=K, ratio="1ba", rehearse_switch=False)],
        model=model,
        max_duration="2ba",
    )
    router = float(0.5 * weight.square().mean())
    trainer.fit()
    assert calls == ["arguments"] * 2, "once for each stage's step"
    patch = metrics(trainer, "patch_level/loss")[0]
    assert metrics(trainer, "loss/train/total")[0] == pytest.approx(patch + router, rel=1e-6)
    assert metrics(trainer, "loss/train/lbl")[0] == pytest.approx(router, rel=1e-6)
    assert metrics(trainer, "loss/train/loss")[0] == pytest.approx(patch, rel=1e-6)


def test_a_loss_of_the_instance_is_given_back() -> None:
    model: Any = make_model()
    of_class, calls = model.loss, []

    def loss(outputs: Any, batch: Any) -> Any:
        calls.append(batch["labels"].shape)
        return of_class(outputs, batch)

    model.loss = loss
    run(
        make_rows(16, 16),
        [PatchLevel(k=2, ratio=0.5, rehearse_switch=False)],
        model=model,
        max_duration="4ba",
        device_train_microbatch_size=2,
    )
    assert vars(model)["loss"] is loss
    assert calls == [(2, 16)] * 4, "called for every microbatch of the token stage, with its own batch"


def test_a_loss_replaced_by_a_run_that_broke_off_gives_itself_back() -> None:
    model, batch = Toy(), make_batch()
    hooks = armed(model, batch)
    outputs: Any = model(batch)
    hooks.replace_loss(torch.zeros(()), outputs, batch)
    other = tokens(1) | {"labels": tokens(1)["input_ids"]}
    assert torch.equal(model.loss(model(other), other), Toy().loss(Toy()(other), other))
    assert "loss" not in vars(model)


def test_a_loss_that_is_broken_off_is_given_back() -> None:
    class Stops(Toy):
        def patch_loss_terms(self, outputs: Any, batch: Any) -> Any:
            raise KeyboardInterrupt

    model, batch = Stops(), make_batch()
    outputs: Any = armed(model, batch) and model(batch)
    ModelHooks(model).replace_loss(torch.zeros(()), outputs, batch)
    with pytest.raises(KeyboardInterrupt):
        model.loss(outputs, batch)
    assert "loss" not in vars(model)


class StaticLoss(Toy):
    @staticmethod
    def loss(outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return next_token_loss(outputs["logits"], batch)


@pytest.mark.parametrize("copied", [False, True])
def test_a_static_loss_is_called_as_one_after_a_run_that_broke_off(copied: bool) -> None:
    model, batch = StaticLoss(), make_batch()
    outputs: Any = armed(model, batch) and model(batch)
    ModelHooks(model).replace_loss(torch.zeros(()), outputs, batch)
    if copied:
        model = copy.deepcopy(model, {id(outputs): outputs, id(batch): batch})
    other = tokens(1) | {"labels": tokens(1)["input_ids"]}
    assert torch.equal(model.loss(model(other), other), Toy().loss(Toy()(other), other))


def test_a_copy_made_in_mid_step_has_no_loss_of_its_own() -> None:
    model: Any = make_model(learned_pos_emb=True, attn_config={"rope": False})
    batch = make_batch()
    armed(model, batch).replace_loss(torch.zeros(()), "outputs", batch)
    assert not has_own_loss(copy.deepcopy(model))
