"""What a run has cost and learned, stage by stage: plain numbers, as many after a month as after an hour."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any, TypeVar

from patch_algorithm.stages.compute import PositionCount

__all__ = ["Cost", "EvalRecord", "LossSeries", "RunRecord", "StageRecord", "Window"]

_VERSION = 1
_MOST_MEANS = 512
"""Even, since means are merged in pairs. A tenth of a long stage is then at least 25 of them."""
_Record = TypeVar("_Record")


@dataclass
class Cost:
    """Sums over steps, on all ranks.

    Attributes:
        steps: How many.
        seconds: Wall-clock time, evaluation left out.
        tokens: Raw tokens; samples, where the data loader counts no tokens.
        positions: Positions the model has computed, padding included.
        flops: FLOPs of the model, forward and backward; 0 if nobody can tell.
    """

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    positions: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def per_second(self, amount: float) -> float:
        """``amount`` by the time these steps took; 0 if they took none."""
        return amount / self.seconds if self.seconds > 0 else 0.0


class Window:
    """The last steps, for the speed of the moment.

    Args:
        steps: How many at most.
    """

    def __init__(self, steps: int) -> None:
        self._steps: deque[Cost] = deque(maxlen=steps)

    def add(self, step: Cost, since_start: int) -> None:
        """Takes a step, the ``since_start``-th of its stage since the run was started."""
        # A first step says nothing of those to come: the second one takes its place.
        if since_start <= 2:
            self._steps.clear()
        self._steps.append(step)

    @property
    def total(self) -> Cost:
        """Their sum."""
        return sum(self._steps, Cost())


@dataclass
class LossSeries:
    """A stage's losses, thinned evenly: means of equally many steps, merged in pairs when there are too many.

    Attributes:
        steps_per_mean: A power of two; 1 in a stage of fewer than 512 steps.
        means: In order, at most 512.
        rest: Steps after the last mean, and the sum of their losses in ``rest_sum``.
        last: The latest loss.
    """

    steps_per_mean: int = 1
    means: list[float] = field(default_factory=list)
    rest: int = 0
    rest_sum: float = 0.0
    last: float = 0.0

    def add(self, loss: float) -> None:
        """Takes the loss of the next step."""
        self.last = loss
        self.rest, self.rest_sum = self.rest + 1, self.rest_sum + loss
        if self.rest < self.steps_per_mean:
            return
        self.means.append(self.rest_sum / self.rest)
        self.rest, self.rest_sum = 0, 0.0
        if len(self.means) == _MOST_MEANS:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.steps_per_mean *= 2

    @property
    def steps(self) -> int:
        """How many losses it has taken."""
        return len(self.means) * self.steps_per_mean + self.rest

    def tenths(self) -> tuple[float, float]:
        """The mean loss of the first and of the last tenth of the steps, at least one step each.

        Exact in a stage of fewer than 512 steps; in a longer one the tenths are of whole means.
        """
        if not self.means:
            return float("nan"), float("nan")
        count = max(1, self.steps // 10 // self.steps_per_mean)
        last = self.rest_sum + self.steps_per_mean * sum(self.means[-count:])
        return sum(self.means[:count]) / count, last / (self.rest + self.steps_per_mean * count)


@dataclass
class EvalRecord:
    """A token-level evaluation: after how many batches of the run, and its loss."""

    step: int
    loss: float


@dataclass
class StageRecord:
    """What one stage has cost and learned so far.

    Attributes:
        index: Which stage of the run.
        k: Patch size; 1 in the token stage.
        tokens_per_position: Raw tokens that a position reads.
        in_patches: Whether it is a patch stage.
        total: All its steps.
        timed: The same without the first step of each start, which compiles, allocates and fills caches.
        uncounted: Steps whose FLOPs nobody could tell.
        losses: The trainer's loss of each step.
        last_step: Batches of the run after its latest step.
        last_eval: The latest evaluation made during the stage or at its end.
        peak_memory: In bytes.
    """

    index: int
    k: int
    tokens_per_position: int
    in_patches: bool
    total: Cost = field(default_factory=Cost)
    timed: Cost = field(default_factory=Cost)
    uncounted: int = 0
    losses: LossSeries = field(default_factory=LossSeries)
    last_step: int = 0
    last_eval: EvalRecord | None = None
    peak_memory: int = 0

    def add(self, step: Cost, first: bool) -> None:
        """Counts a step; ``first``: of this stage since the run was started or resumed."""
        self.total += step
        self.uncounted += not step.flops
        if not first:
            self.timed += step

    @property
    def key(self) -> tuple[int, int, int]:
        """What two records of one stage have in common."""
        return self.index, self.k, self.tokens_per_position

    @property
    def speed(self) -> Cost:
        """The steps that speeds are computed over: the timed ones, if there are any."""
        return self.timed if self.timed.steps else self.total

    @property
    def name(self) -> str:
        """``token``, or ``patch`` with its k."""
        return f"patch k={self.k}" if self.in_patches else "token"


@dataclass
class RunRecord:
    """The stages of a run in their order.

    Attributes:
        stages: Those that have begun.
        before: What lies before the first recorded step, as far as it is known: the run was resumed from a
            checkpoint without a record.
        eval_seconds: Time spent evaluating, that before the first step left out.
    """

    stages: list[StageRecord] = field(default_factory=list)
    before: Cost = field(default_factory=Cost)
    eval_seconds: float = 0.0

    @property
    def total(self) -> Cost:
        """The whole run so far."""
        return sum((stage.total for stage in self.stages), self.before)

    @property
    def flops(self) -> float | None:
        """FLOPs of the whole run so far; ``None`` if those of any step are not known."""
        # An earlier version did not count the steps without a figure; it has stages without one.
        gaps = (stage.uncounted or (stage.total.steps and not stage.total.flops) for stage in self.stages)
        return None if self.before.steps or any(gaps) else self.total.flops

    @property
    def switch(self) -> int | None:
        """Batches of the run when the last patch stage ended; ``None`` before the first token step."""
        patches = [stage for stage in self.stages if stage.in_patches]
        return patches[-1].last_step if patches and not self.stages[-1].in_patches else None

    @property
    def speedup(self) -> float | None:
        """How many times as many raw tokens per second the patch stages read as the token stage.

        Over all timed steps of each, and ``None`` unless there were both.
        """
        patch = sum((stage.speed for stage in self.stages if stage.in_patches), Cost())
        token = sum((stage.speed for stage in self.stages if not stage.in_patches), Cost())
        slow = token.per_second(token.tokens)
        return patch.per_second(patch.tokens) / slow if slow > 0 and patch.seconds > 0 else None

    def compute_share(self, left: Sequence[tuple[int, float]] = ()) -> float:
        """Positions as a share of those of token-level training on the same rows, padding included.

        Args:
            left: What is to come: pairs of raw tokens per position and raw tokens.
        """
        count = PositionCount(self.before.positions, self.before.tokens)
        for stage in self.stages:
            count.add(stage.total.positions, stage.total.positions * stage.tokens_per_position)
        tokens = self.total.tokens
        padding = count.at_token_level / tokens if tokens and count.at_token_level else 1.0
        for tokens_per_position, amount in left:
            count.add(amount * padding / tokens_per_position, amount * padding)
        return count.share

    def eval_at(self, step: int | None) -> float | None:
        """The loss evaluated at the end of a stage, if that was after ``step`` batches."""
        found = (stage.last_eval for stage in self.stages if stage.last_eval is not None)
        return next((e.loss for e in found if e.step == step), None)

    def to_text(self) -> str:
        """The record as one string, with its version."""
        return json.dumps({"version": _VERSION, **asdict(self)})

    @classmethod
    def from_text(cls, text: str) -> tuple[RunRecord, bool]:
        """The record that :meth:`to_text` was made of, and whether this version wrote it.

        What another version has added is left out; what it lacks is empty.

        Raises:
            ValueError: If there is no such record in it.
        """
        try:
            state = json.loads(text)
            record = _taken(cls, state, before=_taken(Cost, state.get("before", {})))
            record.stages = [_stage_taken(stage) for stage in state["stages"]]
            _ = record.total.per_second(record.total.tokens)  # raises where a sum is no number
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it has no stages that can be read ({error!r})") from error
        return record, state.get("version") == _VERSION


def _stage_taken(state: Mapping[str, Any]) -> StageRecord:
    k, total = state["k"], _taken(Cost, state["total"])
    last_eval = state.get("last_eval")
    nested = {
        "total": total,
        "timed": _taken(Cost, state.get("timed", state.get("steady", {}))),
        "losses": _taken(LossSeries, state.get("losses", {})),
        "last_eval": None if last_eval is None else _taken(EvalRecord, last_eval),
    }
    # Version 0.1.0 did not know of one-sided patches, but counted their positions.
    older = {"tokens_per_position": k if total.tokens > total.positions else 1, "in_patches": k > 1}
    return _taken(StageRecord, {**older, **state}, **nested)


def _taken(kind: type[_Record], state: Mapping[str, Any], **nested: Any) -> _Record:
    known = {entry.name for entry in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in {**state, **nested}.items() if name in known})
