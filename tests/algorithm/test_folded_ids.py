"""On an accelerator edits of folded ids are found without waiting for it at every microbatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from patch_algorithm.algorithm.folded_ids import FoldedIds

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


def steps(*microbatches: bool) -> int:
    """How often the device is waited for in two steps of microbatches, edited or not."""
    WAITS.clear()
    ids = FoldedIds()
    ids.check_batch(batch())
    for _ in range(2):
        for edited in microbatches:
            ids.check_microbatch(batch(edited))
        ids.check_step()
    return len(WAITS)


def test_it_is_waited_for_once_a_fit_and_once_a_step() -> None:
    assert steps(False, False, False, False) == 1 + 2


@pytest.mark.parametrize("place", range(4))
def test_an_edit_of_any_microbatch_is_found(place: int) -> None:
    with pytest.raises(ValueError, match="'input_ids' were changed"):
        steps(*(place == i for i in range(4)))


def test_the_first_microbatch_is_waited_for_at_once() -> None:
    with pytest.raises(ValueError, match="'input_ids' were changed"):
        FoldedIds().check_microbatch(batch(edited=True))


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
