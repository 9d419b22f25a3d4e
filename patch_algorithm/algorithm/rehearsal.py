"""One token-stage step before the first patch step, so that running out of memory shows at once.

If rows already fit the model's context at token level, the switch multiplies the positions of a row by k,
perhaps days into a run.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from composer.core import State
from composer.core.precision import get_precision_context
from composer.utils import ensure_tuple
from torch import Tensor, nn
from torch.optim import Optimizer

from patch_algorithm.model_access.reading import unwrap

__all__ = ["RehearsalError", "first_rows", "rehearse", "steps_in_backward"]

_OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can(no|')t allocate memory|ALLOC_FAILED", re.I)


_STATES_WHERE_UNKNOWN = 2  # as Adam

# How torch marks parameters whose hooks may step an optimizer as soon as a gradient is there.
_STEPPING_MARKS = ("_post_accumulate_grad_hooks", "_in_backward_optimizers")


class RehearsalError(RuntimeError):
    """The token stage would run out of memory."""


def steps_in_backward(model: nn.Module) -> bool:
    """Whether parameters have hooks that run in the backward, which a rehearsal could not undo."""
    return any(getattr(p, mark, None) for p in model.parameters() for mark in _STEPPING_MARKS)


def rehearse(state: State, batch: Mapping[str, Any]) -> str:
    """Runs a forward and backward pass of a token-stage microbatch, and undoes what it did.

    It keeps in memory what a step of the trainer keeps: the outputs, through the backward pass and the next
    forward pass. Weights, gradients, random numbers, buffers and the bookkeeping of DistributedDataParallel
    are restored. Memory that the optimizer will take is reserved meanwhile. If the token stage accumulates
    gradients, two passes are made, the second onto the first's gradients.

    Args:
        state: The trainer's state, before a step.
        batch: A whole token-stage batch of this rank, its rows cut as they will be.

    Returns:
        What was rehearsed, in words.

    Raises:
        RehearsalError: If it ran out of memory; it says what to lower.
        RuntimeError: If the backward changed weights; ask :func:`steps_in_backward` first.
    """
    rows = batch["input_ids"].shape[0]
    size = state.device_train_microbatch_size
    size = rows if size is None else min(rows, max(math.ceil(size), 1))
    microbatch = state.device.batch_to_device(first_rows(batch, rows, size))
    what = f"a microbatch of {size} rows of {batch['input_ids'].shape[1]} positions"
    try:
        with _undone(unwrap(state.model)), _random_state_kept(state):
            ballast = _optimizer_memory(state.optimizers)
            _forward_and_backward(state, microbatch, passes=2 if rows > size else 1)
            del ballast
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise RehearsalError(_message(what, size)) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # blocks of these sizes serve no patch step
    return what


def _message(what: str, size: int) -> str:
    lower = f"device_train_microbatch_size below {size}" if size > 1 else "seq_len, or the model's size"
    return (
        f"The token stage does not fit in memory: {what}, tried before the first step, ran out of it. "
        f"The run would have failed at the switch. Set {lower}, or turn on activation checkpointing or FSDP. "
        "(scale_microbatch: true lets the patch stage keep larger microbatches; rehearse_switch: false "
        "turns the rehearsal off.)"
    )


def _forward_and_backward(state: State, microbatch: Any, passes: int) -> None:
    model = unwrap(state.model)
    for _ in range(passes):
        with get_precision_context(state.precision, state.precision_config):
            # Like the trainer's, these outputs live until those of the next pass are there.
            outputs = model(microbatch)
            loss: Any = model.loss(outputs, microbatch)
        _total(loss).backward()  # unscaled: a gradient scaler changes numbers, not memory


def _total(loss: Any) -> Tensor:
    """What the trainer makes of a loss that is a tensor, a sequence of tensors or a mapping of them."""
    if isinstance(loss, Mapping) and "total" in loss:
        return loss["total"]
    parts: tuple[Any, ...] = ensure_tuple(loss)
    return torch.stack([part.mean() for part in parts]).sum()


@contextmanager
def _undone(model: nn.Module) -> Iterator[None]:
    gradients = [(p, p.grad) for p in model.parameters()]
    versions = [p._version for p, _ in gradients]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                buffer.copy_(before)
                setattr(module, name, buffer)  # a forward may have put another in its place
        for parameter, gradient in gradients:
            parameter.grad = gradient
    if versions != [p._version for p, _ in gradients]:
        raise RuntimeError(
            "The rehearsal of the token stage changed the weights: something writes to them in the forward "
            "pass (an embedding with max_norm) or steps an optimizer inside the backward pass. Rebuild the "
            "model and set rehearse_switch: false."
        )


@contextmanager
def _random_state_kept(state: State) -> Iterator[None]:
    """Of torch, numpy and Python: Composer seeds all three, and models use any of them to drop layers."""
    devices = [torch.cuda.current_device()] if state.device.name == "gpu" else []
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _optimizer_memory(optimizers: Any) -> list[Tensor]:
    """What the optimizers will take at the first step and have not taken yet."""
    taken: list[Tensor] = []
    for optimizer in optimizers or ():
        for group in optimizer.param_groups:
            copies = 0 if optimizer.state else _states_per_parameter(optimizer, group)
            for parameter in group["params"]:
                if parameter.requires_grad:
                    taken += [torch.empty_like(parameter, requires_grad=False) for _ in range(copies)]
    return taken


def _states_per_parameter(optimizer: Optimizer, group: Mapping[str, Any]) -> int:
    """How many tensors of a parameter's size an optimizer keeps in a group, measured on a small one."""
    shape = (2, 3)
    probe = nn.Parameter(torch.zeros(shape))
    probe.grad = torch.zeros(shape)
    settings = {key: value for key, value in group.items() if key != "params"}
    try:
        trial = type(optimizer)([{**settings, "params": [probe]}])  # pyright: ignore[reportCallIssue]
        trial.step()
        return sum(isinstance(v, Tensor) and v.shape == shape for v in trial.state[probe].values())
    except Exception:  # it wants more arguments, a GPU or larger weights: no reason to end a run
        return _STATES_WHERE_UNKNOWN


def first_rows(batch: Mapping[str, Any], rows: int, number: int) -> dict[str, Any]:
    """The first ``number`` of a batch's ``rows``."""

    def first(value: Any) -> Any:
        per_row = isinstance(value, (Tensor, list)) and len(value) == rows
        return value[:number] if per_row else value

    return {key: first(value) for key, value in batch.items()}
