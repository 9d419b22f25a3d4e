"""Whether an export has the weights of a checkpoint, and gives its logits.

Letters: B rows, T tokens in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from patch_algorithm.checkpoints.loading import StoredTypes, logits_of

__all__ = ["RELATIVE_TOLERANCE", "Comparison", "compare"]

RELATIVE_TOLERANCE = 1e-4
"""Of the largest logit: what two attention kernels in float32 may differ by, and other weights do not."""


@dataclass(frozen=True)
class Comparison:
    """An export against the checkpoint.

    Attributes:
        largest_difference: Of all logits; NaN where one of them is.
        tolerance: What it may be: :data:`RELATIVE_TOLERANCE` of the largest logit.
        positions: Positions that logits were compared at.
        weights: Number of weight tensors.
        differing: Those that are not the checkpoint's, bit by bit, rounded to the export's type.
        rounded_to: The type that the export stores weights in, where that is not float32.
    """

    largest_difference: float
    tolerance: float
    positions: int
    weights: int
    differing: tuple[str, ...]
    rounded_to: str | None

    @property
    def agrees(self) -> bool:
        """Whether export and checkpoint are one model."""
        return self.largest_difference <= self.tolerance and not self.differing


def compare(
    exported: PreTrainedModel,
    trained: PreTrainedModel,
    stored: StoredTypes,
    ids_BT: Tensor,
) -> Comparison:
    """Compares weights and logits.

    Args:
        exported: The export, loaded in float32.
        trained: The checkpoint's model; its weights are rounded in place to what the export stores.
        stored: The types that the weights of the export are stored in.
        ids_BT: Token ids ``[B, T]``.

    Raises:
        ValueError: If they are models of different shape.
    """
    weights, theirs = exported.state_dict(), trained.state_dict()
    _require_same_shapes(weights, theirs)
    trained.float()
    for name, tensor in trained.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(stored.of(name)))
    own = trained.state_dict()
    differing = tuple(name for name, tensor in weights.items() if not torch.equal(tensor, own[name]))
    expected, given = logits_of(trained.eval(), ids_BT), logits_of(exported, ids_BT)
    return Comparison(
        largest_difference=float((given - expected).abs().max()),
        tolerance=RELATIVE_TOLERANCE * float(expected.abs().max()),
        positions=ids_BT.numel(),
        weights=len(weights),
        differing=differing,
        rounded_to=None if (kept := str(stored)) == "float32" else kept,
    )


def _require_same_shapes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    here = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    there = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    other = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
    if other:
        name = other[0]
        raise ValueError(
            f"The export is not of this checkpoint: {len(other)} of their weights have another shape or are "
            f"in only one of them, such as {name}, {here.get(name, 'none')} in the export and "
            f"{there.get(name, 'none')} in the checkpoint."
        )
