"""Which implementation computes the K-target loss."""

from __future__ import annotations

import importlib.util
import os

import torch

__all__ = ["FUSED_BY_DEFAULT", "LOSS_KERNELS", "can_run_triton", "check_kernel", "chosen_kernel"]

LOSS_KERNELS = ("auto", "torch", "triton")
"""Implementations of the loss: torch operations on a chunk of rows at a time, the fused Triton kernels, or
``'auto'``: the fused ones on CUDA devices once they have been timed on one, until then torch's."""

FUSED_BY_DEFAULT = False
"""Whether ``'auto'`` takes the fused kernels on CUDA; it needs a GPU's timing in ``benchmarks/results/``."""

_LEAST_CAPABILITY = (8, 0)  # of NVIDIA GPUs: Ampere, the first with bfloat16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OTHERWISE = "Use 'torch' or 'auto', which run anywhere."


def check_kernel(kernel: str, device: torch.device) -> None:
    """Checks that an implementation exists and runs on a device.

    Args:
        kernel: One of :data:`LOSS_KERNELS`.
        device: Where the logits will be.

    Raises:
        ValueError: If it is not one of them, or cannot run there.
    """
    if kernel not in LOSS_KERNELS:
        raise ValueError(f"The loss kernel {kernel!r} is not one of {', '.join(LOSS_KERNELS)}.")
    if kernel == "triton" and (reason := _missing_for_triton(device)):
        raise ValueError(f"The loss kernel 'triton' cannot run here: {reason}. {_OTHERWISE}")


def chosen_kernel(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """``'torch'`` or ``'triton'``.

    Args:
        kernel: One of :data:`LOSS_KERNELS`.
        device: Where the logits are.
        dtype: That of the logits.

    Raises:
        ValueError: If ``kernel`` is not one of them, or is ``'triton'`` and cannot run on these logits.
    """
    check_kernel(kernel, device)
    if kernel == "triton" and dtype not in _DTYPES:
        raise ValueError(f"The loss kernel 'triton' does not support logits of {dtype}. {_OTHERWISE}")
    if kernel == "auto":
        fused = FUSED_BY_DEFAULT and device.type == "cuda" and dtype in _DTYPES
        return "triton" if fused and not _missing_for_triton(device) else "torch"
    return kernel


def can_run_triton(device: torch.device) -> bool:
    """Whether the fused kernels run on a device."""
    return _missing_for_triton(device) is None


def _missing_for_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":  # Triton's interpreter, for tests: on any device
        return None
    if device.type != "cuda":
        return f"it needs a CUDA device, and the logits are on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"it needs compute capability 8.0, and this GPU has {capability[0]}.{capability[1]}"
    return None
