"""What a run has done, stage by stage, in plain numbers, and the text and the verdict made of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["EvalRecord", "RunRecord", "StageRecord", "loss_drop", "shortcomings", "summary"]

_WIDTHS = (9, 18, 18, 14, 9)  # 999,999,999,999 raw tokens fit


@dataclass
class StageRecord:
    """What was measured in one stage, a value per step.

    Attributes:
        k: Raw tokens per position.
        losses: The trainer's loss of each step.
        seconds: Wall-clock time of each step, evaluation left out.
        tokens: Raw tokens of each step, on all ranks.
    """

    k: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """``patch`` or ``token``."""
        return "patch" if self.k > 1 else "token"

    @property
    def positions(self) -> int:
        """Positions the model has computed in this stage."""
        return sum(self.tokens) // self.k

    @property
    def step_seconds(self) -> float:
        """The median time of a step; 0 before the first."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The median speed in raw tokens."""
        speeds = [n / s for n, s in zip(self.tokens, self.seconds, strict=True) if s > 0]
        return statistics.median(speeds) if speeds else 0.0


@dataclass
class EvalRecord:
    """A token-level evaluation: after how many batches, and its loss."""

    batch: int
    loss: float


@dataclass
class RunRecord:
    """The stages of a run in their order, and its evaluations. Holds primitives only."""

    stages: list[StageRecord] = field(default_factory=list)
    evals: list[EvalRecord] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(len(stage.losses) for stage in self.stages)

    @property
    def switch(self) -> int | None:
        """The batch after which the patch stage ended; ``None`` if there was no such moment."""
        if len(self.stages) < 2 or self.stages[0].k == 1:
            return None
        return len(self.stages[0].losses)

    @property
    def compute_share(self) -> float:
        """Positions computed as a share of token-only training on the same raw tokens."""
        tokens = sum(sum(stage.tokens) for stage in self.stages)
        return sum(stage.positions for stage in self.stages) / tokens if tokens else 1.0

    def eval_at(self, batch: int | None) -> float | None:
        """The loss evaluated after ``batch``, if there was an evaluation."""
        return next((e.loss for e in reversed(self.evals) if e.batch == batch), None)

    def state_dict(self) -> dict[str, Any]:
        """The record in primitives."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RunRecord:
        """The record that :meth:`state_dict` was made of."""
        return cls(
            stages=[StageRecord(**stage) for stage in state["stages"]],
            evals=[EvalRecord(**evaluation) for evaluation in state["evals"]],
        )


def loss_drop(losses: Sequence[float]) -> tuple[float, float]:
    """The mean loss of the first and of the last tenth of the steps, at least one step each."""
    tenth = max(1, len(losses) // 10)
    return statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])


def shortcomings(record: RunRecord, required_drop: float) -> list[str]:
    """What keeps a finished run from having learnt something in every stage.

    Args:
        record: The finished run.
        required_drop: What the mean loss of the last tenth of a stage must at least be below that of
            its first tenth, in nats.

    Returns:
        A sentence for each shortcoming; none where all is well.
    """
    found = []
    for stage in record.stages:
        first, last = loss_drop(stage.losses)
        if not first - last >= required_drop:  # written so that NaN falls short, too
            found.append(
                f"The loss of the {stage.name} stage went from {first:.3f} (mean of its first tenth) to "
                f"{last:.3f} (last tenth); a drop of at least {required_drop} was required."
            )
    if record.switch is None:
        return found
    at_switch, at_end = record.eval_at(record.switch), record.eval_at(record.steps)
    for moment, loss, batch in (
        ("switch", at_switch, record.switch),
        ("end", at_end, record.steps),
    ):
        if loss is None:
            found.append(
                f"There was no evaluation at the {moment} (batch {batch}): let eval_interval divide it."
            )
    if at_switch is not None and at_end is not None and not at_end < at_switch:
        found.append(f"The eval loss at the end, {at_end:.3f}, is not below {at_switch:.3f} at the switch.")
    return found


def summary(record: RunRecord, places: Mapping[str, str], note: str | None = None) -> str:
    """The text that ends a run.

    Args:
        record: The finished run.
        places: Where what was saved lies, by its name.
        note: A last paragraph.
    """
    titles = ("stage", "steps", "raw tokens", "positions", "raw tokens/s", "steps/s")
    lines = ["", "Summary", f"  {_columns(titles)}   loss, first and last tenth"]
    lines += [f"  {_stage_line(stage)}" for stage in record.stages]
    lines.append(
        f"  compute: {record.compute_share:.2f} of token-only training on the same raw tokens "
        "(positions / raw tokens)"
    )
    if record.switch is not None:
        patch, token = record.stages[0], record.stages[1]
        if token.tokens_per_second:
            faster = patch.tokens_per_second / token.tokens_per_second
            lines.append(f"  speed: the patch stage took in raw tokens {faster:.1f} times as fast")
    if record.evals:
        lines.append(f"  eval loss (token level): {_eval_line(record)}")
    lines += [f"  {name}: {place}" for name, place in places.items()]
    if note:
        lines.append(f"  {note.strip()}")
    return "\n".join(lines)


def _stage_line(stage: StageRecord) -> str:
    first, last = loss_drop(stage.losses)
    per_second = 1 / stage.step_seconds if stage.step_seconds else 0.0
    cells = (
        stage.name,
        f"{len(stage.losses):,}",
        f"{sum(stage.tokens):,}",
        f"{stage.positions:,}",
        f"{stage.tokens_per_second:,.0f}",
        f"{per_second:.2f}",
    )
    return f"{_columns(cells)}   {first:.3f} -> {last:.3f}"


def _columns(cells: Sequence[str]) -> str:
    return f"{cells[0]:<7}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells[1:], _WIDTHS, strict=True)
    )


def _eval_line(record: RunRecord) -> str:
    parts = []
    if (loss := record.eval_at(record.switch)) is not None:
        parts.append(f"{loss:.3f} at the switch (batch {record.switch})")
    last = record.evals[-1]
    when = "at the end" if last.batch == record.steps else "at the last evaluation"
    parts.append(f"{last.loss:.3f} {when} (batch {last.batch})")
    return ", ".join(parts)
