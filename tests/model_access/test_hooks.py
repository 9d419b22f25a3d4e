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
from torch import Tensor
from transformers.trainer_utils import neftune_post_forward_hook

from patch_algorithm.model_access.hooks import ModelHooks, detach_hooks
from patch_algorithm.patching import mean_of_patch
from tests.model_access.batches import B, P, armed, embeddings, make_batch, tokens
from tests.model_access.toys import D, Toy
from tests.runs.families import traces
from tests.runs.short import make_model
from tests.support import VOCABULARY


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_of_patches_is_read_as_their_means(padded: bool) -> None:
    model, batch = Toy().train(), make_batch(padded=padded)
    ModelHooks(model).attach()
    expected = mean_of_patch(model.embed.weight[batch["patch_ids"]], batch.get("patch_mask"))
    torch.testing.assert_close(embeddings(model, batch), expected)


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


def test_ids_of_the_shape_of_patches_are_ordinary_ids() -> None:
    """Whatever the model was left with: the embedding alone is given [B, P, K] ids."""
    model = Toy()
    armed(model, make_batch(0))
    ids_BPK = make_batch(1)["patch_ids"]
    assert torch.equal(model.embed(ids_BPK), Toy().embed(ids_BPK))


def test_a_lookup_that_fails_leaves_the_next_one_ordinary() -> None:
    model, batch = Toy().train(), make_batch(0)
    ModelHooks(model).attach()
    broken = batch | {"patch_ids": batch["patch_ids"] + VOCABULARY}
    with pytest.raises(IndexError):
        model(broken)
    ids = tokens(1)["input_ids"]
    assert torch.equal(model.embed(ids), Toy().embed(ids))


def test_attaching_again_takes_the_embedding_that_is_there() -> None:
    """After a fit that broke off the model may have been given another, as by a larger vocabulary."""
    model, batch = Toy().train(), make_batch(0)
    hooks = armed(model, batch)
    model.embed = torch.nn.Embedding(VOCABULARY + 4, D)
    hooks.attach()
    model(batch)
    hooks.check_forward(batch)
