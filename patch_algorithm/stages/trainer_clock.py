"""Reading the trainer's clock."""

from __future__ import annotations

from collections.abc import Mapping

from composer.core import State, Time, Timestamp

from patch_algorithm.stages.boundaries import in_batches

__all__ = [
    "dataloader_len",
    "ends_epoch",
    "max_duration",
    "next_step",
    "raw_tokens",
    "raw_tokens_of_last_step",
    "share_of_run",
    "timestamp_of",
    "timestamp_values",
]

_COUNTERS = ("epoch", "batch", "sample", "token")


def max_duration(state: State) -> Time:
    """The trainer's ``max_duration``, in whatever unit it was given."""
    if state.max_duration is None:
        raise ValueError("patch_level needs the trainer's max_duration.")
    return state.max_duration


def dataloader_len(state: State) -> int | None:
    """Steps per epoch; ``None`` if the data loader does not know, or steps take several of its batches."""
    # The trainer's number is then the most steps there can be, which no time must be converted by.
    if getattr(getattr(state, "dataloader", None), "joins_batches", False):
        return None
    return None if state.dataloader_len is None else int(state.dataloader_len.value)


def ends_epoch(state: State, timestamp: Timestamp) -> bool:
    """Whether the epoch's last step ends at ``timestamp``; ``False`` where that cannot be told."""
    most = state.dataloader_len
    return most is not None and int(timestamp.batch_in_epoch.value) >= int(most.value)


def raw_tokens(timestamp: Timestamp) -> int:
    """Raw tokens trained on so far; samples, where the data loader counts no tokens."""
    return int(timestamp.token.value or timestamp.sample.value)


def raw_tokens_of_last_step(state: State) -> int:
    """Raw tokens of the step that has just ended."""
    before = state.previous_timestamp
    return raw_tokens(state.timestamp) - (0 if before is None else raw_tokens(before))


def next_step(state: State) -> Timestamp:
    """The clock at the start of the next step; Composer counts an epoch only after BATCH_END."""
    return state.timestamp.to_next_epoch() if ends_epoch(state, state.timestamp) else state.timestamp


def share_of_run(state: State) -> float:
    """The share of ``max_duration`` that has been trained, from 0 to 1."""
    # Not get_elapsed_duration(), which stays 0 within an epoch.
    end, batches = max_duration(state), dataloader_len(state)
    if batches is not None:
        end = in_batches(end, batches)
    return float(state.timestamp.get(end.unit).value / end.value)


def timestamp_values(timestamp: Timestamp) -> dict[str, int]:
    """The counters of a clock in primitives, as checkpoints want them."""
    return {name: int(getattr(timestamp, name).value) for name in _COUNTERS}


def timestamp_of(values: Mapping[str, int]) -> Timestamp:
    """The clock that :func:`timestamp_values` was made from."""
    return Timestamp(
        epoch=values["epoch"], batch=values["batch"], sample=values["sample"], token=values["token"]
    )
