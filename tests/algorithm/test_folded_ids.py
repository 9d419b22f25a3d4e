"""Edits of a folded batch are found, on an accelerator without waiting for it at every microbatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer.core import Event
from torch import Tensor

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm.folded_ids import FoldedIds
from tests.model_access.toys import Toy
from tests.runs.short import Watch, make_rows, make_trainer, run
from tests.support import metrics

K = 3

WAITS: list[int] = []


class OnAccelerator(Tensor):
    """Says that it is elsewhere, and counts how often it is waited for."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("cuda")

    def __bool__(self) -> bool:
        WAITS.append(1)
        return super().__bool__()


def batch(edited: bool = False) -> dict[str, Any]:
    patches_BPK = torch.arange(24).reshape(2, 4, 3)
    ids_BP = patches_BPK[..., 0].clone()
    ids_BP[1, 2] += edited
    return {
        "input_ids": ids_BP.as_subclass(OnAccelerator),
        "patch_ids": patches_BPK.as_subclass(OnAccelerator),
    }


def steps(*microbatches: bool) -> list[bool | None]:
    """What two steps of microbatches, edited or not, leave to be read with their loss."""
    WAITS.clear()
    ids, left = FoldedIds(), []
    for _ in range(2):
        ids.check_batch(batch())
        for edited in microbatches:
            ids.check_microbatch(batch(edited))
        ids.check_before_update()
        answer = ids.take()
        left.append(None if answer is None else answer.as_subclass(Tensor).item())
    return left


def test_it_is_waited_for_once_a_fit_and_read_with_the_loss_of_each_step() -> None:
    assert steps(False, False, False, False) == [False, False]
    assert len(WAITS) == 1


@pytest.mark.parametrize("place", range(4))
def test_an_edit_of_any_microbatch_of_the_first_step_is_found_before_the_update(place: int) -> None:
    with pytest.raises(ValueError, match="'input_ids' were changed"):
        steps(*(place == i for i in range(4)))


def test_an_edit_in_a_later_step_is_left_to_be_read() -> None:
    ids = FoldedIds()
    ids.check_microbatch(batch())
    ids.check_before_update()
    ids.take()
    ids.check_microbatch(batch(edited=True))
    ids.check_microbatch(batch())
    ids.check_before_update()
    assert ids.take()
    assert ids.take() is None


def test_a_step_that_is_tried_again_forgets_what_it_has_seen() -> None:
    ids = FoldedIds()
    ids.check_microbatch(batch(edited=True))
    ids.check_batch(batch())
    assert ids.take() is None


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.pop("input_ids"),
        lambda b: b.update(input_ids=b["input_ids"][:, :3]),
        lambda b: b.update(input_ids=None),
    ],
    ids=["removed", "cut", "none"],
)
def test_ids_of_another_kind_are_edits(change: Any) -> None:
    changed = batch()
    change(changed)
    with pytest.raises(ValueError, match="'input_ids' were changed"):
        FoldedIds().check_microbatch(changed)


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
