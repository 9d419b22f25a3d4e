"""Optimizer state set back where a stage ends."""

from __future__ import annotations

import pytest
import torch

from patch_algorithm.algorithm.optimizer_reset import reset_moments


def test_quantized_moments_are_not_zeroed() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(4)
    optimizer.step()
    optimizer.state[weight]["exp_avg"] = torch.ones(4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"'exp_avg' of AdamW, which is a torch\.uint8 tensor"):
        reset_moments(optimizer)
