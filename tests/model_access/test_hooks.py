"""The hooks: they read the batch the model is given and no other, whatever happened before.

Shapes: B rows, P positions, K patch size, D hidden size.
"""

from __future__ import annotations

import copy
import gc
import io
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer.core import Event
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.trainer_utils import neftune_post_forward_hook

from patch_algorithm import PatchLevel
from patch_algorithm.model_access.hooks import ModelHooks, detach_hooks
from patch_algorithm.patching import fold_batch, mean_of_patch
from tests.model_access.toys import D, Toy
from tests.runs.families import traces
from tests.runs.short import Watch, make_model, make_padded_rows, make_rows, make_trainer, run
from tests.support import VOCABULARY, metrics

B, P, K = 2, 4, 3


def make_batch(seed: int = 0, padded: bool = False) -> dict[str, Any]:
    """A folded batch, as patch_level gives it to the model."""
    rows = (make_padded_rows if padded else make_rows)(B, P * K, seed)
    return fold_batch({key: torch.stack([row[key] for row in rows]) for key in rows[0]}, K)


def tokens(seed: int) -> dict[str, Tensor]:
    """A token-level batch of the same shape as the folded one's."""
    return {"input_ids": torch.stack([row["input_ids"] for row in make_rows(B, P, seed)])}


def armed(model: ComposerModel, batch: dict[str, Any]) -> ModelHooks:
    hooks = ModelHooks(model)
    hooks.attach()
    model.train()(batch)
    return hooks


