"""Resets an optimizer's state to what it was at the start, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

__all__ = ["ON_SWITCH", "refuse_unresettable", "reset_moments"]

ON_SWITCH = ("carry", "reset")
"""What becomes of the optimizer's state at the end of a stage."""


# State of torch's optimizers that does not start at zero: NAdam, ASGD, Rprop and Adagrad.
_STARTS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "mu_product": lambda group: 1.0,
    "mu": lambda group: 1.0,
    "eta": lambda group: float(group["lr"]),
    "step_size": lambda group: float(group["lr"]),
    "sum": lambda group: float(group.get("initial_accumulator_value", 0.0)),
}


def reset_moments(optimizer: Optimizer) -> None:
    """Resets the state of every parameter, ``step`` included, to what it was before the first step.

    Keys, dtypes and shardings stay: a cleared state dict would only be filled by the optimizer's next
    step, and a checkpoint saved in between would be loaded with ``step`` at 1.

    Args:
        optimizer: A torch optimizer; its state may be sharded by FSDP.

    Raises:
        ValueError: See :func:`refuse_unresettable`.
    """
    refuse_unresettable(optimizer)
    for state, group, _ in _states(optimizer):
        _reset(state, group)


def refuse_unresettable(optimizer: Optimizer) -> None:
    """Refuses an optimizer whose state holds more than tensors of values and numbers, or cannot be reset.

    Integers are the codes of quantized moments, stored next to their code books: setting them to zero would
    end all updates. SGD with dampening starts without momentum, which sharded checkpoints cannot hold.

    Raises:
        ValueError: If so.
    """
    for state, group, parameter in _states(optimizer):
        if group.get("dampening") and "momentum_buffer" in state and _is_sharded(parameter):
            raise ValueError(
                f"on_switch='reset' cannot reset {type(optimizer).__name__} with dampening="
                f"{group['dampening']} where FSDP shards its state: it has no momentum before its first "
                "step, and sharded checkpoints need one. Set dampening to 0, or use on_switch='carry'."
            )
        for key, value in state.items():
            codes = isinstance(value, Tensor) and value.numel() > 1 and not _is_real_or_complex(value)
            if codes or not isinstance(value, (Tensor, int, float, type(None))):
                kind = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"on_switch='reset' cannot reset {key!r} of {type(optimizer).__name__}, which is a "
                    f"{kind}. Use on_switch='carry', or another optimizer."
                )


def _states(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Mapping[str, Any], Tensor]]:
    """The state of every parameter that has one, with its group and the parameter."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if state:
                yield state, group, parameter


@torch.no_grad()
def _reset(state: dict[str, Any], group: Mapping[str, Any]) -> None:
    for key, value in state.items():
        if key == "momentum_buffer" and group.get("dampening"):
            # SGD dampens what it adds to its momentum, but not the first gradient, with which it begins.
            state[key] = None
            continue
        start = _STARTS[key](group) if key in _STARTS else 0.0
        if isinstance(value, Tensor):
            value.fill_(start)
        elif value is not None:
            state[key] = type(value)(start)


def _is_sharded(parameter: Tensor) -> bool:
    flat = getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False)
    return flat or isinstance(parameter, DTensor)


def _is_real_or_complex(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
