"""Checks the loss kernel of a run when its trainer starts, and says when another can be chosen."""

from __future__ import annotations

import torch

from patch_algorithm.common.announce import announce
from patch_algorithm.loss.kernels import FUSED_BY_DEFAULT, can_run_triton, check_kernel

__all__ = ["prepare_kernel"]

_TORCH_NAMES = {"gpu": "cuda", "tpu": "xla"}
_CAN_BE_CHOSEN = (
    "patch_level: the loss is computed by torch operations. loss_kernel: triton selects fused kernels, which "
    "read the logits once forward and once backward. They are not the default, because they have not been "
    "timed on a GPU."
)


def prepare_kernel(kernel: str, device_name: str) -> None:
    """Refuses a kernel that cannot run, and mentions the fused one if ``'auto'`` does not choose it.

    Args:
        kernel: The argument ``loss_kernel``.
        device_name: Composer's name of the trainer's device.

    Raises:
        ValueError: If the kernel cannot run on that device.
    """
    device = torch.device(_TORCH_NAMES.get(device_name, device_name))
    try:
        check_kernel(kernel, device)
    except ValueError as error:
        raise ValueError(f"loss_kernel={kernel!r}: {error}") from error
    if kernel == "auto" and device.type == "cuda" and not FUSED_BY_DEFAULT and can_run_triton(device):
        announce(_CAN_BE_CHOSEN)