def embeddings(model: Any, batch: dict[str, Any]) -> Tensor:
    """What the layers behind the embedding are given."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(batch)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_of_patches_is_read_as_their_means(padded: bool) -> None:
    model, batch = Toy().train(), make_batch(padded=padded)
    ModelHooks(model).attach()
    expected = mean_of_patch(model.embed.weight[batch["patch_ids"]], batch.get("patch_mask"))
    torch.testing.assert_close(embeddings(model, batch), expected)


class ByName(Toy):
    """As T5's and Phi-MoE's modelling code call it here and there."""

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(input=ids)


class Flattened(Toy):
    """As GPT-2's and OPT's modelling code."""

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids.view(-1, ids.shape[-1]))


class Casts(Toy):
    """A cast that changes nothing gives the same tensor back."""

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids.long().to(self.embed.weight.device).contiguous())


class Recomputed(Toy):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def hidden(self, ids: Tensor) -> Tensor:
        # A reentrant checkpoint has gradients only where an input of its has.
        on = torch.ones((), requires_grad=True)
        body = lambda ids, on: self.embed(ids).tanh() * on  # noqa: E731
        return checkpoint(body, ids, on, use_reentrant=self.reentrant)


@pytest.mark.parametrize("kind", [ByName, Flattened, Casts])
def test_ways_to_call_the_embedding(kind: type[Toy]) -> None:
    model, batch = kind().train(), make_batch()
    hooks = armed(model, batch)
    hooks.check_forward(batch)
    torch.testing.assert_close(embeddings(model, batch), model.embed.weight[batch["patch_ids"]].mean(dim=2))
    model.embed.weight.grad = None
    run(make_rows(8, 12), [PatchLevel(k=K, ratio="1ba")], model=kind(), max_duration="2ba")


class Shifts(Toy):
    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids.roll(1, dims=1))


class Clones(Toy):
    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids.clamp(min=0))


class AlsoOthers(Toy):
    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.embed(ids.roll(1, dims=1))


class SmallSecondTable(Toy):
    """Too small to be told by its size."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Embedding(VOCABULARY // 2, D)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.values(ids)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Shifts, r"given ids of shape \(4, 4\) other than the batch's 'input_ids'.*changes its input ids"),
        (Clones, "changes its input ids"),
        (AlsoOthers, "changes its input ids"),
        (SmallSecondTable, rf"a second embedding \(of {VOCABULARY // 2} rows\)"),
    ],
)
def test_models_that_read_other_ids_are_refused(kind: type[Toy], reason: str) -> None:
    """The first three were trained on the unchanged ids without a word, as their shape is the same."""
    model = kind()
    before = model.embed.weight.detach().clone()
    rows = [{key: ids % (VOCABULARY // 2) for key, ids in row.items()} for row in make_rows(8, 12)]
    with pytest.raises(ValueError, match=reason):
        run(rows, [PatchLevel(k=K, ratio="1ba", rehearse_switch=False)], model=model)
    assert torch.equal(model.embed.weight, before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("between", ["nothing", "evaluation", "training forward"])
def test_recomputed_activations_read_what_was_armed(reentrant: bool, between: str) -> None:
    """Whatever else the model is given between the forward and the backward."""
    model, batch = Recomputed(reentrant).train(), make_batch()
    hooks = ModelHooks(model)
    hooks.attach()
    loss = model(batch)["logits"].square().mean()
    if between != "nothing":
        model.train(between != "evaluation")
        plain = model(tokens(5))["logits"]
        torch.testing.assert_close(plain, Recomputed(reentrant)(tokens(5))["logits"], rtol=0, atol=0)
        model.train()
    loss.backward()
    table = model.embed.weight.detach().requires_grad_()
    means = table[batch["patch_ids"]].mean(dim=2).tanh()
    nn.functional.linear(means, model.head.weight, model.head.bias).square().mean().backward()
    torch.testing.assert_close(model.embed.weight.grad, table.grad)


def test_recomputing_from_copies_of_the_ids_is_refused() -> None:
    """A reentrant checkpoint does not see by itself that it computes something else."""

    class Offloaded(Recomputed):
        def hidden(self, ids: Tensor) -> Tensor:
            pack: Callable[[Tensor], Tensor] = lambda tensor: tensor.clone()  # noqa: E731
            with torch.autograd.graph.saved_tensors_hooks(pack, pack):
                return super().hidden(ids)

    with pytest.raises(ValueError, match=r"copies of the ids .*out of the checkpointed part"):
        run(make_rows(8, 12), [PatchLevel(k=K, ratio="1ba", rehearse_switch=False)], model=Offloaded(True))


STALE: dict[str, Callable[[Any, dict[str, Tensor]], Any]] = {
    "called": lambda model, batch: model(batch)["logits"],
    "called by name": lambda model, batch: model(batch=batch)["logits"],
    "unhooked": lambda model, batch: model.forward(batch)["logits"],
    "embedding": lambda model, batch: model.embed(batch["input_ids"]),
}


@pytest.mark.parametrize("call", STALE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ids", ["other", "own"])
def test_whoever_comes_next_meets_an_ordinary_model(call: str, training: bool, ids: str) -> None:
    """In training mode, of the same shape and with the very ids, too: as after a fit that broke off."""
    model, last = Toy(), make_batch(0)
    hooks = armed(model, last)
    model.train(training)
    batch = tokens(1) if ids == "other" else {"input_ids": last["input_ids"]}
    assert batch["input_ids"].shape == last["input_ids"].shape
    assert torch.equal(STALE[call](model, batch), STALE[call](Toy(), batch))
    hooks.detach()
    assert torch.equal(STALE[call](model, batch), STALE[call](Toy(), batch))


def test_the_trainers_batch_stays_as_it_is() -> None:
    """The ids of one call are the model's alone."""
    model, batch = Toy(), make_batch()
    before = dict(batch)
    armed(model, batch)
    assert list(batch) == list(before)
    assert all(batch[key] is before[key] for key in before)


def test_a_forward_cut_short_arms_nothing_by_halves() -> None:
    model, lookup = Toy().train(), ModelHooks(Toy())._lookup  # pyright: ignore[reportPrivateUsage]
    first, second = make_batch(0), make_batch(1)

    class Cut(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            raise KeyboardInterrupt

    armed_first: Any = lookup.arm(model, (first,), {})
    ids_BP = armed_first[0][0]["input_ids"]
    assert lookup.look_up_patches(model.embed, (ids_BP,), {}) is not None
    with pytest.raises(KeyboardInterrupt):
        lookup.arm(model, (Cut(second),), {})
    assert lookup.look_up_patches(model.embed, (ids_BP,), {}) is None


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_made_in_mid_step_is_an_ordinary_model(way: str) -> None:
    model = make_model(learned_pos_emb=True, attn_config={"rope": False})
    ids = make_batch(0)
    hooks = armed(model, ids)
    hooks.replace_loss(torch.zeros(()), "outputs", ids)
    if way == "deepcopy":
        copied: Any = copy.deepcopy(model)
    else:
        hooks.restore_loss()
        torch.save(model, stream := io.BytesIO())
        copied = torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    unseen: Any = make_model(learned_pos_emb=True, attn_config={"rope": False}).train()
    batch = make_batch(1) | {"labels": tokens(1)["input_ids"]}
    for given in (batch, ids, tokens(2) | {"labels": batch["labels"]}):
        expected = unseen(given)
        assert torch.equal(copied.train()(given)["logits"], expected["logits"])
        given = given | {"labels": batch["labels"]}
        assert torch.equal(copied.loss(expected, given), unseen.loss(expected, given))
    assert copied.loss(expected, batch) is not model.loss_fn
    assert getattr(copied.loss, "__self__", None) is copied


def test_neftune_adds_as_much_noise_as_at_token_level() -> None:
    """Its noise is alpha / sqrt(positions * D); it once saw [B, P, K, D] and made it of K instead."""
    model: Any = Toy().train()
    model.embed.neftune_noise_alpha = 5.0
    model.embed.register_forward_hook(neftune_post_forward_hook)
    shapes: list[torch.Size] = []
    model.embed.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    batch = make_batch()
    ModelHooks(model).attach()
    noise = embeddings(model, batch) - model.embed.weight[batch["patch_ids"]].mean(dim=2)
    most = 5.0 / math.sqrt(P * D)
    assert shapes == [(B, P, D)]
    assert 0.8 * most < float(noise.abs().max()) <= most


def test_hooks_of_the_user_that_come_first_change_the_ids() -> None:
    """Ours are in front, so that theirs see all of a patch's tokens, and what they make of them counts."""
    model: Any = Toy().train()
    model.embed.register_forward_pre_hook(lambda module, args: (args[0] * 0 + 7,))
    hooks, batch = ModelHooks(model), make_batch()
    hooks.attach()
    expected = model.embed.weight[7].expand(B, P, D).contiguous()
    torch.testing.assert_close(embeddings(model, batch), expected)
    hooks.check_forward(batch)


def test_detach_leaves_nothing() -> None:
    model, batch = Toy(), make_batch()
    before = traces(model)
    hooks = armed(model, batch)
    hooks.replace_loss(torch.zeros(()), "outputs", batch)
    assert traces(model) != before
    held = weakref.ref(batch["patch_ids"])
    hooks.detach()
    assert traces(model) == before, "neither hooks nor the loss"
    assert not hooks.attached
    batch.clear()
    gc.collect()
    assert held() is None, "nor the last batch"


def test_a_second_run_takes_the_hooks_of_the_first_off() -> None:
    model, batch = Toy(), make_batch()
    before = traces(model)
    first = armed(model, batch)
    first.replace_loss(torch.zeros(()), "outputs", batch)
    second = ModelHooks(model)
    second.attach()
    assert second.attached
    assert not first.attached
    model(batch)
    second.check_forward(batch)  # looked up once, not twice
    first.detach()
    assert second.attached, "which a late end of the first run leaves alone"
    detach_hooks(model)
    assert traces(model) == before


def test_models_are_not_kept_alive() -> None:
    model = Toy()
    hooks = armed(model, make_batch())
    gone = weakref.ref(model)
    del model, hooks
    gc.collect()
    assert gone() is None


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


def test_arming_and_reading_never_wait_for_a_device() -> None:
    """On the device ``meta`` every such wait is an error."""
    model = Toy().to("meta").train()
    batch = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in make_batch(padded=True).items()}
    hooks = armed(model, batch)
    outputs: Any = model(batch)
    hooks.check_forward(batch)
    hooks.replace_loss(torch.zeros((), device="meta"), outputs, batch)
    assert model.loss(outputs, batch).shape == ()
    hooks.check_backward()
    hooks.disarm()


# What happens to a batch between our fold and the model.


def edited(event: Event, change: Callable[[Any], None]) -> None:
    run(
        make_rows(8, 12),
        [PatchLevel(k=K, ratio="2ba", rehearse_switch=False)],
        model=Toy(),
        max_duration="3ba",
        device_train_microbatch_size=2,
        callbacks=[Watch(event, lambda state: change(state.batch))],
    )


def replaced(batch: Any) -> None:
    batch["input_ids"] = batch["input_ids"].roll(1, dims=1)


def in_place(batch: Any) -> None:
    batch["input_ids"][:, 1] = 0


@pytest.mark.parametrize("event", [Event.BATCH_START, Event.BEFORE_FORWARD])
@pytest.mark.parametrize("change", [replaced, in_place])
def test_edits_of_folded_ids_are_refused(event: Event, change: Callable[[Any], None]) -> None:
    with pytest.raises(ValueError, match=r"'input_ids' were changed after patch_level folded the batch"):
        edited(event, change)


def test_edits_by_microbatch_transforms_are_refused() -> None:
    model = Toy()
    trainer = make_trainer(make_rows(8, 12), [PatchLevel(k=K, ratio="2ba")], model=model, max_duration="3ba")
    data: Any = trainer._train_data_spec  # pyright: ignore[reportPrivateUsage]
    data.microbatch_transforms = lambda batch: batch | {"input_ids": batch["input_ids"] * 0}
    before = model.embed.weight.detach().clone()
    with pytest.raises(ValueError, match="'input_ids' were changed"):
        trainer.fit()
    assert torch.equal(model.embed.weight, before)


def test_edits_of_ids_and_patches_alike_are_honoured() -> None:
    def change(batch: Any) -> None:
        batch["patch_ids"] = torch.full_like(batch["patch_ids"], 5)
        batch["input_ids"] = torch.full_like(batch["input_ids"], 5)

    model, seen = Toy(), []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    weight = model.embed.weight[5].detach().clone()
    run(
        make_rows(4, 12),
        [PatchLevel(k=K, ratio="1ba", rehearse_switch=False)],
        model=model,
        max_duration="2ba",
        callbacks=[
            Watch(Event.BATCH_START, lambda state: "patch_ids" in state.batch and change(state.batch))
        ],
    )
    torch.testing.assert_close(seen[0], weight.expand_as(seen[0]))


def test_lost_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"The batch has lost 'patch_ids' .*holds \['input_ids'"):
        edited(Event.BATCH_START, lambda batch: batch.pop("patch_ids"))


def test_edits_at_token_level_are_honoured() -> None:
    """And are no business of ours."""

    def change(state: Any) -> None:
        if state.timestamp.batch == 1:
            state.batch["input_ids"].zero_()

    def losses(*callbacks: Any) -> list[float]:
        algorithm = PatchLevel(k=K, ratio="1ba")
        trainer = run(make_rows(8, 12), [algorithm], model=Toy(), max_duration="2ba", callbacks=callbacks)
        return metrics(trainer, "loss/train/total")

    changed, plain = losses(Watch(Event.BATCH_START, change)), losses()
    assert changed[0] == plain[0]
    assert changed[1] != plain[1]
