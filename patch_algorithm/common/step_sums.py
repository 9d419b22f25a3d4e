"""The numbers of a step that are added up over ranks: by one collective, and with one wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor

__all__ = ["StepSums", "added_up"]


class StepSums:
    """Collects what several parts of the package want to know of a step, and reads all of it at once.

    Each read of a number from an accelerator waits until the device has done all that was asked of it, and
    so does each collective whose result is read. Who takes a number first pays for all of them. Every rank
    puts and takes the same names in the same order.

    Args:
        device: Where collectives work.
    """

    _of_trainers: WeakKeyDictionary[State, StepSums] = WeakKeyDictionary()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: dict[str, Tensor | Sequence[float]] = {}
        self._read: dict[str, list[float]] = {}

    @classmethod
    def of(cls, state: State) -> StepSums:
        """Those of a trainer."""
        if state not in cls._of_trainers:
            cls._of_trainers[state] = cls(state.device.tensor_to_device(torch.empty(0)).device)
        return cls._of_trainers[state]

    def put(self, name: str, numbers: Tensor | Sequence[float]) -> None:
        """Adds numbers of this rank; they replace those of the same name that were not taken.

        Args:
            name: Whose they are.
            numbers: ``[n]`` floating point, on any device; or numbers that the host knows.
        """
        self._read.pop(name, None)
        self._waiting[name] = numbers

    def take(self, name: str) -> list[float]:
        """The sums over all ranks of what was put; a collective call unless they were read already.

        Args:
            name: Whose.

        Returns:
            One sum for each number, added up in float64 (float32 on mps, which has no other).
        """
        if name in self._waiting:
            waiting, self._waiting = self._waiting, {}
            self._read.update(_sums_over_ranks(waiting, self._device))
        return self._read.pop(name)


def _sums_over_ranks(
    waiting: dict[str, Tensor | Sequence[float]], device: torch.device
) -> dict[str, list[float]]:
    several = dist.get_world_size() > 1
    shared = {n: v for n, v in waiting.items() if several or isinstance(v, Tensor)}
    sums = {n: [float(x) for x in v] for n, v in waiting.items() if n not in shared}
    if not shared:
        return sums
    all_of_them = torch.cat([_on_device(numbers, device) for numbers in shared.values()])
    if several:
        dist.all_reduce(all_of_them, reduce_operation="SUM")
    read = iter(all_of_them.tolist())
    return sums | {n: [next(read) for _ in numbers] for n, numbers in shared.items()}


def added_up(numbers_N: Tensor) -> Tensor:
    """Sums over the first dimension in float64; in float32 on mps, which has no other."""
    return numbers_N.sum(dim=0, dtype=_precision(numbers_N.device))


def _precision(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _on_device(numbers: Tensor | Sequence[float], device: torch.device) -> Tensor:
    dtype = _precision(device)
    if isinstance(numbers, Tensor):
        return numbers.to(device, dtype)
    # Written there by kernels that hold the number: a copy from the host's memory might wait.
    return torch.stack([torch.full((), float(number), dtype=dtype, device=device) for number in numbers])
