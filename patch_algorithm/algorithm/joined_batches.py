"""Joins several batches of the data loader into one step, for constant compute per step.

The trainer's loader is asked several times for one step, before the trainer counts it. So order, clock and
resumption stay the trainer's own: wherever rows are counted, k batches of B rows count as k * B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from composer.core import State
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from patch_algorithm.algorithm.schedules_in_epochs import refuse_schedules_in_epochs
from patch_algorithm.common.announce import announce
from patch_algorithm.patching.batches import keep_pinned
from patch_algorithm.stages.plan import require_equal_steps
from patch_algorithm.stages.timeline import Timeline
from patch_algorithm.stages.trainer_clock import max_duration

__all__ = ["JoiningLoader", "join", "join_batches", "take_apart"]


class JoiningLoader:
    """A data loader whose steps take one or several batches of another.

    It has no length: the number of steps in an epoch depends on where in it a stage ends. The trainer keeps
    the length of the loader that is joined, which is the most steps that an epoch can have.

    Args:
        loader: The loader that is joined.
        begin: Called where an epoch's iteration begins; gives the number of its first step.
        batches_of_step: The batches of a step, by its number.
    """

    joins_batches = True

    def __init__(
        self, loader: Iterable[Any], begin: Callable[[], int], batches_of_step: Callable[[int], int]
    ) -> None:
        self.loader = loader
        self._begin = begin
        self._batches_of_step = batches_of_step
        self._announced = False

    @property
    def dataset(self) -> Any:
        """The dataset of the loader that is joined."""
        return getattr(self.loader, "dataset", None)

    def __iter__(self) -> Iterator[Any]:
        step = self._begin()
        batches = iter(self.loader)
        # Asked step by step: a stage may end between two of them.
        while group := list(islice(batches, wanted := self._batches_of_step(step))):
            if len(group) < wanted:
                self._announce_short_step(len(group), wanted)
            yield join(group)
            step += 1

    def _announce_short_step(self, found: int, wanted: int) -> None:
        if not self._announced:
            self._announced = True
            announce(
                f"patch_level: the last patch step of the epoch takes the {found} batches that are left "
                f"instead of {wanted}, so that every row is read."
            )


def join(batches: Sequence[Any]) -> Any:
    """One batch of the rows of several, in their order.

    Raises:
        ValueError: If they are not mappings of tensors and lists, or differ in keys or in the length of rows.
    """
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    if not isinstance(first, Mapping):
        raise ValueError(
            "constant_compute needs batches that are mappings, as in llm-foundry; the data loader returned "
            f"a {type(first).__name__}. Use a loader that returns mappings, or set constant_compute: false."
        )
    _require_equal_keys(batches)
    joined = {key: _joined(key, [batch[key] for batch in batches]) for key in first}
    return keep_pinned(first, joined) if isinstance(first.get("input_ids"), torch.Tensor) else joined


def _require_equal_keys(batches: Sequence[Mapping[str, Any]]) -> None:
    # A mask may be there only where something is padded: neither dropping nor making one up is right.
    keys = [set(batch) for batch in batches]
    if uneven := set.union(*keys) - set.intersection(*keys):
        raise ValueError(
            "constant_compute needs batches with the same keys; only some of the batches of a step have "
            f"{', '.join(repr(key) for key in sorted(uneven, key=str))}. Let the collator give every batch "
            "the same keys, or set constant_compute: false."
        )


def _joined(key: str, values: list[Any]) -> Any:
    if all(isinstance(value, torch.Tensor) and value.dim() for value in values):
        shapes = {tuple(value.shape[1:]) for value in values}
        if len(shapes) > 1:
            raise ValueError(
                f"constant_compute needs batches whose rows have one length; {key!r} has rows of shapes "
                f"{sorted(shapes)}. Pad all rows to one length, or set constant_compute: false."
            )
        return torch.cat(values)
    if all(isinstance(value, list) for value in values):
        return [entry for value in values for entry in value]
    raise ValueError(
        f"constant_compute cannot join {key!r} of the batches, a {type(values[0]).__name__}; expected a "
        "tensor or a list with one entry per row. Remove it from the batch, or set constant_compute: false."
    )


def join_batches(state: State, timeline: Timeline) -> None:
    """Replaces the trainer's loader by a :class:`JoiningLoader` for a fit, if the run needs it.

    ``state.train_dataloader`` stays the loader itself, whose state Composer saves and loads.

    Raises:
        ValueError: For a run or a schedule in epochs, whose number of steps depends on where the switch
            falls.
    """
    if not timeline.plan.constant_compute or not timeline.plan.stages:
        return
    require_equal_steps(max_duration(state))
    refuse_schedules_in_epochs(state)
    loader: Any = state.dataloader

    def begin() -> int:
        now = state.timestamp
        sampler = _distributed_sampler(loader)
        if sampler is not None:
            sampler.set_epoch(int(now.epoch.value))  # Composer does it for loaders of torch alone
        # A loader that does not resume by itself is wound forward from the start of the epoch.
        resumes = "train" in state.dataset_resumption
        return int(now.batch.value) - (0 if resumes else int(now.batch_in_epoch.value))

    joining = JoiningLoader(loader, begin, timeline.loader_batches_of_step)
    # The length stays, as a bound: intervals in 'dur' refuse a loader without one. A smaller number of
    # steps that somebody has set (train_subset_num_batches) holds in both.
    state.set_dataloader(joining, state.dataloader_label, _length(state))


def take_apart(state: State) -> None:
    """Gives the trainer its own loader back."""
    if isinstance(state.dataloader, JoiningLoader):
        # With the present length: the next fit may have been given another train_subset_num_batches.
        state.set_dataloader(state.dataloader.loader, state.dataloader_label, _length(state))


def _length(state: State) -> int:
    return -1 if state.dataloader_len is None else int(state.dataloader_len.value)


def _distributed_sampler(loader: Any) -> DistributedSampler[Any] | None:
    if not isinstance(loader, DataLoader):
        return None
    samplers = (loader.batch_sampler, loader.sampler)
    return next((found for found in samplers if isinstance(found, DistributedSampler)), None)
