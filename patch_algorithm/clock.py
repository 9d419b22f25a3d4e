"""Reading the trainer's clock."""

from __future__ import annotations

from composer.core import State, Time, Timestamp

from patch_algorithm.stages import in_batches

__all__ = [
    "dataloader_len",
    "max_duration",
    "next_step",
    "raw_tokens",
    "raw_tokens_of_last_step",
    "share_of_run",
]


def max_duration(state: State) -> Time:
    """The trainer's ``max_duration``, in whatever unit it was given."""
    if state.max_duration is None:
        raise ValueError("patch_level needs the trainer's max_duration.")
    return state.max_duration


def dataloader_len(state: State) -> int | None:
    """Batches per epoch; ``None`` if the data loader does not know."""
    return None if state.dataloader_len is None else int(state.dataloader_len.value)


def raw_tokens(timestamp: Timestamp) -> int:
    """Raw tokens trained on so far; samples, where the data loader counts no tokens."""
    return int(timestamp.token.value or timestamp.sample.value)


def raw_tokens_of_last_step(state: State) -> int:
    """Raw tokens of the step that has just ended."""
    before = state.previous_timestamp
    return raw_tokens(state.timestamp) - (0 if before is None else raw_tokens(before))


def next_step(state: State) -> Timestamp:
    """The clock at the start of the next step; Composer counts an epoch only after BATCH_END."""
    batches = dataloader_len(state)
    if batches is not None and int(state.timestamp.batch_in_epoch.value) >= batches:
        return state.timestamp.to_next_epoch()
    return state.timestamp


def share_of_run(state: State) -> float:
    """The share of ``max_duration`` that has been trained, from 0 to 1."""
    # Not get_elapsed_duration(), which stays 0 within an epoch.
    end, batches = max_duration(state), dataloader_len(state)
    if batches is not None:
        end = in_batches(end, batches)
    return float(state.timestamp.get(end.unit).value / end.value)
