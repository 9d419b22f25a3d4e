"""One learning rate schedule over the whole run: warm-up, plateau, decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from composer.core import State, Time, TimeUnit
from composer.optim import ComposerScheduler

from patch_algorithm.common.arguments import a_bool, is_number, one_of
from patch_algorithm.stages.forecast import epochs_in_batches
from patch_algorithm.stages.trainer_clock import max_duration

__all__ = ["DECAYS", "WarmupStableDecay"]

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "1-sqrt": lambda share: 1 - math.sqrt(share),
}
"""Shapes of the decay: from 1 to 0 as the share of it that has passed goes from 0 to 1."""


_UNITS = (TimeUnit.DURATION, TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN)


class WarmupStableDecay(ComposerScheduler):
    """Warm-up, plateau, decay (WSD) over the whole run, independent of the stages.

    The multiplier rises linearly from 0 to 1 in ``t_warmup``, stays there, and falls to ``alpha_f`` in
    the last ``t_decay`` of the run. Token superposition (arXiv 2605.06546) used this schedule, with the
    switch on the plateau.

    Args:
        t_warmup (str | Time): Length of the warm-up, in any of ``dur``, ``ep``, ``ba``, ``sp``, ``tok``.
        t_decay (str | Time, optional): Length of the decay, as a share of the run (``dur``) or in the unit of
            the trainer's ``max_duration``. Batches and epochs may be mixed if the data loader knows its
            length. Default: ``'0.1dur'``.
        alpha_f (float, optional): Multiplier at the end of the run. Default: ``0.0``.
        decay (str, optional): Shape of the decay: ``linear``, ``cosine`` or ``1-sqrt``.
            Default: ``'linear'``.
        scale_warmup (bool, optional): Whether ``scale_schedule_ratio`` stretches the warm-up as well; it
            always stretches the decay. Default: ``False``, as in Composer.

    Raises:
        ValueError: For invalid arguments; when the trainer is built, if warm-up and decay together are
            longer than the run, or their units cannot be converted. With a ``scale_schedule_ratio`` below 1,
            which the trainer applies to the run after it has built schedules, only after the first step.
    """

    def __init__(
        self,
        t_warmup: str | Time[Any],
        t_decay: str | Time[Any] = "0.1dur",
        alpha_f: float = 0.0,
        decay: str = "linear",
        scale_warmup: bool = False,
    ) -> None:
        self.t_warmup = _parse("t_warmup", t_warmup)
        self.t_decay = _parse("t_decay", t_decay)
        if not is_number(alpha_f) or not 0.0 <= alpha_f <= 1.0:
            raise ValueError(f"warmup_stable_decay: alpha_f={alpha_f!r} is not a number between 0 and 1.")
        self.alpha_f = float(alpha_f)
        self.decay = one_of("warmup_stable_decay: decay", decay, tuple(DECAYS))
        self.scale_warmup = a_bool("warmup_stable_decay: scale_warmup", scale_warmup)

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The multiplier of the learning rate at the state's clock."""
        end = epochs_in_batches(max_duration(state), state)
        warmup, warmup_unit = _resolve(self.t_warmup, end, state, ssr if self.scale_warmup else 1.0)
        decay, decay_unit = _resolve(self.t_decay, end, state, ssr)
        if decay > 0 and decay_unit != end.unit:
            raise ValueError(
                f"warmup_stable_decay: t_decay={self.t_decay.to_timestring()!r} cannot be counted back from "
                f"a max_duration of {end.to_timestring()!r}. Give it in {end.unit.value!r}, or as a share of "
                "the run such as '0.1dur'."
            )
        taken = decay + (warmup if warmup_unit == end.unit else 0)
        # Shares such as 0.7 + 0.3 may add up to a little more than 1, and the trainer builds schedules
        # before it stretches max_duration.
        if taken > end.value * max(ssr, 1.0) * (1 + 1e-9):
            raise ValueError(
                f"warmup_stable_decay: t_warmup={self.t_warmup.to_timestring()!r} and "
                f"t_decay={self.t_decay.to_timestring()!r} together are longer than the run of "
                f"{end.to_timestring()!r}. Shorten one of them."
            )
        passed = state.timestamp.get(warmup_unit).value
        risen = min(passed / warmup, 1.0) if warmup > 0 else 1.0
        now = state.timestamp.get(end.unit).value
        left = max(end.value - now, 0)
        # No decay has begun at 0, where the trainer asks before it stretches max_duration.
        share = 1 - min(left / decay, 1.0) if decay > 0 and now > 0 else 0.0
        # The smaller of the two: where their units differ nobody can tell that they do not overlap.
        return min(risen, self.alpha_f + (1 - self.alpha_f) * DECAYS[self.decay](share))


def _parse(name: str, given: str | Time[Any]) -> Time[Any]:
    try:
        time = Time.from_timestring(given) if isinstance(given, str) else given
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"warmup_stable_decay: {name}={given!r} cannot be read as a time.") from error
    if not isinstance(time, Time) or time.unit not in _UNITS or not 0 <= time.value < math.inf:
        raise ValueError(
            f"warmup_stable_decay: {name}={given!r} is not a time of at least 0 in 'dur', 'ep', 'ba', 'sp' "
            "or 'tok', such as '2000ba' or '0.1dur'."
        )
    if time.unit == TimeUnit.DURATION and time.value > 1:
        raise ValueError(f"warmup_stable_decay: {name}={given!r} is longer than the run.")
    return time


def _resolve(time: Time[Any], end: Time[Any], state: State, ssr: float) -> tuple[float, TimeUnit]:
    """``time`` on a counter of the clock, and which."""
    if time.unit == TimeUnit.DURATION:
        return float(time.value * end.value), end.unit
    time = epochs_in_batches(time, state)
    return float(time.value * ssr), time.unit
