"""A checkpoint and an evaluation at the end of every patch stage, by the run's own savers and evaluators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

from composer.callbacks import CheckpointSaver
from composer.core import Event, State

from patch_algorithm.stages.forecast import at_end_of_epoch, at_end_of_run

__all__ = ["EndOfStage"]

_Interval = Callable[[State, Event], Any]

_EVENT_OF_EPOCH = {Event.BATCH_END: Event.EPOCH_END, Event.BATCH_CHECKPOINT: Event.EPOCH_CHECKPOINT}
"""At the end of an epoch: what evaluators and savers are asked at after the event of the batch."""


class EndOfStage:
    """Makes savers and evaluators act once more, at the end of a stage.

    Their own intervals are always asked first and still apply. Names, ``latest`` links, uploads and
    clean-up are left to the savers. An evaluator that is switched off (``eval_interval: 0``) stays off.
    Requests left over from an interrupted fit do not reach another trainer with the same savers and
    evaluators.

    Args:
        saves: Whether checkpoint savers save at the end of a stage.
        evaluates: Whether evaluators evaluate there.
    """

    def __init__(self, saves: bool, evaluates: bool) -> None:
        self._saves = saves
        self._evaluates = evaluates
        self._own_intervals: list[tuple[Any, str, _Interval]] = []
        # By place in the list above: where it was acted on, or None while that is still to come.
        self._due: dict[int, tuple[int, Event] | None] = {}
        self._state: ref[State] | None = None

    def attach(self, state: State) -> None:
        """Wraps the intervals that are not wrapped yet: those of an interrupted fit still are."""
        if self._saves:
            self._wrap("save_interval", (c for c in state.callbacks if isinstance(c, CheckpointSaver)))
        if self._evaluates:
            self._wrap("eval_interval", state.evaluators)

    def detach(self) -> None:
        """Gives the savers and evaluators their own intervals back."""
        for owner, name, interval in self._own_intervals:
            setattr(owner, name, interval)
        self._own_intervals = []
        self._due = {}

    def request(self, state: State) -> None:
        """Asks for a checkpoint and an evaluation at the next event that has them.

        That is before another batch is trained, unless the end of a stage is only known once the next
        batch has been read: when a fit starts after it, and in epochs of unknown length.
        """
        self._state = ref(state)
        ends = state.max_duration is not None and state.timestamp >= state.max_duration
        for place, (_, name, interval) in enumerate(self._own_intervals):
            # Savers and evaluators see to the end of a run themselves.
            evaluates = name == "eval_interval"
            if not ends and not (evaluates and not _is_switched_on(interval, state)):
                self._due[place] = None

    def _wrap(self, name: str, owners: Iterable[Any]) -> None:
        wrapped = {id(owner) for owner, of, _ in self._own_intervals if of == name}
        for owner in owners:
            interval = getattr(owner, name)
            if callable(interval) and id(owner) not in wrapped:
                setattr(owner, name, self._or_at_end_of_stage(len(self._own_intervals), interval))
                self._own_intervals.append((owner, name, interval))

    def _or_at_end_of_stage(self, place: int, interval: _Interval) -> _Interval:
        def due(state: State, event: Event) -> bool:
            own = interval(state, event)
            if place not in self._due or self._state is None or self._state() is not state:
                return own
            # An epoch that ends with the stage has an event of its own yet to come.
            if not own and _acts_at_end_of_epoch(interval, state, event):
                return False
            # Not only the owner asks: Composer's EMA does before a saver saves, and must hear the same.
            here = int(state.timestamp.batch.value), event
            first = self._due[place] is None
            if first:
                self._due[place] = here
            return own or first or self._due[place] == here

        return due


def _is_switched_on(interval: _Interval, state: State) -> bool:
    """Whether an evaluator evaluates at all: at the end of a run Composer's do, unless they are 0.

    A callable of the user's is never asked there by Composer, and need not know that event.
    """
    made_by_composer = (getattr(interval, "__module__", None) or "").split(".")[0] == "composer"
    return not made_by_composer or interval(at_end_of_run(state), Event.FIT_END)


def _acts_at_end_of_epoch(interval: _Interval, state: State, event: Event) -> bool:
    later, event_of_epoch = at_end_of_epoch(state), _EVENT_OF_EPOCH.get(event)
    return later is not None and event_of_epoch is not None and interval(later, event_of_epoch)
