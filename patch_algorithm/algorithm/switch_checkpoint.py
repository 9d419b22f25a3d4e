"""A checkpoint at the end of every patch stage, by the run's own checkpoint savers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from composer.callbacks import CheckpointSaver
from composer.core import Callback, Event, State

__all__ = ["SwitchSaver"]

_Interval = Callable[[State, Event], bool]


class SwitchSaver:
    """Makes checkpoint savers save once more, at the end of a stage.

    The savers' own ``save_interval`` is asked first and always, so that what they would have saved
    they still save; names, ``latest`` links, uploads and clean-up are theirs.
    """

    def __init__(self) -> None:
        self._intervals: list[tuple[CheckpointSaver, _Interval]] = []
        self._due_at_batch = -1

    def attach(self, callbacks: Iterable[Callback]) -> None:
        """Wraps the interval of every checkpoint saver; does nothing if they are wrapped."""
        if self._intervals:
            return
        for callback in callbacks:
            if isinstance(callback, CheckpointSaver) and callable(callback.save_interval):
                self._intervals.append((callback, callback.save_interval))
                callback.save_interval = self._or_at_switch(callback.save_interval)

    def detach(self) -> None:
        """Gives the savers their own intervals back."""
        for saver, interval in self._intervals:
            saver.save_interval = interval
        self._intervals = []
        self._due_at_batch = -1  # a later fit may set the clock back

    def request(self, state: State) -> None:
        """Asks for a checkpoint at the next checkpoint event, before another batch is trained."""
        self._due_at_batch = int(state.timestamp.batch.value)

    def _or_at_switch(self, interval: _Interval) -> _Interval:
        def due(state: State, event: Event) -> bool:
            own = interval(state, event)
            return own or int(state.timestamp.batch.value) == self._due_at_batch

        return due
